"""Region maps in plain torch: the definition that every kernel must equal, to the bit.

Two choices make "to the bit" possible on every device and compiler:

* The mask is resampled in exact arithmetic. A bilinear weight at half-pixel centres is an integer over
  2*H or 2*W; the mask is an integer too (uint8 as it is, float32 rounded to 1/2**25, which is exact from
  0.25 up), so a weighted sum is an integer below 2**53 and float64 adds it without rounding, in any order.
* The geometry is float32 in the order of operations written here, with nothing but + - * / (never fused).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mgran_fast import layouts
from mgran_fast.layouts import BAND_UNITS, JOINTS, Layout

# float32 masks are rounded to a multiple of 1/2**25: lossless for every float32 in [0.25, 1].
MASK_STEPS = 2.0**25
# A keypoint further than one crop away from the crop is a failure of the estimator, not a joint.
REACH = 1.5
# Shorter limbs are points: their direction is rounding noise.
SHORTEST = 1e-6


def regions(
    mask: torch.Tensor,
    keypoints: torch.Tensor,
    size: tuple[int, int] = (256, 128),
    layout: str | Layout = "region",
    threshold: float = 0.5,
    keypoint_threshold: float = 0.3,
) -> torch.Tensor:
    """Region map of each person; see :func:`mgran_fast.ops.regions` for the contract.

    Args:
        mask: [N, h, w] float32 in [0, 1] or uint8 (value/255).
        keypoints: [N, 17, 3] float32.

    Returns:
        uint8 [N, H, W].
    """
    layout = layouts.get(layout)
    height, width = size
    if layout.whole:
        return torch.ones((len(mask), height, width), dtype=torch.uint8, device=mask.device)
    if len(mask) == 0:
        return torch.zeros((0, height, width), dtype=torch.uint8, device=mask.device)
    foreground = binarize(mask, height, width, threshold)
    joints = find_joints(keypoints, height, width, keypoint_threshold)
    nearest, found = nearest_limb(joints, height, width, layout)
    map_ = torch.where(found[:, None, None], nearest, _bands(foreground, layout)) * foreground
    return _rectangles(map_, layout) if layout.rectangles else map_


def binarize(mask: torch.Tensor, height: int, width: int, threshold: float) -> torch.Tensor:
    """mask [N, h, w] -> uint8 [N, H, W]: 1 where the bilinearly resampled mask is >= threshold (NaN is not)."""
    h, w = mask.shape[1:]
    values = mask.double()
    values = values if mask.dtype == torch.uint8 else (values * MASK_STEPS).round()
    if (h, w) != (height, width):
        for axis, source, target in ((1, h, height), (2, w, width)):
            first, second, weight = _taps(source, target, mask.device)
            shape = [1, 1, 1]
            shape[axis] = target
            weight = weight.view(shape)
            low, high = values.index_select(axis, first), values.index_select(axis, second)
            values = low * (2 * target - weight) + high * weight
    return (values >= limit(mask.dtype, (h, w), (height, width), threshold)).to(torch.uint8)


def limit(dtype: torch.dtype, source: tuple[int, int], target: tuple[int, int], threshold: float) -> float:
    """The threshold in the units of the integer sums that :func:`binarize` compares."""
    steps = 255.0 if dtype == torch.uint8 else MASK_STEPS
    scale = 1 if source == target else 4 * target[0] * target[1]
    return threshold * steps * scale


def _taps(source: int, target: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bilinear taps at half-pixel centres: two indices, and the second one's weight in units of 1/(2*target)."""
    # Position (i + 1/2) * source/target - 1/2, as an integer over 2*target, clamped to the first and last centre.
    position = (2 * torch.arange(target, device=device) + 1) * source - target
    position = position.clamp(0, 2 * target * (source - 1))
    first = position // (2 * target)
    return first, (first + 1).clamp(max=source - 1), (position - first * 2 * target).double()


@dataclass(frozen=True)
class _Joints:
    x: torch.Tensor  # float32 [N, 19]
    y: torch.Tensor  # float32 [N, 19]
    valid: torch.Tensor  # bool [N, 19]


def find_joints(keypoints: torch.Tensor, height: int, width: int, keypoint_threshold: float) -> _Joints:
    """The usable keypoints, and the midpoints of the shoulders and hips (of one alone when the other is missing)."""
    x, y, score = keypoints.float().unbind(-1)
    valid = (score >= keypoint_threshold) & ((x - 0.5 * width).abs() <= REACH * width)
    valid = valid & ((y - 0.5 * height).abs() <= REACH * height)
    x, y = torch.where(valid, x, 0.0), torch.where(valid, y, 0.0)
    for side in ("shoulder", "hip"):
        left, right = JOINTS.index(f"left_{side}"), JOINTS.index(f"right_{side}")
        both = valid[:, left] & valid[:, right]
        # An unusable joint stands at 0, so the sum of the two is the usable one.
        half = torch.where(both, 0.5, 1.0)
        x = torch.cat([x, ((x[:, left] + x[:, right]) * half)[:, None]], 1)
        y = torch.cat([y, ((y[:, left] + y[:, right]) * half)[:, None]], 1)
        valid = torch.cat([valid, (valid[:, left] | valid[:, right])[:, None]], 1)
    return _Joints(x, y, valid)


