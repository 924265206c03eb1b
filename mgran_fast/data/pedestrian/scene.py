"""One view: a person in a place, in front of a camera, with whatever gets in between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mgran_fast.data.pedestrian.camera import Camera, camera_of
from mgran_fast.data.pedestrian.canvas import Float, Layer, plain
from mgran_fast.data.pedestrian.dice import PASSER_BY, VIEW, Dice
from mgran_fast.data.pedestrian.drawing import Placement
from mgran_fast.data.pedestrian.figure import draw_figure, hidden, keypoints_of
from mgran_fast.data.pedestrian.person import Person, person_of, sample_person
from mgran_fast.data.pedestrian.pose import Pose, Skeleton, sample_pose, skeleton_of

#: An occluder that leaves less than this share of the person is taken away again.
LEAST_VISIBLE = 0.4
_GROUP = 1


@dataclass(frozen=True)
class Scene:
    """A view before the camera's sensor, and what is true about it.

    Attributes:
        crop: uint8 [H, W, 3], RGB.
        mask: float32 [H, W] in [0, 1], the share of each pixel's light that comes from the person.
        keypoints: float32 [17, 3]: x, y in pixels, score.
        hidden: bool [17], keypoints behind an occluder or the body itself.
        occluder: what stands in front: "", "pole", "bin", "car" or "person".
    """

    crop: NDArray[np.uint8]
    mask: Float
    keypoints: NDArray[np.float32]
    hidden: NDArray[np.bool_]
    occluder: str


def compose(
    person: int,
    camera: int,
    view: int,
    *,
    size: tuple[int, int],
    seed: int,
    pose: Pose | None = None,
    with_person: bool = True,
    occluder: str | None = None,
) -> Scene:
    """Put a view together.

    Args:
        person, camera, view: which one; the same numbers make the same view at every size.
        size: height and width of the crop in pixels.
        seed: the world.
        pose: a pose in place of the drawn one.
        with_person: False leaves the person out, and nothing else: shadow, occluder and noise stay.
        occluder: a kind (see :class:`Scene`) in place of the drawn one; "" for none.
    """
    height, width = size
    dice = Dice(VIEW, seed, person, camera, view)
    eye = camera_of(camera, seed)
    somebody = person_of(person, seed)
    drawn_pose = sample_pose(dice)
    skeleton = skeleton_of(somebody, pose or drawn_pose, eye.pitch)
    placement = _place(dice, skeleton, height, width)
    exposure = dice.uniform(0.9, 1.1)

    picture = eye.background(dice, height, width)
    if dice.chance(0.2):
        behind = Layer(height, width, light=eye.light)
        side = dice.sign() * dice.uniform(0.22, 0.38)
        _passer_by(behind, dice.integer(1 << 30), eye, placement, side, dice.uniform(0.75, 0.95), -0.05)
        picture = _over(picture, behind)
    picture = _shadow(picture, skeleton, placement)
    kind = dice.choice(("", "pole", "bin", "car", "person"), (78, 6, 5, 4, 7))
    kind = kind if occluder is None else occluder

    figure = Layer(height, width, light=eye.light)
    draw_figure(figure, somebody, skeleton, placement)
    points = keypoints_of(skeleton, placement)
    unseen = hidden(figure, skeleton, points)
    # A draw of its own for what stands in front, so that its kind changes nothing that is drawn afterwards.
    front = _front(kind, dice.integer(1 << 30), eye, placement, height, width)
    visible = figure.alpha * (1 - front.alpha)
    if float(visible.sum()) < LEAST_VISIBLE * float(figure.alpha.sum()):
        kind, front = "", Layer(height, width)
        visible = figure.alpha
    if with_person:
        picture = _over(picture, figure)
    picture = _over(picture, front)

    scores = np.array([dice.uniform(0.0, 1.0) for _ in range(17)], np.float32)
    keypoints = np.concatenate((points, scores[:, None]), axis=1)
    x, y = points[:, 0], points[:, 1]
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    columns = np.clip(x, 0, width - 1).astype(np.intp)
    rows = np.clip(y, 0, height - 1).astype(np.intp)
    unseen = unseen | (inside & (front.alpha[rows, columns] > 0.5))
    score = np.where(unseen, 0.05 + 0.25 * scores, 0.7 + 0.3 * scores)
    keypoints[:, 2] = np.where(inside, score, 0)

    mask = np.clip(eye.soften(visible), 0, 1) if with_person else np.zeros_like(visible)
    crop = eye.sensor(eye.soften(picture), dice, exposure)
    return Scene(crop, mask, keypoints, unseen, kind)


def _place(dice: Dice, skeleton: Skeleton, height: int, width: int) -> Placement:
    """Where a detector's box puts the person: nearly centred, nearly full height, sometimes cut off."""
    xs = [point[0] for point in skeleton.points.values()]
    top = skeleton.points["head"][1] + skeleton.head
    fill = dice.uniform(0.86, 0.97)
    margin = dice.uniform(0.25, 0.75) * (1 - fill)
    aside = dice.uniform(-0.05, 0.05)
    cut = dice.uniform(0.0, 1.0)
    if cut < 0.09:  # the legs end below the box
        fill, margin = dice.uniform(1.1, 1.4), dice.uniform(0.01, 0.05)
    elif cut < 0.15:  # the box is beside the person
        aside = dice.sign() * dice.uniform(0.16, 0.24)
    box = min(float(height), 2.0 * width)
    scale = fill * box / top
    middle = (min(xs) + max(xs)) / 2
    x = width / 2 + aside * box - middle * scale
    y = (height - box) / 2 + margin * box + top * scale
    return Placement(x, y, scale)


