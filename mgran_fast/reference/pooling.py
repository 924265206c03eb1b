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
    A row whose region has no pixel gives 0, and no gradient. Computed in float32, in float64 for float64 features.
    """
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    weights = shares(region_map, region, features.shape[2], features.shape[3], dtype)[:, None]
    total = weights.sum((2, 3))
    x = features.to(dtype)
    if mode == "max":
        pooled = x.masked_fill(weights <= 0, -torch.inf).amax((2, 3))
    elif mode == "mean":
        # Masked as well as weighted: an infinite feature outside of the region is none of its business.
        x = x.masked_fill(weights <= 0, 0.0)
        pooled = (x * weights).sum((2, 3)) / total.clamp(min=torch.finfo(dtype).tiny)
    else:
        # Powers of x / (the largest x of the region): no power over- or underflows, and the mean of the powers is
        # never 0, where the root has no slope. The factor cancels, so it needs no gradient.
        x = x.masked_fill(weights <= 0, 0.0).clamp(min=GEM_SMALLEST)
        largest = x.detach().amax((2, 3), keepdim=True)
        mean = ((x / largest).pow(power) * weights).sum((2, 3)) / total.clamp(min=torch.finfo(dtype).tiny)
        # Kept away from 0 before the root, so that an invisible row's gradient is 0 and not NaN.
        pooled = torch.where(total > 0, mean, 1.0).pow(1.0 / power) * largest[:, :, 0, 0]
    return torch.where(total > 0, pooled, 0.0).to(features.dtype)


def backward(
    grad: torch.Tensor,
    features: torch.Tensor,
    region_map: torch.Tensor,
    region: torch.Tensor,
    mode: str,
    power: float,
) -> torch.Tensor:
    """The gradient of :func:`pooling` in the features: grad [B, C] -> [B, C, h, w], by the formulas below.

    With T = sum(w), every gradient 0 where w is 0 or T is 0:
    mean: dy/dx = w / T. max: 1 / (number of the region's cells that equal the maximum) at those cells.
    gem, with L the largest x, m = sum(w (x/L)^p) / T: dy/dx = m^(1/p - 1) (x/L)^(p - 1) w / T, and 0 for an x below
    the clamp.
    """
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    weights = shares(region_map, region, features.shape[2], features.shape[3], dtype)[:, None]
    total = weights.sum((2, 3), keepdim=True)
    visible = weights > 0
    slope = grad.to(dtype)[:, :, None, None]
    x = features.to(dtype)
    if mode == "max":
        hidden = x.masked_fill(~visible, -torch.inf)
        largest = (hidden == hidden.amax((2, 3), keepdim=True)) & visible
        result = slope / largest.sum((2, 3), keepdim=True).clamp(min=1) * largest
    else:
        result = slope * weights / total.clamp(min=torch.finfo(dtype).tiny)
        if mode == "gem":
            inside = x.masked_fill(~visible, 0.0)
            clamped = inside.clamp(min=GEM_SMALLEST)
            largest_x = clamped.amax((2, 3), keepdim=True)
            ratio = clamped / largest_x
            mean = (ratio.pow(power) * weights).sum((2, 3), keepdim=True) / total.clamp(min=torch.finfo(dtype).tiny)
            mean = torch.where(total > 0, mean, 1.0)
            result = result * mean.pow(1.0 / power - 1.0) * ratio.pow(power - 1.0) * (inside >= GEM_SMALLEST)
    return torch.where(visible, result, 0.0).to(features.dtype)


def shares(
    region_map: torch.Tensor, region: torch.Tensor, height: int, width: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """``dtype`` [B, height, width]: the share of each cell's pixels that lie in the row's region.

    Region 0 is the whole person, or the whole crop of a person whose map is empty. A cell (i, j) of an h x w
    grid covers the pixels floor(i H / h) to ceil((i + 1) H / h), exclusive, and columns alike.
    """
    repeats = 0 if len(region_map) == 0 else len(region) // len(region_map)
    rows = region_map.repeat_interleave(repeats, 0) if repeats != 1 else region_map
    whole = everyone(region_map).repeat_interleave(repeats, 0)
    chosen = region.to(rows.device)[:, None, None]
    inside = torch.where(chosen == 0, whole, rows == chosen)
    if len(inside) == 0:
        return torch.zeros((0, height, width), dtype=dtype, device=rows.device)
    return F.adaptive_avg_pool2d(inside.to(dtype), (height, width))
