"""PTX's types, and the arithmetic on them that numpy does not have.

A register holds its bits as an unsigned integer of its width (predicates: bool). A type says how an instruction
reads those bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class PtxError(Exception):
    """What a kernel must not do, or what the simulator does not know."""


@dataclass(frozen=True)
class PtxType:
    """``kind``: u, s and b integers, f floats, h bfloat16 (held as its bits), p predicates."""

    name: str
    kind: str
    bits: int
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        return self.kind in "fh"


UNSIGNED = {8: np.dtype(np.uint8), 16: np.dtype(np.uint16), 32: np.dtype(np.uint32), 64: np.dtype(np.uint64)}
SIGNED = {8: np.dtype(np.int8), 16: np.dtype(np.int16), 32: np.dtype(np.int32), 64: np.dtype(np.int64)}
FLOATS = {16: np.dtype(np.float16), 32: np.dtype(np.float32), 64: np.dtype(np.float64)}

TYPES: dict[str, PtxType] = {"pred": PtxType("pred", "p", 1, np.dtype(np.bool_))}
for _bits in (8, 16, 32, 64):
    TYPES[f"u{_bits}"] = PtxType(f"u{_bits}", "u", _bits, UNSIGNED[_bits])
    TYPES[f"b{_bits}"] = PtxType(f"b{_bits}", "b", _bits, UNSIGNED[_bits])
    TYPES[f"s{_bits}"] = PtxType(f"s{_bits}", "s", _bits, SIGNED[_bits])
    if _bits > 8:
        TYPES[f"f{_bits}"] = PtxType(f"f{_bits}", "f", _bits, FLOATS[_bits])
TYPES["bf16"] = PtxType("bf16", "h", 16, UNSIGNED[16])

INTEGERS = frozenset(name for name, t in TYPES.items() if t.kind in "us" and t.bits >= 16)
BITS = frozenset(name for name, t in TYPES.items() if t.kind == "b" and t.bits >= 16)

_SMALLEST_NORMAL = np.float32(2.0**-126)
_QUIET_NAN = {np.dtype(np.float32): 0x7FFFFFFF, np.dtype(np.float16): 0x7FFF}


def canonical(values: Array) -> Array:
    """Results of float32 and float16 arithmetic have one NaN on the device, whatever the operands' NaN were."""
    code = _QUIET_NAN.get(values.dtype)
    if code is not None:
        nan = np.isnan(values)
        if nan.any():
            bits = values.view(UNSIGNED[values.dtype.itemsize * 8]).copy()
            bits[nan] = code
            return bits.view(values.dtype)
    return values


def flush(values: Array) -> Array:
    """.ftz: float32 numbers too small to be normal become zero, of the same sign."""
    small = np.abs(values) < _SMALLEST_NORMAL
    return np.where(small, np.copysign(np.float32(0), values), values) if small.any() else values


def bfloat16_to_float32(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(values: Array) -> Array:
    """Round to nearest, ties to even; the bits as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded.astype(np.uint16))


def fused_multiply_add(a: Array, b: Array, c: Array) -> Array:
    """float32 a * b + c with a single rounding.

    The product is exact in float64. Their sum is rounded to odd there, so that the second rounding, to float32,
    gives what one rounding of the exact sum would.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = np.atleast_1d(product + addend)
    rest = total - product
    error = (product - (total - rest)) + (addend - rest)
    bits = total.view(np.int64)
    move = np.isfinite(total) & (error != 0) & ((bits & 1) == 0)
    if move.any():
        total = np.where(move, bits + np.where((error > 0) == (total > 0), 1, -1), bits).view(np.float64)
    return total.astype(np.float32)


def largest(a: Array, b: Array) -> Array:
    """max of floats: a number beats NaN, and +0 beats -0."""
    result = np.fmax(a, b)
    return _signed_zeros(a, b, result, np.bitwise_and)


def smallest(a: Array, b: Array) -> Array:
    """min of floats: a number beats NaN, and -0 beats +0."""
    result = np.fmin(a, b)
    return _signed_zeros(a, b, result, np.bitwise_or)


def _signed_zeros(a: Array, b: Array, result: Array, combine: np.ufunc) -> Array:
    zeros = (a == 0) & (b == 0)
    if not zeros.any():
        return result
    unsigned = UNSIGNED[result.dtype.itemsize * 8]
    a, b, zeros = np.broadcast_arrays(a, b, zeros)
    bits = np.ascontiguousarray(result).view(unsigned).copy()
    both = combine(np.ascontiguousarray(a).view(unsigned), np.ascontiguousarray(b).view(unsigned))
    bits[zeros] = both[zeros]
    return bits.view(result.dtype)


def truncated_divide(a: Array, b: Array) -> Array:
    """Integer division towards zero, as in C; numpy's goes towards minus infinity."""
    quotient = np.floor_divide(a, b)
    if a.dtype.kind == "i":
        inexact = quotient * b != a
        quotient = np.where(inexact & ((a < 0) != (b < 0)), quotient + a.dtype.type(1), quotient)
    return quotient


def multiply_high(a: Array, b: Array) -> Array:
    """The upper half of the product of two integers of the same type."""
    bits = a.dtype.itemsize * 8
    if bits < 64:
        wide = (SIGNED if a.dtype.kind == "i" else UNSIGNED)[2 * bits]
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(bits)).astype(a.dtype)
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x, y = a.view(np.uint64), b.view(np.uint64)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + ((x0 * y0) >> half)
    upper = x1 * y1 + (middle >> half) + ((x0 * y1 + (middle & low)) >> half)
    if a.dtype.kind == "i":  # A negative factor counts 2**64 too much.
        upper = upper - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return upper.view(a.dtype)


