"""A camera: a place that stays the same, its light, and a sensor with a look of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mgran_fast.data.pedestrian.canvas import Float
from mgran_fast.data.pedestrian.dice import CAMERA, Dice

# The place is painted once, wider than any crop; a crop shows a window of it.
_HEIGHT, _WIDTH = 256, 896
_GOLDEN = (5**0.5 - 1) / 2
_Colour = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera. The same place and the same look in every view.

    Attributes:
        place: the background, an RGB picture.
        gains: what each colour channel is multiplied by (exposure and colour cast).
        gamma: bend of the tone curve: v + gamma * v * (1 - v); above 0 lifts the middle tones.
        contrast: spread around middle grey; black: added at the end.
        noise: deviation of the sensor noise, in [0, 1] units; blur: deviation of the blur, in crop heights.
        pitch: how far the camera looks down, radians; light: where light comes from, -1 (left) to 1 (right).
    """

    place: Image.Image
    gains: tuple[float, float, float]
    gamma: float
    contrast: float
    black: float
    noise: float
    blur: float
    pitch: float
    light: float

    def background(self, dice: Dice, height: int, width: int) -> Float:
        """A window of the place, float32 [height, width, 3] in [0, 1]: where somebody happens to walk by."""
        tall = dice.uniform(0.80, 1.0) * _HEIGHT
        wide = min(tall * width / height, float(_WIDTH))
        left = dice.uniform(0.0, _WIDTH - wide)
        top = dice.uniform(0.35, 1.0) * (_HEIGHT - tall)
        window = (left, top, left + wide, top + tall)
        picture = self.place.resize((width, height), Image.Resampling.BILINEAR, box=window)
        pixels: Float = np.asarray(picture, np.float32) * np.float32(1 / 255)
        return pixels

    def sensor(self, picture: Float, dice: Dice, exposure: float) -> NDArray[np.uint8]:
        """What the camera makes of light, float32 [H, W, 3] in [0, 1]: uint8 [H, W, 3]."""
        value = picture + np.float32(self.gamma) * picture * (1 - picture)
        value = value * np.asarray([gain * exposure for gain in self.gains], np.float32)
        value = (value - np.float32(0.5)) * np.float32(self.contrast) + np.float32(0.5 + self.black)
        value = value + dice.grain(value.shape) * np.float32(self.noise)
        result: NDArray[np.uint8] = (np.clip(value, 0, 1) * np.float32(255) + np.float32(0.5)).astype(np.uint8)
        return result

    def soften(self, picture: Float) -> Float:
        """Blur [H, W] or [H, W, C] by this camera's lens: linear, local, and the same for picture and mask."""
        variance = (self.blur * picture.shape[0]) ** 2
        passes = math.ceil(variance / 0.5)
        for _ in range(passes):
            # Three taps (w, 1 - 2w, w) have variance 2w; repeated at the border.
            weight = np.float32(variance / passes / 2)
            for axis in (0, 1):
                edge = [(1, 1) if a == axis else (0, 0) for a in range(picture.ndim)]
                padded = np.pad(picture, edge, mode="edge")
                low = [slice(None)] * picture.ndim
                high = [slice(None)] * picture.ndim
                low[axis], high[axis] = slice(0, -2), slice(2, None)
                picture = picture * (1 - 2 * weight) + (padded[tuple(low)] + padded[tuple(high)]) * weight
        return picture


@lru_cache(maxsize=64)
def camera_of(number: int, seed: int) -> Camera:
    """The camera of this number in the world of this seed."""
    dice = Dice(CAMERA, seed, number)
    # Hues and exposures a golden ratio apart: any few cameras in a row differ clearly.
    start = Dice(CAMERA, seed)
    hue = 2 * math.pi * (start.uniform(0.0, 1.0) + number * _GOLDEN)
    gain = 0.66 + 0.46 * ((start.uniform(0.0, 1.0) + number * _GOLDEN) % 1.0)
    cast = dice.uniform(0.10, 0.17)
    gains = tuple(gain * (1 + cast * math.cos(hue + turn * 2 * math.pi / 3)) for turn in range(3))
    return Camera(
        place=_paint_place(dice),
        gains=(gains[0], gains[1], gains[2]),
        gamma=dice.uniform(-0.25, 0.4),
        contrast=dice.uniform(0.72, 1.08),
        black=dice.uniform(-0.02, 0.05),
        noise=dice.uniform(0.008, 0.030),
        blur=dice.uniform(0.0, 0.0065),
        pitch=dice.uniform(0.0, 0.30),
        light=dice.uniform(-0.9, 0.9),
    )


