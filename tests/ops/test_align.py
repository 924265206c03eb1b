"""align: regions and inputs in one go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mgran_fast import layouts, ops
from mgran_fast.reference import align as reference

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def people(n: int, size: tuple[int, int], source: tuple[int, int] = (20, 9)) -> tuple[torch.Tensor, ...]:
    """Crops, masks of noise, keypoints all over the crop; one person without keypoints, one without a mask."""
    generator = torch.Generator().manual_seed(n + size[0])
    crops = torch.randint(0, 256, (n, *size, 3), dtype=torch.uint8, generator=generator)
    mask = torch.rand(n, *source, generator=generator)
    keypoints = torch.rand(n, 17, 3, generator=generator) * torch.tensor([float(size[1]), float(size[0]), 1.0])
    keypoints[:1, :, 2] = 0
    mask[1:2] = 0
    return crops, mask, keypoints


def same(got: torch.Tensor, want: torch.Tensor) -> bool:
    return got.stride() == want.stride() and torch.equal(
        got.contiguous().view(torch.uint8), want.contiguous().view(torch.uint8)
    )


@pytest.mark.parametrize("layout", ["region", "part", "box", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", [True, False])
def test_the_same_as_regions_then_inputs(
    native: Callable[..., ops.Aligned], isa: str, layout: str, dtype: torch.dtype, wanted: bool
) -> None:
    crops, mask, keypoints = people(4, (33, 17))
    found = layouts.get(layout)
    run = (lambda op, *a, **k: op(*a, **k)) if found.whole else native
    got = run(
        ops.align, crops, mask, keypoints, layout, 0.4, 1 / 255, MEAN, STD, dtype,
        keypoint_threshold=0.2, region_map=wanted,
    )  # fmt: skip
    inputs, map_ = reference.align(crops, mask, keypoints, layout, 0.4, 0.2, 1 / 255, MEAN, STD, dtype)
    assert same(got.inputs, inputs)
    assert got.region_map is None if not wanted else torch.equal(got.region_map, map_)


@pytest.mark.parametrize("n", [1, 2, 17])
@pytest.mark.parametrize("layout", ["region", "box"])
@pytest.mark.parametrize("mask_dtype", [torch.float32, torch.uint8])
def test_many_people(
    native: Callable[..., ops.Aligned],
    device: Callable[[str], str],
    threads: int,
    n: int,
    layout: str,
    mask_dtype: torch.dtype,
) -> None:
    where = device("align")
    crops, mask, keypoints = people(n, (64, 32), (64, 32))
    mask = mask if mask_dtype == torch.float32 else (mask * 255).to(mask_dtype)
    got = native(ops.align, crops.to(where), mask.to(where), keypoints.to(where), layout)
    inputs, map_ = reference.align(crops, mask, keypoints, layout, 0.5, 0.3, 1 / 256, (0,) * 3, (1,) * 3, torch.float32)
    assert torch.equal(got.inputs.cpu(), inputs)
    assert got.region_map is not None
    assert torch.equal(got.region_map.cpu(), map_)


def test_no_people() -> None:
    crops, mask, keypoints = people(0, (8, 4))
    got = ops.align(crops, mask, keypoints)
    assert got.inputs.shape == (0, 4, 3, 8, 4)
    assert got.region_map is not None
    assert got.region_map.shape == (0, 8, 4)


CROPS, MASK, KEYPOINTS = people(2, (8, 4))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"crops": CROPS.float()}, TypeError, "crops must be uint8, not float32"),
        ({"crops": CROPS[0]}, ValueError, "crops must have the shape"),
        ({"crops": CROPS[:1]}, ValueError, "different numbers of people: crops has 1, mask has 2"),
        ({"crops": CROPS.to("meta")}, ValueError, "on different devices: crops on meta, mask on cpu"),
        ({"mask": MASK.double()}, TypeError, "mask must be float32 or uint8"),
        ({"mask": MASK[:, :0]}, ValueError, "mask has no pixels"),
        ({"keypoints": KEYPOINTS[:1]}, ValueError, "different numbers of people: mask has 2, keypoints has 1"),
        ({"layout": "limbs"}, ValueError, "layout must be one of"),
        ({"threshold": -0.1}, ValueError, "threshold must be in"),
        ({"std": (1.0, -1.0, 1.0)}, ValueError, "std must be positive"),
        ({"dtype": torch.int8}, TypeError, "dtype must be float32"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ops.align(**{"crops": CROPS, "mask": MASK, "keypoints": KEYPOINTS, **change})
