"""When a mask can be of the same frame as a crop: one rule for files and for arguments."""

from __future__ import annotations

#: Two pictures of one frame differ by rounding at most; a mask of another aspect ratio belongs to another frame.
TOLERANCE = 0.05


def same_aspect(mask: tuple[int, int], crop: tuple[int, int]) -> bool:
    """Whether a mask has the aspect ratio of its crop.

    It has when the two ratios differ by :data:`TOLERANCE` at most, or when the mask's height or width is within half
    a pixel of what the other side asks for: a tiny mask cannot do better than the next whole pixel.

    Args:
        mask, crop: (height, width) in pixels, 1 or more each.
    """
    (h, w), (height, width) = mask, crop
    if abs(h * width / (w * height) - 1) <= TOLERANCE:
        return True
    return abs(w - h * width / height) <= 0.5 or abs(h - w * height / width) <= 0.5
