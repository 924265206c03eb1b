"""A person in a pose, drawn: limbs as tapered capsules, the torso as a profile, the head as a painted ball.

Parts are stacked from far to near. Each belongs to a group, so that afterwards ``Layer.top`` tells which part of the
body is seen at a pixel, and a joint behind another part is known to be hidden.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from mgran_fast.data.pedestrian.canvas import Layer, Paint, Point, axis, plain
from mgran_fast.data.pedestrian.carry import draw_backpack, draw_hand_bag, draw_shoulder_bag, draw_straps
from mgran_fast.data.pedestrian.drawing import (
    ARMS,
    HEAD,
    LEFT_LEG,
    LEGS,
    RIGHT_LEG,
    TORSO,
    Drawing,
    Placement,
    between,
    dimmed,
)
from mgran_fast.data.pedestrian.head import draw_head, draw_long_hair
from mgran_fast.data.pedestrian.person import Person
from mgran_fast.data.pedestrian.pose import Skeleton
from mgran_fast.layouts import KEYPOINTS


def keypoints_of(skeleton: Skeleton, placement: Placement) -> NDArray[np.float32]:
    """The 17 keypoints in pixels, COCO order, float32 [17, 2] (pixel centres at + 0.5)."""
    return np.array([placement.pixel(skeleton.points[name]) for name in KEYPOINTS], np.float32)


def hidden(layer: Layer, skeleton: Skeleton, points: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which keypoints the body itself hides, bool [17].

    ``layer`` is the drawn figure, ``points`` float32 [17, 2] in pixels; outside of the picture nothing is hidden.
    The face turned away is hidden; so is a limb behind the torso or another limb.
    """
    result = np.zeros(len(KEYPOINTS), np.bool_)
    for index, name in enumerate(KEYPOINTS):
        if index < 5 and skeleton.facing(name) < (-0.25 if name.endswith("ear") else 0.1):
            result[index] = True
            continue
        x, y = int(points[index, 0]), int(points[index, 1])
        if points[index].min() < 0 or x >= layer.width or y >= layer.height:
            continue
        top = int(layer.top[y, x])
        if top == 0:
            continue
        side, _, joint = name.partition("_")
        if index < 5:
            seen = top == HEAD
        elif joint in ("shoulder", "hip"):
            # Clothes and the own arm lie over these joints; only something else hides them.
            seen = top in (HEAD, TORSO, ARMS[side], LEFT_LEG, RIGHT_LEG)
        else:
            seen = top == (ARMS if joint in ("elbow", "wrist") else LEGS)[side]
            # A skirt or a long coat is the leg's own clothing.
            seen = seen or (joint == "knee" and top == TORSO)
        result[index] = not seen
    return result


def draw_figure(layer: Layer, person: Person, skeleton: Skeleton, placement: Placement) -> None:
    """Draw a person on top of a layer."""
    _Figure(layer, person, skeleton, placement).draw()


