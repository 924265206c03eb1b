"""Aligned inputs in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def inputs(
    crops: torch.Tensor,
    region_map: torch.Tensor,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    regions: int,
) -> torch.Tensor:
    """crops uint8 [N, H, W, 3], region_map uint8 [N, H, W] -> [N, 1 + R, 3, H, W], channels innermost.

    (scale * pixel - mean) / std where the input's region is, exactly 0 elsewhere. Input 0 is every region
    together, or the whole crop of a person whose map is empty.
    """
    # Elementwise results keep the strides of their argument: the channels must be innermost from here on.
    scaled = crops.contiguous().float() * scale
    # Channel by channel with plain numbers: a tensor of them would be a copy to the device that the host waits for.
    pixels = torch.stack([(scaled[..., c] - mean[c]) / std[c] for c in range(3)], -1).to(dtype)
    where = torch.stack([everyone(region_map), *(region_map == r for r in range(1, regions + 1))], 1)
    zero = torch.zeros((), dtype=dtype, device=crops.device)
    return torch.where(where[..., None], pixels[:, None], zero).permute(0, 1, 4, 2, 3)


def everyone(region_map: torch.Tensor) -> torch.Tensor:
    """bool [N, H, W]: the pixels of the global input: every region, or all pixels where the map is empty."""
    empty = (region_map == 0).flatten(1).all(1)
    return (region_map > 0) | empty[:, None, None]
