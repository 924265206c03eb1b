"""The pictures of a report: overlays, network inputs, hidden heads, all as plain arrays and data URIs.

Every function takes crops as uint8 [H, W, 3] (RGB) and answers uint8 [h, w, 3]. Colours are those of
Okabe and Ito, which people with the common forms of colour blindness can tell apart.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, features

from mgran_fast import layouts
from mgran_fast.report.parts import Comparison

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Box = tuple[int, int, int, int]
Colour = tuple[int, int, int]

#: The colour of region 1, 2, 3, ...; a layout with more regions starts again.
REGION_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
)
#: Skeleton colours: the person's left side, right side, and what lies across both.
LEFT, RIGHT, MIDDLE = (255, 176, 0), (70, 160, 255), (245, 245, 245)
#: A keypoint that scores less is drawn hollow.
LOW_SCORE = 0.3
#: The longest side of an overlay, and of the other pictures, in pixels.
OVERLAY_SIDE, PICTURE_SIDE = 512, 256

_THRESHOLD = 0.5  # of the mask, as the published system binarizes it
_CHECKER = (168, 184)  # two neutral greys: neither black clothes nor white ones look like them
_BLOCKS = 5  # a hidden head is this many blocks long
_NO_HEAD = 3  # without any sign of a head, the top 1/3 of the crop is hidden
_FACE = 5  # the first five keypoints are nose, eyes and ears
# The skeleton of the COCO keypoints: pairs of indices into layouts.KEYPOINTS.
_BONES = (
    *((0, 1), (0, 2), (1, 3), (2, 4)),
    *((5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
    *((5, 11), (6, 12), (11, 12)),
    *((11, 13), (13, 15), (12, 14), (14, 16)),
)


@dataclass(frozen=True, eq=False)
class CropView:
    """A crop and what Mask-guided Region Attention found in it.

    Attributes:
        title: what the page calls it, a path for instance.
        crop: uint8 [H, W, 3], RGB.
        mask: float32 [h, w] in [0, 1], of any size, stretched over the crop; None when there is none.
        keypoints: float32 [17, 3], COCO order: x, y in pixels of the crop, score in [0, 1]; None when there are none.
        region_map: uint8 [H, W], 0 for background, else the region.
        layout: the name of the body layout that the region map follows.
        visibility: whether each of the R regions, or each of the 1 + R inputs, is visible; None: as the map has it.
    """

    title: str
    crop: Bytes
    mask: Floats | None
    keypoints: Floats | None
    region_map: Bytes
    layout: str
    visibility: Sequence[bool] | None


@dataclass(frozen=True, eq=False)
class Query:
    """A query: crop uint8 [H, W, 3], identity, camera; region_map uint8 [H, W] says where the head is."""

    crop: Bytes
    person: int
    camera: int
    region_map: Bytes | None = None


@dataclass(frozen=True, eq=False)
class Match:
    """A gallery crop in a ranked list: as :class:`Query`, with its distance and whether it is the right person.

    ``rank`` is its place in the list, from 1; None where that is its place among those that are shown. ``parts`` tells
    how near the two are in each part of the layout; None where nobody compared them.
    """

    crop: Bytes
    person: int
    camera: int
    distance: float
    right: bool
    region_map: Bytes | None = None
    rank: int | None = None
    parts: Comparison | None = None


def check(name: str, view: CropView | Query | Match, layout: str) -> None:
    """Raise ValueError, which names the array, unless all arrays of the view have their shapes and dtypes."""
    _array(f"{name}.crop", view.crop, np.uint8, (None, None, 3))
    regions = layouts.get(layout).regions
    if isinstance(view, CropView) or view.region_map is not None:
        _array(f"{name}.region_map", view.region_map, np.uint8, view.crop.shape[:2])
        most = int(np.max(view.region_map))  # type: ignore[arg-type]  # an array by now
        if most > max(1, regions):
            raise ValueError(f"{name}.region_map holds region {most}; layout {layout!r} ends at {max(1, regions)}")
    if not isinstance(view, CropView):
        return
    if view.mask is not None:
        _array(f"{name}.mask", view.mask, np.float32, (None, None))
    if view.keypoints is not None:
        _array(f"{name}.keypoints", view.keypoints, np.float32, (len(layouts.KEYPOINTS), 3))
    if view.visibility is not None and len(view.visibility) not in (regions, 1 + regions):
        raise ValueError(f"{name}.visibility must have {regions} or {1 + regions} flags, not {len(view.visibility)}")


def _array(name: str, value: object, dtype: type[np.generic], shape: tuple[int | None, ...]) -> None:
    wanted = f"{np.dtype(dtype)} [{', '.join('any' if n is None else str(n) for n in shape)}]"
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} must be a numpy array {wanted}, not {type(value).__name__}")
    fits = value.dtype == dtype and value.ndim == len(shape) and value.size > 0
    if not fits or any(want not in (None, n) for n, want in zip(value.shape, shape, strict=True)):
        raise ValueError(f"{name} must be a numpy array {wanted}, not {value.dtype} {list(value.shape)}")


def region_colour(region: int) -> Colour:
    """The RGB colour of a region, counted from 1."""
    return REGION_COLOURS[(region - 1) % len(REGION_COLOURS)]


def head_box(
    size: tuple[int, int],
    region_map: Bytes | None = None,
    keypoints: Floats | None = None,
    layout: str | layouts.Layout = "region",
) -> Box:
    """Where the head of a crop of ``size`` (H, W) is: top, bottom, left, right; bottom and right excluded.

    The box holds region 1 of the region map where the layout calls it "head", and the keypoints of nose, eyes
    and ears that score at least 0.3, with a margin, since masks cut heads short. With neither, it is the top
    third of the crop: what hides faces must not fail open.
    """
    height, width = size
    boxes: list[tuple[float, float, float, float]] = []
    groups = layouts.get(layout).groups
    if region_map is not None and groups and groups[0] == "head":
        rows, columns = np.nonzero(region_map == 1)
        if rows.size:
            top, bottom = float(rows.min()), float(rows.max() + 1)
            left, right = float(columns.min()), float(columns.max() + 1)
            margin = 0.1 * max(bottom - top, right - left)
            boxes.append((top - margin, bottom + margin, left - margin, right + margin))
    if keypoints is not None:
        face = keypoints[:_FACE]
        face = face[np.isfinite(face).all(axis=1) & (face[:, 2] >= LOW_SCORE)]
        if len(face):
            x, y = face[:, 0], face[:, 1]
            # Eyes and ears span the width of a head but a third of its height; one point alone spans nothing.
            margin = max(0.75 * float(np.ptp(x)), 0.75 * float(np.ptp(y)), height / 16)
            boxes.append((float(y.min()) - margin, float(y.max()) + margin, x.min() - margin, x.max() + margin))
    tops, bottoms, lefts, rights = (
        zip(*boxes, strict=True) if boxes else ((0,), (-(-height // _NO_HEAD),), (0,), (width,))
    )
    top, bottom = (int(np.clip(v, 0, height)) for v in (np.floor(min(tops)), np.ceil(max(bottoms))))
    left, right = (int(np.clip(v, 0, width)) for v in (np.floor(min(lefts)), np.ceil(max(rights))))
    if top >= bottom or left >= right:  # keypoints outside the crop
        return 0, -(-height // _NO_HEAD), 0, width
    return top, bottom, left, right


def pixelate(crop: Bytes, box: Box) -> Bytes:
    """A copy of the crop whose box (top, bottom, left, right) shows coarse blocks of its mean colours."""
    top, bottom, left, right = box
    out: Bytes = crop.copy()
    side = max(1, -(-max(bottom - top, right - left) // _BLOCKS))
    for y in range(top, bottom, side):
        for x in range(left, right, side):
            block = out[y : min(y + side, bottom), x : min(x + side, right)]
            block[:] = block.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    return out


def network_inputs(crop: Bytes, region_map: Bytes, layout: str | layouts.Layout = "region") -> list[Bytes]:
    """The 1 + R inputs of the network: crop pixels in the region, a grey checker where the network sees 0.

    The global input of an empty region map is the whole crop, as the network takes it.
    """
    table = layouts.get(layout)
    kept = [region_map > 0 if region_map.any() else np.ones(region_map.shape, bool)]
    kept += [region_map == region for region in range(1, table.regions + 1)]
    height, width = region_map.shape
    cell = max(2, max(height, width) // 32)
    dark = (np.arange(height)[:, None] // cell + np.arange(width)[None, :] // cell) % 2
    checker = np.repeat(np.where(dark, *_CHECKER)[:, :, None], 3, axis=2).astype(np.uint8)
    # Spelt out for type checkers: np.where is not typed.
    inputs: list[Bytes] = [np.where(keep[:, :, None], crop, checker) for keep in kept]
    return inputs


def region_overlay(crop: Bytes, region_map: Bytes, layout: str | layouts.Layout = "region") -> Bytes:
    """The crop in grey with its regions in colour, enlarged to a longest side of 512 pixels."""
    size = _fitted(crop.shape[:2], OVERLAY_SIDE)
    base = np.asarray(_resized(crop, size).convert("L").convert("RGB"), np.float32)
    big = np.asarray(Image.fromarray(region_map).resize(size[::-1], Image.Resampling.NEAREST))
    out: Floats = base * 0.45 + 100
    for region in range(1, layouts.get(layout).regions + 1):
        here = big == region
        # Lightened, so that dark clothes do not hide the colour.
        out[here] = 0.3 * (base[here] * 0.7 + 70) + 0.7 * np.asarray(region_colour(region), np.float32)
    out[_edges(big)] = 255
    return out.clip(0, 255).astype(np.uint8)


def found_overlay(crop: Bytes, mask: Floats | None, keypoints: Floats | None) -> Bytes:
    """The crop with its mask (outlined at 0.5, the rest darkened) and skeleton, longest side 512 pixels.

    Joints that score under 0.3 are hollow and their bones thin; those that score 0 or are not numbers are left out.
    """
    size = _fitted(crop.shape[:2], OVERLAY_SIDE)
    picture = np.asarray(_resized(crop, size), np.float32)
    if mask is not None:
        soft = Image.fromarray(np.nan_to_num(mask).astype(np.float32))
        inside = np.asarray(soft.resize(size[::-1], Image.Resampling.BILINEAR)) > _THRESHOLD
        picture = np.where(inside[:, :, None], picture, picture * 0.4)
        outline = _edges(inside)
        picture[_grown(outline)] = 20
        picture[outline] = 255
    image = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    if keypoints is not None:
        _skeleton(image, keypoints, size[0] / crop.shape[0], size[1] / crop.shape[1])
    return np.asarray(image)


def data_uri(picture: Bytes, side: int = PICTURE_SIDE, quality: int = 85) -> str:
    """The picture, no side longer than ``side`` pixels, as a ``data:`` URI: WebP, or JPEG where Pillow has none."""
    height, width = picture.shape[:2]
    image = Image.fromarray(picture)
    if max(height, width) > side:
        image = _resized(picture, _fitted((height, width), side))
    kind = "webp" if features.check("webp") else "jpeg"
    buffer = io.BytesIO()
    image.save(buffer, kind.upper(), quality=quality, **({"method": 4} if kind == "webp" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _fitted(size: Sequence[int], side: int) -> tuple[int, int]:
    scale = side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resized(picture: Bytes, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC)


def _edges(labels: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Pixels beside one of another label: a line two pixels wide."""
    across, down = labels[:, :-1] != labels[:, 1:], labels[:-1] != labels[1:]
    edges = np.zeros(labels.shape, bool)
    edges[:, :-1] |= across
    edges[:, 1:] |= across
    edges[:-1] |= down
    edges[1:] |= down
    return edges


