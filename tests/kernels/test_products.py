"""The kernels of the engine, pointwise and stem, against their references in float64, under Triton's interpreter.

In float16: the interpreter multiplies matrices of bfloat16 as if their bits were integers.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from mgran_fast.kernels.tables import Tile
from mgran_fast.reference import pointwise as pointwise_reference
from mgran_fast.reference import stem as stem_reference

# One rounding to float16, of a sum taken in float32.
TOLERANCE = 2.0**-11 + 1e-4
SMALL = Tile(rows=16, outs=16, channels=16, num_warps=4, num_stages=2)
# images, channels, grid, outs, shortcut's channels and stride, residual: whole and cut tiles in every direction
PRODUCTS = [
    (2, 32, (4, 4), 32, None, False),
    (3, 37, (5, 3), 21, None, True),
    (2, 16, (3, 5), 40, (32, 2), False),
    (1, 24, (2, 7), 17, (19, 3), True),
    (1, 1, (1, 1), 1, (1, 1), True),
]


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).half()
    return made.to(memory_format=torch.channels_last) if made.dim() == 4 else made


def wide(given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.double() if isinstance(value, torch.Tensor) else value for value in given)


@pytest.mark.parametrize("case", PRODUCTS)
@pytest.mark.parametrize("relu", [True, False])
def test_product(pointwise: ModuleType, case: Any, relu: bool) -> None:
    images, channels, (h, w), outs, shortcut, residual = case
    second, stride = shortcut or (0, 1)
    given = (
        rand(images, channels, h, w),
        rand(outs, channels),
        rand(outs).float(),
        rand(images, outs, h, w, seed=1) if residual else None,
        rand(images, second, h * stride, (w - 1) * stride + 1) if shortcut else None,
        rand(outs, second, seed=2) if shortcut else None,
        stride,
        relu,
    )
    got = pointwise.forward(*given, tile=SMALL)
    want = pointwise_reference.pointwise(*wide(given))
    assert got.shape == want.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert bool((got.double() - want).abs().max() <= TOLERANCE * want.abs().max())
    assert (want == 0).any() == (relu and want.numel() > 1)


def test_product_keeps_nan(pointwise: ModuleType) -> None:
    x = rand(1, 16, 2, 2)
    x[0, 3, 1, 0] = torch.nan
    got = pointwise.forward(x, rand(16, 16), torch.zeros(16), tile=SMALL)
    assert got[0, :, 1, 0].isnan().all()
    assert got.isnan().sum() == 16


def test_product_of_nobody(pointwise: ModuleType) -> None:
    assert pointwise.forward(rand(0, 16, 2, 2), rand(8, 16), torch.zeros(8)).shape == (0, 8, 2, 2)


def people(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Three people; the second one's map is empty."""
    g = torch.Generator().manual_seed(size[0])
    crops = torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8, generator=g)
    region_map = torch.randint(0, 4, (3, *size), dtype=torch.uint8, generator=g)
    region_map[1] = 0
    return crops, region_map


@pytest.mark.parametrize("size", [(16, 8), (13, 9), (1, 1), (6, 19)])
@pytest.mark.parametrize(("first", "inputs"), [(0, 4), (2, 1)])
@pytest.mark.parametrize("outs", [64, 17])
def test_stem(stem: ModuleType, size: tuple[int, int], first: int, inputs: int, outs: int) -> None:
    crops, region_map = people(size)
    weight = stem_reference.pack(rand(outs, 4, 7, 7) / 64)
    bias = rand(outs, seed=3).float()
    got = stem.forward(crops, region_map, weight, bias, first, inputs)
    want = stem_reference.stem(crops, region_map, weight.double(), bias, first, inputs)
    assert got.shape == want.shape
    assert bool((got.double() - want).abs().max() <= TOLERANCE * want.abs().max())
    # Every person and input apart, so that the error of one is not hidden by the size of another.
    each = (got.double() - want).abs().flatten(1).amax(1) <= TOLERANCE * want.abs().flatten(1).amax(1) + 1e-4
    assert bool(each.all())


def test_stem_of_many_pixels(stem: ModuleType) -> None:
    """More than one block of every kernel, the last one cut."""
    crops, region_map = people((70, 66))
    region_map[2] = 0
    region_map[2, 69, 65] = 3  # seen by its last pixel alone
    weight, bias = stem_reference.pack(rand(16, 4, 7, 7) / 64), rand(16).float()
    got = stem.forward(crops, region_map, weight, bias, 0, 4)
    want = stem_reference.stem(crops, region_map, weight.double(), bias, 0, 4)
    assert bool((got.double() - want).abs().max() <= TOLERANCE * want.abs().max())
    assert bool((got[9:11].double() - want[9:11]).abs().max() <= 1e-3)


def test_stem_keeps_nan(stem: ModuleType) -> None:
    crops, region_map = people((8, 8))
    weight, bias = stem_reference.pack(rand(16, 4, 7, 7) / 64), torch.zeros(16)
    bias[5] = torch.nan
    got = stem.forward(crops, region_map, weight, bias, 0, 4)
    assert got[:, 5].isnan().all()
    assert got.isnan().sum() == got[:, 5].numel()
