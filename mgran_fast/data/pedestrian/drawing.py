"""What every part of a figure needs to be drawn: the layer, the person, and where the joints are in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mgran_fast.data.pedestrian.canvas import RGB, Layer, Paint, Point
from mgran_fast.data.pedestrian.person import Person
from mgran_fast.data.pedestrian.pose import Skeleton

#: Groups of parts, as ``Layer.top`` holds them.
HEAD, TORSO, LEFT_ARM, RIGHT_ARM, LEFT_LEG, RIGHT_LEG, BAG = range(1, 8)
ARMS = {"left": LEFT_ARM, "right": RIGHT_ARM}
LEGS = {"left": LEFT_LEG, "right": RIGHT_LEG}


@dataclass(frozen=True)
class Placement:
    """Where a figure stands: the pixel under its pelvis on the ground, and the pixels that one stature takes."""

    x: float
    y: float
    scale: float

    def pixel(self, point: tuple[float, float, float]) -> Point:
        """A joint in pixels, rounded so that the last bit of a sine does not matter."""
        return round(self.x + self.scale * point[0], 3), round(self.y - self.scale * point[1], 3)


class Drawing:
    """A figure in the making.

    Attributes:
        layer, person, skeleton: what is drawn on, who, and in which pose.
        s: pixels of one stature.
        at: name of a joint -> pixel; near: name -> depth in statures, larger is nearer to the camera.
        turn: sine and cosine of the angle between the body's front and the camera.
    """

    def __init__(self, layer: Layer, person: Person, skeleton: Skeleton, placement: Placement) -> None:
        self.layer, self.person, self.skeleton = layer, person, skeleton
        self.s = placement.scale
        self.at = {name: placement.pixel(point) for name, point in skeleton.points.items()}
        self.near = {name: point[2] for name, point in skeleton.points.items()}
        self.turn = (math.sin(skeleton.yaw), math.cos(skeleton.yaw))

    def half(self, wide: float, deep: float) -> float:
        """Half the width of a turned oval in pixels, from its half width and half depth in statures."""
        sine, cosine = self.turn
        return math.sqrt((wide * cosine) ** 2 + (deep * sine) ** 2) * self.s


def between(a: Point, b: Point, share: float) -> Point:
    """The point at this share of the way from ``a`` to ``b``."""
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])


def darker(colour: RGB, gain: float) -> RGB:
    """A colour times a gain."""
    return colour[0] * gain, colour[1] * gain, colour[2] * gain


def mixed(a: RGB, b: RGB, share: float) -> RGB:
    """A colour at this share of the way from ``a`` to ``b``."""
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]), a[2] + share * (b[2] - a[2])


def dimmed(paint: Paint, gain: float) -> Paint:
    """A paint in the shade."""
    if gain == 1.0:
        return paint
    return lambda along, across: paint(along, across) * np.float32(gain)
