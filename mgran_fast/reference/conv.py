"""A convolution of chosen cells in plain torch: whole images are put together, and what is asked for is taken out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812


class Cells(NamedTuple):
    """One layer of B images on a grid of (h, w) cells, of which only some are kept, each once.

    Attributes:
        data: [S, C], the cells that are kept.
        kept: int32 [B, h, w] on the CPU: which of them a cell of an image is (two images may share one), or -1 where
            it equals the background that all images share.
        background: [h, w, C] of the data's dtype, or None for zeros.
    """

    data: torch.Tensor
    kept: torch.Tensor
    background: torch.Tensor | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return self.kept.shape[1], self.kept.shape[2]


class Source(NamedTuple):
    """What a convolution reads: cells, its weights [D, C, k, k], stride and padding (of zeros, around the grid)."""

    x: Cells
    weight: torch.Tensor
    stride: int = 1
    padding: int = 0


def whole(cells: Cells) -> torch.Tensor:
    """[B, C, h, w]: the images with their background."""
    images, (h, w), channels = len(cells.kept), cells.grid, cells.data.shape[1]
    empty = cells.data.new_zeros(h, w, channels) if cells.background is None else cells.background
    rows = empty.expand(images, h, w, channels).clone()
    own = cells.kept >= 0
    rows[own] = cells.data[cells.kept[own].long()]
    return rows.permute(0, 3, 1, 2)


def cut(images: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The cells [S, C] at ``places`` (image * h + row) * w + column of images [B, C, h, w]."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)[places.long()]


def conv(
    sources: Sequence[Source],
    places: torch.Tensor,
    bias: torch.Tensor,
    *,
    scale: torch.Tensor | None,
    residual: Cells | None,
    residual_scale: torch.Tensor | None,
    relu: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """y = sum of the sources' convolutions * scale + bias + residual * residual_scale, and ReLU; [S, D] at ``places``.

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
    return cut(y, places).to(dtype)
