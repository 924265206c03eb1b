"""Shapes with analytic antialiasing on a premultiplied RGBA layer.

A shape is a signed distance in pixels (negative inside); its coverage of a pixel is ``clip(0.5 - distance, 0, 1)``,
so a silhouette is exact to a fraction of a pixel at every size, without supersampling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
RGB = tuple[float, float, float]
Point = tuple[float, float]
#: A paint turns (along the shape, in pixels; across it, -1 to 1) into colours [h, w, 3] or one colour [3].
Paint = Callable[[Float, Float], Float]

_STEPS = 64


def plain(colour: RGB) -> Paint:
    """A paint of one colour."""
    value = np.asarray(colour, np.float32)
    return lambda along, across: value


def axis(a: Point, b: Point) -> tuple[float, float, float]:
    """Length and direction (x, y) from ``a`` to ``b``; downwards when they are the same point."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = math.sqrt(dx * dx + dy * dy)
    return (length, dx / length, dy / length) if length > 1e-3 else (1e-3, 0.0, 1.0)


class Layer:
    """Shapes stacked on nothing.

    Attributes:
        rgb: float32 [H, W, 3], premultiplied by alpha, in [0, 1].
        alpha: float32 [H, W], coverage in [0, 1]; exactly 0 where no shape reaches.
        top: uint8 [H, W], the group of the last shape that covers more than a third of the pixel, 0 for none.
        light: where light comes from, -1 (left) to 1 (right).
    """

    def __init__(self, height: int, width: int, *, light: float = 0.0) -> None:
        self.height, self.width, self.light = height, width, light
        self.rgb: Float = np.zeros((height, width, 3), np.float32)
        self.alpha: Float = np.zeros((height, width), np.float32)
        self.top: NDArray[np.uint8] = np.zeros((height, width), np.uint8)
        self._x: Float = np.arange(width, dtype=np.float32) + np.float32(0.5)
        self._y: Float = np.arange(height, dtype=np.float32) + np.float32(0.5)

    def window(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice] | None:
        """The rows and columns of pixels that a shape in this box can touch; None when it lies outside."""
        y0, y1 = max(int(top) - 1, 0), min(int(bottom) + 2, self.height)
        x0, x1 = max(int(left) - 1, 0), min(int(right) + 2, self.width)
        return (slice(y0, y1), slice(x0, x1)) if y0 < y1 and x0 < x1 else None

    def grid(self, window: tuple[slice, slice]) -> tuple[Float, Float]:
        """Pixel centres of a window: x [1, w] and y [h, 1]."""
        return self._x[window[1]][None, :], self._y[window[0]][:, None]

    def blend(self, window: tuple[slice, slice], cover: Float, rgb: Float, group: int) -> None:
        """Put colours (not premultiplied; [h, w, 3] or [3]) with this coverage [h, w] on top."""
        keep = 1 - cover
        spot = self.rgb[window]
        spot *= keep[..., None]
        spot += rgb * cover[..., None]
        alpha = self.alpha[window]
        alpha *= keep
        alpha += cover
        self.top[window][cover > 0.35] = group

    def shaded(self, rgb: Float, across: Float, depth: float) -> Float:
        """Colours darkened towards the edges, as on a cylinder lit from ``light``."""
        shade = 1 + np.float32(0.45 * depth) * (np.float32(0.4) - across * across + np.float32(self.light) * across)
        shaded: Float = rgb * shade[..., None]
        return shaded

    def capsule(
        self, a: Point, b: Point, ra: float, rb: float, paint: Paint, group: int, *, depth: float = 0.5
    ) -> None:
        """A limb from ``a`` to ``b`` whose radius runs from ``ra`` to ``rb``; ``along`` is 0 at ``a``."""
        r = max(ra, rb)
        window = self.window(min(a[0], b[0]) - r, min(a[1], b[1]) - r, max(a[0], b[0]) + r, max(a[1], b[1]) + r)
        if window is None:
            return
        x, y = self.grid(window)
        length, ux, uy = axis(a, b)
        x, y = x - np.float32(a[0]), y - np.float32(a[1])
        along = x * np.float32(ux) + y * np.float32(uy)
        aside = y * np.float32(ux) - x * np.float32(uy)
        over = along - np.clip(along, 0, np.float32(length))
        radius = np.float32(ra) + (along - over) * np.float32((rb - ra) / length)
        cover = np.clip(np.float32(0.5) + radius - np.sqrt(over * over + aside * aside), 0, 1)
        # A limb thinner than a pixel fades instead of vanishing between two pixel centres.
        across = np.clip(-aside / np.maximum(radius, np.float32(0.5)), -1, 1)
        # ``across`` grows to the right of the picture for a limb that hangs down.
        self.blend(window, cover, self.shaded(paint(along, across), across, depth), group)

    def profile(
        self,
        a: Point,
        b: Point,
        widths: Sequence[tuple[float, float]],
        paint: Paint,
        group: int,
        *,
        depth: float = 0.5,
        shift: Sequence[tuple[float, float]] = ((0.0, 0.0), (1.0, 0.0)),
    ) -> None:
        """A body around the axis from ``a`` to ``b``.

        ``widths`` are pairs (place on the axis, 0 at ``a`` and 1 at ``b``; half width in pixels), ``shift`` pairs
        (place, displacement of the axis to the right in pixels), both interpolated linearly.
        """
        length, ux, uy = axis(a, b)
        r = max(w for _, w in widths) + max(abs(s) for _, s in shift)
        window = self.window(min(a[0], b[0]) - r, min(a[1], b[1]) - r, max(a[0], b[0]) + r, max(a[1], b[1]) + r)
        if window is None:
            return
        steps = np.linspace(0, 1, _STEPS + 1)
        half = np.interp(steps, [p for p, _ in widths], [w for _, w in widths])
        middle = np.interp(steps, [p for p, _ in shift], [s for _, s in shift])
        # A distance measured across the axis is too long where the outline is slanted.
        slope = np.gradient(half, length / _STEPS)
        steep = (1 / np.sqrt(1 + slope * slope)).astype(np.float32)
        x, y = self.grid(window)
        x, y = x - np.float32(a[0]), y - np.float32(a[1])
        along = x * np.float32(ux) + y * np.float32(uy)
        aside = x * np.float32(uy) - y * np.float32(ux)
        place = np.clip(along * np.float32(_STEPS / length) + np.float32(0.5), 0, _STEPS).astype(np.intp)
        width = half.astype(np.float32)[place]
        aside = aside - middle.astype(np.float32)[place]
        distance = np.maximum((np.abs(aside) - width) * steep[place], np.abs(along - length / 2) - length / 2)
        cover = np.clip(np.float32(0.5) - distance.astype(np.float32), 0, 1)
        across = np.clip(aside / np.maximum(width, np.float32(0.5)), -1, 1)
        self.blend(window, cover, self.shaded(paint(along, across), across, depth), group)

    def disc(self, c: Point, rx: float, ry: float) -> tuple[tuple[slice, slice], Float, Float, Float] | None:
        """An upright ellipse: its window, coverage [h, w], and x (right) and y (up) in units of the radii."""
        window = self.window(c[0] - rx, c[1] - ry, c[0] + rx, c[1] + ry)
        if window is None:
            return None
        rx, ry = max(rx, 0.3), max(ry, 0.3)
        x, y = self.grid(window)
        x = (x - np.float32(c[0])) / np.float32(rx)
        y = (np.float32(c[1]) - y) / np.float32(ry)
        radius = np.sqrt(x * x + y * y)
        cover = np.clip(np.float32(0.5) + (1 - radius) * np.float32(min(rx, ry)), 0, 1)
        return window, cover, x, y

    def ellipse(self, c: Point, rx: float, ry: float, colour: RGB, group: int, *, strength: float = 1.0) -> None:
        """A flat upright ellipse; ``strength`` below 1 lets through what is beneath."""
        found = self.disc(c, rx, ry)
        if found is not None:
            window, cover, _, _ = found
            self.blend(window, cover * np.float32(strength), np.asarray(colour, np.float32), group)

    def box(
        self, left: float, top: float, right: float, bottom: float, corner: float, paint: Paint, group: int
    ) -> None:
        """An upright rectangle with rounded corners; ``along`` runs down from the top edge."""
        window = self.window(left, top, right, bottom)
        if window is None:
            return
        x, y = self.grid(window)
        rx, ry = (right - left) / 2, (bottom - top) / 2
        corner = min(corner, rx, ry)
        x = x - np.float32((left + right) / 2)
        along = y - np.float32(top)
        qx = np.abs(x) - np.float32(rx - corner)
        qy = np.abs(along - np.float32(ry)) - np.float32(ry - corner)
        ox, oy = np.maximum(qx, 0), np.maximum(qy, 0)
        distance = np.sqrt(ox * ox + oy * oy) + np.minimum(np.maximum(qx, qy), 0) - np.float32(corner)
        cover = np.clip(np.float32(0.5) - distance, 0, 1)
        across = np.clip(x / np.float32(max(rx, 0.5)), -1, 1) + np.zeros_like(along)
        along = along + np.zeros_like(across)
        self.blend(window, cover, self.shaded(paint(along, across), across, 0.3), group)
