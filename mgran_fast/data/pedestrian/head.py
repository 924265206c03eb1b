"""The head: a ball painted with hair and skin, so that every turn of it looks right; face, ears, and what is worn."""

from __future__ import annotations

import math

import numpy as np

from mgran_fast.data.pedestrian.canvas import plain
from mgran_fast.data.pedestrian.drawing import HEAD, Drawing, darker, mixed


def draw_head(d: Drawing) -> None:
    """Head, ears, face, hair and cap, without the hair that falls over the shoulders."""
    person, s, layer = d.person, d.s, d.layer
    centre = d.at["head"]
    ry = person.head * s
    rx = 0.80 * ry
    sine, cosine = math.sin(d.skeleton.head_yaw), math.cos(d.skeleton.head_yaw)
    # A head is longer than wide: from the side it shows more.
    rx *= 1 + 0.10 * abs(sine)
    for side in ("left", "right"):
        if d.skeleton.facing(f"{side}_ear") > -0.3:
            layer.ellipse(d.at[f"{side}_ear"], 0.17 * ry, 0.22 * ry, darker(person.skin, 0.92), HEAD)
    if d.skeleton.facing("nose") > -0.1:
        layer.ellipse(d.at["nose"], 0.15 * ry, 0.16 * ry, person.skin, HEAD)
    found = layer.disc(centre, rx, ry)
    if found is None:
        return
    window, cover, x, y = found
    # The pixel's point on a unit ball, in the head's own axes.
    z = np.sqrt(np.maximum(1 - x * x - y * y, 0))
    front = x * np.float32(sine) + z * np.float32(cosine)
    # Jaw: the ball narrows below the mouth.
    jaw = np.clip((np.float32(0.98) + np.float32(0.45) * np.minimum(y + 0.35, 0) - np.abs(x)) * np.float32(rx), 0, 1)
    cover = cover * np.where(y < -0.35, jaw, np.float32(1))
    skin = np.asarray(person.skin, np.float32)
    rgb = np.broadcast_to(skin, (*cover.shape, 3))
    style = person.hair_style
    if style != "bald":
        edge = np.float32(max(0.7 * ry, 1.0))
        back = np.float32(0.12) - front - np.float32(0.25) * np.maximum(-y, 0)
        if style in ("bob", "long"):
            back = back + np.float32(0.22)
        nape = y + np.float32(0.55 if style in ("short", "cap") else 1.2)
        crown = y - np.float32(0.50) + np.float32(0.28) * np.maximum(-front, 0)
        if style == "short":
            crown = crown - np.float32(0.06)
        hair = np.clip(np.maximum(np.minimum(back, nape), crown) * edge + np.float32(0.5), 0, 1)
        rgb = rgb + hair[..., None] * (np.asarray(person.hair, np.float32) - rgb)
        if style == "cap":
            cap = np.clip((y - np.float32(0.30) + np.float32(0.15) * front) * edge + np.float32(0.5), 0, 1)
            rgb = rgb + cap[..., None] * (np.asarray(person.cap, np.float32) - rgb)
    shade = 1 + np.float32(0.20) * (np.float32(0.3) - x * x + np.float32(layer.light) * x + np.float32(0.3) * y)
    layer.blend(window, cover, (rgb * shade[..., None]).astype(np.float32), HEAD)
    _face(d, ry)
    if style == "cap" and cosine > -0.5:
        # The visor reaches out to where the face looks.
        reach = (centre[0] + 0.62 * sine * ry, centre[1] - 0.30 * ry)
        tip = (centre[0] + 1.15 * sine * ry, centre[1] - (0.22 - 0.10 * cosine) * ry)
        wide = 0.12 + 0.05 * max(cosine, 0.0)
        paint = plain(darker(person.cap, 0.8))
        layer.capsule(reach, tip, wide * ry, 0.09 * ry, paint, HEAD)
        if cosine > 0.2:
            left = (centre[0] - 0.5 * rx + 0.3 * sine * ry, centre[1] - 0.24 * ry)
            right = (centre[0] + 0.5 * rx + 0.3 * sine * ry, centre[1] - 0.24 * ry)
            layer.capsule(left, right, 0.10 * ry, 0.10 * ry, paint, HEAD)
    if style == "bun":
        bun = (centre[0] - 0.55 * sine * rx, centre[1] - 0.86 * ry)
        layer.capsule(bun, bun, 0.36 * ry, 0.36 * ry, plain(person.hair), HEAD)
    if style == "tail" and cosine < 0.75:
        root = (centre[0] - 0.92 * sine * rx, centre[1] - 0.30 * ry)
        tip = (centre[0] - 1.25 * sine * rx, centre[1] + 1.35 * ry)
        layer.capsule(root, tip, 0.26 * ry, 0.12 * ry, plain(darker(person.hair, 0.9)), HEAD)


def _face(d: Drawing, ry: float) -> None:
    """Eyes, brows, the shade of the nose, a mouth: what turns towards the camera."""
    person, layer = d.person, d.layer
    dark = darker(person.skin, 0.22)
    for side in ("left", "right"):
        turned = d.skeleton.facing(f"{side}_eye")
        if turned > 0.1:
            x, y = d.at[f"{side}_eye"]
            layer.ellipse((x, y), (0.05 + 0.06 * turned) * ry, 0.085 * ry, dark, HEAD)
            layer.ellipse((x, y - 0.17 * ry), 0.16 * ry * turned, 0.05 * ry, person.hair, HEAD, strength=0.8)
    if d.skeleton.facing("nose") > 0.05:
        x, y = d.at["nose"]
        layer.ellipse((x, y + 0.06 * ry), 0.10 * ry, 0.09 * ry, darker(person.skin, 0.78), HEAD)
        cx = d.at["head"][0]
        mouth = (cx + 0.88 * (x - cx), y + 0.36 * ry)
        wide = 0.22 * max(d.skeleton.facing("nose"), 0.35)
        layer.ellipse(mouth, wide * ry, 0.055 * ry, mixed(person.skin, (0.55, 0.12, 0.14), 0.6), HEAD)


def draw_long_hair(d: Drawing) -> None:
    """Long hair falls behind the shoulders: in front of the back, behind the chest."""
    if d.person.hair_style not in ("long", "bob"):
        return
    ry = d.person.head * d.s
    centre = d.at["head"]
    sine = math.sin(d.skeleton.head_yaw)
    drop = 2.1 if d.person.hair_style == "long" else 1.05
    start = (centre[0] - 0.25 * sine * ry, centre[1] - 0.2 * ry)
    end = (centre[0] - 0.50 * sine * ry, centre[1] + drop * ry)
    wide = 0.92 - 0.25 * abs(sine)
    widths = ((0, 0.8 * wide * ry), (0.5, wide * ry), (0.9, 0.85 * wide * ry), (1, 0.6 * wide * ry))
    d.layer.profile(start, end, widths, plain(darker(d.person.hair, 0.92)), HEAD)
