"""Integer, float and logic instructions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import values as v
from .decode import Decoding, Execute, instruction
from .values import BITS, INTEGERS, TYPES, Array, PtxType

FLOATS = frozenset({"f32", "f64"})
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}

Function = Callable[..., Array]


def elementwise(d: Decoding, kind: PtxType, function: Function, sources: int, ftz: bool = False) -> Execute:
    """destination = function(sources), all of one type."""
    reads = [d.read(1 + i, kind) for i in range(sources)]
    write, dtype = d.write(0, kind), kind.dtype
    if kind.kind == "f" and ftz:
        return lambda batch, lanes: write(
            batch, lanes, v.canonical(v.flush(function(*(v.flush(r(batch, lanes)) for r in reads)).astype(dtype)))
        )
    if kind.kind == "f":
        return lambda batch, lanes: write(
            batch, lanes, v.canonical(function(*(r(batch, lanes) for r in reads)).astype(dtype, copy=False))
        )
    return lambda batch, lanes: write(
        batch, lanes, function(*(r(batch, lanes) for r in reads)).astype(dtype, copy=False)
    )


def _float_flags(d: Decoding, kind: PtxType) -> bool:
    """Rounding to nearest is what every float operation here does; tells whether .ftz stands there."""
    d.ignore("rn")
    return kind.name == "f32" and d.flag("ftz")


@instruction("add", "sub")
def _add(d: Decoding) -> Execute:
    kind = d.type(INTEGERS | FLOATS)
    ftz = kind.is_float and _float_flags(d, kind)
    d.done(3)
    return elementwise(d, kind, np.add if d.instruction.opcode == "add" else np.subtract, 2, ftz)


@instruction("mul")
def _multiply(d: Decoding) -> Execute:
    kind = d.type(INTEGERS | FLOATS)
    if kind.is_float:
        ftz = _float_flags(d, kind)
        d.done(3)
        return elementwise(d, kind, np.multiply, 2, ftz)
    half = d.choice("lo", "hi", "wide")
    d.done(3)
    if half == "wide":
        return _wide(d, kind, 2)
    return elementwise(d, kind, np.multiply if half == "lo" else v.multiply_high, 2)


@instruction("mad")
def _multiply_add(d: Decoding) -> Execute:
    kind = d.type(INTEGERS)
    half = d.choice("lo", "hi", "wide")
    d.done(4)
    if half == "wide":
        return _wide(d, kind, 3)
    multiply = np.multiply if half == "lo" else v.multiply_high
    return elementwise(d, kind, lambda a, b, c: multiply(a, b) + c, 3)


def _wide(d: Decoding, kind: PtxType, sources: int) -> Execute:
    if kind.name not in WIDER:
        raise d.error()
    wide = TYPES[WIDER[kind.name]]
    a, b, write, dtype = d.read(1, kind), d.read(2, kind), d.write(0, wide), wide.dtype
    if sources == 2:
        return lambda batch, lanes: write(batch, lanes, a(batch, lanes).astype(dtype) * b(batch, lanes).astype(dtype))
    c = d.read(3, wide)
    return lambda batch, lanes: write(
        batch, lanes, a(batch, lanes).astype(dtype) * b(batch, lanes).astype(dtype) + c(batch, lanes)
    )


@instruction("fma")
def _fused(d: Decoding) -> Execute:
    kind = d.type({"f32"})
    d.choice("rn")
    ftz = d.flag("ftz")
    d.done(4)
    return elementwise(d, kind, v.fused_multiply_add, 3, ftz)


@instruction("div")
def _divide(d: Decoding) -> Execute:
    kind = d.type(INTEGERS | FLOATS)
    if kind.is_float:
        # The approximate divisions are computed exactly: their error is the device's own.
        d.choice("rn", *(("full", "approx") if kind.bits == 32 else ()))
        ftz = kind.bits == 32 and d.flag("ftz")
        d.done(3)
        return elementwise(d, kind, np.divide, 2, ftz)
    d.done(3)
    return elementwise(d, kind, _without_zero(d, v.truncated_divide), 2)


@instruction("rem")
def _remainder(d: Decoding) -> Execute:
    kind = d.type(INTEGERS)
    d.done(3)
    return elementwise(d, kind, _without_zero(d, lambda a, b: a - v.truncated_divide(a, b) * b), 2)


def _without_zero(d: Decoding, function: Function) -> Function:
    def checked(a: Array, b: Array) -> Array:
        if (b == 0).any():
            raise d.error("division by zero")
        return function(a, b)

    return checked


@instruction("min", "max")
def _extreme(d: Decoding) -> Execute:
    kind = d.type(INTEGERS | FLOATS | {"f16", "bf16"})
    low = d.instruction.opcode == "min"
    if not kind.is_float:
        d.done(3)
        return elementwise(d, kind, np.minimum if low else np.maximum, 2)
    ftz, keep_nan = kind.bits == 32 and d.flag("ftz"), kind.bits <= 32 and d.flag("NaN")
    d.done(3)
    number = v.smallest if low else v.largest

    def function(a: Array, b: Array) -> Array:
        if keep_nan:
            return np.where(np.isnan(a) | np.isnan(b), a.dtype.type(np.nan), number(a, b))
        return number(a, b)

    def function_of_bits(a: Array, b: Array) -> Array:
        return v.float32_to_bfloat16(function(v.bfloat16_to_float32(a), v.bfloat16_to_float32(b)))

    return elementwise(d, kind, function_of_bits if kind.kind == "h" else function, 2, ftz)


@instruction("neg", "abs")
def _sign(d: Decoding) -> Execute:
    kind = d.type(FLOATS | {"s16", "s32", "s64"})
    ftz = kind.name == "f32" and d.flag("ftz")
    d.done(2)
    return elementwise(d, kind, np.negative if d.instruction.opcode == "neg" else np.abs, 1, ftz)


@instruction("sqrt", "rcp")
def _root(d: Decoding) -> Execute:
    kind = d.type(FLOATS)
    d.choice("rn", *(("approx",) if kind.bits == 32 else ()))
    ftz = kind.bits == 32 and d.flag("ftz")
    d.done(2)
    one = kind.dtype.type(1)
    return elementwise(d, kind, np.sqrt if d.instruction.opcode == "sqrt" else lambda a: one / a, 1, ftz)


@instruction("rsqrt", "ex2", "lg2")
def _approximate(d: Decoding) -> Execute:
    """Computed in float64 and rounded: the device's own error is not modelled."""
    kind = d.type({"f32"})
    d.choice("approx")
    ftz = d.flag("ftz")
    d.done(2)
    function = {"ex2": np.exp2, "lg2": np.log2, "rsqrt": lambda a: 1.0 / np.sqrt(a)}[d.instruction.opcode]
    return elementwise(d, kind, lambda a: function(a.astype(np.float64)), 1, ftz)


