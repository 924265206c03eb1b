"""What people carry: a backpack, a bag on a strap, a bag in a hand."""

from __future__ import annotations

from mgran_fast.data.pedestrian.canvas import Point, plain
from mgran_fast.data.pedestrian.drawing import BAG, TORSO, Drawing, between, darker


def draw_backpack(d: Drawing) -> None:
    """A backpack, with its pocket when it is seen from behind."""
    person, s = d.person, d.s
    sine = d.turn[0]
    x, y = d.at["back"]
    half = d.half(0.085, 0.055)
    x -= 0.03 * sine * s
    top, bottom = y - 0.11 * s, y + 0.13 * s
    d.layer.box(x - half, top, x + half, bottom, 0.045 * s, plain(person.bag), BAG)
    if d.turn[1] <= -0.1:
        pocket = plain(darker(person.bag, 0.75))
        wide = 0.68 * half
        d.layer.box(x - wide, y + 0.02 * s, x + wide, y + 0.11 * s, 0.02 * s, pocket, BAG)
        d.layer.capsule((x - 0.02 * s, top), (x + 0.02 * s, top), 0.008 * s, 0.008 * s, pocket, BAG)


def draw_straps(d: Drawing) -> None:
    """The straps of a backpack over the chest."""
    s = d.s
    sine, cosine = d.turn
    paint = plain(darker(d.person.bag, 0.85))
    neck = d.at["neck"]
    for side in ("left", "right"):
        shoulder = d.at[f"{side}_shoulder"]
        top = between(neck, shoulder, 0.62)
        end = (top[0] - 0.03 * sine * s, top[1] + 0.17 * s)
        wide = (0.006 + 0.007 * abs(cosine)) * s
        d.layer.capsule((top[0], top[1] - 0.012 * s), end, wide, wide, paint, TORSO)


def draw_shoulder_bag(d: Drawing) -> None:
    """A strap across the trunk from one shoulder, and the bag at the other hip."""
    person, s = d.person, d.s
    side, other = ("left", "right") if person.carry_left else ("right", "left")
    start = between(d.at["neck"], d.at[f"{other}_shoulder"], 0.6)
    hip, pelvis = d.at[f"{side}_hip"], d.at["pelvis"]
    bag = (pelvis[0] + 1.9 * (hip[0] - pelvis[0]), hip[1] - 0.005 * s)
    strap = plain(darker(person.bag, 0.7))
    d.layer.capsule((start[0], start[1] - 0.01 * s), bag, 0.008 * s, 0.008 * s, strap, TORSO)
    if d.near[f"{side}_hip"] > d.near["pelvis"] - 0.035:
        half = d.half(0.035, 0.075)
        d.layer.box(
            bag[0] - half, bag[1] - 0.02 * s, bag[0] + half, bag[1] + 0.085 * s, 0.02 * s, plain(person.bag), BAG
        )


def draw_hand_bag(d: Drawing, hand: Point) -> None:
    """A bag that hangs from a hand."""
    s = d.s
    half = d.half(0.022, 0.062)
    x, y = hand
    for end in (-0.7, 0.7):
        d.layer.capsule((x, y), (x + end * half, y + 0.05 * s), 0.005 * s, 0.005 * s, plain(d.person.bag), BAG)
    d.layer.box(x - half, y + 0.045 * s, x + half, y + 0.145 * s, 0.012 * s, plain(d.person.bag), BAG)
