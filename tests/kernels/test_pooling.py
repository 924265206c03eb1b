"""The pooling kernels against the reference in float64, values and gradients, under Triton's interpreter."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from mgran_fast.kernels.tables import Blocks
from mgran_fast.reference import pooling as reference

MODES = ("mean", "max", "gem")
# Relative: one rounding to the dtype after sums in float32. To bfloat16 the interpreter cuts off; a GPU rounds.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 2.0**-11 + 2e-6, torch.bfloat16: 2.0**-7 + 2e-6}
# Features are of size 1, so that sums which cancel are wrong by this.
ABSOLUTE = 2e-6
# Several blocks of cells, and several of channels, the last of them cut.
SMALL = Blocks(cells=4, channels=16, num_warps=4)
# Feature grid and map: split cells, whole cells, cells finer than pixels, one cell, more than 16 cells in a row.
GRIDS = [((3, 2), (8, 5)), ((4, 2), (16, 8)), ((5, 4), (3, 2)), ((1, 1), (7, 3)), ((2, 18), (3, 40)), ((1, 3), (70, 2))]


def batch(
    grid: tuple[int, int], size: tuple[int, int], dtype: torch.dtype = torch.float32, channels: int = 3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three people, two inputs each: regions 0 to 3, the second person has an empty map, the third no region 3."""
    generator = torch.Generator().manual_seed(100 * grid[0] + 10 * grid[1] + size[0] + channels)
    features = torch.randn((6, channels, *grid), generator=generator)
    region_map = torch.randint(0, 4, (3, *size), dtype=torch.uint8, generator=generator)
    region_map[1] = 0
    region_map[2][region_map[2] == 3] = 1
    return last(features.to(dtype)), region_map, torch.tensor([0, 1, 0, 2, 2, 3])


def last(features: torch.Tensor) -> torch.Tensor:
    return features.to(memory_format=torch.channels_last)


def grads(out: torch.Tensor) -> torch.Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(out.numel())).to(out.dtype)


