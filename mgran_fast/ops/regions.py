"""``regions``: mask and keypoints -> region map. Schema, fake, choice of backend.

The pattern of every op: a public function checks its arguments and calls the registered op; the op's
implementation for a device asks :mod:`mgran_fast.ops.backend` whether the kernel or the reference runs.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch

from mgran_fast import layouts
from mgran_fast.layouts import JOINTS, Layout
from mgran_fast.ops import backend, checks
from mgran_fast.ops.launch import launch
from mgran_fast.ops.library import register
from mgran_fast.reference import regions as reference

# A kernel adds the resampled mask in integers below 2**53.
MOST_PIXELS = 2**26


def regions(
    mask: torch.Tensor,
    keypoints: torch.Tensor,
    size: tuple[int, int] = (256, 128),
    layout: str | Layout = "region",
    threshold: float = 0.5,
    *,
    keypoint_threshold: float = 0.3,
) -> torch.Tensor:
    """The region map of each person: which body region every pixel belongs to.

    The mask is resampled bilinearly (half-pixel centres) to ``size`` and binarized: foreground is where it is
    at least ``threshold``. Every foreground pixel belongs to exactly one region, that of its nearest limb, the
    distance divided by the limb's thickness (:mod:`mgran_fast.layouts`). Keypoints with a lower score than
    ``keypoint_threshold``, with a coordinate that is not finite, or further than one crop outside are left out;
    with none left, fixed bands of the mask's bounding box are taken. An empty mask gives an all-zero map, which
    the other ops read as "whole crop, no visible region".

    All backends give the same map, to the bit.

    Args:
        mask: [N, h, w], any size: float32 in [0, 1], or uint8 (probability = value/255). NaN is background.
        keypoints: float32 [N, 17, 3], COCO order: x, y in pixels of the output (the centre of the pixel in
            column j is at j + 0.5), score.
        size: (H, W) of the map.
        layout: the name of a body layout, or a :class:`~mgran_fast.layouts.Layout`.
        threshold: in [0, 1]; the published system binarizes at 0.5.
        keypoint_threshold: lowest score of a usable keypoint.

    Returns:
        uint8 [N, H, W]: 0 background, i = region ``layout.groups[i - 1]`` (1 head, 2 upper body, 3 lower body).

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, device, layout, size or threshold.
    """
    layout = layouts.get(layout)
    height, width = checks.size(size)
    check(mask, keypoints, height, width, threshold)
    result: torch.Tensor = _op(mask, keypoints, height, width, layout.name, float(threshold), float(keypoint_threshold))
    return result


def check(mask: torch.Tensor, keypoints: torch.Tensor, height: int, width: int, threshold: float) -> None:
    """Raises TypeError or ValueError for what the kernels of regions and align cannot take."""
    checks.tensor("mask", mask, (None, None, None), (torch.float32, torch.uint8))
    checks.tensor("keypoints", keypoints, (None, len(layouts.KEYPOINTS), 3), (torch.float32,))
    checks.same_people(mask=mask, keypoints=keypoints)
    checks.same_device(mask=mask, keypoints=keypoints)
    if height * width > MOST_PIXELS:
        raise ValueError(f"size must have at most {MOST_PIXELS} pixels, not {height} x {width}")
    if mask.shape[0] > 0 and (mask.shape[1] == 0 or mask.shape[2] == 0):
        raise ValueError(f"mask has no pixels: its shape is {list(mask.shape)}")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold must be in [0, 1], not {threshold!r}")


def visibility(region_map: torch.Tensor, layout: str | Layout = "region") -> torch.Tensor:
    """Which of the 1 + R inputs show anything: bool [N, 1 + R].

    The global input is always visible (an empty map means the whole crop); region i is when a pixel is.

    Args:
        region_map: uint8 [N, H, W].
        layout: the layout that it was made with.
    """
    checks.tensor("region_map", region_map, (None, None, None), (torch.uint8,))
    flat = region_map.flatten(1)
    numbers = range(1, layouts.get(layout).regions + 1)
    everyone = torch.ones((flat.shape[0], 1), dtype=torch.bool, device=flat.device)
    if flat.device.type == "cuda" and numbers:
        # One look at all pixels for all regions, where launches cost more than bytes.
        regions = torch.arange(1, len(numbers) + 1, dtype=torch.uint8, device=flat.device)
        return torch.cat([everyone, (flat[:, None] == regions[:, None]).any(2)], 1)
    return torch.cat([everyone, *((flat == region).any(1, keepdim=True) for region in numbers)], 1)


@functools.cache
def _tables(name: str) -> Any:
    """The layout as the extension wants it."""
    layout = layouts.get(name)
    module = backend.extension()
    assert module is not None
    return module.Layout(
        limbs=[(limb.group, JOINTS.index(limb.start), JOINTS.index(limb.end)) for limb in layout.limbs],
        weights=[reference.weight(limb.thickness) for limb in layout.limbs],
        bands=[(band.group, band.top, band.bottom, band.left, band.right) for band in layout.bands],
        torso=layout.torso,
        rectangles=layout.rectangles,
        regions=layout.regions,
    )


def _implementation(
    mask: torch.Tensor,
    keypoints: torch.Tensor,
    height: int,
    width: int,
    layout: str,
    threshold: float,
    keypoint_threshold: float,
) -> torch.Tensor:
    module = None if layouts.get(layout).whole else backend.native("regions", mask.device.type)
    if module is None:
        return reference.regions(mask, keypoints, (height, width), layout, threshold, keypoint_threshold)
    map_ = torch.empty((len(mask), height, width), dtype=torch.uint8, device=mask.device)
    arguments = prepared(module, mask, keypoints, (height, width), layout, threshold, keypoint_threshold)
    launch(module, "regions", mask.device, **arguments, map=map_)
    return map_


def prepared(
    module: ModuleType,
    mask: torch.Tensor,
    keypoints: torch.Tensor,
    size: tuple[int, int],
    layout: str,
    threshold: float,
    keypoint_threshold: float,
) -> dict[str, Any]:
    """What the kernels of regions and align want to know of masks and keypoints."""
    workspace = None
    if mask.device.type == "cuda":
        workspace = torch.empty((len(mask), module.regions_workspace), dtype=torch.int32, device=mask.device)
    return {
        "mask": mask.contiguous(),
        "mask_is_float": mask.dtype == torch.float32,
        "mask_size": (mask.shape[1], mask.shape[2]),
        "keypoints": keypoints.contiguous(),
        "workspace": workspace,
        "people": len(mask),
        "size": size,
        "limit": reference.limit(mask.dtype, (mask.shape[1], mask.shape[2]), size, threshold),
        "keypoint_threshold": keypoint_threshold,
        "layout": _tables(layout),
    }


def _fake(
    mask: torch.Tensor,
    keypoints: torch.Tensor,
    height: int,
    width: int,
    layout: str,
    threshold: float,
    keypoint_threshold: float,
) -> torch.Tensor:
    return mask.new_empty((mask.shape[0], height, width), dtype=torch.uint8)


_op = register(
    "regions(Tensor mask, Tensor keypoints, SymInt height, SymInt width, str layout, float threshold,"
    " float keypoint_threshold) -> Tensor",
    _implementation,
    _fake,
)
