"""Boxes of people in pictures: cutting them out, making them larger, moving them at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: x1, y1, x2, y2 in pixels; the first pixel reaches from 0 to 1.
Box = tuple[float, float, float, float]


def cut(pixels: NDArray[np.uint8], box: Sequence[float], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The part of a picture inside ``box``, resized: bilinear with antialiasing, as whole crops are."""
    height, width = pixels.shape[:2]
    if size == (height, width) and tuple(box) == (0, 0, width, height):
        return pixels
    # Scaled boxes may leave the picture by a rounding error, which Pillow does not take.
    inside = (max(0.0, box[0]), max(0.0, box[1]), min(float(width), box[2]), min(float(height), box[3]))
    return np.array(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR, box=inside))


def clipped(box: Sequence[float], shape: tuple[int, int]) -> Box:
    """The part of a box inside the picture; at least one pixel in either direction."""
    height, width = shape
    x1, y1 = min(max(0.0, box[0]), width - 1.0), min(max(0.0, box[1]), height - 1.0)
    return x1, y1, min(max(x1 + 1, box[2]), float(width)), min(max(y1 + 1, box[3]), float(height))


def grown(box: NDArray[np.float32], margin: float, shape: tuple[int, int]) -> Box:
    """A box larger by ``margin`` of its height and width on each side, inside the picture."""
    x1, y1, x2, y2 = box.tolist()
    w, h = margin * (x2 - x1), margin * (y2 - y1)
    return clipped((x1 - w, y1 - h, x2 + w, y2 + h), shape)


def jittered(box: Box, jitter: float, shape: tuple[int, int], rng: np.random.Generator) -> Box:
    """A box whose sides move by up to ``jitter`` of its height and width, below 0.5, inside the picture."""
    x1, y1, x2, y2 = box
    steps = rng.uniform(-jitter, jitter, 4).tolist()
    w, h = x2 - x1, y2 - y1
    return clipped((x1 + steps[0] * w, y1 + steps[1] * h, x2 + steps[2] * w, y2 + steps[3] * h), shape)


def somewhere(shape: tuple[int, int], rng: np.random.Generator) -> Box:
    """A random box of a person's usual shape: 0.3 to 1 times the picture's height, and 0.3 to 0.6 times as wide."""
    height, width = shape
    h = height * rng.uniform(0.3, 1.0)
    w = min(float(width), h * rng.uniform(0.3, 0.6))
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return clipped((x, y, x + w, y + h), shape)