def shift(values: Array, count: Array, left: bool) -> Array:
    """Shifts by ``bits`` or more give 0, or the sign; count is uint32."""
    bits = values.dtype.itemsize * 8
    inside = np.minimum(count, np.uint32(bits - 1)).astype(values.dtype)
    shifted = np.left_shift(values, inside) if left else np.right_shift(values, inside)
    if values.dtype.kind == "i" and not left:
        return shifted
    return np.where(count >= bits, values.dtype.type(0), shifted)


def float_to_integer(values: Array, source: PtxType, target: PtxType) -> Array:
    """``values`` are rounded already: saturates; NaN is 0, or the top bit where one of the two has 64 bits."""
    limits = np.iinfo(target.dtype)
    wide = values.astype(np.float64)
    # The largest integers are no float64: compare with the power of two above them.
    above, below = wide >= float(limits.max) + (0 if target.bits == 64 else 1), wide < float(limits.min)
    nan = np.isnan(wide)
    result = np.where(above | below | nan, 0.0, wide).astype(target.dtype)
    result = np.where(above, limits.max, np.where(below, limits.min, result)).astype(target.dtype)
    if nan.any() and (source.bits == 64 or target.bits == 64):
        top = np.array([1 << (target.bits - 1)], UNSIGNED[target.bits]).view(target.dtype)
        result = np.where(nan, top, result)
    return result


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """prmt.b32: each nibble of the selector names a byte of {b, a}, or with its top bit that byte's sign."""
    both = (b.astype(np.uint64) << np.uint64(32)) | a.astype(np.uint64)
    result = np.zeros(np.broadcast(a, b, selector).shape, np.uint32)
    for position in range(4):
        nibble = (selector >> np.uint32(4 * position)) & np.uint32(15)
        byte = (both >> ((nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8))).astype(np.uint32) & np.uint32(255)
        sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
        result |= np.where(nibble & np.uint32(8), sign, byte) << np.uint32(8 * position)
    return result


def extract_field(values: Array, position: Array, length: Array) -> Array:
    """bfe: bits from ``position``, sign-extended for signed types; bits beyond the top repeat the sign (or are 0)."""
    bits = values.dtype.itemsize * 8
    position, length = position & np.uint32(255), length & np.uint32(255)
    moved = shift(values, position, left=False)
    spare = np.uint32(bits) - np.minimum(length, np.uint32(bits))
    unsigned = moved.view(UNSIGNED[bits])
    if values.dtype.kind == "i":
        # The sign is the field's top bit, or the value's where the field reaches beyond it.
        moved = shift(unsigned, spare, left=True).view(values.dtype)
        return np.where(length == 0, values.dtype.type(0), shift(moved, spare, left=False))
    return shift(shift(unsigned, spare, left=True), spare, left=False)


def insert_field(field: Array, base: Array, position: Array, length: Array) -> Array:
    """bfi: ``length`` bits of ``field`` put into ``base`` at ``position``."""
    bits = base.dtype.itemsize * 8
    ones = np.full(1, ~base.dtype.type(0), base.dtype)
    position, length = position & np.uint32(255), length & np.uint32(255)
    mask = shift(ones, np.uint32(bits) - np.minimum(length, np.uint32(bits)), left=False)
    mask = np.where(length == 0, base.dtype.type(0), mask)
    mask, moved = shift(mask, position, left=True), shift(field, position, left=True)
    return (base & ~mask) | (moved & mask)


def logic3(a: Array, b: Array, c: Array, table: int) -> Array:
    """lop3: bit i of the table is the result for the three bits a, b, c of i (a is the most significant)."""
    result = np.zeros(np.broadcast(a, b, c).shape, a.dtype)
    for row in range(8):
        if table >> row & 1:
            result = result | ((a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c))
    return result


def count_ones(values: Array) -> Array:
    values = np.ascontiguousarray(values)
    bits = np.unpackbits(values.view(np.uint8).reshape(len(values), -1), axis=1)
    return bits.sum(1, dtype=np.uint32)


def highest_bit(values: Array) -> Array:
    """The index of the highest set bit of unsigned integers as int64, -1 for 0."""
    values = np.ascontiguousarray(values)
    bits = np.unpackbits(values.view(np.uint8).reshape(len(values), -1), axis=1, bitorder="little")
    width = bits.shape[1]
    index = width - 1 - np.argmax(bits[:, ::-1], axis=1)
    return np.where(bits.any(1), index, -1)


def reverse_bits(values: Array) -> Array:
    values = np.ascontiguousarray(values)
    size = values.dtype.itemsize
    bits = np.unpackbits(values.view(np.uint8).reshape(-1, size), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(values.dtype)[:, 0]
