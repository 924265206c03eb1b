"""The PTX simulator against numpy and exact arithmetic, instruction by instruction."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from ptxsim.snippets import STORE, apply, kernel, run

RNG = np.random.default_rng(0)
COUNT = 1024
EDGES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1.5,
    2.5,
    -2.5,
    np.inf,
    -np.inf,
    np.nan,
    1e-40,
    -1e-40,
    3.4e38,
    65504.0,
    65520.0,
    2**31,
    -(2**31),
]


def integers(kind: str, count: int = COUNT) -> np.ndarray:
    info = np.iinfo(kind)
    values = RNG.integers(info.min, info.max, count, dtype=kind, endpoint=True)
    small = RNG.integers(0, 40, count).astype(kind)
    values = np.where(RNG.random(count) < 0.3, small, values)
    values[:4] = info.min, info.max, 0, 1
    return RNG.permutation(values)


def floats(dtype: type = np.float32, count: int = COUNT) -> np.ndarray:
    values = (RNG.normal(0, 1, count) * 10.0 ** RNG.integers(-6, 7, count)).astype(dtype)
    with np.errstate(over="ignore"):
        values[: len(EDGES)] = np.asarray(EDGES).astype(dtype)
    return RNG.permutation(values)


def same(got: np.ndarray, want: np.ndarray) -> None:
    """Equal to the bit, but that any NaN is NaN."""
    assert got.dtype == want.dtype
    nan = got.dtype.kind == "f"
    wrong = (
        ~((got == want) & (np.signbit(got) == np.signbit(want)) | (np.isnan(got) & np.isnan(want)))
        if nan
        else got != want
    )
    assert not wrong.any(), (np.flatnonzero(wrong)[:5], got[wrong][:5], want[wrong][:5])


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
@pytest.mark.parametrize(
    ("opcode", "exact"),
    [
        ("add", lambda a, b: a + b),
        ("sub", lambda a, b: a - b),
        ("mul.lo", lambda a, b: a * b),
        ("mul.hi", lambda a, b, bits: (a * b) >> bits),
        ("min", min),
        ("max", max),
        ("div", lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)),
        ("rem", lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1)),
    ],
)
def test_integer_arithmetic(kind: str, opcode: str, exact) -> None:
    dtype = {"u": "uint", "s": "int"}[kind[0]] + kind[1:]
    a, b = integers(dtype), integers(dtype)
    bits = int(kind[1:])
    if opcode in ("div", "rem"):
        b[b == 0] = 3
    extra = (bits,) if opcode == "mul.hi" else ()
    want = [exact(int(x), int(y), *extra) & (2**bits - 1) for x, y in zip(a, b, strict=True)]
    got = apply(f"{opcode}.{kind} d, a, b", kind, kind, (a, b))
    same(got, np.array(want, f"uint{bits}").view(dtype))


@pytest.mark.parametrize(("narrow", "wide"), [("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64")])
def test_wide_products(narrow: str, wide: str) -> None:
    names = {"u": "uint", "s": "int"}
    a, b = (integers(names[narrow[0]] + narrow[1:]) for _ in range(2))
    want = a.astype(names[wide[0]] + wide[1:]) * b.astype(names[wide[0]] + wide[1:])
    same(apply(f"mul.wide.{narrow} d, a, b", narrow, wide, (a, b)), want)
    same(apply(f"mad.wide.{narrow} d, a, b, 7", narrow, wide, (a, b)), want + want.dtype.type(7))


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize(
    ("opcode", "function"),
    [("add.rn", np.add), ("sub.rn", np.subtract), ("mul.rn", np.multiply), ("div.rn", np.divide)],
)
def test_float_arithmetic(kind: str, opcode: str, function: np.ufunc) -> None:
    dtype = np.float32 if kind == "f32" else np.float64
    a, b = floats(dtype), floats(dtype)
    with np.errstate(all="ignore"):
        same(apply(f"{opcode}.{kind} d, a, b", kind, kind, (a, b)), function(a, b))


def test_fma_rounds_once() -> None:
    a, b, c = (floats() for _ in range(3))
    # Products that nearly cancel, where two roundings show.
    c[:500] = -(a[:500] * b[:500])
    c[500:700] = np.float32(1) * np.float32(2.0**-70)
    a[500:700] = 1 + RNG.integers(1, 2**12, 200).astype(np.float32) * np.float32(2.0**-12)
    b[500:700] = 1 + RNG.integers(1, 2**12, 200).astype(np.float32) * np.float32(2.0**-12)
    got = apply("fma.rn.f32 d, a, b, c", "f32", "f32", (a, b, c))
    twice = 0
    for x, y, z, result in zip(a, b, c, got, strict=True):
        if not (np.isfinite([x, y, z]).all() and np.isfinite(result)):
            continue
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        error = abs(Fraction(float(result)) - exact)
        for other in (np.nextafter(result, np.float32(np.inf)), np.nextafter(result, np.float32(-np.inf))):
            if np.isfinite(other):
                assert error <= abs(Fraction(float(other)) - exact)
        twice += float(np.float32(float(x) * float(y) + float(z))) != float(result)
    same(
        apply("fma.rn.f32 d, a, b, c", "f32", "f32", (np.float32([np.inf]), np.float32([0]), np.float32([1]))),
        np.float32([np.nan]),
    )
    assert twice > 0, "no example tells one rounding from two"


def test_extremes_of_floats() -> None:
    a, b = np.float32([np.nan, 1, -0.0, 0.0, np.nan, -1]), np.float32([1, np.nan, 0.0, -0.0, np.nan, 2])
    same(apply("max.f32 d, a, b", "f32", "f32", (a, b)), np.float32([1, 1, 0.0, 0.0, np.nan, 2]))
    same(apply("min.f32 d, a, b", "f32", "f32", (a, b)), np.float32([1, 1, -0.0, -0.0, np.nan, -1]))
    got = apply("max.NaN.f32 d, a, b", "f32", "f32", (a, b))
    assert np.isnan(got[[0, 1, 4]]).all()
    assert not np.isnan(got[[2, 3, 5]]).any()
    assert got.view(np.uint32)[0] == 0x7FFFFFFF
    halves = (a.astype(np.float16), b.astype(np.float16))
    same(apply("max.f16 d, a, b", "f16", "f16", halves), np.float16([1, 1, 0.0, 0.0, np.nan, 2]))
    same(apply("max.NaN.f16 d, a, b", "f16", "f16", halves), np.float16([np.nan, np.nan, 0.0, 0.0, np.nan, 2]))
    brains = tuple((x.view(np.uint32) >> np.uint32(16)).astype(np.uint16) for x in (a, b))
    got = apply("max.NaN.bf16 d, a, b", "bf16", "bf16", brains)
    same(got, np.uint16([0x7FFF, 0x7FFF, 0, 0, 0x7FFF, 0x4000]))


def test_flush_to_zero() -> None:
    a, b = np.float32([1e-40, -1e-40, 1.0, 1.5e-38]), np.float32([1.0, 1.0, 1e-40, 0.5])
    same(apply("mul.ftz.f32 d, a, b", "f32", "f32", (a, b)), np.float32([0.0, -0.0, 0.0, 0.0]))
    assert (apply("mul.f32 d, a, b", "f32", "f32", (a, b)) != 0).all()


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize("target", ["s32", "u32", "s64", "u16"])
def test_floats_to_integers(mode: str, source: str, target: str) -> None:
    a = floats(np.float32 if source == "f32" else np.float64)
    info = np.iinfo(("int" if target[0] == "s" else "uint") + target[1:])
    rounding = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode](a)
    nan = 1 << (info.bits - 1) if source == "f64" or info.bits == 64 else 0
    want = []
    for value in rounding:
        if np.isnan(value):
            want.append(nan)
        else:
            want.append(
                int(
                    max(
                        info.min,
                        min(info.max, int(value) if np.isfinite(value) else (info.max if value > 0 else info.min)),
                    )
                )
            )
    bits = np.array([w & (2**info.bits - 1) for w in want], f"uint{info.bits}")
    same(apply(f"cvt.{mode}.{target}.{source} d, a", source, target, (a,)), bits.view(info.dtype))


def test_conversions_between_floats() -> None:
    a = np.concatenate([floats(), np.float32([1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-25, 2.0**-24 * 1.5, 65519.9])])[
        :1024
    ]
    tensor = torch.from_numpy(a)
    same(apply("cvt.rn.f16.f32 d, a", "f32", "f16", (a,)), tensor.half().numpy())
    got = apply("cvt.rn.bf16.f32 d, a", "f32", "bf16", (a,))
    want = tensor.bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert (got[~np.isnan(a)] == want[~np.isnan(a)]).all()
    assert (got[np.isnan(a)] == 0x7FFF).all()
    same(apply("cvt.f32.bf16 d, a", "bf16", "f32", (want,)), tensor.bfloat16().float().numpy())
    wide = floats(np.float64)
    with np.errstate(all="ignore"):
        same(apply("cvt.rn.f32.f64 d, a", "f64", "f32", (wide,)), wide.astype(np.float32))
    same(apply("cvt.f64.f32 d, a", "f32", "f64", (a,)), a.astype(np.float64))
    same(apply("cvt.rni.f64.f64 d, a", "f64", "f64", (wide,)), np.rint(wide))


def test_conversions_of_integers() -> None:
    a = integers("int32")
    same(apply("cvt.rn.f32.s32 d, a", "s32", "f32", (a,)), a.astype(np.float32))
    same(apply("cvt.u64.u32 d, a", "u32", "u64", (a,)), a.view(np.uint32).astype(np.uint64))
    same(apply("cvt.s64.s32 d, a", "s32", "s64", (a,)), a.astype(np.int64))
    same(apply("cvt.u16.u32 d, a", "u32", "u16", (a,)), a.view(np.uint32).astype(np.uint16))
    # The narrow type of a wider register: its low bits, sign- or zero-extended.
    same(apply("cvt.s32.s8 d, a", "s32", "s32", (a,)), a.astype(np.int8).astype(np.int32))
    same(apply("cvt.rn.f32.u8 d, a", "u32", "f32", (a,)), a.astype(np.uint8).astype(np.float32))
    same(apply("cvt.sat.u8.s32 d, a", "s32", "u16", (a,)), np.clip(a, 0, 255).astype(np.uint16))
    long = integers("int64")
    same(apply("cvt.rn.f64.s64 d, a", "s64", "f64", (long,)), long.astype(np.float64))


def test_bits() -> None:
    a, b, c = (integers("uint32") for _ in range(3))
    ints = [(int(x), int(y), int(z)) for x, y, z in zip(a, b, c, strict=True)]

    def check(text: str, exact, source: str = "u32") -> None:
        want = np.array([exact(*row) & 0xFFFFFFFF for row in ints], np.uint32)
        same(apply(text, source, source, (a, b, c)), want.view(np.int32) if source == "s32" else want)

    check("lop3.b32 d, a, b, c, 0xe8", lambda x, y, z: (x & y) | (x & z) | (y & z))
    check("lop3.b32 d, a, b, c, 150", lambda x, y, z: x ^ y ^ z)
    check("shf.l.wrap.b32 d, a, b, c", lambda x, y, z: ((y << 32 | x) << (z & 31)) >> 32)
    check("shf.r.clamp.b32 d, a, b, c", lambda x, y, z: (y << 32 | x) >> min(z, 32))
    check("shl.b32 d, a, b", lambda x, y, z: x << y if y < 32 else 0)
    check("shr.u32 d, a, b", lambda x, y, z: x >> y if y < 32 else 0)
    check("shr.s32 d, a, b", lambda x, y, z: (x - (x >> 31 << 32)) >> min(y, 31), "s32")
    check("popc.b32 d, a", lambda x, y, z: x.bit_count())
    check("clz.b32 d, a", lambda x, y, z: 32 - x.bit_length())
    check("brev.b32 d, a", lambda x, y, z: int(f"{x:032b}"[::-1], 2))
    check("bfind.u32 d, a", lambda x, y, z: x.bit_length() - 1)
    check("bfe.u32 d, a, b, c", lambda x, y, z: (x >> (y & 255)) & ((1 << min(z & 255, 32)) - 1))
    check("bfi.b32 d, a, b, 5, 9", lambda x, y, z: (y & ~(511 << 5)) | ((x & 511) << 5))
    check("bfi.b32 d, a, b, 28, 9", lambda x, y, z: (y & ~(511 << 28)) | ((x & 511) << 28))
    check("not.b32 d, a", lambda x, y, z: ~x)

    def signed_field(x: int, y: int, z: int) -> int:
        value, start, length = x - (x >> 31 << 32), y & 255, z & 255
        if length == 0:
            return 0
        field = (value >> start) & ((1 << length) - 1)
        sign = value >> min(start + length - 1, 31) & 1
        return field - (sign << length)

    check("bfe.s32 d, a, b, c", signed_field, "s32")

    def permuted(x: int, y: int, z: int) -> int:
        source, result = (y << 32 | x).to_bytes(8, "little"), 0
        for i in range(4):
            nibble = z >> 4 * i & 15
            byte = source[nibble & 7]
            result |= (255 * (byte >> 7) if nibble & 8 else byte) << 8 * i
        return result

    check("prmt.b32 d, a, b, c", permuted)


@pytest.mark.parametrize(
    "name", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "nan", "num"]
)
def test_comparisons_with_nan(name: str) -> None:
    a, b = floats(), floats()
    b[::3] = a[::3]
    body = """
    mul.wide.u32 %d10, %r0, 4;
    add.s64 %d11, %d0, %d10; ld.global.b32 %r1, [%d11];
    add.s64 %d11, %d1, %d10; ld.global.b32 %r2, [%d11];
    setp.NAME.f32 %p1, %r1, %r2;
    selp.b32 %r3, 1, 0, %p1;
    add.s64 %d11, %d2, %d10; st.global.b32 [%d11], %r3;"""
    got = np.zeros(COUNT, np.uint32)
    run(kernel(body.replace("NAME", name), 3), (a, b, got), COUNT)
    nan = np.isnan(a) | np.isnan(b)
    plain = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    want = (
        {"nan": nan, "num": ~nan}
        | {k: v & ~nan for k, v in plain.items()}
        | {k + "u": v | nan for k, v in plain.items()}
    )
    same(got, want[name].astype(np.uint32))


def test_pairs_of_halves() -> None:
    a, b = floats(), floats()
    b[::2] = a[::2]
    with np.errstate(over="ignore"):
        low, high = b.astype(np.float16), a.astype(np.float16)
    got = apply("cvt.rn.f16x2.f32 d, a, b", "f32", "u32", (a, b)).view(np.float16).reshape(-1, 2)
    same(got, np.stack([low, high], 1))
    body = """
    mul.wide.u32 %d10, %r0, 4;
    add.s64 %d11, %d1, %d10; ld.global.b32 %r1, [%d11];
    add.s64 %d11, %d2, %d10; ld.global.b32 %r2, [%d11];
    setp.eq.f16x2 %p1|%p2, %r1, %r2;
    selp.b32 %r9, 1, 0, %p1;
    selp.b32 %r3, 10, 0, %p2;
    add.s32 %r9, %r9, %r3;
