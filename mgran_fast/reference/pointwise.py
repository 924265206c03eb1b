"""A block's last convolution, 1x1, with all that is summed with it, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812


def pointwise(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None = None,
    shortcut: torch.Tensor | None = None,
    shortcut_weight: torch.Tensor | None = None,
    stride: int = 1,
    relu: bool = True,
) -> torch.Tensor:
    """relu(x W + shortcut V + bias + residual): [B, D, h, w] in x's dtype, channels_last.

    x [B, C, h, w], W = weight [D, C], bias [D], residual [B, D, h, w]; of the shortcut [B, E, h', w'] every
    ``stride``-th row and column meets V = shortcut_weight [D, E]. Summed in float32, in float64 for float64.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = F.conv2d(x.to(wide), weight.to(wide)[:, :, None, None], bias.to(wide))
    if shortcut is not None and shortcut_weight is not None:
        y = y + F.conv2d(shortcut.to(wide), shortcut_weight.to(wide)[:, :, None, None], stride=stride)
    if residual is not None:
        y = y + residual.to(wide)
    return (y.relu() if relu else y).to(x.dtype).contiguous(memory_format=torch.channels_last)
