"""Where the joints are: a walking body in space, and its projection.

Body axes: x to the person's own left, y up, z forward; unit one stature, the ground at y = 0. The camera looks
along the horizon, or down by its pitch, from far away (orthographic). ``yaw`` 0 faces the camera, pi/2 walks to
the right of the picture, pi walks away: left and right in the picture follow from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mgran_fast.data.pedestrian.dice import Dice
from mgran_fast.data.pedestrian.person import Person
from mgran_fast.layouts import KEYPOINTS

_THIGH, _UPPER_ARM, _FOREARM, _HAND = 0.245, 0.165, 0.140, 0.05
_ANKLE = 0.045
_SHOULDER_HEIGHT = 0.822


@dataclass(frozen=True)
class Arm:
    """Angles in radians: flexion (forward) and abduction (sideways) of the shoulder, flexion of the elbow."""

    flexion: float
    abduction: float
    elbow: float


@dataclass(frozen=True)
class Leg:
    """Angles in radians: flexion (forward) of the hip, flexion (backward) of the knee."""

    flexion: float
    knee: float


@dataclass(frozen=True)
class Pose:
    """How somebody stands. Angles in radians: see the module for ``yaw``; ``turn`` is the head against the body,
    ``lean`` forward, ``roll`` of the whole picture of the person."""

    yaw: float
    turn: float
    lean: float
    roll: float
    left_arm: Arm
    right_arm: Arm
    left_leg: Leg
    right_leg: Leg

    def mirrored(self) -> Pose:
        """The pose whose picture is the mirror image of this one's."""
        return replace(
            self,
            yaw=-self.yaw,
            turn=-self.turn,
            roll=-self.roll,
            left_arm=self.right_arm,
            right_arm=self.left_arm,
            left_leg=self.right_leg,
            right_leg=self.left_leg,
        )


def sample_pose(dice: Dice) -> Pose:
    """Somebody who walks or stands, seen from any side."""
    yaw = dice.choice((0.0, 0.5, 1.0, 1.5)) * math.pi + dice.uniform(-0.45, 0.45)
    phase = dice.uniform(0.0, 2 * math.pi)
    stride = dice.uniform(0.28, 0.52) if dice.chance(0.8) else dice.uniform(0.0, 0.12)
    swing = stride * dice.uniform(0.5, 1.1)
    bend = dice.uniform(0.1, 0.6)

    def leg(angle: float) -> Leg:
        # The knee is bent most while the leg passes under the body on its way forward.
        lift = max(0.0, math.cos(angle)) ** 2
        return Leg(stride * math.sin(angle) + 0.12 * lift, 0.06 + stride * (0.5 + 1.5 * lift))

    def arm(angle: float) -> Arm:
        if dice.chance(0.10):  # a phone, or a hand at the strap
            return Arm(dice.uniform(0.1, 0.5), dice.uniform(0.05, 0.2), dice.uniform(1.6, 2.2))
        return Arm(swing * math.sin(angle) - 0.05, dice.uniform(0.08, 0.22), bend + 0.35 * max(0.0, math.sin(angle)))

    return Pose(
        yaw=yaw,
        turn=dice.uniform(-0.4, 0.4),
        lean=dice.uniform(-0.03, 0.12),
        roll=dice.uniform(-0.06, 0.06),
        left_arm=arm(phase + math.pi),
        right_arm=arm(phase),
        left_leg=leg(phase),
        right_leg=leg(phase + math.pi),
    )


@dataclass(frozen=True)
class Skeleton:
    """Joints as the camera sees them, in statures.

    Attributes:
        points: name -> (x to the right, y up, depth: larger is nearer to the camera); x is 0 at the pelvis and
            y is 0 at the ground under it. The names are the 17 keypoints, ``neck``, ``pelvis``, ``head``, ``back``
            (between the shoulder blades), ``waist_front``, and for both sides ``hand``, ``heel`` and ``toe``.
        yaw, head_yaw: where body and head face; pitch: how far the camera looks down.
        head: half the height of the head.
    """

    points: dict[str, tuple[float, float, float]]
    yaw: float
    head_yaw: float
    pitch: float
    head: float

    def keypoints(self) -> NDArray[np.float64]:
        """The 17 keypoints, COCO order, float64 [17, 3]: x, y up, depth."""
        return np.array([self.points[name] for name in KEYPOINTS])

    def facing(self, name: str) -> float:
        """How far a point of the head turns to the camera: 1 fully, 0 at the outline, negative behind."""
        centre = self.points["head"]
        return (self.points[name][2] - centre[2]) / self.head