"""
    out = np.zeros(512, np.int32)
    run(kernel(body + STORE, 3), (out, low.view(np.uint32), high.view(np.uint32)), 512)
    equal = (low == high).reshape(-1, 2)
    same(out, (equal[:, 0] + 10 * equal[:, 1]).astype(np.int32))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_matrix_product(kind: str) -> None:
    """By the fragments of the PTX ISA's pictures, element by element; two warps, two matrices."""
    dtype = torch.float16 if kind == "f16" else torch.bfloat16
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(2, *size, generator=generator).to(dtype) for size in ((16, 16), (16, 8)))
    c = torch.randn(2, 16, 8, generator=generator)
    a[1, 3, 5] = torch.nan
    fragments = {name: np.zeros((many, 64, 2), np.uint16) for name, many in (("a", 4), ("b", 2))}
    sums = np.zeros((4, 64), np.float32)
    for thread in range(64):
        warp, group, rest = thread // 32, thread % 32 // 4, thread % 4
        for i in range(8):
            row = group + (0 if i % 4 < 2 else 8)
            column = rest * 2 + (i & 1) + (0 if i < 4 else 8)
            fragments["a"][i // 2, thread, i % 2] = a[warp, row, column].view(torch.int16).item() & 0xFFFF
        for i in range(4):
            row = rest * 2 + (i & 1) + (0 if i < 2 else 8)
            fragments["b"][i // 2, thread, i % 2] = b[warp, row, group].view(torch.int16).item() & 0xFFFF
            sums[i, thread] = c[warp, group + (0 if i < 2 else 8), rest * 2 + (i & 1)]
    lines = ["    mul.wide.u32 %d10, %r0, 4;"]
    for i in range(10):
        source, first = (0, 0) if i < 4 else (1, 4) if i < 6 else (2, 6)
        lines.append(f"    add.s64 %d11, %d{source}, %d10;")
        lines.append(f"    ld.global.b32 %r{20 + i}, [%d11+{256 * (i - first)}];")
    lines.append(
        f"    mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32 {{%r40, %r41, %r42, %r43}}, "
        "{%r20, %r21, %r22, %r23}, {%r24, %r25}, {%r26, %r27, %r28, %r29};"
    )
    lines.append("    add.s64 %d11, %d3, %d10;")
    lines += [f"    st.global.b32 [%d11+{256 * i}], %r{40 + i};" for i in range(4)]
    out = np.zeros((4, 64), np.float32)
    run(kernel("\n".join(lines)), (fragments["a"], fragments["b"], sums, out), 64)
    want = (a.double() @ b.double() + c.double()).float().numpy()
    got = np.zeros((2, 16, 8), np.float32)
    for thread in range(64):
        for i in range(4):
            got[thread // 32, thread % 32 // 4 + (0 if i < 2 else 8), thread % 4 * 2 + (i & 1)] = out[i, thread]
    assert (np.isnan(got) == np.isnan(want)).all()
    assert np.isnan(got[1, 3]).all()
    assert np.isnan(got).sum() == 8
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
