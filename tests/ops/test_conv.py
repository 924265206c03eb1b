"""``conv``: the kernel equals the definition for any cells, backgrounds, geometry and precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgran_fast.ops.conv import PackedConv, Tap, conv
from mgran_fast.reference import conv as reference
from mgran_fast.reference.conv import Cells, Source
from mgran_fast.reference.network import whole_cells

Native = Callable[..., Any]
# Of a float32 sum's magnitude; bfloat16 results are rounded once more.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def random_places(images: int, grid: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Any cells in any order; none and all among the cases."""
    cells = images * grid[0] * grid[1]
    count = int(torch.randint(0, cells + 1, (), generator=generator))
    return torch.randperm(cells, generator=generator)[:count].int()


def values(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype in (torch.uint8, torch.int8):
        low = 0 if dtype == torch.uint8 else -127
        return torch.randint(low, 256 if low == 0 else 128, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def random_cells(
    images: int, grid: tuple[int, int], channels: int, dtype: torch.dtype, generator: torch.Generator
) -> Cells:
    """Cells that several places share, some that nobody is at, and places at the background."""
    count = int(torch.randint(0, images * grid[0] * grid[1] + 1, (), generator=generator))
    kept = torch.randint(-1, max(count, 0), (images, *grid), generator=generator) if count else None
    table = torch.full((images, *grid), -1) if kept is None else kept
    ground = values((*grid, channels), dtype, generator) if torch.randint(0, 3, (), generator=generator) else None
    return Cells(values((count, channels), dtype, generator), table.int(), ground)


def case(
    seed: int, dtype: torch.dtype, out_dtype: torch.dtype, images: int, channels: tuple[int, int], kernel: int,
    stride: int, two: bool, add: bool, relu: bool,
) -> tuple[PackedConv, list[Cells], torch.Tensor, Cells | None, torch.Tensor, torch.dtype]:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    group = 4 // dtype.itemsize
    inside, outside = channels[0] * group, channels[1]
    grid = tuple(int(side) for side in torch.randint(1, 10, (2,), generator=g))
    grid = (max(grid[0], kernel), max(grid[1], kernel))
    tap = Tap(kernel, stride, kernel // 2)
    cells = [random_cells(images, grid, inside, dtype, g)]
    taps = [tap]
    if two:
        other = Tap(1, stride)
        if other.grid(grid) == tap.grid(grid):
            cells.append(random_cells(images, grid, group, dtype, g))
            taps.append(other)
    kind = torch.int8 if dtype == torch.uint8 else dtype
    weights = [
        values((outside, source.data.shape[-1], one.kernel, one.kernel), kind, g)
        for source, one in zip(cells, taps, strict=True)
    ]
    scale = torch.rand(outside, generator=g) * 1e-3 if dtype == torch.uint8 else None
    packed = PackedConv(weights, taps, torch.randn(outside, generator=g), scale=scale, relu=relu)
    to = tap.grid(grid)
    residual = random_cells(images, to, outside, dtype, g) if add else None
    return packed, cells, random_places(images, to, g), residual, torch.rand(outside, generator=g), out_dtype


def expected(
    packed: PackedConv,
    cells: list[Cells],
    places: torch.Tensor,
    residual: Cells | None,
    residual_scale: torch.Tensor | None,
) -> torch.Tensor:
    """In float64, before any rounding."""

    def wide(x: Cells) -> Cells:
        ground = None if x.background is None else x.background.double()
        return Cells(x.data.double(), x.kept, ground)

    taps = zip(cells, packed.weights, packed.taps, strict=True)
    return reference.conv(
        [Source(wide(x), weight.double(), tap.stride, tap.padding) for x, weight, tap in taps],
        places,
        packed.bias[: packed.channels],
        scale=None if packed.scale is None else packed.scale[: packed.channels],
        residual=None if residual is None else wide(residual),
        residual_scale=residual_scale,
        relu=packed.relu,
        dtype=torch.float64,
    )


def sizes(
    packed: PackedConv, cells: list[Cells], places: torch.Tensor, residual: Cells | None, factor: torch.Tensor | None
) -> torch.Tensor:
    """How large the terms are that a result is the sum of: they may cancel, their rounding does not."""
    plain = copy.copy(packed)
    plain.relu = False
    without = expected(plain, cells, places, None, None)
    with_it = without if residual is None else expected(plain, cells, places, residual, factor)
    return without.abs() + (with_it - without).abs() + packed.bias[: packed.channels].abs()


def compare(
    got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype, steps: int, size: torch.Tensor | None = None
) -> None:
    assert got.shape == want.shape
    if got.dtype == torch.uint8:
        # Nothing but ties may be rounded otherwise.
        want = want.clamp(0, 255)
        assert bool(((got.double() - want).abs() <= 0.5 + 1e-4).all())
        return
    limit = TOLERANCE[got.dtype] * (1 + want.abs()) + 1e-6 * steps
    if dtype == torch.uint8:
        # Sums of bytes are exact: what is rounded is scaling them, and two additions.
        assert size is not None
        limit = 4 * torch.finfo(torch.float32).eps * size
    assert bool(((got.double() - want).abs() <= limit).all())


PRECISIONS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.uint8, torch.uint8),
    (torch.uint8, torch.float32),
]


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: f"{p[0]}-{p[1]}".replace("torch.", ""))
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(0, 4),
    channels=st.tuples(st.integers(1, 5), st.sampled_from([1, 7, 16, 31, 32, 33, 70])),
    kernel=st.sampled_from([1, 2, 3, 7]),
    stride=st.integers(1, 3),
    two=st.booleans(),
    add=st.booleans(),
    relu=st.booleans(),
)
def test_the_kernel_equals_the_definition(
    isa: str, native: Native, precision: tuple[torch.dtype, torch.dtype], seed: int, images: int,
    channels: tuple[int, int], kernel: int, stride: int, two: bool, add: bool, relu: bool,
) -> None:  # fmt: skip
    packed, cells, places, residual, factor, out = case(
        seed, *precision, images, channels, kernel, stride, two, add, relu
    )
    want = expected(packed, cells, places, residual, factor)
    got = native(conv, packed, cells, places, residual=residual, residual_scale=factor, dtype=out)
    compare(got, want, precision[0], packed.packed.shape[1], sizes(packed, cells, places, residual, factor))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_some_cells_are_part_of_the_whole(isa: str, native: Native, dtype: torch.dtype) -> None:
    """To the bit: a cell does not depend on which others are computed, nor in which order."""
    g = torch.Generator().manual_seed(3)
    grid, images = (9, 7), 5
    kind = torch.int8 if dtype == torch.uint8 else dtype
    scale = torch.rand(40, generator=g) * 1e-3 if dtype == torch.uint8 else None
    packed = PackedConv([values((40, 8, 3, 3), kind, g)], [Tap(3, 1, 1)], torch.randn(40, generator=g), scale=scale)
    x = whole_cells(values((images, *grid, 8), dtype, g))
    whole = native(conv, packed, [x], torch.arange(images * 63, dtype=torch.int32))
    places = random_places(images, grid, g)
    assert 0 < len(places) < len(whole)
    assert torch.equal(native(conv, packed, [x], places), whole[places.long()])
    out = torch.full((images, *grid, 40), 77, dtype=dtype)
    assert native(conv, packed, [x], places, out=out) is out
    flat = out.view(-1, 40)
    assert torch.equal(flat[places.long()], whole[places.long()])
    others = torch.ones(len(flat), dtype=torch.bool)
    others[places.long()] = False
    assert bool((flat[others] == 77).all())


