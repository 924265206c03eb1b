"""A convolution of windows in plain torch: whole images are put together, and what is asked for is cut out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812


class Cells(NamedTuple):
    """One layer of B images on a grid of (h, w) cells, of which each image keeps a window.

    Inside of its window an image has cells of its own; elsewhere it equals the background that all of them share.

    Attributes:
        data: [S, C], the windows' cells one window after another, row by row, S the sum of their areas; or
            [B, h, w, C], where the cells lie where the whole grid has them and what is outside of the windows means
            nothing.
        windows: int32 [B, 4] on the CPU: top, left, height, width of each window, inside of the grid; empty ones too.
        grid: (h, w).
        background: [h, w, C] of the data's dtype, or None for zeros.
    """

    data: torch.Tensor
    windows: torch.Tensor
    grid: tuple[int, int]
    background: torch.Tensor | None = None


class Source(NamedTuple):
    """What a convolution reads: cells, its weights [D, C, k, k], stride and padding (of zeros, around the grid)."""

    x: Cells
    weight: torch.Tensor
    stride: int = 1
    padding: int = 0


def whole(cells: Cells) -> torch.Tensor:
    """[B, C, h, w]: the images with their background."""
    h, w = cells.grid
    windows = cells.windows.tolist()
    channels = cells.data.shape[-1]
    empty = cells.data.new_zeros(h, w, channels) if cells.background is None else cells.background
    images = empty.expand(len(windows), h, w, channels).clone()
    first = 0
    for image, (top, left, height, width) in enumerate(windows):
        place = (image, slice(top, top + height), slice(left, left + width))
        if cells.data.dim() == 4:
            images[place] = cells.data[place]
        else:
            images[place] = cells.data[first : first + height * width].view(height, width, channels)
        first += height * width
    return images.permute(0, 3, 1, 2)


def cut(images: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """The windows [B, 4] of images [B, C, h, w], packed: [S, C]."""
    rows = images.permute(0, 2, 3, 1)
    parts = [
        rows[image, top : top + height, left : left + width].flatten(0, 1)
        for image, (top, left, height, width) in enumerate(windows.tolist())
    ]
    return torch.cat(parts) if parts else images.new_zeros(0, images.shape[1])


def conv(
    sources: Sequence[Source],
    windows: torch.Tensor,
    bias: torch.Tensor,
    *,
    scale: torch.Tensor | None,
    residual: Cells | None,
    residual_scale: torch.Tensor | None,
    relu: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """y = sum of the sources' convolutions * scale + bias + residual * residual_scale, and ReLU; [S, D], packed.

    Computed in float64 for bytes (their sums of products are exact there) and float64, else in float32. To bytes it
    is rounded to the nearest, ties to even, and clamped to 0 to 255.
    """
    given = sources[0].x.data.dtype
    exact = torch.float64 if given in (torch.uint8, torch.float64) else torch.float32
    y = sum(
        F.conv2d(whole(source.x).to(exact), source.weight.to(exact), None, source.stride, source.padding)
        for source in sources
    )
    assert isinstance(y, torch.Tensor)
    if scale is not None:
        y = y * scale.to(exact)[:, None, None]
    y = y + bias.to(exact)[:, None, None]
    if residual is not None:
        other = whole(residual).to(exact)
        y = y + (other if residual_scale is None else other * residual_scale.to(exact)[:, None, None])
    if relu:
        y = y.relu()
    if dtype == torch.uint8:
        y = y.round().clamp(0, 255)
    return cut(y, windows).to(dtype)