def _over(picture: Float, layer: Layer) -> Float:
    result: Float = picture * (1 - layer.alpha)[..., None] + layer.rgb
    return result


def _shadow(picture: Float, skeleton: Skeleton, placement: Placement) -> Float:
    """The dark spot that feet leave on the ground. It belongs to the ground, not to the mask."""
    layer = Layer(*picture.shape[:2])
    for side in ("left", "right"):
        heel = placement.pixel(skeleton.points[f"{side}_heel"])
        toe = placement.pixel(skeleton.points[f"{side}_toe"])
        ground = max(heel[1], toe[1]) + 0.012 * placement.scale
        for size, strength in ((1.0, 0.22), (0.6, 0.3)):
            rx, ry = 0.10 * size * placement.scale, 0.028 * size * placement.scale
            layer.ellipse(((heel[0] + toe[0]) / 2, ground), rx, ry, (0.0, 0.0, 0.0), _GROUP, strength=strength)
    return _over(picture, layer)


def _passer_by(
    layer: Layer, key: int, eye: Camera, placement: Placement, side: float, size: float, nearer: float
) -> None:
    dice = Dice(PASSER_BY, key)
    other: Person = sample_person(dice)
    skeleton = skeleton_of(other, sample_pose(dice), eye.pitch)
    s = placement.scale
    draw_figure(layer, other, skeleton, Placement(placement.x + side * s, placement.y + nearer * s, s * size))


def _front(kind: str, key: int, eye: Camera, placement: Placement, height: int, width: int) -> Layer:
    """What stands between camera and person."""
    layer = Layer(height, width, light=eye.light)
    dice = Dice(PASSER_BY, key)
    s, x = placement.scale, placement.x
    tone = dice.uniform(0.15, 0.8)
    colour = (tone, tone * dice.uniform(0.6, 1.2), tone * dice.uniform(0.5, 1.3))
    paint = plain((min(colour[0], 1.0), min(colour[1], 1.0), min(colour[2], 1.0)))
    ground = placement.y + dice.uniform(0.01, 0.05) * s
    middle = x + dice.sign() * dice.uniform(0.0, 0.12) * s
    if kind == "pole":
        half = dice.uniform(0.02, 0.045) * s
        lean = dice.uniform(-0.02, 0.02) * s
        layer.capsule((middle + lean, -s), (middle - lean, ground), half, half, paint, _GROUP)
    elif kind == "bin":
        half, tall = dice.uniform(0.09, 0.15) * s, dice.uniform(0.28, 0.42) * s
        layer.box(middle - half, ground - tall, middle + half, ground, 0.03 * s, paint, _GROUP)
        lid = plain((0.16, 0.16, 0.17))
        layer.box(middle - 1.1 * half, ground - tall, middle + 1.1 * half, ground - 0.85 * tall, 0.02 * s, lid, _GROUP)
    elif kind == "car":
        tall, side = dice.uniform(0.24, 0.38) * s, dice.sign()
        start = x + side * dice.uniform(-0.12, 0.06) * s
        left, right = (start, start + 1.6 * s) if side > 0 else (start - 1.6 * s, start)
        layer.box(left, ground - tall, right, ground + 0.3 * s, 0.09 * s, paint, _GROUP)
        wheel = (start + side * 0.2 * s, ground)
        layer.ellipse(wheel, 0.1 * s, 0.1 * s, (0.07, 0.07, 0.08), _GROUP)
        layer.ellipse(wheel, 0.05 * s, 0.05 * s, (0.55, 0.55, 0.57), _GROUP)
    elif kind == "person":
        side = dice.sign() * dice.uniform(0.15, 0.30)
        _passer_by(layer, dice.integer(1 << 30), eye, placement, side, dice.uniform(0.95, 1.1), dice.uniform(0.02, 0.1))
    elif kind:
        raise ValueError(f"occluder must be pole, bin, car or person, not {kind!r}")
    return layer
