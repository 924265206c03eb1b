"""Crops in plain torch: boxes cut from a frame and resized, the definition that every kernel equals to the bit.

The result is what ``cv2.resize(..., interpolation=cv2.INTER_LINEAR)`` makes of the box, cut from a frame that is
black all around, within one grey level: bilinear, half-pixel centres, no antialiasing. Coordinates are float64 in
the order of operations written here; pixels are blended in integers, so that the result does not depend on the
device.
"""

from __future__ import annotations

import torch

# Blending weights are integers over 2**15, blended pixels integers over 2**7.
WEIGHT_BITS, PIXEL_BITS = 15, 7


def crops(frame: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """frame uint8 [H, W, 3], boxes float32 [N, 4] (x1, y1, x2, y2) -> uint8 [N, h, w, 3].

    A box that is empty, or that has a coordinate which is not finite, gives an all-zero crop.
    """
    height, width = size
    if len(boxes) == 0 or frame.numel() == 0:
        return torch.zeros((len(boxes), height, width, 3), dtype=torch.uint8, device=frame.device)
    x1, y1, x2, y2 = boxes.double().unbind(1)
    there = boxes.isfinite().all(1) & (x2 > x1) & (y2 > y1)
    top, bottom, down = _taps(torch.where(there, y1, 0.0), torch.where(there, y2, 1.0), height, frame.shape[0])
    left, right, across = _taps(torch.where(there, x1, 0.0), torch.where(there, x2, 1.0), width, frame.shape[1])
    # A frame with one black pixel all around; the taps count from its border.
    padded = torch.nn.functional.pad(frame.int(), (0, 0, 1, 1, 1, 1)) << PIXEL_BITS
    rows = []
    for row in (top, bottom):
        first, second = padded[row[:, :, None], left[:, None, :]], padded[row[:, :, None], right[:, None, :]]
        rows.append(lerp(first, second, across[:, None, :, None]))
    blended = lerp(rows[0], rows[1], down[:, :, None, None])
    result = (blended + (1 << (PIXEL_BITS - 1))) >> PIXEL_BITS
    return torch.where(there[:, None, None, None], result, 0).to(torch.uint8)


def lerp(a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """a + (b - a) * weight / 2**15, rounded half up; int32."""
    return a + (((b - a) * weight + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS)


def _taps(
    low: torch.Tensor, high: torch.Tensor, target: int, source: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """low, high float64 [N], the ends of the boxes on one axis -> two indices [N, target] and the second's weight.

    Indices count from the black border: 0 and ``source + 1`` are outside of the frame.
    """
    index = torch.arange(target, dtype=torch.float64, device=low.device)
    position = low[:, None] + (index + 0.5)[None] * (high - low)[:, None] / target - 0.5
    # Between the centres of the box's first and last pixel; a box thinner than a pixel has one position.
    first, last = low, high - 1.0
    thin = last < first
    middle = (low + high) * 0.5 - 0.5
    first, last = torch.where(thin, middle, first), torch.where(thin, middle, last)
    position = torch.minimum(torch.maximum(position, first[:, None]), last[:, None])
    floor = position.floor()
    weight = ((position - floor) * float(1 << WEIGHT_BITS)).round().clamp(max=(1 << WEIGHT_BITS) - 1).int()
    # Far outside is as far as just outside: every tap there is black.
    floor = floor.clamp(-2, source)
    return (floor + 1).long().clamp(min=0), (floor + 2).long().clamp(0, source + 1), weight
