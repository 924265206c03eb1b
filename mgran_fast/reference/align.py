"""Aligned inputs straight from crops, masks and keypoints, in plain torch: regions, then inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mgran_fast import layouts
from mgran_fast.reference.inputs import inputs
from mgran_fast.reference.regions import regions


def align(
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """crops uint8 [N, H, W, 3], mask [N, h, w], keypoints [N, 17, 3] -> inputs [N, 1 + R, 3, H, W], map [N, H, W]."""
    size = (crops.shape[1], crops.shape[2])
    region_map = regions(mask, keypoints, size, layout, threshold, keypoint_threshold)
    return inputs(crops, region_map, scale, mean, std, dtype, layouts.get(layout).regions), region_map
