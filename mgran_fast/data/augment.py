"""Augmentation of a crop together with its region map.

The order is: mirror, shift, jitter of the colours, erase. Crop and map always move together. An erased rectangle
plays an occluder: the crop loses its pixels there *and* the region map becomes 0, for a real occluder is not part
of the person's mask either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mgran_fast import layouts
from mgran_fast.layouts import Layout

_REFERENCE_HEIGHT = 256
_ATTEMPTS = 8
# The random numbers of one call: always as many, whatever is switched on, so that changing one setting
# leaves what the others do to a picture as it was.
_DRAWS = 7 + 4 * _ATTEMPTS
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601 luma


@dataclass(frozen=True)
class Augment:
    """Random changes of a training crop. All randomness is torch's.

    Attributes:
        layout: the layout of the region maps; tells which regions a mirrored picture exchanges.
        flip: the probability in [0, 1] to mirror left and right.
        pad: the largest shift in each direction, in pixels of a crop 256 high; scaled with the height. Pixels that
            come in from outside are 0, in the crop and in the map.
        erase: the probability in [0, 1] to erase one rectangle ("random erasing", Zhong et al., AAAI 2020).
        erase_area: smallest and largest share of the crop's area that the rectangle covers.
        erase_aspect: the rectangle's height / width is between this and its inverse, in (0, 1].
        erase_fill: "noise" puts independent random bytes there, "mean" the mean colour of the crop.
        brightness, contrast, colour: the largest relative change in [0, 1] of brightness, contrast and
            saturation; 0 is off.

    Raises:
        ValueError: an attribute is out of its range, or the layout is unknown.
    """

    layout: Layout | str
    flip: float = 0.5
    pad: float = 10
    erase: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.4)
    erase_aspect: float = 0.3
    erase_fill: Literal["noise", "mean"] = "noise"
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0
    _mirrored: NDArray[np.uint8] = field(init=False, repr=False, compare=False)
    _exchanges: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("flip", "erase", "brightness", "contrast", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, not {getattr(self, name)!r}")
        if not (self.pad >= 0 and math.isfinite(self.pad)):
            raise ValueError(f"pad must be 0 or more pixels, not {self.pad!r}")
        low, high = self.erase_area
        if not 0 < low <= high < 1:
            raise ValueError(f"erase_area must be two growing shares between 0 and 1, not {self.erase_area!r}")
        if not 0 < self.erase_aspect <= 1:
            raise ValueError(f"erase_aspect must be in (0, 1], not {self.erase_aspect!r}")
        if self.erase_fill not in ("noise", "mean"):
            raise ValueError(f"erase_fill must be 'noise' or 'mean', not {self.erase_fill!r}")
        # The layout itself, not its name: a worker that was spawned does not know what the caller registered.
        layout = layouts.get(self.layout)
        mirrored = np.arange(256, dtype=np.uint8)
        mirrored[: len(layout.flip)] = layout.flip
        object.__setattr__(self, "layout", layout)
        object.__setattr__(self, "_mirrored", mirrored)
        object.__setattr__(self, "_exchanges", list(layout.flip) != list(range(len(layout.flip))))

    def __call__(
        self, crop: torch.Tensor, region_map: torch.Tensor, rng: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Change one crop and its map.

        Args:
            crop: uint8 [H, W, 3], on the CPU. Not written to.
            region_map: uint8 [H, W], on the CPU. Not written to.
            rng: where random numbers come from; None is torch's default generator, which a DataLoader seeds
                differently in each worker.

        Returns:
            The new crop and map, of the same shapes and types. A map that has foreground keeps some: a shift or an
            erasing that would leave none is skipped.

        Raises:
            TypeError, ValueError: wrong dtype or shape.
        """
        _check(crop, region_map)
        if region_map.numel() == 0:
            return crop.clone(), region_map.clone()
        draws = torch.rand(_DRAWS, generator=rng).tolist()
        mirror = draws[0] < self.flip
        # torch's flip is vectorised; a numpy view that runs backwards is copied byte by byte, ten times as slowly.
        image = (crop.flip(1) if mirror else crop).numpy()
        regions = (region_map.flip(1) if mirror else region_map).numpy()
        if mirror and self._exchanges:
            regions = self._mirrored.take(regions)
        image, regions = self._shift(image, regions, draws[1], draws[2])
        if self.brightness or self.contrast or self.colour:
            image = self._jitter(image, draws[3], draws[4], draws[5])
        box = self._rectangle(regions, draws[7:]) if draws[6] < self.erase else None
        # What nothing above has changed is still the caller's.
        new_crop, new_map = torch.from_numpy(_own(image, crop)), torch.from_numpy(_own(regions, region_map))
        if box is not None:
            top, left, bottom, right = box
            if self.erase_fill == "noise":
                new_crop[top:bottom, left:right] = _noise(bottom - top, right - left, rng)
            else:
                mean = image.mean(axis=(0, 1)).round().astype(np.uint8)
                new_crop[top:bottom, left:right] = torch.from_numpy(mean)
            new_map[top:bottom, left:right] = 0
        return new_crop, new_map

    def _shift(
        self, image: NDArray[np.uint8], regions: NDArray[np.uint8], down: float, right: float
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Pad with zeros on all sides and cut the old size out again, anywhere."""
        height, width = regions.shape
        pad = round(self.pad * height / _REFERENCE_HEIGHT)
        dy, dx = int(down * (2 * pad + 1)) - pad, int(right * (2 * pad + 1)) - pad
        if dy == 0 and dx == 0:
            return image, regions
        to = (slice(max(dy, 0), max(height + min(dy, 0), 0)), slice(max(dx, 0), max(width + min(dx, 0), 0)))
        of = (slice(max(-dy, 0), max(height - max(dy, 0), 0)), slice(max(-dx, 0), max(width - max(dx, 0), 0)))
        moved = np.zeros_like(regions)
        moved[to] = regions[of]
        if not moved.any() and regions.any():
            return image, regions
        canvas = np.zeros_like(image)
        canvas[to] = image[of]
        return canvas, moved

    def _jitter(self, image: NDArray[np.uint8], brightness: float, contrast: float, colour: float) -> NDArray[np.uint8]:
        pixels = image.astype(np.float32) * _factor(self.brightness, brightness)
        grey = (pixels @ _GREY)[..., None]
        # Saturation moves every pixel away from its own grey, contrast away from the mean grey.
        saturation, strength = _factor(self.colour, colour), _factor(self.contrast, contrast)
        pixels = grey + (pixels - grey) * saturation
        pixels = grey.mean() + (pixels - grey.mean()) * strength
        result: NDArray[np.uint8] = pixels.round().clip(0, 255).astype(np.uint8)
        return result

    def _rectangle(self, regions: NDArray[np.uint8], draws: list[float]) -> tuple[int, int, int, int] | None:
        """Top, left, bottom, right of the rectangle to erase, or None when none of the attempts will do."""
        height, width = regions.shape
        low, high = self.erase_area
        person = int(np.count_nonzero(regions))
        for i in range(0, 4 * _ATTEMPTS, 4):
            area = (low + (high - low) * draws[i]) * height * width
            aspect = self.erase_aspect ** (2 * draws[i + 1] - 1)  # log-uniform between it and its inverse
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < h < height and 0 < w < width):
                continue
            top, left = int(draws[i + 2] * (height - h + 1)), int(draws[i + 3] * (width - w + 1))
            if person and int(np.count_nonzero(regions[top : top + h, left : left + w])) == person:
                return None
            return top, left, top + h, left + w
        return None


def _own(array: NDArray[np.uint8], given: torch.Tensor) -> NDArray[np.uint8]:
    """The array, contiguous; a copy where it is still the memory of the tensor that was given."""
    return np.array(array) if np.may_share_memory(array, given.numpy()) else np.ascontiguousarray(array)


def _noise(height: int, width: int, rng: torch.Generator | None) -> torch.Tensor:
    """Independent random bytes, uint8 [height, width, 3]: eight of each number, a quarter of the time of one each."""
    count = height * width * 3
    numbers = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None, generator=rng)
    return numbers.view(torch.uint8)[:count].view(height, width, 3)


def _factor(strength: float, draw: float) -> float:
    return 1 + strength * (2 * draw - 1)


def _check(crop: torch.Tensor, region_map: torch.Tensor) -> None:
    for name, value in (("crop", crop), ("region_map", region_map)):
        if not isinstance(value, torch.Tensor) or value.dtype != torch.uint8 or value.device.type != "cpu":
            raise TypeError(f"{name} must be a uint8 tensor on the CPU")
    if crop.ndim != 3 or crop.shape[2] != 3:
        raise ValueError(f"crop must be [H, W, 3], not {list(crop.shape)}")
    if region_map.shape != crop.shape[:2]:
        raise ValueError(f"region_map must be {list(crop.shape[:2])} like the crop, not {list(region_map.shape)}")
