"""mov, cvt, cvta, comparisons and selections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from . import values as v
from .decode import Decoding, Execute, Lanes, instruction, window
from .parser import Pair, Vector
from .values import BITS, INTEGERS, TYPES, UNSIGNED, Array, PtxType

if TYPE_CHECKING:
    from .machine import Batch

EVERY = BITS | INTEGERS | {"f32", "f64"}
ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
CONVERTIBLE = frozenset({"u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64", "f16", "f32", "f64", "bf16"})


@instruction("mov")
def _move(d: Decoding) -> Execute:
    kind = d.type(EVERY | {"pred"})
    d.done(2)
    target, source = d.operands
    if isinstance(target, Vector):
        part = _part(d, kind, len(target.items))
        value = d.read(1, kind)
        writes = [d.writer(item, part) for item in target.items]
        unsigned, shifts = UNSIGNED[kind.bits], [part.bits * i for i in range(len(writes))]

        def unpack(batch: Batch, lanes: Lanes) -> None:
            bits = value(batch, lanes).view(unsigned).copy()
            for write, shift in zip(writes, shifts, strict=True):
                write(batch, lanes, (bits >> unsigned.type(shift)).astype(part.dtype))

        return unpack
    write = d.write(0, kind)
    if isinstance(source, Vector):
        part = _part(d, kind, len(source.items))
        reads = [d.reader(item, part) for item in source.items]
        unsigned = UNSIGNED[kind.bits]

        def packed(batch: Batch, lanes: Lanes) -> None:
            bits = np.zeros(1, unsigned)
            for i, read in enumerate(reads):
                bits = bits | (read(batch, lanes).astype(unsigned) << unsigned.type(part.bits * i))
            write(batch, lanes, bits.view(kind.dtype))

        return packed
    value = d.read(1, kind)
    return lambda batch, lanes: write(batch, lanes, value(batch, lanes))


def _part(d: Decoding, kind: PtxType, count: int) -> PtxType:
    if kind.kind != "b" or kind.bits % count or kind.bits // count not in (8, 16, 32):
        raise d.error()
    return TYPES[f"b{kind.bits // count}"]


@instruction("cvta")
def _generic_address(d: Decoding) -> Execute:
    kind = d.type({"u64"})
    to = d.flag("to")
    space = d.choice("global", "shared", "local", "param")
    d.done(2)
    value, write = d.read(1, kind), d.write(0, kind)
    if space == "global":
        return lambda batch, lanes: write(batch, lanes, value(batch, lanes))
    start = window(space)
    if to:
        return lambda batch, lanes: write(batch, lanes, value(batch, lanes) - start)
    return lambda batch, lanes: write(batch, lanes, value(batch, lanes) + start)


@instruction("cvt")
def _convert(d: Decoding) -> Execute:
    if d.modifiers and "x2" in d.modifiers[-2 if len(d.modifiers) > 1 else -1]:
        return _convert_pair(d)
    source, target = d.type(CONVERTIBLE), d.type(CONVERTIBLE)
    rounding = d.choice("rn", "rni", "rzi", "rmi", "rpi", default="")
    ftz = "f32" in (source.name, target.name) and d.flag("ftz")
    saturate = d.flag("sat")
    d.done(2)
    convert = _conversion(d, source, target, rounding, saturate)
    value = d.read(1, source, wider=True)
    write = d.extending_writer(d.operands[0], target)
    if ftz:
        before = v.flush if source.name == "f32" else lambda a: a
        after = v.flush if target.name == "f32" else lambda a: a
        return lambda batch, lanes: write(batch, lanes, after(convert(before(value(batch, lanes)))))
    return lambda batch, lanes: write(batch, lanes, convert(value(batch, lanes)))


def _conversion(
    d: Decoding, source: PtxType, target: PtxType, rounding: str, saturate: bool
) -> Callable[[Array], Array]:
    dtype = target.dtype
    if source.is_float and target.is_float:
        if saturate:
            raise d.error()
        return _float_to_float(d, source, target, rounding)
    if source.is_float:
        if rounding not in ROUND or source.kind == "h" or target.bits == 8:
            raise d.error()
        whole = ROUND[rounding]
        return lambda a: v.float_to_integer(whole(a), source, target)
    if target.is_float:
        if rounding != "rn" or saturate or (source.bits == 64 and target.bits == 16):
            raise d.error()
        if target.kind == "h":
            if source.bits > 16:
                raise d.error()  # float32 in between would round twice
            return lambda a: v.float32_to_bfloat16(a.astype(np.float32))
        if target.bits == 16:
            return lambda a: a.astype(np.float64).astype(np.float16)
        return lambda a: a.astype(dtype)
    if rounding:
        raise d.error()
    if saturate:
        if source.bits == 64 or target.bits == 64:
            raise d.error()
        limits = np.iinfo(dtype)
        return lambda a: np.clip(a.astype(np.int64), limits.min, limits.max).astype(dtype)
    return lambda a: a.astype(dtype)


def _float_to_float(d: Decoding, source: PtxType, target: PtxType, rounding: str) -> Callable[[Array], Array]:
    if source.name == target.name:
        if rounding not in ROUND or source.kind == "h":
            raise d.error()
        whole = ROUND[rounding]
        return lambda a: v.canonical(whole(a))
    if (rounding == "rn") != (target.bits < source.bits) or rounding in ROUND or source.bits == target.bits:
        raise d.error()  # .rn stands where, and only where, bits are lost
    if "h" in (source.kind, target.kind):
        if "f32" not in (source.name, target.name):
            raise d.error()
        return v.bfloat16_to_float32 if source.kind == "h" else v.float32_to_bfloat16
    dtype = target.dtype
    return lambda a: v.canonical(a.astype(dtype))


def _convert_pair(d: Decoding) -> Execute:
    """cvt.rn.f16x2.f32 d, a, b: a becomes the upper half."""
    source = d.type({"f32"})
    target = d.choice("f16x2", "bf16x2")
    d.choice("rn")
    d.done(3)
    high, low, write = d.read(1, source), d.read(2, source), d.write(0, "b32")

    def half(a: Array) -> Array:
        if target == "bf16x2":
            return v.float32_to_bfloat16(a).astype(np.uint32)
        return v.canonical(a.astype(np.float16)).view(np.uint16).astype(np.uint32)

    return lambda batch, lanes: write(
        batch, lanes, (half(high(batch, lanes)) << np.uint32(16)) | half(low(batch, lanes))
    )


COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
UNORDERED = {name + "u": name for name in COMPARE}


def _comparison(d: Decoding, kind: PtxType, name: str, ftz: bool) -> Callable[[Array, Array], Array]:
    if kind.kind == "b" and name not in ("eq", "ne"):
        raise d.error()
    if name in UNSIGNED_NAMES:
        if kind.kind != "u":
            raise d.error()
        return COMPARE[UNSIGNED_NAMES[name]]
    if not kind.is_float:
        if name not in COMPARE:
            raise d.error()
        return COMPARE[name]

    def compared(a: Array, b: Array) -> Array:
        if kind.kind == "h":
            a, b = v.bfloat16_to_float32(a), v.bfloat16_to_float32(b)
        if ftz:
            a, b = v.flush(a), v.flush(b)
        nan = np.isnan(a) | np.isnan(b)
        if name in ("nan", "num"):
            return nan if name == "nan" else ~nan
        if name in UNORDERED:
            return COMPARE[UNORDERED[name]](a, b) | nan
        return COMPARE[name](a, b) & ~nan

    return compared


@instruction("setp")
def _compare(d: Decoding) -> Execute:
    if d.modifiers and d.modifiers[-1] in ("f16x2", "bf16x2"):
        return _compare_pair(d)
    kind = d.type(EVERY | {"f16", "bf16"})
    ftz = kind.name == "f32" and d.flag("ftz")
    names = [*COMPARE, *UNSIGNED_NAMES, *UNORDERED, "nan", "num"]
    compare = _comparison(d, kind, d.choice(*names), ftz)
    combine = d.choice("and", "or", "xor", default="")
    d.done(4 if combine else 3)
    a, b = d.read(1, kind), d.read(2, kind)
    target = d.operands[0]
    pred = TYPES["pred"]
    writes = [d.writer(t, pred) for t in ((target.first, target.second) if isinstance(target, Pair) else (target,))]
    third = d.read(3, pred) if combine else None
    function = {"": None, "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[combine]
    if third is None and len(writes) == 1:
        write = writes[0]
        return lambda batch, lanes: write(batch, lanes, compare(a(batch, lanes), b(batch, lanes)))

    def execute(batch: Batch, lanes: Lanes) -> None:
        result = compare(a(batch, lanes), b(batch, lanes))
        other = third(batch, lanes).copy() if third is not None else None
        # The second destination gets the comparison's opposite.
        for write, value in zip(writes, (result, ~result), strict=False):
            write(batch, lanes, value if other is None or function is None else function(value, other))

    return execute


def _compare_pair(d: Decoding) -> Execute:
    """setp.eq.f16x2 p|q, a, b: p compares the lower halves, q the upper ones."""
    kind = TYPES[d.choice("f16x2", "bf16x2").removesuffix("x2")]
    compare = _comparison(d, kind, d.choice(*COMPARE, *UNORDERED, "nan", "num"), False)
    d.done(3)
    target = d.operands[0]
    if not isinstance(target, Pair):
        raise d.error()
    a, b = d.read(1, "b32"), d.read(2, "b32")
    writes = [d.writer(one, TYPES["pred"]) for one in (target.first, target.second)]

    def half(bits: Array, at: int) -> Array:
        return (bits >> np.uint32(16 * at)).astype(np.uint16).view(kind.dtype)

    def execute(batch: Batch, lanes: Lanes) -> None:
        x, y = a(batch, lanes), b(batch, lanes)
        for at, write in enumerate(writes):
            write(batch, lanes, compare(half(x, at), half(y, at)))

    return execute


@instruction("selp")
def _select(d: Decoding) -> Execute:
    kind = d.type(EVERY)
    d.done(4)
    a, b, choice, write = d.read(1, kind), d.read(2, kind), d.read(3, "pred"), d.write(0, kind)
    return lambda batch, lanes: write(batch, lanes, np.where(choice(batch, lanes), a(batch, lanes), b(batch, lanes)))
