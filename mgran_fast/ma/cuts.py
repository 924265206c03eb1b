"""The shape crop: each region cut out of the frame and resized to a small frame of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch

from mgran_fast.ops import checks


class Cut(NamedTuple):
    """One region of N people: inputs [N, 3, h, w], and their map uint8 [N, h, w]: the region's number or 0."""

    inputs: torch.Tensor
    region_map: torch.Tensor


def cut(
    crops: torch.Tensor, region_map: torch.Tensor, region: int, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut one region out of each crop.

    The region's bounding box, grown around its centre to the aspect ratio of ``size``, so that nobody is squeezed, is
    resized to ``size``: pixels bilinearly (half-pixel centres, beyond the frame as at its border), the map to the
    nearest. Where the region is not visible, all is 0.

    Args:
        crops: uint8 [N, H, W, 3]. region_map: uint8 [N, H, W].
        region: 1 to R.
        size: (h, w).

    Returns:
        (crops uint8 [N, h, w, 3], region map uint8 [N, h, w] of ``region`` and 0).

    Raises:
        TypeError, ValueError: a wrong dtype, shape or region.
    """
    checks.tensor("crops", crops, (None, None, None, 3), (torch.uint8,))
    checks.tensor("region_map", region_map, tuple(crops.shape[:3]), (torch.uint8,))
    if not 1 <= region <= 255:
        raise ValueError(f"region must be 1 to 255, not {region}")
    inside = region_map == region
    # Rows and columns of the region: where the first and the last of them are.
    top, bottom = _ends(inside.any(2))
    left, right = _ends(inside.any(1))
    aspect = size[0] / size[1]
    height, width = bottom - top, right - left
    height, width = torch.maximum(height, width * aspect), torch.maximum(width, height / aspect)
    rows = _places((top + bottom) / 2, height, size[0])
    columns = _places((left + right) / 2, width, size[1])
    seen = inside.any(2).any(1)[:, None, None]
    where = _nearest(inside, rows, columns) & seen
    pixels = _bilinear(crops, rows, columns) * seen[..., None]
    return pixels, where.to(torch.uint8) * region


def _ends(line: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bool [N, L] -> the first true place and one after the last, float32 [N]; 0 and 0 without one."""
    places = torch.arange(1, line.shape[1] + 1, device=line.device)
    end = (line * places).amax(1) if line.shape[1] else line.new_zeros(line.shape[0], dtype=torch.int64)
    first = torch.where(end > 0, line.to(torch.uint8).argmax(1), 0) if line.shape[1] else end
    return first.float(), end.float()


def _places(centre: torch.Tensor, side: torch.Tensor, count: int) -> torch.Tensor:
    """[N, count]: where the centres of ``count`` pixels lie in the frame, whose first pixel reaches from 0 to 1."""
    share = (torch.arange(count, device=centre.device) + 0.5) / count - 0.5
    return centre[:, None] + side[:, None] * share


def _nearest(inside: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    people, height, width = inside.shape
    r, c = rows.floor().long(), columns.floor().long()
    n = torch.arange(people, device=inside.device)[:, None, None]
    found = inside[n, r.clamp(0, height - 1)[:, :, None], c.clamp(0, width - 1)[:, None]]
    return found & ((r >= 0) & (r < height))[:, :, None] & ((c >= 0) & (c < width))[:, None]


def _bilinear(crops: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    people, height, width = crops.shape[:3]
    n = torch.arange(people, device=crops.device)[:, None, None]
    y, x = (rows - 0.5).clamp(0, height - 1), (columns - 0.5).clamp(0, width - 1)
    top, left = y.floor().long(), x.floor().long()
    bottom, right = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    down, along = (y - top)[:, :, None, None], (x - left)[:, None, :, None]

    def row(at: torch.Tensor) -> torch.Tensor:
        return torch.lerp(crops[n, at[:, :, None], left[:, None]].float(),
                          crops[n, at[:, :, None], right[:, None]].float(), along)  # fmt: skip

    return torch.lerp(row(top), row(bottom), down).round().to(torch.uint8)
