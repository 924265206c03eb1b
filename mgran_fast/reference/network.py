"""A trunk over whole images in plain torch, layer after layer, each rounded to its own dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast.reference.conv import Cells, Source, conv
from mgran_fast.reference.inputs import everyone


def packed_inputs(
    crops: torch.Tensor, region_map: torch.Tensor, first: int, inputs: int, dtype: torch.dtype
) -> torch.Tensor:
    """crops uint8 [N, H, W, 3], region_map uint8 [N, H, W] -> [N * inputs, H, W, 4].

    Red, green, blue and 255 where the pixel is in the input's region, 0 elsewhere; the inputs of a person are under the
    regions ``first``, ``first + 1`` and so on, region 0 being everything, or the whole crop where the map is empty.
    """
    regions = range(first, first + inputs)
    where = [everyone(region_map) if region == 0 else region_map == region for region in regions]
    pixels = F.pad(crops, (0, 1), value=255)
    return (torch.stack(where, 1)[..., None] * pixels[:, None]).flatten(0, 1).to(dtype)


def whole_cells(images: torch.Tensor) -> Cells:
    """Images [B, h, w, C], all of whose cells are kept."""
    b, h, w, c = images.shape
    return Cells(images.reshape(-1, c), torch.arange(b * h * w, dtype=torch.int32).view(b, h, w))


def largest(images: torch.Tensor, kernel: int, stride: int, padding: int) -> torch.Tensor:
    """Max pooling: [B, h, w, C] of values that are not negative -> [B, h', w', C]."""
    pooled = F.max_pool2d(images.permute(0, 3, 1, 2).float(), kernel, stride, padding)
    return pooled.permute(0, 2, 3, 1).to(images.dtype).contiguous()


def convolution(
    sources: Sequence[tuple[torch.Tensor, torch.Tensor, int, int]],
    bias: torch.Tensor,
    *,
    scale: torch.Tensor | None,
    residual: torch.Tensor | None,
    residual_scale: torch.Tensor | None,
    dtype: torch.dtype,
    grid: tuple[int, int],
) -> torch.Tensor:
    """Of whole images: sources as (x [B, h, w, C], weight [D, C, k, k], stride, padding) -> [B, *grid, D]."""
    images = len(sources[0][0])
    answer = conv(
        [Source(whole_cells(x), weight, stride, padding) for x, weight, stride, padding in sources],
        torch.arange(images * grid[0] * grid[1], dtype=torch.int32),
        bias,
        scale=scale,
        residual=None if residual is None else whole_cells(residual),
        residual_scale=residual_scale,
        relu=True,
        dtype=dtype,
    )
    return answer.view(images, *grid, -1)