def truth(
    features: torch.Tensor,
    region_map: torch.Tensor,
    region: torch.Tensor,
    mode: str,
    power: float,
    grad: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference in float64: the pooled features and the features' gradient."""
    x = features.detach().double().requires_grad_()
    pooled = reference.pooling(x, region_map, region, mode, power)
    (slope,) = torch.autograd.grad(pooled, x, grad.double())
    return pooled.detach(), slope


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> None:
    """Every element within ``tolerance`` relative and ABSOLUTE; NaN and infinities in the same places."""
    assert got.shape == want.shape
    assert torch.equal(got.isnan(), want.isnan())
    error = (got.double() - want).abs() - tolerance * want.abs()
    # The same infinity has no error. Written so that NaN fails.
    error = torch.where((got.double() == want) | want.isnan(), 0.0, error)
    worst = error.amax().item() if error.numel() else 0.0
    assert worst <= ABSOLUTE


def check(
    pooling: ModuleType,
    features: torch.Tensor,
    region_map: torch.Tensor,
    region: torch.Tensor,
    mode: str,
    power: float = 3.0,
    blocks: Blocks | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward and backward equal the reference."""
    out = pooling.forward(features, region_map, region, mode, power, blocks=blocks)
    grad = grads(out)
    got = pooling.backward(grad, features, region_map, region, out, mode, power, blocks=blocks)
    want, slope = truth(features, region_map, region, mode, power, grad)
    assert out.dtype == got.dtype == features.dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_close(out, want, TOLERANCES[features.dtype])
    assert_close(got, slope, TOLERANCES[features.dtype])
    return out, got


@pytest.mark.parametrize(("grid", "size"), GRIDS)
def test_shares(pooling: ModuleType, grid: tuple[int, int], size: tuple[int, int]) -> None:
    _, region_map, region = batch(grid, size)
    region_map[1, 0, 0] = 2  # an empty map is the other kernels' business
    got = pooling.shares(region_map, region, *grid)
    want = reference.shares(region_map, region, *grid, torch.float64)
    assert_close(got, want.flatten(1), 1e-7)


def test_regions_of_any_value(pooling: ModuleType) -> None:
    region_map = torch.tensor([[[0, 1], [255, 1]]], dtype=torch.uint8)
    region = torch.tensor([1, 255, 256, 257, -1, -255, 2**32 + 1, 0, -(2**63), 2**63 - 1])
    got = pooling.shares(region_map, region, 1, 1)
    assert got.flatten().tolist() == [0.5, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.75, 0.0, 0.0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("outside", [float("inf"), float("-inf"), float("nan")])
def test_features_outside_of_the_region_do_not_matter(pooling: ModuleType, mode: str, outside: float) -> None:
    features, region_map, _ = batch((1, 8), (1, 8))
    features, region_map, region = features[:1], region_map[:1], torch.tensor([1])
    assert 0 < (region_map == 1).sum() < 8
    features = last(torch.where(region_map[:, None] == 1, features, outside))
    _, slope = check(pooling, features, region_map, region, mode)
    assert bool(slope.isfinite().all())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, from inf - inf and the like
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("inside", [float("inf"), float("nan")])
def test_a_broken_feature_breaks_its_channel_alone(pooling: ModuleType, mode: str, inside: float) -> None:
    features, region_map, region = batch((1, 8), (1, 8))
    region_map[0] = 1
    features[0, 1, 0, 5] = features[1, 0, 0, 6] = inside
    out = pooling.forward(features, region_map, region, mode, 3.0, blocks=SMALL)
    assert_close(out, truth(features, region_map, region, mode, 3.0, grads(out))[0], 2e-6)
    assert int(out.isfinite().logical_not().sum()) == 2
    slope = pooling.backward(grads(out), features, region_map, region, out, mode, 3.0, blocks=SMALL)
    assert bool(slope[2:].isfinite().all())
    if mode == "max":
        assert_close(slope, truth(features, region_map, region, mode, 3.0, grads(out))[1], 2e-6)


@pytest.mark.parametrize("mode", MODES)
def test_an_unseen_region_is_zero_and_has_no_gradient(pooling: ModuleType, mode: str) -> None:
    features, region_map, _ = batch((1, 6), (3, 13))
    region_map[1] = 1
    region = torch.tensor([4, 1, 2, 0, 9, 1])
    out, slope = check(pooling, features, region_map, region, mode)
    assert not out[[0, 2, 4]].any()
    assert not slope[[0, 2, 4]].any()
    # Zeros are chosen, not multiplied.
    slope = pooling.backward(torch.full_like(out, torch.nan), features, region_map, region, out, mode, 3.0)
    assert not slope[[0, 2, 4]].any()
    assert bool(slope[1].isnan().any())


def test_equal_maxima_share_the_gradient(pooling: ModuleType) -> None:
    features, region_map, region = batch((1, 8), (2, 8))
    features = last((features > 0).float())
    out, slope = check(pooling, features, region_map, region, "max", blocks=SMALL)
    assert int((slope != 0).sum()) > out.numel()


@pytest.mark.parametrize("power", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_gem_powers(pooling: ModuleType, dtype: torch.dtype, power: float) -> None:
    # With 16 bits and a high power, the rounded output is no base for the gradient.
    features, region_map, region = batch((1, 6), (3, 13), dtype)
    check(pooling, last(features.abs()), region_map, region, "gem", power)


@pytest.mark.parametrize("value", [0.0, 3e-6, 1e-5, 1e9, 3e38])
def test_gem_neither_underflows_nor_overflows(pooling: ModuleType, value: float) -> None:
    features = last(torch.full((1, 2, 2, 2), value))
    features[0, 1] *= torch.tensor([[1.0, 0.5], [0.75, 0.0]])
    region_map = torch.ones((1, 2, 2), dtype=torch.uint8)
    for power in (1.0, 10.0):
        check(pooling, features, region_map, torch.tensor([1]), "gem", power)


def test_a_long_sum_of_16_bits_is_taken_in_float32(pooling: ModuleType) -> None:
    features = last(torch.full((1, 2, 16, 8), 1024.0, dtype=torch.float16))
    out = pooling.forward(features, torch.ones((1, 16, 8), dtype=torch.uint8), torch.tensor([1]), "mean", 3.0)
    assert out.tolist() == [[1024.0, 1024.0]]


@pytest.mark.parametrize("mode", MODES)
def test_any_strides_but_the_features(pooling: ModuleType, mode: str) -> None:
    features, region_map, region = batch((1, 6), (3, 13))
    out = pooling.forward(features, region_map, region, mode, 3.0)
    grad = torch.tensor(2.0).expand(out.shape)
    want = pooling.backward(grad.contiguous(), features, region_map, region, out, mode, 3.0)
    region_map = region_map.permute(1, 2, 0).repeat_interleave(2, 1)[:, ::2].permute(2, 0, 1)
    region = region.repeat_interleave(3)[::3]
    assert region_map.stride(2) != 1
    assert region.stride(0) == 3
    assert torch.equal(pooling.forward(features, region_map, region, mode, 3.0), out)
    turned = out.t().contiguous().t()
    assert torch.equal(pooling.backward(grad, features, region_map, region, turned, mode, 3.0), want)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rows", "channels"), [(0, 5), (2, 0)])
def test_nothing_to_pool(pooling: ModuleType, mode: str, rows: int, channels: int) -> None:
    features = last(torch.zeros(rows, channels, 4, 2))
    arguments = (features, torch.zeros(rows, 8, 4, dtype=torch.uint8), torch.zeros(rows, dtype=torch.long))
    out = pooling.forward(*arguments, mode, 3.0)
    assert out.shape == (rows, channels)
    assert pooling.backward(out, *arguments, out, mode, 3.0).shape == features.shape


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_dtypes(pooling: ModuleType, dtype: torch.dtype, mode: str) -> None:
    check(pooling, *batch((1, 6), (3, 13), dtype, channels=21), mode, blocks=SMALL)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("grid", "size"), GRIDS[1:])
def test_grids(pooling: ModuleType, grid: tuple[int, int], size: tuple[int, int], mode: str) -> None:
    check(pooling, *batch(grid, size), mode)


@pytest.mark.parametrize("mode", MODES)
def test_many_cells_and_channels(pooling: ModuleType, mode: str) -> None:
    features, region_map, _ = batch((16, 8), (32, 16), torch.bfloat16, channels=70)
    check(pooling, features[:1], region_map[:1], torch.tensor([2]), mode)


FEATURES, MAP = last(torch.zeros(4, 3, 4, 2)), torch.zeros(2, 8, 4, dtype=torch.uint8)
REGION, OUT = torch.arange(4), torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"features": FEATURES.double()}, TypeError, "float32, float16 or bfloat16, not torch.float64"),
        ({"features": FEATURES.contiguous()}, ValueError, "channels_last"),
        ({"features": last(torch.zeros(4, 3, 8, 2))[:, :, ::2]}, ValueError, "channels_last"),
        ({"features": FEATURES[0]}, ValueError, r"must be \[B, C, h, w\]"),
        ({"features": FEATURES[:, :, :0]}, ValueError, "must have cells"),
        ({"region_map": MAP.int()}, TypeError, "region_map must be uint8"),
        ({"region_map": MAP[:, :0]}, ValueError, "region_map pixels"),
        ({"region_map": MAP.repeat(2, 1, 1)[:3]}, ValueError, "no multiple of region_map's 3 people"),
        ({"region": REGION.int()}, TypeError, "region int64"),
        ({"region": REGION[:3]}, ValueError, "the shapes must be"),
        ({"out": OUT.half()}, TypeError, "out must be torch.float32"),
        ({"grad": OUT[:3]}, ValueError, r"grad must have the shape \[4, 3\]"),
        ({"mode": "median"}, ValueError, "mode must be one of mean, max, gem"),
    ],
)
def test_wrong_arguments(pooling: ModuleType, change: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments = {"grad": OUT, "features": FEATURES, "region_map": MAP, "region": REGION, "out": OUT, "mode": "mean"}
    with pytest.raises(error, match=words):
        pooling.backward(**{**arguments, **change}, power=3.0)
    if not change.keys() & {"grad", "out"}:
        given = {**arguments, **change}
        with pytest.raises(error, match=words):
            pooling.forward(given["features"], given["region_map"], given["region"], given["mode"], 3.0)
