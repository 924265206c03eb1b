"""Masked region pooling in plain torch, differentiable in the features."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast.reference.inputs import everyone

# Features enter GeM's power clamped to this: ReLU gives zeros, whose power has no finite slope for p < 1.
GEM_SMALLEST = 1e-6


def pooling(
    features: torch.Tensor, region_map: torch.Tensor, region: torch.Tensor, mode: str, power: float
) -> torch.Tensor:
    """features [B, C, h, w], region_map uint8 [N, H, W], region int64 [B] -> [B, C]; B is a multiple of N.

    With w the share of a cell's pixels that lie in the row's region, x the cell's features:
    mean = sum(w x) / sum(w); gem = (sum(w x^p) / sum(w))^(1/p); max = the largest x of the cells with w > 0.
    A row whose region has no pixel gives 0, and no gradient.
    """
    weights = shares(region_map, region, features.shape[2], features.shape[3])[:, None]
    total = weights.sum((2, 3))
    x = features.float()
    if mode == "max":
        pooled = x.masked_fill(weights <= 0, -torch.inf).amax((2, 3))
    else:
        x = x.clamp(min=GEM_SMALLEST).pow(power) if mode == "gem" else x
        pooled = (x * weights).sum((2, 3)) / total.clamp(min=torch.finfo(torch.float32).tiny)
        if mode == "gem":
            # Kept away from 0 before the root, so that an invisible row's gradient is 0 and not NaN.
            pooled = torch.where(total > 0, pooled, 1.0).pow(1.0 / power)
    return torch.where(total > 0, pooled, 0.0).to(features.dtype)


def shares(region_map: torch.Tensor, region: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """float32 [B, height, width]: the share of each cell's pixels that lie in the row's region.

    Region 0 is the whole person, or the whole crop of a person whose map is empty. A cell (i, j) of an h x w
    grid covers the pixels floor(i H / h) to ceil((i + 1) H / h), exclusive, and columns alike.
    """
    repeats = 0 if len(region_map) == 0 else len(region) // len(region_map)
    rows = region_map.repeat_interleave(repeats, 0) if repeats != 1 else region_map
    whole = everyone(region_map).repeat_interleave(repeats, 0)
    chosen = region.to(rows.device)[:, None, None]
    inside = torch.where(chosen == 0, whole, rows == chosen)
    if len(inside) == 0:
        return torch.zeros((0, height, width), device=rows.device)
    return F.adaptive_avg_pool2d(inside.float(), (height, width))