class _Figure(Drawing):
    def __init__(self, layer: Layer, person: Person, skeleton: Skeleton, placement: Placement) -> None:
        super().__init__(layer, person, skeleton, placement)
        self.upper = person.upper.paint(self.s)
        self.lower = person.lower.paint(self.s)
        self.skin = plain(person.skin)
        self.girth = 0.6 + 0.4 * person.girth

    def draw(self) -> None:
        sides = sorted(("left", "right"), key=lambda side: self.near[f"{side}_hip"] + 0.2 * self.near[f"{side}_knee"])
        # An arm is behind the body when its elbow and wrist are, seen from the camera.
        depth = {s: self.near[f"{s}_elbow"] + self.near[f"{s}_wrist"] for s in sides}
        body = 2 * (0.7 * self.near["pelvis"] + 0.3 * self.near["neck"])
        far_arms = [s for s in sides if depth[s] < body - 0.03]
        near_arms = sorted((s for s in sides if s not in far_arms), key=depth.__getitem__)
        pack_behind = self.turn[1] > -0.1

        if self.person.carry == "backpack" and pack_behind:
            draw_backpack(self)
        for side in far_arms:
            self.arm(side, 0.86)
        if self.facing() > -0.2:
            draw_long_hair(self)
        for side in sides:
            self.leg(side)
        self.hips()
        self.neck()
        self.torso()
        if self.person.carry == "backpack":
            if pack_behind:
                draw_straps(self)
            else:
                draw_backpack(self)
        draw_head(self)
        if self.facing() <= -0.2:
            draw_long_hair(self)
        if self.person.carry == "shoulder":
            draw_shoulder_bag(self)
        for side in near_arms:
            self.arm(side)

    def facing(self) -> float:
        """Cosine of the angle between the face and the camera."""
        return math.cos(self.skeleton.head_yaw)

    def arm(self, side: str, dim: float = 1.0) -> None:
        person, s, group = self.person, self.s, ARMS[side]
        shoulder, elbow = self.at[f"{side}_shoulder"], self.at[f"{side}_elbow"]
        wrist, hand = self.at[f"{side}_wrist"], self.at[f"{side}_hand"]
        ra, rb, rc = 0.033 * self.girth * s, 0.027 * self.girth * s, 0.019 * self.girth * s
        # An arm behind the body lies in its shade.
        skin = dimmed(self.skin, dim)
        if person.carry == "hand" and (side == "left") == person.carry_left:
            draw_hand_bag(self, hand)
        # The hand: a palm that narrows, and a thumb's worth of width at its root.
        self.layer.capsule(wrist, hand, 0.017 * s, 0.013 * s, skin, group)
        paint = dimmed(plain(person.upper.second) if person.sleeve_second else self.upper, dim)
        loose = 1.16
        if person.sleeve == "long":
            cuff = between(elbow, wrist, 0.93)
            self.layer.capsule(elbow, cuff, loose * rb, 1.3 * rc, paint, group)
            self.layer.capsule(shoulder, elbow, loose * ra, loose * rb, paint, group)
            return
        self.layer.capsule(elbow, wrist, rb, rc, skin, group)
        self.layer.capsule(shoulder, elbow, ra, rb, skin, group)
        if person.sleeve == "short":
            end = between(shoulder, elbow, 0.66)
            self.layer.capsule(shoulder, end, loose * ra, 1.3 * (0.34 * ra + 0.66 * rb), paint, group)

    def leg(self, side: str) -> None:
        person, s, group = self.person, self.s, LEGS[side]
        hip, knee, ankle = self.at[f"{side}_hip"], self.at[f"{side}_knee"], self.at[f"{side}_ankle"]
        heel, toe = self.at[f"{side}_heel"], self.at[f"{side}_toe"]
        stout = self.girth
        thigh, joint, calf, thin = 0.060 * stout * s, 0.040 * stout * s, 0.040 * stout * s, 0.023 * s
        # The farther leg lies in the shade of the nearer one.
        other = "right" if side == "left" else "left"
        dim = 0.86 if self.near[f"{side}_knee"] < self.near[f"{other}_knee"] - 0.04 else 1.0
        skin, cloth, shoe = dimmed(self.skin, dim), dimmed(self.lower, dim), dimmed(plain(person.shoes), dim)
        middle = between(knee, ankle, 0.35)
        if person.lower_kind == "trousers":
            cuff = between(knee, ankle, 0.97)
            self.layer.capsule(ankle, heel, thin, 0.024 * s, shoe, group)
            self.shoe(heel, toe, shoe, group)
            self.layer.capsule(middle, cuff, 1.05 * calf, 0.033 * s, cloth, group)
            self.layer.capsule(knee, middle, 1.08 * joint, 1.05 * calf, cloth, group)
            self.layer.capsule(hip, knee, thigh, 1.08 * joint, cloth, group)
            return
        self.layer.capsule(middle, ankle, calf, thin, skin, group)
        self.layer.capsule(knee, middle, 0.92 * joint, calf, skin, group)
        self.layer.capsule(hip, knee, thigh, 0.95 * joint, skin, group)
        self.layer.capsule(ankle, heel, thin, 0.024 * s, shoe, group)
        self.shoe(heel, toe, shoe, group)
        if person.lower_kind == "shorts":
            share = min(person.lower_length * 1.55, 0.98)
            end = between(hip, knee, share)
            self.layer.capsule(hip, end, thigh, 1.22 * ((1 - share) * thigh + share * joint), cloth, group)

    def shoe(self, heel: Point, toe: Point, paint: Paint, group: int) -> None:
        s = self.s
        # Sole first: a sliver of it stays visible under the shoe.
        sole = plain(self.person.sole)
        drop = 0.007 * s
        self.layer.capsule(
            (heel[0], heel[1] + drop), (toe[0], toe[1] + drop), 0.021 * s, 0.016 * s, sole, group, depth=0
        )
        self.layer.capsule(heel, toe, 0.023 * s, 0.018 * s, paint, group)

    def hips(self) -> None:
        """The seat of the trousers, or the skirt, between waist and thighs."""
        person, s = self.person, self.s
        neck, pelvis = self.at["neck"], self.at["pelvis"]
        waist = between(neck, pelvis, 0.72)
        wide = person.hips + 0.058 * self.girth
        hip = self.half(wide, 0.088 * person.girth)
        top = self.half(0.094 * person.girth, 0.074 * person.girth)
        if person.lower_kind != "skirt":
            end = (pelvis[0], pelvis[1] + 0.045 * s)
            self.layer.profile(
                waist, end, ((0, top), (0.55, hip), (0.8, 0.97 * hip), (1, 0.72 * hip)), self.lower, TORSO
            )
            return
        # The skirt hangs between the knees, and is as wide as the stride there.
        share = person.lower_length * 1.5
        left, right = (self.below_hip(side, share) for side in ("left", "right"))
        end = ((left[0] + right[0]) / 2, max(left[1], right[1]))
        hem = max(abs(left[0] - right[0]) / 2 + 0.06 * s, 1.08 * hip)
        self.layer.profile(waist, end, ((0, top), (0.34, hip), (1, hem)), self.lower, TORSO)

    def below_hip(self, side: str, share: float) -> Point:
        """The point of the leg at this share of the thigh below the hip; over 1 it is on the shin."""
        hip, knee, ankle = (self.at[f"{side}_{joint}"] for joint in ("hip", "knee", "ankle"))
        return between(hip, knee, share) if share <= 1 else between(knee, ankle, share - 1)

    def neck(self) -> None:
        s = self.s
        neck, head = self.at["neck"], self.at["head"]
        base = (neck[0], neck[1] + 0.01 * s)
        self.layer.capsule(base, between(base, head, 0.6), 0.030 * s * self.girth, 0.027 * s, self.skin, TORSO)

    def torso(self) -> None:
        person, s = self.person, self.s
        neck, pelvis = self.at["neck"], self.at["pelvis"]
        sine, cosine = self.turn
        length, ux, uy = axis(neck, pelvis)
        top = (neck[0] - 0.030 * s * ux, neck[1] - 0.030 * s * uy)
        end = (pelvis[0] + (0.02 + person.upper_length) * s * ux, pelvis[1] + (0.02 + person.upper_length) * s * uy)
        total = length + (0.05 + person.upper_length) * s
        shoulder = self.half(person.shoulders + 0.022 * self.girth, 0.058 * self.girth)
        chest = self.half((person.shoulders - 0.004) * (0.5 + 0.5 * self.girth), 0.080 * person.girth)
        waist = self.half(0.096 * person.girth, 0.078 * person.girth)
        hip = self.half(person.hips + 0.062 * self.girth, 0.092 * person.girth)
        collar = self.half(0.034, 0.034)

        def place(below: float) -> float:
            return min(below * s / total, 1.0)

        torso = length / s
        # The chest bulges forward, the seat backward, as far as the side is seen.
        bulge = 0.012 * sine * s
        widths = [
            (0.0, collar),
            (place(0.010), 0.62 * shoulder),
            (place(0.026), 0.88 * shoulder),
            (place(0.045), shoulder),
            (place(0.030 + 0.36 * torso), max(chest, 0.8 * shoulder)),
            (place(0.030 + 0.68 * torso), waist),
            (place(0.030 + torso), hip),
        ]
        if person.upper_length > 0.06:
            left, right = (self.below_hip(side, person.upper_length * 4) for side in ("left", "right"))
            widths.append((1.0, max(1.06 * hip, abs(left[0] - right[0]) / 2 + 0.055 * s)))
        shift = ((0.0, 0.0), (place(0.11), bulge), (place(0.030 + torso), -bulge), (1.0, -0.5 * bulge))
        paint = person.upper.paint(s, self.turn)
        self.layer.profile(top, end, widths, paint, TORSO, shift=shift)
        if cosine > 0.3:
            # The neckline: a bit of skin, which tells front from back.
            point = (neck[0] + 0.018 * sine * s, neck[1] - 0.016 * s)
            self.layer.ellipse(point, 0.026 * s * cosine, 0.022 * s, person.skin, TORSO)
