"""From the heads' small maps to pixels of the crop: batched, with no loop over people and no host synchronisation."""

from __future__ import annotations

import torch
from torch.nn import functional

#: The score of a keypoint is the probability within this many cells around the peak, in both directions.
#: The published head answers with 56 cells a side: 7 of them are one eighth of the box.
WINDOW = 7


def decode_keypoints(heatmaps: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Keypoints of K people from the logits of a keypoint head.

    The place is the cell with the highest logit, refined along each axis by the vertex of the parabola through
    that cell and its two neighbours: with l, c, r the three logits, the peak lies (l - r) / (2 (l - 2c + r)) cells
    from the centre of the cell. The logits of a Gaussian heatmap are a parabola, for which this is exact. A peak in
    the outermost row or column is not refined along that axis. A tie goes to the first cell in reading order.

    The head was trained by a softmax over all cells, so the score is a probability: the softmax mass of the
    ``WINDOW`` x ``WINDOW`` cells around the peak. It is near 1 for a sharp peak and WINDOW^2 / (h w) for a flat map
    (0.016 for 56 x 56). torchvision's own score is the raw logit of the peak, which has no fixed range.

    Args:
        heatmaps: [K, J, h, w] logits, any floating dtype; computed in float32.
        boxes: float32 [K, 4], x1, y1, x2, y2 in pixels: the boxes that the heatmaps span.

    Returns:
        float32 [K, J, 3]: x, y in pixels (inside the box, a pixel's centre at + 0.5), score in [0, 1].
    """
    k, j, h, w = heatmaps.shape
    maps = heatmaps.float().flatten(2)  # [K, J, h*w]
    if k == 0:
        return maps.new_zeros((0, j, 3))
    peak = maps.argmax(dim=2)  # [K, J]
    row, column = peak.div(w, rounding_mode="floor"), peak % w
    dx = _vertex(maps, peak, 1, (column > 0) & (column < w - 1))
    dy = _vertex(maps, peak, w, (row > 0) & (row < h - 1))
    origin, extent = boxes[:, None, :2].to(maps), (boxes[:, None, 2:] - boxes[:, None, :2]).to(maps)
    cells = torch.stack(((column + 0.5 + dx) / w, (row + 0.5 + dy) / h), dim=2)
    score = _mass(maps.softmax(dim=2).view(k, j, h, w), row, column)
    return torch.cat((origin + cells * extent, score[..., None]), dim=2)


def blurred(heatmaps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Logits whose peak is where most probability lies within about ``sigma`` cells.

    The softmax over the cells, convolved with a Gaussian; its logarithm. A network that is not sure whether a knee is
    the left or the right one spreads its answer, and the single highest cell then says less than a neighbourhood.

    Args:
        heatmaps: [K, J, h, w] logits, any floating dtype; computed in float32.
        sigma: in cells.

    Returns:
        float32 [K, J, h, w]; cells without probability have a large negative number.
    """
    k, j, h, w = heatmaps.shape
    probability = heatmaps.float().flatten(2).softmax(2).view(k, j, h, w)
    down, across = (_blur_matrix(side, sigma, heatmaps.device) for side in (h, w))
    # A band matrix on each side: cheaper than a convolution of so many small maps of one channel.
    return (down @ probability @ across).clamp(min=1e-12).log()


def _blur_matrix(side: int, sigma: float, device: torch.device) -> torch.Tensor:
    """float32 [side, side], symmetric: row i is a Gaussian of ``sigma`` cells around cell i."""
    cells = torch.arange(side, device=device, dtype=torch.float32)
    return torch.exp(-0.5 * ((cells[:, None] - cells) / sigma) ** 2)


def _vertex(maps: torch.Tensor, peak: torch.Tensor, step: int, inside: torch.Tensor) -> torch.Tensor:
    """Offset in [-0.5, 0.5] of the parabola's vertex from the peak [K, J]; 0 where ``inside`` is false."""
    last = maps.shape[2] - 1

    def at(index: torch.Tensor) -> torch.Tensor:
        return maps.gather(2, index.clamp(0, last)[..., None])[..., 0]

    low, centre, high = at(peak - step), at(peak), at(peak + step)
    curvature = low - 2 * centre + high
    # A plateau has no vertex; its first cell is as good as any.
    bent = inside & (curvature < 0)
    offset = (low - high) / (2 * torch.where(bent, curvature, -torch.ones_like(curvature)))
    return torch.where(bent, offset, torch.zeros_like(offset)).clamp(-0.5, 0.5)


def _mass(probability: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """Sum of ``probability`` [K, J, h, w] over the window around each peak [K, J]; cells outside count as 0.

    Only the windows are read: a map has sixty times as many cells.
    """
    h, w = probability.shape[2:]
    offset = torch.arange(WINDOW, device=row.device) - WINDOW // 2
    rows, columns = row[..., None] + offset, column[..., None] + offset  # [K, J, WINDOW]
    inside = ((rows >= 0) & (rows < h))[..., None] & ((columns >= 0) & (columns < w))[..., None, :]
    cells = rows.clamp(0, h - 1)[..., None] * w + columns.clamp(0, w - 1)[..., None, :]
    window = probability.flatten(2).gather(2, cells.flatten(2)) * inside.flatten(2)
    # Rounding may lift a sum of probabilities an ulp above 1.
    return window.sum(2).clamp(0, 1)


def keypoint_masks(heatmaps: torch.Tensor) -> torch.Tensor:
    """Keypoint masks float32 [K, J, h, w] in [0, 1] from logits of that shape.

    The softmax probability of each cell divided by the highest one of its map: 1 at the peak, so that a threshold
    means the same for a sharp and for a blurred keypoint. How sure the keypoint is, its score says.
    """
    maps = heatmaps.float().flatten(2)
    if maps.shape[0] == 0:
        return heatmaps.float()
    return (maps - maps.amax(dim=2, keepdim=True)).exp().view(heatmaps.shape)


def paste(maps: torch.Tensor, boxes: torch.Tensor, frame: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """Lay maps that span boxes into frames: bilinear inside the box, 0 outside.

    A pixel belongs to the box when its centre does. Between the outermost cell centres and the border of the box the
    outermost cells are continued: a person cut off by the crop keeps a full mask up to the cut.

    Args:
        maps: float32 [K, C, h, w].
        boxes: float32 [K, 4], x1, y1, x2, y2 in a frame of height and width ``frame``.
        size: height and width of the result, which spans the whole frame.

    Returns:
        float32 [K, C, height, width].
    """
    if maps.shape[0] == 0:
        return maps.new_zeros((0, maps.shape[1], *size))
    y = (torch.arange(size[0], device=maps.device, dtype=maps.dtype) + 0.5) * (frame[0] / size[0])
    x = (torch.arange(size[1], device=maps.device, dtype=maps.dtype) + 0.5) * (frame[1] / size[1])
    x1, y1, x2, y2 = (boxes.to(maps)[:, i, None] for i in range(4))
    # An empty box must not divide by zero; no centre lies in it anyway.
    u = (x[None] - x1) / (x2 - x1).clamp(min=1e-6) * 2 - 1  # [K, width], -1 to 1 across the box
    v = (y[None] - y1) / (y2 - y1).clamp(min=1e-6) * 2 - 1  # [K, height]
    u_inside, v_inside = u.abs() <= 1, v.abs() <= 1
    grid = torch.stack((u[:, None, :].expand(-1, size[0], -1), v[:, :, None].expand(-1, -1, size[1])), dim=3)
    laid = functional.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return laid * (v_inside[:, None, :, None] & u_inside[:, None, None, :])
