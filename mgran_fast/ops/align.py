"""``align``: crops, masks and keypoints -> aligned inputs in one go, the region map only where it is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mgran_fast import layouts
from mgran_fast.layouts import Layout
from mgran_fast.ops import backend, checks
from mgran_fast.ops.inputs import empty, normalization
from mgran_fast.ops.launch import DTYPES, launch
from mgran_fast.ops.library import register
from mgran_fast.ops.regions import check, prepared
from mgran_fast.reference import align as reference


class Aligned(NamedTuple):
    """What :func:`align` returns.

    Attributes:
        inputs: [N, 1 + R, 3, H, W], channels innermost.
        region_map: uint8 [N, H, W], or None when it was not asked for.
    """

    inputs: torch.Tensor
    region_map: torch.Tensor | None


def align(
    crops: torch.Tensor,
    mask: torch.Tensor,
    keypoints: torch.Tensor,
    layout: str | Layout = "region",
    threshold: float = 0.5,
    scale: float = 1 / 256,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    keypoint_threshold: float = 0.3,
    region_map: bool = True,
) -> Aligned:
    """:func:`~mgran_fast.ops.regions` and :func:`~mgran_fast.ops.inputs` in one pass, with the same result.

    Without ``region_map`` the map never reaches memory; pooling needs it.

    Args:
        crops: uint8 [N, H, W, 3], RGB.
        mask, keypoints, layout, threshold, keypoint_threshold: as in ``regions``; keypoints in pixels of the crop.
        scale, mean, std, dtype: as in ``inputs``.
        region_map: return the map as well.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device, layout, threshold, mean or std.
    """
    layout = layouts.get(layout)
    checks.tensor("crops", crops, (None, None, None, 3), (torch.uint8,))
    height, width = crops.shape[1:3]
    check(mask, keypoints, height, width, threshold)
    checks.same_people(crops=crops, mask=mask)
    checks.same_device(crops=crops, mask=mask)
    scale, means, stds = normalization(scale, mean, std, dtype)
    inputs, map_ = _op(
        crops,
        mask,
        keypoints,
        layout.name,
        float(threshold),
        float(keypoint_threshold),
        scale,
        means,
        stds,
        dtype,
        region_map,
    )
    return Aligned(inputs, map_ if region_map else None)


def _implementation(
    crops: torch.Tensor,
    mask: torch.Tensor,
    keypoints: torch.Tensor,
    layout: str,
    threshold: float,
    keypoint_threshold: float,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    with_map: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    module = None if layouts.get(layout).whole else backend.native("align", crops.device.type)
    if module is None:
        inputs, map_ = reference.align(
            crops, mask, keypoints, layout, threshold, keypoint_threshold, scale, mean, std, dtype
        )
        return inputs, map_ if with_map else map_[:0].clone()
    inputs, map_ = _fake(
        crops, mask, keypoints, layout, threshold, keypoint_threshold, scale, mean, std, dtype, with_map
    )
    size = (crops.shape[1], crops.shape[2])
    launch(
        module,
        "align",
        crops.device,
        crops=crops.contiguous(),
        out=inputs,
        dtype=DTYPES[dtype],
        scale=scale,
        mean=tuple(mean),
        std=tuple(std),
        map=map_ if with_map else None,
        **prepared(module, mask, keypoints, size, layout, threshold, keypoint_threshold),
    )
    return inputs, map_


def _fake(
    crops: torch.Tensor,
    mask: torch.Tensor,
    keypoints: torch.Tensor,
    layout: str,
    threshold: float,
    keypoint_threshold: float,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    with_map: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    people, height, width = crops.shape[:3]
    inputs = empty(people, layouts.get(layout).regions, height, width, dtype, crops.device)
    return inputs, crops.new_empty((people if with_map else 0, height, width))


_op = register(
    "align(Tensor crops, Tensor mask, Tensor keypoints, str layout, float threshold, float keypoint_threshold,"
    " float scale, float[] mean, float[] std, ScalarType dtype, bool with_map) -> (Tensor, Tensor)",
    _implementation,
    _fake,
)
