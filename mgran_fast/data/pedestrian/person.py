"""What somebody looks like: proportions, hair, clothes, things carried. The same in every camera and view."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mgran_fast.data.pedestrian.canvas import RGB, Float, Paint
from mgran_fast.data.pedestrian.dice import PERSON, Dice

_SKIN: tuple[RGB, ...] = (
    (0.96, 0.80, 0.69),
    (0.90, 0.70, 0.56),
    (0.80, 0.58, 0.42),
    (0.64, 0.43, 0.30),
    (0.47, 0.31, 0.22),
    (0.33, 0.22, 0.16),
)
_HAIR: tuple[RGB, ...] = (
    (0.07, 0.06, 0.06),
    (0.18, 0.11, 0.07),
    (0.34, 0.21, 0.12),
    (0.55, 0.37, 0.18),
    (0.80, 0.66, 0.38),
    (0.55, 0.22, 0.10),
    (0.62, 0.62, 0.62),
)
_HAIR_WEIGHTS = (34, 22, 14, 10, 8, 4, 8)
_CLOTH: tuple[RGB, ...] = (
    (0.08, 0.08, 0.09),
    (0.22, 0.22, 0.24),
    (0.50, 0.50, 0.52),
    (0.75, 0.75, 0.76),
    (0.94, 0.94, 0.93),
    (0.90, 0.84, 0.70),
    (0.10, 0.14, 0.32),
    (0.13, 0.28, 0.66),
    (0.45, 0.66, 0.88),
    (0.08, 0.45, 0.47),
    (0.10, 0.34, 0.18),
    (0.45, 0.72, 0.26),
    (0.36, 0.37, 0.18),
    (0.80, 0.62, 0.12),
    (0.95, 0.85, 0.25),
    (0.93, 0.47, 0.12),
    (0.80, 0.12, 0.13),
    (0.42, 0.08, 0.14),
    (0.93, 0.55, 0.65),
    (0.40, 0.16, 0.48),
    (0.70, 0.58, 0.82),
    (0.37, 0.23, 0.14),
    (0.68, 0.55, 0.40),
)
# Most people wear dark or denim below: trousers alone must not tell them apart.
_LOWER: tuple[RGB, ...] = (
    (0.08, 0.08, 0.09),
    (0.20, 0.20, 0.22),
    (0.10, 0.13, 0.26),
    (0.16, 0.22, 0.38),
    (0.28, 0.38, 0.56),
    (0.52, 0.62, 0.76),
    (0.60, 0.52, 0.38),
    (0.76, 0.68, 0.54),
    (0.36, 0.25, 0.17),
    (0.46, 0.46, 0.48),
    (0.90, 0.89, 0.86),
    (0.33, 0.35, 0.20),
    (0.40, 0.10, 0.15),
)
_LOWER_WEIGHTS = (18, 12, 14, 14, 10, 5, 6, 4, 4, 5, 3, 3, 2)


@dataclass(frozen=True)
class Fabric:
    """The look of a garment.

    Attributes:
        kind: plain, stripes (across the body), bars (down the body), checks, dots, tones (two halves),
            open (an open jacket: the second colour shows down the front), print_front or print_back (a block).
        first, second: colours, RGB in [0, 1].
        period: length of the pattern, in statures.
        split: where the halves meet or the print begins, in statures from the top of the garment.
    """

    kind: str
    first: RGB
    second: RGB
    period: float = 0.05
    split: float = 0.12

    def paint(self, scale: float, turn: tuple[float, float] | None = None) -> Paint:
        """The paint for a part drawn at ``scale`` pixels a stature.

        ``turn`` is (sine, cosine) of the angle between the body's front and the camera for the torso, None
        for limbs: only the torso shows prints and open jackets.
        """
        first = np.asarray(self.first, np.float32)
        step = np.asarray(self.second, np.float32) - first
        period = max(self.period * scale, 1e-3)

        def band(value: Float, length: float, pixels: float) -> Float:
            # 1 in every second half period, with an edge one pixel wide.
            wave = np.abs((value / np.float32(length)) % 1 - np.float32(0.5)) - np.float32(0.25)
            mixed: Float = np.clip(wave * np.float32(pixels) + np.float32(0.5), 0, 1)
            return mixed

        def share(along: Float, across: Float) -> Float | None:
            result: Float
            if self.kind == "stripes":
                return band(along, period, period)
            if self.kind in ("bars", "checks", "dots"):
                # A torso is about 0.2 statures wide, a limb 0.08; ``across`` covers the half of it.
                half = (0.10 if turn else 0.04) * scale
                bars = band(across * np.float32(half), period, period)
                if self.kind == "bars":
                    return bars
                rows = band(along, period, period)
                result = (rows + bars) * np.float32(0.5) if self.kind == "checks" else rows * bars
                return result
            if self.kind == "tones":
                limit = self.split if turn else self.split * 0.9
                result = np.clip(along - np.float32(limit * scale) + np.float32(0.5), 0, 1)
                return result
            if turn is None:
                return None
            sine, cosine = turn if self.kind != "print_back" else (-turn[0], -turn[1])
            if cosine <= 0.1:
                return None
            half = 0.10 * scale
            wide = (0.22 if self.kind == "open" else 0.5) * cosine
            inside: Float = np.clip(
                (np.float32(wide) - np.abs(across - np.float32(sine))) * np.float32(half) + np.float32(0.5), 0, 1
            )
            if self.kind == "open":
                return inside
            middle, reach = (self.split + self.period) * scale, self.period * scale
            result = inside * np.clip(reach - np.abs(along - np.float32(middle)) + np.float32(0.5), 0, 1)
            return result

        def colours(along: Float, across: Float) -> Float:
            mixed = None if self.kind == "plain" else share(along, across)
            result: Float = first if mixed is None else first + mixed[..., None].astype(np.float32) * step
            return result

        return colours


@dataclass(frozen=True)
class Person:
    """One identity. Lengths are in statures: the whole figure is 1 high.

    Attributes:
        shoulders, hips: half the distance between the two joints.
        girth: how stout; 1 is average.
        legs: height of the hip joints above the ground.
        head: half the height of the head.
        skin, hair, shoes, bag: colours, RGB in [0, 1].
        hair_style: bald, short, bob, long, tail (pony tail), bun, or cap.
        upper, lower: garments.
        sleeve: long, short, or none; sleeve_second: sleeves of the upper garment's second colour.
        upper_length: how far the upper garment reaches below the hips (a coat: 0.1 and more).
        lower_kind: trousers, shorts or skirt; lower_length: the part of the leg that shorts or skirt cover.
        carry: nothing, backpack, shoulder (bag with a strap) or hand (bag in a hand); carry_left: at the left side.
    """

    shoulders: float
    hips: float
    girth: float
    legs: float
    head: float
    skin: RGB
    hair: RGB
    hair_style: str
    cap: RGB
    upper: Fabric
    sleeve: str
    sleeve_second: bool
    upper_length: float
    lower: Fabric
    lower_kind: str
    lower_length: float
    shoes: RGB
    sole: RGB
    carry: str
    carry_left: bool
    bag: RGB


def _shade(dice: Dice, colour: RGB, spread: float = 0.035) -> RGB:
    gain = dice.uniform(0.88, 1.1)
    r, g, b = (min(max(c * gain + dice.uniform(-spread, spread), 0.02), 0.98) for c in colour)
    return r, g, b


def _contrast(dice: Dice, first: RGB) -> RGB:
    # A pattern that nobody can see is none: take the first of a few colours that differs enough.
    second = first
    for _ in range(8):
        second = dice.choice(_CLOTH)
        if sum(abs(p - q) for p, q in zip(first, second, strict=True)) > 0.7:
            break
    return second


def sample_person(dice: Dice) -> Person:
    """A new person."""
    first = dice.choice(_CLOTH)
    kind = dice.choice(
        ("plain", "stripes", "bars", "checks", "dots", "tones", "open", "print_front", "print_back"),
        (26, 13, 6, 11, 8, 13, 11, 7, 5),
    )
    upper = Fabric(
        kind,
        _shade(dice, first),
        _shade(dice, _contrast(dice, first)),
        period=dice.uniform(0.035, 0.085),
        split=dice.uniform(0.05, 0.17),
    )
    lower_kind = dice.choice(("trousers", "shorts", "skirt"), (66, 18, 16))
    below = (
        dice.choice(_CLOTH) if lower_kind != "trousers" and dice.chance(0.5) else dice.choice(_LOWER, _LOWER_WEIGHTS)
    )
    lower = Fabric(
        dice.choice(("plain", "stripes", "bars", "checks", "tones"), (82, 4, 5, 6, 3)),
        _shade(dice, below),
        _shade(dice, _contrast(dice, below)),
        period=dice.uniform(0.03, 0.07),
        split=dice.uniform(0.12, 0.2),
    )
    coat = dice.chance(0.16)
    sleeve = "long" if coat else dice.choice(("long", "short", "none"), (52, 42, 6))
    light_shoes = dice.chance(0.4)
    return Person(
        shoulders=dice.uniform(0.092, 0.122),
        hips=dice.uniform(0.046, 0.060),
        girth=dice.choice((dice.uniform(0.82, 0.97), dice.uniform(0.97, 1.15), dice.uniform(1.15, 1.4)), (4, 4, 2)),
        legs=dice.uniform(0.49, 0.535),
        head=dice.uniform(0.066, 0.075),
        skin=_shade(dice, dice.choice(_SKIN), 0.015),
        hair=_shade(dice, dice.choice(_HAIR, _HAIR_WEIGHTS), 0.015),
        hair_style=dice.choice(("bald", "short", "bob", "long", "tail", "bun", "cap"), (6, 40, 12, 16, 10, 5, 11)),
        cap=_shade(dice, dice.choice(_CLOTH)),
        upper=upper,
        sleeve=sleeve,
        sleeve_second=sleeve != "none" and dice.chance(0.18),
        upper_length=dice.uniform(0.12, 0.24) if coat else dice.uniform(0.0, 0.06),
        lower=lower,
        lower_kind=lower_kind,
        lower_length=dice.uniform(0.36, 0.62) if lower_kind != "trousers" else 1.0,
        shoes=_shade(dice, dice.choice(_CLOTH) if light_shoes else dice.choice(_CLOTH[:3])),
        sole=(0.9, 0.9, 0.88) if dice.chance(0.4) else (0.12, 0.11, 0.11),
        carry=dice.choice(("nothing", "backpack", "shoulder", "hand"), (46, 24, 18, 12)),
        carry_left=dice.chance(0.5),
        bag=_shade(dice, dice.choice(_CLOTH)),
    )


@lru_cache(maxsize=4096)
def person_of(number: int, seed: int) -> Person:
    """The person of this number in the world of this seed."""
    return sample_person(Dice(PERSON, seed, number))
