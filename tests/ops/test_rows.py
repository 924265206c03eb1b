"""rows: gathering, its transpose and the inverse of an index, against plain loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mgran_fast.ops import rows

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Rounding of the result; sums are taken in float32.
TOLERANCES = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# Rows, length of the index, channels: strips, vectors and what is left; nothing; one row that everybody names.
SIZES = [(7, 40, 130), (50, 20, 64), (1, 300, 3), (5, 0, 4), (3, 9, 0), (2000, 9000, 33)]


def given(
    count: int, length: int, channels: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count + length)
    index = torch.randint(-1, count, (length,), generator=generator, dtype=torch.int32)
    x = torch.randn((count, channels), generator=generator).to(dtype)
    values = torch.randn((length, channels), generator=generator).to(dtype)
    return index, x, values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gather(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    index, x, _ = given(*size, dtype)
    nothing = torch.zeros(size[2], dtype=dtype)
    want = [nothing if i < 0 else x[i] for i in index.tolist()]
    got = rows.gather(x, index)
    assert torch.equal(got, torch.stack(want) if want else x.new_zeros((0, size[2])))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_invert(size: tuple[int, int, int]) -> None:
    index, _, _ = given(*size, torch.float32)
    starts, members = rows.invert(index, size[0])
    assert starts.dtype == members.dtype == torch.int32
    assert int(starts[0]) == 0
    assert len(members) == len(index)
    for row in range(size[0]):
        held = members[starts[row] : starts[row + 1]].tolist()
        assert held == [place for place, named in enumerate(index.tolist()) if named == row]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("has_base", [False, True])
def test_total(size: tuple[int, int, int], dtype: torch.dtype, has_base: bool) -> None:
    index, base, values = given(*size, dtype)
    got = rows.total(values, rows.invert(index, size[0]), base if has_base else None)
    assert got.dtype == dtype
    want = base.double() if has_base else torch.zeros((size[0], size[2]), dtype=torch.float64)
    held = index >= 0
    want = want.index_add(0, index[held].long(), values[held].double())
    error = (got.double() - want).abs()
    assert bool((error <= TOLERANCES[dtype] * (want.abs() + 20)).all())


def test_transpose() -> None:
    """<gather(x), v> = <x, total(v)>."""
    index, x, values = given(40, 333, 17, torch.float64)
    left = (rows.gather(x, index) * values).sum()
    right = (x * rows.total(values, rows.invert(index, 40))).sum()
    assert abs(float(left - right)) <= 1e-11


def test_kernels_equal_the_reference_to_the_bit(native: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # Of two members at most, whose sum has one order.
    index = torch.tensor([4, -1, 0, 2, 4, 1], dtype=torch.int32)
    x, values = torch.randn(5, 70), torch.randn(6, 70)
    got = native(rows.gather, x, index), *native(rows.invert, index, 5)
    total = native(rows.total, values, rows.Inverse(*got[1:]))
    monkeypatch.setenv("MGRAN_BACKEND", "reference")
    want = rows.gather(x, index), *rows.invert(index, 5)
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
    assert torch.equal(total, rows.total(values, rows.Inverse(*want[1:])))


def test_the_number_of_threads_changes_nothing(native: Callable[..., Any]) -> None:
    index, _, values = given(300, 40_000, 96, torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(native(rows.total, values, rows.invert(index, 300)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_opcheck() -> None:
    index, x, values = given(7, 40, 5, torch.float32)
    starts, members = rows.invert(index, 7)
    torch.library.opcheck(torch.ops.mgran_fast.rows_gather, (x, index))
    torch.library.opcheck(torch.ops.mgran_fast.rows_invert, (index, 7))
    torch.library.opcheck(torch.ops.mgran_fast.rows_total, (values, starts, members, x))


@pytest.mark.parametrize("bad", [7, -2, 2**31 - 1])
def test_an_index_out_of_range_is_refused(bad: int, extension: object) -> None:
    index = torch.tensor([0, bad], dtype=torch.int32)
    with pytest.raises(IndexError, match="out of range"):
        rows.gather(torch.zeros(7, 3), index)
    with pytest.raises(IndexError, match="out of range"):
        rows.invert(index, 7)


@pytest.mark.parametrize(
    ("starts", "members"),
    [([0, 2, 1], [0, 1]), ([1, 1, 2], [0, 1]), ([0, 1, 3], [0, 1]), ([0, 1, 2], [0, 2]), ([0, 1, 2], [-1, 0])],
)
def test_a_false_inverse_is_refused(starts: list[int], members: list[int], extension: object) -> None:
    inverse = rows.Inverse(torch.tensor(starts, dtype=torch.int32), torch.tensor(members, dtype=torch.int32))
    with pytest.raises(IndexError, match="out of range"):
        rows.total(torch.zeros(2, 3), inverse)


def test_wrong_arguments() -> None:
    index = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(TypeError, match="index must be int32"):
        rows.gather(torch.zeros(2, 3), index.long())
    with pytest.raises(ValueError, match="x must have the shape"):
        rows.gather(torch.zeros(2), index)
    with pytest.raises(ValueError, match="rows must be 0 or more"):
        rows.invert(index, -1)
    with pytest.raises(ValueError, match="members must have the shape"):
        rows.total(torch.zeros(3, 3), rows.invert(index, 2))
    with pytest.raises(ValueError, match="base must have the shape"):
        rows.total(torch.zeros(2, 3), rows.invert(index, 2), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="starts must have"):
        rows.total(torch.zeros(2, 3), rows.Inverse(index[:0], index))
