"""Aligned inputs: the formula in float64, exact zeros, and the memory that the trunk wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mgran_fast import ops
from mgran_fast.reference import inputs as reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The result is rounded once to its dtype, after two or three roundings in float32; values reach 2.7.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def people(n: int, height: int, width: int, regions: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * height + width)
    crops = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)
    region_map = torch.randint(0, regions + 1, (n, height, width), dtype=torch.uint8, generator=generator)
    return crops, region_map


def by_hand(
    crops: torch.Tensor, region_map: torch.Tensor, scale: float, mean: Any, std: Any, regions: int = 3
) -> np.ndarray:
    """float64 [N, 1 + R, 3, H, W], one pixel after another."""
    n, height, width = region_map.shape
    picture, names = crops.numpy().astype(np.float64), region_map.numpy()
    answer = np.zeros((n, 1 + regions, 3, height, width))
    for i, y, x in np.ndindex(n, height, width):
        region = int(names[i, y, x])
        value = (scale * picture[i, y, x] - np.array(mean)) / np.array(std)
        if region or not names[i].any():
            answer[i, 0, :, y, x] = value
        if region:
            answer[i, region, :, y, x] = value
    return answer


def close(got: torch.Tensor, want: np.ndarray, tolerance: float) -> bool:
    # Written so that NaN fails.
    error = np.abs(got.double().numpy() - want).max(initial=0.0)
    return bool(error <= tolerance)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("size", [(8, 4), (7, 5), (1, 1), (3, 1)])
@pytest.mark.parametrize("normalised", [False, True])
def test_values(dtype: torch.dtype, size: tuple[int, int], normalised: bool) -> None:
    crops, region_map = people(3, *size)
    mean, std = (MEAN, STD) if normalised else (None, None)
    got = ops.inputs(crops, region_map, 1 / 255 if normalised else 1 / 256, mean, std, dtype)
    want = by_hand(crops, region_map, 1 / 255 if normalised else 1 / 256, mean or (0, 0, 0), std or (1, 1, 1))
    assert got.dtype == dtype
    assert got.shape == (3, 4, 3, *size)
    assert close(got, want, TOLERANCES[dtype])


def test_the_default_is_the_published_scaling_to_the_bit() -> None:
    crops = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    got = ops.inputs(crops, torch.ones(1, 16, 16, dtype=torch.uint8))
    # Bytes over a power of two are exact in float32.
    assert torch.equal(got[0, 0], (crops[0].double() / 256).float().permute(2, 0, 1))


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_background_is_exactly_zero(dtype: torch.dtype) -> None:
    crops, region_map = people(2, 9, 6)
    got = ops.inputs(crops, region_map, 1 / 256, MEAN, STD, dtype)
    for region in range(4):
        outside = region_map == 0 if region == 0 else region_map != region
        values = got[:, region].permute(0, 2, 3, 1)[outside]
        assert len(values)
        # Also no negative zero: the bytes themselves are 0.
        assert not values.contiguous().view(torch.uint8).any()
        inside = got[:, region].permute(0, 2, 3, 1)[~outside]
        assert bool((inside != 0).all())


def test_regions_add_up_to_the_person() -> None:
    crops, region_map = people(2, 8, 6)
    got = ops.inputs(crops, region_map, mean=MEAN, std=STD)
    assert torch.equal(got[:, 0], got[:, 1:].sum(1))


def test_an_empty_map_is_the_whole_crop_and_no_region() -> None:
    crops, region_map = people(2, 8, 6)
    region_map[1] = 0
    got = ops.inputs(crops, region_map)
    assert torch.equal(got[1, 0], (crops[1].float() / 256).permute(2, 0, 1))
    assert not got[1, 1:].any()
    # The other person is not touched by that.
    assert torch.equal(got[:1], ops.inputs(crops[:1], region_map[:1]))


@pytest.mark.parametrize("regions", [0, 1, 6])
def test_number_of_regions(regions: int) -> None:
    crops, region_map = people(2, 6, 5, max(regions, 1))
    got = ops.inputs(crops, region_map, regions=regions)
    assert got.shape == (2, 1 + regions, 3, 6, 5)
    assert close(got, by_hand(crops, region_map, 1 / 256, 0.0, 1.0, max(regions, 1))[:, : 1 + regions], 1e-6)


@pytest.mark.parametrize("size", [(8, 4), (0, 4)])
def test_no_people(size: tuple[int, int]) -> None:
    got = ops.inputs(torch.zeros(0, *size, 3, dtype=torch.uint8), torch.zeros(0, *size, dtype=torch.uint8))
    assert got.shape == (0, 4, 3, *size)


@pytest.mark.parametrize("order", ["rows", "planes", "slices"])
def test_memory_is_channels_last_whatever_the_crops_are(order: str) -> None:
    crops, region_map = people(2, 8, 6)
    want = ops.inputs(crops, region_map)
    if order == "planes":
        crops = crops.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        region_map = region_map.transpose(1, 2).contiguous().transpose(1, 2)
    elif order == "slices":
        crops = crops.repeat_interleave(2, 2)[:, :, ::2]
        region_map = region_map.repeat_interleave(2, 0)[::2]
    assert crops.is_contiguous() == (order == "rows")
    got = ops.inputs(crops, region_map)
    assert torch.equal(got, want)
    batch = got.flatten(0, 1)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    # flatten made no copy.
    assert batch.data_ptr() == got.data_ptr()


def test_arguments_are_left_alone() -> None:
    crops, region_map = people(2, 8, 6)
    copies = crops.clone(), region_map.clone()
    ops.inputs(crops, region_map, mean=MEAN, std=STD).fill_(1.0)
    assert torch.equal(crops, copies[0])
    assert torch.equal(region_map, copies[1])


# --- the kernels and the reference ----------------------------------------------------------------------------

# Sizes at and around the blocks of 16 pixels that the kernels work in, and planes whose length is odd.
SIZES = [(1, 1), (1, 15), (4, 4), (1, 17), (7, 9), (16, 8), (33, 17), (64, 33)]


def bits(values: torch.Tensor) -> torch.Tensor:
    # Not contiguous(): that leaves strides of size 1 as they are, and view() does not take all of them.
    return values.clone(memory_format=torch.contiguous_format).view(torch.uint8)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("regions", [0, 1, 3, 6])
def test_kernel_equals_reference(
    native: Callable[..., torch.Tensor], isa: str, dtype: torch.dtype, size: tuple[int, int], regions: int
) -> None:
    crops, region_map = people(4, *size, regions)
    region_map[2] = 0
    got = native(ops.inputs, crops, region_map, 1 / 255, MEAN, STD, dtype, regions=regions)
    want = reference.inputs(crops, region_map, 1 / 255, MEAN, STD, dtype, regions)
    assert got.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    # To the bit: -0 is not 0.
    assert torch.equal(bits(got), bits(want))


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_kernel_equals_reference_for_many_people(
    native: Callable[..., torch.Tensor], device: Callable[[str], str], threads: int, dtype: torch.dtype
) -> None:
    where = device("inputs")
    crops, region_map = people(48, 128, 64)
    region_map[5] = 0
    got = native(ops.inputs, crops.to(where), region_map.to(where), 1 / 255, MEAN, STD, dtype)
    want = reference.inputs(crops, region_map, 1 / 255, MEAN, STD, dtype, 3)
    assert got.device.type == where
    assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("offset", [1, 3, 8])
def test_crops_and_maps_that_start_anywhere(native: Callable[..., torch.Tensor], isa: str, offset: int) -> None:
    crops, region_map = people(3, 16, 8)
    shifted = torch.zeros(crops.numel() + offset, dtype=torch.uint8)[offset:].view(crops.shape).copy_(crops)
    map_ = torch.zeros(region_map.numel() + offset, dtype=torch.uint8)[offset:].view(region_map.shape)
    map_.copy_(region_map)
    assert shifted.data_ptr() % 16 == offset % 16
    assert torch.equal(native(ops.inputs, shifted, map_), ops.inputs(crops, region_map))


CROPS, MAP = torch.zeros(2, 8, 4, 3, dtype=torch.uint8), torch.zeros(2, 8, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"crops": CROPS.numpy()}, TypeError, "crops must be a torch.Tensor, not ndarray"),
        ({"crops": CROPS.float()}, TypeError, "crops must be uint8, not float32"),
        ({"crops": CROPS.permute(0, 3, 1, 2)}, ValueError, r"crops must have the shape \[any, any, any, 3\]"),
        ({"crops": CROPS[0]}, ValueError, "crops must have the shape"),
        ({"region_map": None}, TypeError, "region_map must be a torch.Tensor, not NoneType"),
        ({"region_map": MAP.long()}, TypeError, "region_map must be uint8, not int64"),
        ({"region_map": MAP[:1]}, ValueError, r"region_map must have the shape \[2, 8, 4\], not \[1, 8, 4\]"),
        ({"region_map": MAP[:, :7]}, ValueError, r"region_map must have the shape \[2, 8, 4\], not \[2, 7, 4\]"),
        ({"region_map": MAP.to("meta")}, ValueError, "on different devices: crops on cpu, region_map on meta"),
        ({"dtype": torch.float64}, TypeError, "dtype must be float32, float16 or bfloat16"),
        ({"dtype": torch.uint8}, TypeError, "dtype must be"),
        ({"mean": (0.5,)}, ValueError, "mean must have one number for each of the 3 channels"),
        ({"std": (1.0, 1.0, 1.0, 1.0)}, ValueError, "std must have one number for each of the 3 channels"),
        ({"std": (1.0, 0.0, 1.0)}, ValueError, "std must be positive"),
        ({"std": (1.0, float("nan"), 1.0)}, ValueError, "std must be positive"),
        ({"regions": 256}, ValueError, "regions must be 0 to 255, not 256"),
        ({"scale": float("inf")}, ValueError, "scale and mean must be finite"),
        ({"mean": (1e39, 0.0, 0.0)}, ValueError, "scale and mean must be finite"),
        ({"std": (1.0, 1e-46, 1.0)}, ValueError, "std must be positive"),
        ({"regions": -1}, ValueError, "regions must be 0 to 255, not -1"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ops.inputs(**{"crops": CROPS, "region_map": MAP, **change})
