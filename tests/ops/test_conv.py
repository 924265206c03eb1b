"""``conv``: the kernel equals the definition for any windows, backgrounds, geometry and precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgran_fast.ops.conv import PackedConv, Tap, conv
from mgran_fast.reference import conv as reference
from mgran_fast.reference.conv import Cells, Source

Native = Callable[..., Any]
# Of a float32 sum's magnitude; bfloat16 results are rounded once more.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def random_windows(images: int, grid: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Any windows: empty ones, single cells and the whole grid among them."""
    sides = []
    for side in grid:
        ends = torch.randint(0, side + 1, (images, 2), generator=generator).sort(1).values
        sides.append((ends[:, 0], ends[:, 1] - ends[:, 0]))
    windows = torch.stack((sides[0][0], sides[1][0], sides[0][1], sides[1][1]), 1)
    if images > 2:
        windows[0] = torch.tensor([0, 0, *grid])
    return windows.int()


def values(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype in (torch.uint8, torch.int8):
        low = 0 if dtype == torch.uint8 else -127
        return torch.randint(low, 256 if low == 0 else 128, shape, generator=generator).to(dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def random_cells(
    images: int, grid: tuple[int, int], channels: int, dtype: torch.dtype, generator: torch.Generator
) -> Cells:
    windows = random_windows(images, grid, generator)
    area = int((windows[:, 2] * windows[:, 3]).sum())
    spread = bool(torch.randint(0, 2, (), generator=generator))
    shape = (images, *grid, channels) if spread else (area, channels)
    ground = values((*grid, channels), dtype, generator) if torch.randint(0, 3, (), generator=generator) else None
    return Cells(values(shape, dtype, generator), windows, grid, ground)


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
    return packed, cells, random_windows(images, to, g), residual, torch.rand(outside, generator=g), out_dtype


def expected(
    packed: PackedConv,
    cells: list[Cells],
    windows: torch.Tensor,
    residual: Cells | None,
    residual_scale: torch.Tensor | None,
) -> torch.Tensor:
    """In float64, before any rounding."""

    def wide(x: Cells) -> Cells:
        ground = None if x.background is None else x.background.double()
        return Cells(x.data.double(), x.windows, x.grid, ground)

    taps = zip(cells, packed.weights, packed.taps, strict=True)
    return reference.conv(
        [Source(wide(x), weight.double(), tap.stride, tap.padding) for x, weight, tap in taps],
        windows,
        packed.bias[: packed.channels],
        scale=None if packed.scale is None else packed.scale[: packed.channels],
        residual=None if residual is None else wide(residual),
        residual_scale=residual_scale,
        relu=packed.relu,
        dtype=torch.float64,
    )


def compare(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype, steps: int) -> None:
    assert got.shape == want.shape
    if got.dtype == torch.uint8:
        # Nothing but ties may be rounded otherwise.
        want = want.clamp(0, 255)
        assert bool(((got.double() - want).abs() <= 0.5 + 1e-4).all())
        return
    limit = TOLERANCE[got.dtype] * (1 + want.abs()) + 1e-6 * steps
    if dtype == torch.uint8:
        limit = 1e-5 * (1 + want.abs())
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
    packed, cells, windows, residual, factor, out = case(
        seed, *precision, images, channels, kernel, stride, two, add, relu
    )
    want = expected(packed, cells, windows, residual, factor)
    got = native(conv, packed, cells, windows, residual=residual, residual_scale=factor, dtype=out)
    compare(got.data, want, precision[0], packed.packed.shape[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_a_window_is_part_of_the_whole(isa: str, native: Native, dtype: torch.dtype) -> None:
    """To the bit: what is computed of a cell does not depend on the window that it lies in."""
    g = torch.Generator().manual_seed(3)
    grid, images = (9, 7), 5
    kind = torch.int8 if dtype == torch.uint8 else dtype
    scale = torch.rand(40, generator=g) * 1e-3 if dtype == torch.uint8 else None
    packed = PackedConv([values((40, 8, 3, 3), kind, g)], [Tap(3, 1, 1)], torch.randn(40, generator=g), scale=scale)
    x = Cells(values((images, *grid, 8), dtype, g), torch.tensor([[0, 0, *grid]] * images).int(), grid)
    whole = native(conv, packed, [x], x.windows).data.view(images, *grid, 40).permute(0, 3, 1, 2)
    windows = random_windows(images, grid, g)
    assert torch.equal(native(conv, packed, [x], windows).data, reference.cut(whole, windows))
    out = torch.full((images, *grid, 40), 77, dtype=dtype)
    native(conv, packed, [x], windows, out=out)
    assert torch.equal(out.permute(0, 3, 1, 2), reference.whole(Cells(out, windows, grid, out[0] * 0 + 77)))
    assert torch.equal(reference.cut(out.permute(0, 3, 1, 2), windows), reference.cut(whole, windows))


def test_not_a_number_stays_one(isa: str, native: Native) -> None:
    packed = PackedConv([torch.ones(3, 1, 1, 1)], [Tap(1)], torch.zeros(3))
    x = Cells(torch.tensor([[1.0], [torch.nan]]), torch.tensor([[0, 0, 1, 2]]).int(), (1, 2))
    answer = native(conv, packed, [x], x.windows).data
    assert answer[0].tolist() == [1, 1, 1]
    assert answer[1].isnan().all()


def test_without_the_extension_the_definition_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRAN_BACKEND", "reference")
    packed, cells, windows, residual, factor, out = case(
        5, torch.float32, torch.float32, 3, (3, 9), 3, 1, True, True, True
    )
    want = expected(packed, cells, windows, residual, factor)
    got = conv(packed, cells, windows, residual=residual, residual_scale=factor, dtype=out)
    compare(got.data, want, torch.float32, packed.packed.shape[1])
    grid = got.grid
    spread = torch.zeros(3, *grid, 9)
    conv(packed, cells, windows, residual=residual, residual_scale=factor, out=spread)
    assert torch.equal(reference.cut(spread.permute(0, 3, 1, 2), windows), got.data)


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
    windows = torch.tensor([[0, 0, 2, 2]]).int()
    good = Cells(torch.zeros(4, 2), windows, (5, 5))
    assert conv(packed, [good], windows).data.shape == (4, 4)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"sources": [good, good]}, "1 sources are wanted"),
        ({"sources": [good._replace(data=torch.zeros(5, 2))]}, "a source must be"),
        ({"sources": [good._replace(data=torch.zeros(4, 2).bfloat16())]}, "a source must be"),
        ({"sources": [good._replace(data=torch.zeros(2, 4).t())]}, "contiguous"),
        ({"sources": [good._replace(windows=torch.tensor([[4, 0, 2, 2]]).int())]}, "leaves the grid"),
        ({"sources": [good._replace(background=torch.zeros(5, 4, 2))]}, "the background of a source"),
        ({"windows": torch.tensor([[0, 0, 6, 1]]).int()}, "leaves the grid"),
        ({"windows": torch.tensor([[-1, 0, 1, 1]]).int()}, "leaves the grid"),
        ({"windows": torch.tensor([[0, 0, 1, 1]])}, "windows must be int32"),
        ({"windows": torch.tensor([[0, 0, 1, 1]] * 2).int()}, "a source must be"),
        ({"residual": good}, "the residual must be"),
        ({"residual": Cells(torch.zeros(4, 4), windows, (4, 5))}, "the residual's grid"),
        ({"dtype": torch.uint8}, "the result is"),
        ({"out": torch.zeros(1, 4, 5, 4)}, "out must be"),
    ]
    for change, message in bad:
        arguments = {"sources": [good], "windows": windows, **change}
        with pytest.raises(ValueError, match=message):
            conv(packed, **arguments)