@instruction("and", "or", "xor")
def _logic(d: Decoding) -> Execute:
    kind = d.type(BITS | {"pred"})
    d.done(3)
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[d.instruction.opcode]
    return elementwise(d, kind, function, 2)


@instruction("not")
def _not(d: Decoding) -> Execute:
    kind = d.type(BITS | {"pred"})
    d.done(2)
    return elementwise(d, kind, np.invert, 1)


@instruction("lop3")
def _logic3(d: Decoding) -> Execute:
    kind = d.type({"b32"})
    d.done(5)
    table = int(d.read(4, "u32")(None, None)[0])  # type: ignore[arg-type]  # a constant reads no batch
    return elementwise(d, kind, lambda a, b, c: v.logic3(a, b, c, table), 3)


@instruction("shl", "shr")
def _shift(d: Decoding) -> Execute:
    left = d.instruction.opcode == "shl"
    kind = d.type(BITS if left else BITS | INTEGERS)
    d.done(3)
    value, count, write = d.read(1, kind), d.read(2, "u32"), d.write(0, kind)
    return lambda batch, lanes: write(batch, lanes, v.shift(value(batch, lanes), count(batch, lanes), left))


@instruction("shf")
def _funnel_shift(d: Decoding) -> Execute:
    """shf.l: the upper half of {b, a} << count; shf.r: the lower half of {b, a} >> count."""
    d.type({"b32"})
    left, wrap = d.choice("l", "r") == "l", d.choice("wrap", "clamp") == "wrap"
    d.done(4)
    low, high, count, write = d.read(1, "b32"), d.read(2, "b32"), d.read(3, "u32"), d.write(0, "b32")

    def shifted(a: Array, b: Array, n: Array) -> Array:
        n = (n & np.uint32(31) if wrap else np.minimum(n, np.uint32(32))).astype(np.uint64)
        both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
        moved = (both << n) >> np.uint64(32) if left else both >> n
        return moved.astype(np.uint32)

    return lambda batch, lanes: write(batch, lanes, shifted(low(batch, lanes), high(batch, lanes), count(batch, lanes)))


@instruction("prmt")
def _permute(d: Decoding) -> Execute:
    kind = d.type({"b32"})
    d.done(4)
    return elementwise(d, kind, v.permute_bytes, 3)


@instruction("bfe")
def _extract(d: Decoding) -> Execute:
    kind = d.type({"u32", "s32", "u64", "s64"})
    d.done(4)
    value, position, length, write = d.read(1, kind), d.read(2, "u32"), d.read(3, "u32"), d.write(0, kind)
    return lambda batch, lanes: write(
        batch, lanes, v.extract_field(value(batch, lanes), position(batch, lanes), length(batch, lanes))
    )


@instruction("bfi")
def _insert(d: Decoding) -> Execute:
    kind = d.type({"b32", "b64"})
    d.done(5)
    field, base, write = d.read(1, kind), d.read(2, kind), d.write(0, kind)
    position, length = d.read(3, "u32"), d.read(4, "u32")
    return lambda batch, lanes: write(
        batch,
        lanes,
        v.insert_field(field(batch, lanes), base(batch, lanes), position(batch, lanes), length(batch, lanes)),
    )


@instruction("popc", "clz")
def _count_bits(d: Decoding) -> Execute:
    kind = d.type({"b32", "b64"})
    d.done(2)
    value, write, bits = d.read(1, kind), d.write(0, "u32"), kind.bits
    if d.instruction.opcode == "popc":
        return lambda batch, lanes: write(batch, lanes, v.count_ones(value(batch, lanes)))
    return lambda batch, lanes: write(batch, lanes, (bits - 1 - v.highest_bit(value(batch, lanes))).astype(np.uint32))


@instruction("brev")
def _reverse(d: Decoding) -> Execute:
    kind = d.type({"b32", "b64"})
    d.done(2)
    return elementwise(d, kind, v.reverse_bits, 1)


@instruction("bfind")
def _find_highest(d: Decoding) -> Execute:
    """The highest set bit of unsigned values; all ones for 0."""
    kind = d.type({"u32", "u64"})
    as_shift = d.flag("shiftamt")
    d.done(2)
    value, write, bits = d.read(1, kind), d.write(0, "u32"), kind.bits

    def found(a: Array) -> Array:
        index = v.highest_bit(a)
        return np.where(index < 0, -1, bits - 1 - index if as_shift else index).astype(np.uint32)

    return lambda batch, lanes: write(batch, lanes, found(value(batch, lanes)))