def skeleton_of(person: Person, pose: Pose, pitch: float = 0.0) -> Skeleton:
    """The joints of a person in a pose for a camera that looks down by ``pitch`` radians."""
    body: dict[str, tuple[float, float, float]] = {}
    body["pelvis"] = (0.0, 0.0, 0.0)
    spine = _SHOULDER_HEIGHT - person.legs
    sin_lean, cos_lean = math.sin(pose.lean), math.cos(pose.lean)

    def on_spine(x: float, up: float, forward: float) -> tuple[float, float, float]:
        return (x, up * cos_lean - forward * sin_lean, up * sin_lean + forward * cos_lean)

    body["neck"] = on_spine(0.0, spine, 0.0)
    body["back"] = on_spine(0.0, spine * 0.68, -0.085 * person.girth)
    body["waist_front"] = on_spine(0.0, spine * 0.2, 0.07 * person.girth)
    for side, sign, arm, leg in (
        ("left", 1.0, pose.left_arm, pose.left_leg),
        ("right", -1.0, pose.right_arm, pose.right_leg),
    ):
        shoulder = on_spine(sign * person.shoulders, spine - 0.024, 0.0)
        stout = 0.10 * max(person.girth - 1.0, 0.0)
        out, flex, bent = math.sin(arm.abduction + stout), arm.flexion, arm.flexion + arm.elbow
        flat = math.cos(arm.abduction + stout)
        elbow = _step(shoulder, _UPPER_ARM, (sign * out, -math.cos(flex) * flat, math.sin(flex) * flat))
        # The forearm hangs closer to the body than the upper arm, and a bent one crosses in front of it.
        inward = sign * (0.3 * out - 0.25 * math.sin(min(arm.elbow, math.pi / 2)))
        rest = math.sqrt(1 - inward * inward)
        fore = (inward, -math.cos(bent) * rest, math.sin(bent) * rest)
        wrist = _step(elbow, _FOREARM, fore)
        hip = (sign * person.hips, 0.0, 0.0)
        shin = person.legs - _THIGH - _ANKLE
        knee = _step(hip, _THIGH, (sign * 0.02, -math.cos(leg.flexion), math.sin(leg.flexion)))
        low = leg.flexion - leg.knee
        ankle = _step(knee, shin, (-sign * 0.03, -math.cos(low), math.sin(low)))
        # The sole stays level unless the leg trails behind; then the heel lifts.
        tip = 0.75 * min(low + 0.15, 0.0)
        heel = _step(ankle, 0.03, (0.0, -math.cos(tip), math.sin(tip) - 0.4))
        toe = _step(heel, 0.115, (sign * 0.18, math.sin(tip), math.cos(tip)))
        body.update(
            {
                f"{side}_shoulder": shoulder,
                f"{side}_elbow": elbow,
                f"{side}_wrist": wrist,
                f"{side}_hand": _step(wrist, _HAND, fore),
                f"{side}_hip": hip,
                f"{side}_knee": knee,
                f"{side}_ankle": ankle,
                f"{side}_heel": heel,
                f"{side}_toe": toe,
            }
        )
    lowest = min(body[f"{side}_{part}"][1] for side in ("left", "right") for part in ("heel", "toe"))
    body["head"] = on_spine(0.0, 1.0 - person.head - person.legs, 0.012)
    # Turned about the head's own axis: the face in units of half the head's height (heads are 0.78 as wide).
    sin_turn, cos_turn = math.sin(pose.turn), math.cos(pose.turn)
    for name, (x, y, z) in _FACE.items():
        dx, dz = x * cos_turn + z * sin_turn, z * cos_turn - x * sin_turn
        cx, cy, cz = body["head"]
        body[name] = (cx + dx * person.head, cy + y * person.head, cz + dz * person.head)

    rise = 0.018 - lowest
    sin_yaw, cos_yaw = math.sin(pose.yaw), math.cos(pose.yaw)
    sin_pitch, cos_pitch = math.sin(pitch), math.cos(pitch)
    sin_roll, cos_roll = math.sin(pose.roll), math.cos(pose.roll)
    points = {}
    for name, (x, y, z) in body.items():
        right, near, up = x * cos_yaw + z * sin_yaw, z * cos_yaw - x * sin_yaw, y + rise
        up, near = up * cos_pitch - near * sin_pitch, near * cos_pitch + up * sin_pitch
        points[name] = (right * cos_roll + up * sin_roll, up * cos_roll - right * sin_roll, near)
    return Skeleton(points, pose.yaw, pose.yaw + pose.turn, pitch, person.head)


_FACE = {
    "nose": (0.0, -0.12, 0.86),
    "left_eye": (0.27, 0.10, 0.70),
    "right_eye": (-0.27, 0.10, 0.70),
    "left_ear": (0.76, -0.02, -0.04),
    "right_ear": (-0.76, -0.02, -0.04),
}


def _step(
    start: tuple[float, float, float], length: float, way: tuple[float, float, float]
) -> tuple[float, float, float]:
    return (start[0] + length * way[0], start[1] + length * way[1], start[2] + length * way[2])