def _colour(dice: Dice, low: int = 40, high: int = 225, colourful: float = 0.25) -> _Colour:
    grey = dice.uniform(low, high)
    r, g, b = (min(max(int(grey * (1 + dice.uniform(-colourful, colourful))), 0), 255) for _ in range(3))
    return r, g, b


def _times(colour: _Colour, gain: float) -> _Colour:
    r, g, b = (min(max(int(c * gain), 0), 255) for c in colour)
    return r, g, b


def _paint_place(dice: Dice) -> Image.Image:
    """A street or a hall: ground, wall, and things in front of them. Painted at twice the size, then reduced."""
    width, height = 2 * _WIDTH, 2 * _HEIGHT
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    horizon = int(height * dice.uniform(0.42, 0.72))
    _paint_wall(draw, dice, width, horizon)
    _paint_ground(draw, dice, width, height, horizon)
    for _ in range(9 + dice.integer(6)):
        _paint_thing(draw, dice, width, height, horizon)
    picture = picture.reduce(2)
    # Uneven light along the place, and the grain of real surfaces.
    pixels = np.asarray(picture, np.float32)
    knots = np.array([dice.uniform(0.75, 1.2) for _ in range(9)])
    light = np.interp(np.linspace(0, 8, _WIDTH), np.arange(9), knots).astype(np.float32)
    pixels = pixels * light[None, :, None] + dice.grain((_HEIGHT, _WIDTH, 1)) * 6
    soft = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return soft.filter(ImageFilter.BoxBlur(0.6))


def _paint_wall(draw: ImageDraw.ImageDraw, dice: Dice, width: int, horizon: int) -> None:
    base = _colour(dice)
    draw.rectangle((0, 0, width, horizon), fill=base)
    line = _times(base, dice.choice((0.75, 0.85, 1.2)))
    kind = dice.choice(("bricks", "panels", "windows", "hedge", "bands"))
    if kind == "bricks":
        tall, wide = 14 + dice.integer(12), 34 + dice.integer(24)
        for row, y in enumerate(range(0, horizon, tall)):
            draw.line((0, y, width, y), fill=line, width=2)
            for x in range((row % 2) * wide // 2, width, wide):
                draw.line((x, y, x, min(y + tall, horizon)), fill=line, width=2)
    elif kind == "panels":
        x = 0
        while x < width:
            step = 60 + dice.integer(160)
            draw.rectangle((x, 0, x + step, horizon), fill=_times(base, dice.uniform(0.8, 1.2)))
            draw.line((x, 0, x, horizon), fill=line, width=3)
            x += step
    elif kind == "windows":
        x = dice.integer(60)
        glass = _colour(dice, 30, 160, 0.35)
        while x < width:
            wide = 70 + dice.integer(70)
            box = (x, int(horizon * 0.12), x + wide, int(horizon * dice.choice((0.6, 0.98))))
            draw.rectangle(box, fill=_times(glass, dice.uniform(0.6, 1.4)), outline=line, width=5)
            x += wide + 30 + dice.integer(80)
    elif kind == "hedge":
        leaf = (50 + dice.integer(60), 90 + dice.integer(70), 40 + dice.integer(40))
        for _ in range(700):
            x, y, r = dice.integer(width), int(horizon * dice.uniform(0.2, 1.0)), 6 + dice.integer(16)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=_times(leaf, dice.uniform(0.6, 1.3)))
    else:
        for y in range(0, horizon, 30 + dice.integer(30)):
            draw.rectangle((0, y, width, y + 16), fill=_times(base, dice.uniform(0.8, 1.2)))