def _grown(edges: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(edges, 1)
    height, width = edges.shape
    out = np.zeros_like(edges)
    for y in range(3):
        for x in range(3):
            out |= padded[y : y + height, x : x + width]
    return out


def _side(*names: str) -> Colour:
    if all(name.startswith("left") for name in names):
        return LEFT
    return RIGHT if all(name.startswith("right") for name in names) else MIDDLE


def _skeleton(image: Image.Image, keypoints: Floats, down: float, across: float) -> None:
    """Draw bones and joints in place, at twice the size and then reduced, which smooths them."""
    over = 2
    layer = Image.new("RGBA", (image.width * over, image.height * over))
    draw = ImageDraw.Draw(layer)
    # A stroke outlined in black is legible on any clothes.
    thick = max(2, round(max(image.size) * over / 130))
    seen = np.isfinite(keypoints).all(axis=1) & (keypoints[:, 2] > 0)
    # Clipped: a joint far outside the crop would overflow the drawing, and its bone still leaves the picture.
    x = np.clip(np.nan_to_num(keypoints[:, 0]) * across * over, -4 * layer.width, 5 * layer.width)
    y = np.clip(np.nan_to_num(keypoints[:, 1]) * down * over, -4 * layer.height, 5 * layer.height)
    # Pillow's coordinates name pixel centres, a keypoint's name pixel corners.
    points = [(float(a) - 0.5, float(b) - 0.5) for a, b in zip(x, y, strict=True)]
    sure = seen & (keypoints[:, 2] >= LOW_SCORE)
    for outline in (True, False):
        for start, end in _BONES:
            if seen[start] and seen[end]:
                colour = (0, 0, 0) if outline else _side(layouts.KEYPOINTS[start], layouts.KEYPOINTS[end])
                width = thick if sure[start] and sure[end] else max(1, thick // 3)
                draw.line([points[start], points[end]], fill=(*colour, 255), width=width + 4 * outline)
    radius = thick * 1.1
    for joint, (px, py) in enumerate(points):
        if not seen[joint]:
            continue
        paint = (*_side(layouts.KEYPOINTS[joint]), 255)
        for extra, fill, ring in (
            (2.0, (0, 0, 0, 255), None),
            (0.0, paint if sure[joint] else (0, 0, 0, 255), paint),
        ):
            r = radius + extra
            draw.ellipse((px - r, py - r, px + r, py + r), fill=fill, outline=ring, width=max(2, thick // 2))
    layer = layer.resize(image.size, Image.Resampling.LANCZOS)
    image.paste(layer, (0, 0), layer)