def nearest_limb(joints: _Joints, height: int, width: int, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [N, H, W], the group of each pixel's nearest limb, and bool [N]: was there a limb at all."""
    device = joints.x.device
    px = (torch.arange(width, device=device, dtype=torch.float32) + 0.5)[None, None, :]
    py = (torch.arange(height, device=device, dtype=torch.float32) + 0.5)[None, :, None]
    n = len(joints.x)
    best = torch.full((n, height, width), torch.inf, device=device)
    group = torch.zeros((n, height, width), dtype=torch.uint8, device=device)
    found = torch.zeros(n, dtype=torch.bool, device=device)
    if layout.torso:
        inside = _inside_torso(joints, px, py)
        best = torch.where(inside, 0.0, best)
        group = torch.where(inside, layout.torso, group)
    for limb in layout.limbs:
        a, b = JOINTS.index(limb.start), JOINTS.index(limb.end)
        ax, ay = joints.x[:, a, None, None], joints.y[:, a, None, None]
        dx, dy = joints.x[:, b, None, None] - ax, joints.y[:, b, None, None] - ay
        square = dx * dx + dy * dy
        inverse = torch.where(square > SHORTEST, 1.0 / square, 0.0)
        ux, uy = px - ax, py - ay
        t = ((ux * dx + uy * dy) * inverse).clamp(0.0, 1.0)
        ex, ey = ux - t * dx, uy - t * dy
        distance = (ex * ex + ey * ey) * weight(limb.thickness)
        valid = joints.valid[:, a] & joints.valid[:, b]
        nearer = valid[:, None, None] & (distance < best)
        best = torch.where(nearer, distance, best)
        group = torch.where(nearer, limb.group, group)
        found = found | valid
    return group, found


def weight(thickness: float) -> float:
    """What a squared distance is multiplied by, as the float32 that the kernels use."""
    return float(torch.tensor(1.0 / (thickness * thickness), dtype=torch.float32))


def _inside_torso(joints: _Joints, px: torch.Tensor, py: torch.Tensor) -> torch.Tensor:
    """bool [N, H, W]: even-odd rule over the quadrilateral; a pixel on an edge that its row crosses is inside.

    The sign of a cross product is the exact mirror of itself, so that a flipped person has a flipped torso.
    """
    corners = [JOINTS.index(name) for name in ("left_shoulder", "right_shoulder", "right_hip", "left_hip")]
    inside = torch.zeros((), dtype=torch.bool, device=joints.x.device)
    edge = inside
    for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
        ax, ay = joints.x[:, a, None, None], joints.y[:, a, None, None]
        bx, by = joints.x[:, b, None, None], joints.y[:, b, None, None]
        crosses = (ay > py) != (by > py)
        side = (px - ax) * (by - ay) - (py - ay) * (bx - ax)
        right = torch.where(by > ay, side < 0, side > 0)  # the edge crosses this row to the pixel's right
        inside = inside ^ (crosses & right)
        edge = edge | (crosses & (side == 0))
    return (inside | edge) & joints.valid[:, corners].all(1)[:, None, None]


def _boxes(where: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """bool [N, H, W] -> top, bottom, left, right [N] (exclusive ends), all 0 where nothing is set."""
    _, height, width = where.shape
    rows, columns = where.any(2).to(torch.uint8), where.any(1).to(torch.uint8)
    some = rows.amax(1) > 0
    top, left = rows.argmax(1), columns.argmax(1)
    bottom, right = height - rows.flip(1).argmax(1), width - columns.flip(1).argmax(1)
    return top, torch.where(some, bottom, 0), left, torch.where(some, right, 0)


def _bands(foreground: torch.Tensor, layout: Layout) -> torch.Tensor:
    """The fallback: bands of the mask's bounding box. uint8 [N, H, W], 0 outside of the box."""
    n, height, width = foreground.shape
    if n == 0 or height == 0 or width == 0:
        return torch.zeros_like(foreground)
    top, bottom, left, right = (edge[:, None, None] for edge in _boxes(foreground > 0))
    y = BAND_UNITS * (torch.arange(height, device=foreground.device)[None, :, None] - top)
    x = BAND_UNITS * (torch.arange(width, device=foreground.device)[None, None, :] - left)
    map_ = torch.zeros_like(foreground)
    for band in layout.bands:
        rows = (y >= band.top * (bottom - top)) & (y < band.bottom * (bottom - top))
        columns = (x >= band.left * (right - left)) & (x < band.right * (right - left))
        map_ = torch.where(rows & columns, band.group, map_)
    return map_


def _rectangles(map_: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Fill each region up to its bounding rectangle; a person's pixel keeps its region, the lower group wins."""
    n, height, width = map_.shape
    if n == 0 or height == 0 or width == 0:
        return map_
    y = torch.arange(height, device=map_.device)[None, :, None]
    x = torch.arange(width, device=map_.device)[None, None, :]
    filled = map_
    for group in range(1, layout.regions + 1):
        top, bottom, left, right = (edge[:, None, None] for edge in _boxes(map_ == group))
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        filled = torch.where((filled == 0) & inside, group, filled)
    return filled