def test_not_a_number_stays_one(isa: str, native: Native) -> None:
    packed = PackedConv([torch.ones(3, 1, 1, 1)], [Tap(1)], torch.zeros(3))
    x = Cells(torch.tensor([[1.0], [torch.nan]]), torch.tensor([[[0, 1]]]).int())
    answer = native(conv, packed, [x], torch.tensor([0, 1]).int())
    assert answer[0].tolist() == [1, 1, 1]
    assert answer[1].isnan().all()


def test_without_the_extension_the_definition_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRAN_BACKEND", "reference")
    packed, cells, places, residual, factor, out = case(
        5, torch.float32, torch.float32, 3, (3, 9), 3, 1, True, True, True
    )
    want = expected(packed, cells, places, residual, factor)
    got = conv(packed, cells, places, residual=residual, residual_scale=factor, dtype=out)
    compare(got, want, torch.float32, packed.packed.shape[1])
    spread = torch.zeros(3, *packed.taps[0].grid(cells[0].grid), 9)
    conv(packed, cells, places, residual=residual, residual_scale=factor, out=spread)
    assert torch.equal(spread.view(-1, 9)[places.long()], got)


WEIGHT, BIAS = torch.zeros(4, 2, 3, 3), torch.zeros(4)


@pytest.mark.parametrize(
    ("weights", "taps", "scale", "message"),
    [
        ([], [], None, "one or two sources"),
        ([WEIGHT], [Tap(3), Tap(1)], None, "one or two sources"),
        ([WEIGHT.double()], [Tap(3)], None, "weights must be float32"),
        ([WEIGHT[:3]], [Tap(3)], None, "weights must be"),
        ([WEIGHT], [Tap(1)], None, "a kernel of 1"),
        ([WEIGHT[:, :1].bfloat16()], [Tap(3)], None, "multiples of 2"),
        ([WEIGHT.to(torch.int8)], [Tap(3)], None, "multiples of 4"),
        ([torch.zeros(4, 4, 3, 3, dtype=torch.int8)], [Tap(3)], None, "have a scale"),
        ([WEIGHT], [Tap(3)], BIAS, "have a scale"),
    ],
)
def test_bad_weights(weights: list[torch.Tensor], taps: list[Tap], scale: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedConv(weights, taps, BIAS, scale=scale)


def test_bad_cells() -> None:
    packed = PackedConv([WEIGHT], [Tap(3, 1, 1)], BIAS)
    places = torch.tensor([0, 1, 5, 6]).int()
    good = Cells(torch.zeros(4, 2), torch.full((1, 5, 5), -1).int())
    assert conv(packed, [good], places).shape == (4, 4)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"sources": [good, good]}, "1 sources are wanted"),
        ({"sources": [good._replace(data=torch.zeros(5, 3))]}, "a source must be"),
        ({"sources": [good._replace(data=torch.zeros(4, 2).bfloat16())]}, "a source must be"),
        ({"sources": [good._replace(data=torch.zeros(2, 4).t())]}, "contiguous"),
        ({"sources": [good._replace(kept=torch.full((1, 5, 5), 4).int())]}, "table of a source must be from -1 to 3"),
        ({"sources": [good._replace(kept=torch.full((1, 5, 5), -2).int())]}, "table of a source must be from -1 to 3"),
        ({"sources": [good._replace(kept=torch.full((1, 5, 5), -1))]}, "must be int32"),
        ({"sources": [good._replace(background=torch.zeros(5, 4, 2))]}, "the background of a source"),
        ({"places": torch.tensor([25]).int()}, "places must be from 0 to 24"),
        ({"places": torch.tensor([-1]).int()}, "places must be from 0 to 24"),
        ({"places": torch.tensor([1])}, "places must be int32"),
        ({"residual": good}, "the residual must be"),
        ({"residual": Cells(torch.zeros(4, 4), torch.full((1, 4, 5), -1).int())}, "the residual's grid"),
        ({"residual": Cells(torch.zeros(4, 4), torch.full((2, 5, 5), -1).int())}, "of 1 images, not 2"),
        ({"dtype": torch.uint8}, "the result is"),
        ({"out": torch.zeros(1, 4, 5, 4)}, "out must be"),
    ]
    for change, message in bad:
        arguments = {"sources": [good], "places": places, **change}
        with pytest.raises(ValueError, match=message):
            conv(packed, **arguments)