def _paint_ground(draw: ImageDraw.ImageDraw, dice: Dice, width: int, height: int, horizon: int) -> None:
    base = _colour(dice, 70, 200, 0.15)
    draw.rectangle((0, horizon, width, height), fill=base)
    line = _times(base, dice.choice((0.8, 1.2)))
    kind = dice.choice(("slabs", "asphalt", "checker", "grass"))
    # Rows of slabs come closer towards the horizon.
    rows = [horizon + int((height - horizon) * (k / 8) ** 1.7) for k in range(9)]
    if kind in ("slabs", "checker"):
        for k, (top, bottom) in enumerate(pairwise(rows)):
            if kind == "checker":
                for column, x in enumerate(range(0, width, 64)):
                    if (column + k) % 2:
                        draw.rectangle((x, top, x + 63, bottom), fill=line)
            else:
                draw.line((0, bottom, width, bottom), fill=line, width=3)
        if kind == "slabs":
            for x in range(-width, 2 * width, 90):
                draw.line((width // 2 + (x - width // 2) // 2, horizon, x, height), fill=line, width=2)
    elif kind == "grass":
        green = (70 + dice.integer(40), 100 + dice.integer(40), 55)
        middle = horizon + (height - horizon) // 3
        draw.rectangle((0, horizon, width, middle), fill=green)
    else:
        stripe = dice.choice(((225, 225, 220), (215, 190, 70)))
        y = horizon + int((height - horizon) * dice.uniform(0.2, 0.7))
        for x in range(0, width, 150):
            draw.polygon(((x, y), (x + 80, y), (x + 60, y + 22), (x - 20, y + 22)), fill=stripe)
    draw.line((0, horizon, width, horizon), fill=_times(base, 0.6), width=4)


def _paint_thing(draw: ImageDraw.ImageDraw, dice: Dice, width: int, height: int, horizon: int) -> None:
    """A post, sign, poster, door, bush, bin or parked car. Their colours are those of clothes."""
    x = dice.integer(width)
    floor = horizon + int((height - horizon) * dice.uniform(0.05, 0.35))
    colour = _colour(dice, 50, 190, 0.55)
    kind = dice.choice(("post", "sign", "poster", "poster", "door", "bush", "bin", "car"))
    if kind == "post":
        w = 8 + dice.integer(12)
        draw.rectangle((x, 0, x + w, floor), fill=_times(colour, 0.7))
        draw.line((x + w // 3, 0, x + w // 3, floor), fill=colour, width=max(w // 4, 1))
    elif kind == "sign":
        y = int(horizon * dice.uniform(0.1, 0.4))
        draw.rectangle((x - 3, y, x + 3, floor), fill=(90, 90, 92))
        draw.ellipse((x - 30, y - 30, x + 30, y + 30), fill=colour, outline=(230, 230, 230), width=6)
    elif kind == "poster":
        y = int(horizon * dice.uniform(0.05, 0.5))
        w, h = 50 + dice.integer(90), 60 + dice.integer(100)
        draw.rectangle((x, y, x + w, y + h), fill=colour, outline=(235, 235, 230), width=4)
        draw.rectangle((x + w // 5, y + h // 4, x + 3 * w // 4, y + h // 2), fill=_colour(dice, 40, 210, 0.55))
    elif kind == "door":
        w = 80 + dice.integer(40)
        draw.rectangle((x, int(horizon * 0.25), x + w, horizon), fill=_times(colour, 0.8), outline=colour, width=5)
        draw.ellipse((x + w - 18, int(horizon * 0.62), x + w - 10, int(horizon * 0.62) + 8), fill=(220, 200, 120))
    elif kind == "bush":
        for _ in range(40):
            r, dx, dy = 8 + dice.integer(16), dice.integer(110), dice.integer(90)
            green = _times((60, 115, 50), dice.uniform(0.6, 1.3))
            draw.ellipse((x + dx - r, floor - dy - r, x + dx + r, floor - dy + r), fill=green)
    elif kind == "bin":
        draw.rounded_rectangle((x, floor - 90, x + 56, floor), radius=8, fill=colour)
        draw.rectangle((x - 4, floor - 96, x + 60, floor - 82), fill=_times(colour, 0.6))
    else:
        w = 260 + dice.integer(80)
        draw.rounded_rectangle((x, floor - 80, x + w, floor - 14), radius=18, fill=colour)
        draw.polygon(
            ((x + 40, floor - 76), (x + 80, floor - 124), (x + w - 80, floor - 124), (x + w - 30, floor - 76)),
            fill=_times(colour, 0.85),
        )
        for centre in (x + 55, x + w - 55):
            draw.ellipse((centre - 26, floor - 38, centre + 26, floor + 10), fill=(25, 25, 28))
