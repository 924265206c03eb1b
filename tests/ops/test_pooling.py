"""Masked region pooling: a plain loop in float64, gradients, and people whose region nobody sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mgran_fast import ops
from mgran_fast.reference import pooling as reference

MODES = ("mean", "max", "gem")
# Features are of size 1; sums are taken in float32 and rounded once to the dtype.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# Feature grid and region map: whole cells, split cells, cells finer than pixels, one cell, odd everything.
GRIDS = [((4, 2), (16, 8)), ((3, 2), (8, 5)), ((5, 4), (3, 2)), ((1, 1), (7, 3)), ((5, 3), (13, 11)), ((4, 4), (4, 4))]


def batch(
    people: int, inputs: int, grid: tuple[int, int], size: tuple[int, int], dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * grid[0] + 10 * grid[1] + size[0])
    features = torch.rand(people * inputs, 3, *grid, dtype=torch.float64, generator=generator)
    region_map = torch.randint(0, 4, (people, *size), dtype=torch.uint8, generator=generator)
    return features.to(dtype), region_map, torch.arange(inputs).repeat(people)


def by_hand(
    features: torch.Tensor, region_map: torch.Tensor, region: torch.Tensor, mode: str, power: float = 3.0
) -> np.ndarray:
    """float64 [B, C], one cell after another."""
    x, names = features.detach().double().numpy(), region_map.numpy()
    rows, channels, height, width = x.shape
    answer = np.zeros((rows, channels))
    for b in range(rows):
        person = names[b // (rows // len(names))]
        chosen = person == int(region[b])
        if region[b] == 0:
            chosen = person > 0 if person.any() else np.ones_like(chosen)
        cells, weights = [], []
        for i in range(height):
            top, bottom = math.floor(i * len(person) / height), math.ceil((i + 1) * len(person) / height)
            for j in range(width):
                left = math.floor(j * person.shape[1] / width)
                right = math.ceil((j + 1) * person.shape[1] / width)
                share = chosen[top:bottom, left:right].mean()
                if share > 0:
                    cells.append(x[b, :, i, j])
                    weights.append(share)
        if not cells:
            continue
        values, w = np.array(cells), np.array(weights)[:, None]
        if mode == "max":
            answer[b] = values.max(0)
        elif mode == "mean":
            answer[b] = (w * values).sum(0) / w.sum()
        else:
            answer[b] = ((w * values.clip(1e-6) ** power).sum(0) / w.sum()) ** (1 / power)
    return answer


def close(got: torch.Tensor, want: np.ndarray, tolerance: float) -> bool:
    # Written so that NaN fails.
    error = np.abs(got.detach().double().numpy() - want).max(initial=0.0)
    return bool(error <= tolerance)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("grid", "size"), GRIDS)
def test_values(mode: str, grid: tuple[int, int], size: tuple[int, int]) -> None:
    features, region_map, region = batch(3, 4, grid, size)
    region_map[1] = 0
    region_map[2][region_map[2] == 2] = 3
    got = ops.pooling(features, region_map, region, mode)
    assert got.dtype == torch.float64
    assert got.shape == (12, 3)
    assert close(got, by_hand(features, region_map, region, mode), TOLERANCES[torch.float64])


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("last", [False, True])
def test_dtypes_and_memory_formats(dtype: torch.dtype, mode: str, last: bool) -> None:
    features, region_map, region = batch(3, 4, (5, 3), (13, 11), dtype)
    if last:
        features = features.to(memory_format=torch.channels_last)
    got = ops.pooling(features, region_map, region, mode)
    assert got.dtype == dtype
    assert close(got, by_hand(features, region_map, region, mode), TOLERANCES[dtype])


def test_a_long_sum_in_half_precision_is_taken_in_float32() -> None:
    features = torch.full((1, 2, 64, 64), 4.0, dtype=torch.float16)
    # 4096 cells of 4: the sum itself, 16384, has a spacing of 16 in float16; 64 * 4096 would not fit at all.
    got = ops.pooling(features * 16, torch.ones(1, 64, 64, dtype=torch.uint8), torch.ones(1, dtype=torch.long))
    assert got.tolist() == [[64.0, 64.0]]


def test_a_weight_is_the_share_of_the_cells_pixels() -> None:
    features = torch.tensor([[[[1.0, 10.0]]]])
    region_map = torch.tensor([[[1, 1, 1, 2], [1, 0, 2, 2]]], dtype=torch.uint8)
    # The left cell is 3/4 region 1, the right one 1/4 region 1 and 3/4 region 2.
    want = {0: (0.75 + 10) / 1.75, 1: (0.75 + 2.5) / 1.0, 2: 10.0, 3: 0.0}
    for region, value in want.items():
        got = ops.pooling(features, region_map, torch.tensor([region]))
        assert got.item() == pytest.approx(value, rel=1e-6)
    assert ops.pooling(features, region_map, torch.tensor([1]), "max").item() == 10.0


def test_features_outside_of_the_region_do_not_count() -> None:
    features, region_map, region = batch(2, 4, (4, 2), (8, 4))
    region_map[:, :4], region_map[:, 4:] = 1, 2
    changed = features.clone()
    changed[1::4, :, 2:] = 1e6
    changed[2::4, :, :2] = 1e6
    for mode in MODES:
        got = ops.pooling(changed, region_map, region, mode)
        want = ops.pooling(features, region_map, region, mode)
        assert close(got[region > 0], want[region > 0].numpy(), 1e-12)


def test_gem_is_scaled_by_its_own_region() -> None:
    features = torch.full((1, 1, 4, 2), 0.5)
    features[:, :, 2:] = 1e9
    region_map = torch.ones(1, 8, 4, dtype=torch.uint8)
    region_map[:, 4:] = 2
    # (0.5 / 1e9)^10 would be 0 in float32.
    assert ops.pooling(features, region_map, torch.tensor([1]), "gem", power=10.0).item() == pytest.approx(0.5)


def test_rows_belong_to_people_in_blocks() -> None:
    features, region_map, region = batch(3, 4, (4, 2), (8, 4))
    whole = ops.pooling(features, region_map, region)
    for person in range(3):
        rows = slice(4 * person, 4 * person + 4)
        alone = ops.pooling(features[rows], region_map[person : person + 1], region[rows])
        assert close(alone, whole[rows].numpy(), 1e-12)
    mixed = torch.tensor([3, 0, 2, 1] * 3)
    assert close(ops.pooling(features, region_map, mixed), by_hand(features, region_map, mixed, "mean"), 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_map_pools_the_whole_crop(mode: str) -> None:
    features, region_map, region = batch(1, 4, (4, 2), (8, 4))
    got = ops.pooling(features, torch.zeros_like(region_map), region, mode)
    everything = ops.pooling(features, torch.ones_like(region_map), region, mode)
    assert torch.equal(got[0], everything[0])
    assert not got[1:].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [-2.0, 0.0, 1.0])
def test_an_invisible_row_is_zero_and_has_no_gradient(mode: str, value: float) -> None:
    features = torch.full((4, 2, 3, 2), value, requires_grad=True)
    region_map = torch.ones(1, 6, 4, dtype=torch.uint8)
    pooled = ops.pooling(features, region_map, torch.arange(4), mode)
    assert not pooled[2:].any()
    (pooled * torch.arange(1.0, 9.0).view(4, 2)).sum().backward()
    assert features.grad is not None
    assert bool(features.grad.isfinite().all())
    assert not features.grad[2:].any()
    if mode != "gem" or value > 0:
        assert bool(features.grad[:2].any())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("grid", "size"), [((3, 2), (8, 5)), ((2, 2), (8, 4))])
def test_gradient(mode: str, grid: tuple[int, int], size: tuple[int, int]) -> None:
    features, region_map, region = batch(2, 4, grid, size)
    region_map[1][region_map[1] == 1] = 0
    # Distinct values well apart: the largest stays the largest under gradcheck's steps.
    order = torch.randperm(features.numel(), generator=torch.Generator().manual_seed(0))
    features = (0.1 + order.double() / features.numel()).view(features.shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.pooling(x, region_map, region, mode), (features,))


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(("mode", "power"), [("mean", 3.0), ("max", 3.0), ("gem", 3.0), ("gem", 1.5)])
def test_the_written_gradient_is_autograds(dtype: torch.dtype, mode: str, power: float) -> None:
    # Rounded to quarters, so that a maximum is shared by several cells.
    features, region_map, region = batch(3, 4, (5, 3), (13, 11))
    features = ((features * 4).round() / 4).to(dtype)
    region_map[1] = 0
    grad = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    got = reference.backward(grad, features, region_map, region, mode, power)
    x = features.double().requires_grad_()
    reference.pooling(x, region_map, region, mode, power).backward(grad.double())
    assert x.grad is not None
    assert got.dtype == dtype
    assert close(got, x.grad.numpy(), TOLERANCES[dtype])


@pytest.mark.parametrize("power", [1.0, 2.5, 30.0])
def test_gem_powers(power: float) -> None:
    features, region_map, region = batch(2, 4, (5, 3), (13, 11))
    got = ops.pooling(features, region_map, region, "gem", power=power)
    assert close(got, by_hand(features, region_map, region, "gem", power), 1e-12)
    mean, largest = (ops.pooling(features, region_map, region, mode) for mode in ("mean", "max"))
    assert bool((got >= mean - 1e-12).all())
    assert bool((got <= largest + 1e-12).all())


@pytest.mark.parametrize("value", [0.0, 2e-6, 1e-5, 1e9])
def test_gem_neither_underflows_nor_overflows(value: float) -> None:
    # In float32, (1e-5)^10 is 0 and (1e9)^10 infinite.
    features = torch.full((1, 1, 4, 2), value, requires_grad=True)
    pooled = ops.pooling(features, torch.ones(1, 8, 4, dtype=torch.uint8), torch.tensor([1]), "gem", power=10.0)
    assert pooled.item() == pytest.approx(max(value, 1e-6), rel=1e-5)
    pooled.sum().backward()
    assert features.grad is not None
    assert features.grad.sum().item() == pytest.approx(float(value > 0), rel=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_no_people(mode: str) -> None:
    features = torch.zeros(0, 5, 4, 2, requires_grad=True)
    pooled = ops.pooling(features, torch.zeros(0, 8, 4, dtype=torch.uint8), torch.zeros(0, dtype=torch.long), mode)
    assert pooled.shape == (0, 5)
    pooled.sum().backward()


def test_non_contiguous_arguments() -> None:
    features, region_map, region = batch(2, 4, (4, 4), (8, 6))
    want = ops.pooling(features, region_map, region)
    got = ops.pooling(
        features.transpose(2, 3).contiguous().transpose(2, 3),
        region_map.repeat_interleave(2, 2)[..., ::2],
        region.repeat_interleave(2)[::2],
    )
    # Another memory order may be another order of summation.
    assert close(got, want.numpy(), 1e-12)


# --- the kernels and the reference ----------------------------------------------------------------------------

# Channels at and around the vectors of 8 and 16 that the kernels work in.
CHANNELS = [1, 7, 16, 33, 130]
# Relative to the largest value; the sums have at most 143 terms.
KERNEL_TOLERANCES = {torch.float32: 5e-6, torch.float16: 1.5e-3, torch.bfloat16: 1e-2}


def crowd(
    channels: int, grid: tuple[int, int], size: tuple[int, int], dtype: torch.dtype, people: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features with negative values and ties, one person of an empty map, regions in no order, some unknown."""
    generator = torch.Generator().manual_seed(channels + size[0])
    features = torch.randn(people * 4, channels, *grid, generator=generator)
    features = (features * 8).round() / 8 if channels % 2 else features
    region_map = torch.randint(0, 4, (people, *size), dtype=torch.uint8, generator=generator)
    region_map[people // 2] = 0
    region = torch.randint(0, 4, (people * 4,), generator=generator)
    region[:3] = torch.tensor([7, -1, 2**40])
    return features.to(dtype).to(memory_format=torch.channels_last), region_map, region


def exact(
    features: torch.Tensor, region_map: torch.Tensor, region: torch.Tensor, mode: str, power: float, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference and its gradient by autograd, in float64."""
    x = features.detach().cpu().double().requires_grad_()
    pooled = reference.pooling(x, region_map, region, mode, power)
    pooled.backward(grad.double())
    assert x.grad is not None
    return pooled.detach(), x.grad


def near(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> bool:
    error = (got.detach().cpu().double() - want).abs().max()
    return bool(error <= tolerance * want.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("dtype", list(KERNEL_TOLERANCES))
@pytest.mark.parametrize(("mode", "power"), [("mean", 3.0), ("max", 3.0), ("gem", 3.0), ("gem", 1.0), ("gem", 2.7)])
@pytest.mark.parametrize(("grid", "size"), GRIDS)
def test_kernel_equals_reference(
    native: Callable[..., torch.Tensor],
    isa: str,
    dtype: torch.dtype,
    mode: str,
    power: float,
    grid: tuple[int, int],
    size: tuple[int, int],
) -> None:
    for channels in CHANNELS:
        features, region_map, region = crowd(channels, grid, size, dtype)
        features.requires_grad_()
        grad = torch.randn(len(region), channels, generator=torch.Generator().manual_seed(0)).to(dtype)
        pooled, gradient = exact(features, region_map, region, mode, power, grad)
        got = native(ops.pooling, features, region_map, region, mode, power=power)
        assert got.dtype == dtype
        assert near(got, pooled, KERNEL_TOLERANCES[dtype])
        (slope,) = native(torch.autograd.grad, got, features, grad)
        assert slope.is_contiguous(memory_format=torch.channels_last)
        assert near(slope, gradient, KERNEL_TOLERANCES[dtype])
        # What the region does not see has no gradient at all.
        assert not slope[gradient == 0].any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", list(KERNEL_TOLERANCES))
def test_kernel_of_the_networks_size(
    native: Callable[..., torch.Tensor], device: Callable[[str], str], threads: int, mode: str, dtype: torch.dtype
) -> None:
    where = device("pooling")
    features, region_map, region = crowd(256, (16, 8), (128, 64), dtype, people=5)
    grad = torch.randn(20, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    pooled, gradient = exact(features, region_map, region, mode, 3.0, grad)
    x = features.to(where).requires_grad_()
    got = native(ops.pooling, x, region_map.to(where), region.to(where), mode)
    assert near(got, pooled, KERNEL_TOLERANCES[dtype])
    (slope,) = native(torch.autograd.grad, got, x, grad.to(where))
    assert near(slope, gradient, KERNEL_TOLERANCES[dtype])


@pytest.mark.parametrize("mode", MODES)
def test_infinities_and_nan(native: Callable[..., torch.Tensor], isa: str, mode: str) -> None:
    map_ = torch.tensor([[[1, 2], [1, 2]]], dtype=torch.uint8)
    for outside in (torch.inf, -torch.inf, torch.nan):
        features = torch.rand(1, 20, 2, 2).to(memory_format=torch.channels_last).requires_grad_()
        with torch.no_grad():
            features[..., 1] = outside
        got = native(ops.pooling, features, map_, torch.tensor([1]), mode)
        assert bool(got.isfinite().all())
        (slope,) = native(torch.autograd.grad, got.sum(), features)
        assert bool(slope.isfinite().all())
        # What the region does see is not lost.
        arguments = features.detach(), map_, torch.tensor([2])
        seen, want = native(ops.pooling, *arguments, mode), reference.pooling(*arguments, mode, 3.0)
        assert torch.allclose(seen, want, rtol=1e-5, atol=0.0, equal_nan=True)
        assert bool(want.isnan().all()) or not np.isnan(outside)


@pytest.mark.parametrize("mode", MODES)
def test_planes_and_views_are_taken(native: Callable[..., torch.Tensor], isa: str, mode: str) -> None:
    features, region_map, region = crowd(16, (4, 3), (13, 11), torch.float32)
    want = native(ops.pooling, features, region_map, region, mode)
    views = [
        features.contiguous(),
        features.repeat(1, 2, 1, 1)[:, :16],
        features.transpose(2, 3).contiguous().transpose(2, 3),
    ]
    for view in views:
        assert torch.equal(native(ops.pooling, view, region_map, region, mode), want)


FEATURES, MAP, REGION = torch.zeros(8, 3, 4, 2), torch.zeros(2, 8, 4, dtype=torch.uint8), torch.arange(4).repeat(2)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"features": FEATURES.numpy()}, TypeError, "features must be a torch.Tensor, not ndarray"),
        ({"features": FEATURES.int()}, TypeError, "features must be float32 or .*, not int32"),
        ({"features": FEATURES[0]}, ValueError, r"features must have the shape \[any, any, any, any\]"),
        ({"region_map": MAP.float()}, TypeError, "region_map must be uint8, not float32"),
        ({"region_map": MAP[0]}, ValueError, r"region_map must have the shape \[any, any, any\]"),
        ({"region_map": MAP[:0]}, ValueError, "features has 8 rows, which is no multiple of region_map's 0 people"),
        ({"region_map": MAP.repeat(3, 1, 1)}, ValueError, "no multiple of region_map's 6 people"),
        ({"region_map": MAP.to("meta")}, ValueError, "on different devices: features on cpu, region_map on meta"),
        ({"region": REGION.int()}, TypeError, "region must be int64, not int32"),
        ({"region": REGION[:7]}, ValueError, r"region must have the shape \[8\], not \[7\]"),
        ({"features": FEATURES[:, :, :0]}, ValueError, r"features have no cells: their shape is \[8, 3, 0, 2\]"),
        ({"region_map": MAP[:, :, :0]}, ValueError, "region_map has no pixels"),
        ({"mode": "median"}, ValueError, "mode must be one of mean, max, gem, not 'median'"),
        ({"region": REGION.to("meta")}, ValueError, "on different devices: features on cpu, region on meta"),
        ({"mode": "gem", "power": float("inf")}, ValueError, "power must be positive and finite"),
        ({"mode": "gem", "power": 0.0}, ValueError, "power must be positive"),
        ({"mode": "gem", "power": float("nan")}, ValueError, "power must be positive"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ops.pooling(**{"features": FEATURES, "region_map": MAP, "region": REGION, **change})


@pytest.mark.parametrize("mode", ["mean", "max", "gem"])
def test_features_outside_of_the_region_do_not_matter(mode: str) -> None:
    map_ = torch.tensor([[[1, 0], [1, 0]]], dtype=torch.uint8)
    features = torch.rand(1, 3, 2, 2)
    want = ops.pooling(features, map_, torch.tensor([1]), mode)
    features[..., 1] = torch.inf
    assert torch.equal(ops.pooling(features, map_, torch.tensor([1]), mode), want)
