"""Cases of crops and regions, and the people (masks, keypoints, layouts) that align's cases share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from abi import REGIONS_WORKSPACE, Buffer
from cases import Case, bits_of, garbage, seed_of
from mgran_fast import layouts
from mgran_fast.layouts import JOINTS, Band, Layout, Limb
from mgran_fast.reference import crops as reference_crops
from mgran_fast.reference import regions as reference_regions

# As many limbs, bands and regions as a kernel has room for, rectangles on.
FULL = Layout(
    "ladder-full",
    tuple(f"group {i}" for i in range(1, 16)),
    tuple(range(16)),
    tuple(Limb(1 + i // 3, JOINTS[i % 17], JOINTS[(i * 5 + 3) % 19], 0.5 + 0.1 * (i % 7)) for i in range(32)),
    torso=15,
    bands=tuple(Band(1 + i % 15, i % 20, i % 20 + 4, (7 * i) % 18, (7 * i) % 18 + 6) for i in range(32)),
    rectangles=True,
)
LAYOUTS = (layouts.REGION, layouts.PART, layouts.BOX, FULL)
# Where the joints of a standing person are, in fractions of the crop's width and height.
STANDING = (
    (0.50, 0.08), (0.53, 0.06), (0.47, 0.06), (0.57, 0.07), (0.43, 0.07), (0.65, 0.20), (0.35, 0.20), (0.72, 0.34),
    (0.28, 0.34), (0.74, 0.46), (0.26, 0.46), (0.60, 0.52), (0.40, 0.52), (0.61, 0.73), (0.39, 0.73), (0.62, 0.93),
    (0.38, 0.93),
)  # fmt: skip


def masks(kind: str, people: int, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """[people, height, width]: ``u8`` or ``float`` blobs, ``nan`` (float, some of it NaN), ``empty``, or ``late``: a
    mask whose last pixels alone are foreground."""
    y = (np.arange(height)[:, None] + 0.5) / height - 0.5
    x = (np.arange(width)[None] + 0.5) / width - 0.5
    blob = 1.1 - 2.2 * (y[None] ** 2 + 1.5 * x[None] ** 2) + generator.normal(0, 0.12, (people, height, width))
    values = np.clip(blob if kind != "empty" else 0 * blob, 0, 1).astype(np.float32)
    if kind == "u8":
        return (values * 255).astype(np.uint8)
    if kind == "late":
        values[:] = 0
        values[:, -1, width // 2 :] = 1
    if kind == "nan":
        values[generator.random(values.shape) < 0.1] = np.nan
    return values


def keypoints(kind: str, people: int, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """float32 [people, 17, 3]: ``person``, ``wild`` (anything a failed estimator gives), ``none`` or ``point``."""
    result = np.empty((people, 17, 3), np.float32)
    result[..., :2] = np.asarray(STANDING) * (width, height) + generator.normal(0, 0.02 * height, (people, 17, 2))
    result[..., 2] = generator.uniform(0.2, 1.0, (people, 17))
    if kind == "wild":
        result[..., :2] = generator.uniform(-2 * height, 3 * height, (people, 17, 2))
        strange = np.asarray([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0], np.float32)
        where = generator.random((people, 17, 3)) < 0.15
        result[where] = generator.choice(strange, int(where.sum()))
    elif kind == "none":
        result[..., 2] = 0.0
    elif kind == "point":
        result[..., :2] = (width / 2, height / 2)
        result[..., 2] = 1.0
    return result


def layout_arguments(layout: Layout, prefix: str = "") -> dict[str, object]:
    """A layout's tables, as mgran_fast.ops.regions hands them to the kernels."""
    limbs = [(limb.group, JOINTS.index(limb.start), JOINTS.index(limb.end)) for limb in layout.limbs]
    bands = [(band.group, band.top, band.bottom, band.left, band.right) for band in layout.bands]
    weights = [reference_regions.weight(limb.thickness) for limb in layout.limbs]
    return {
        f"{prefix}layout.limbs": Buffer(np.asarray(limbs, np.int32)),
        f"{prefix}layout.weights": Buffer(np.asarray(weights, np.float32)),
        f"{prefix}layout.bands": Buffer(np.asarray(bands, np.int32)),
        f"{prefix}layout.limb_count": len(limbs),
        f"{prefix}layout.band_count": len(bands),
        f"{prefix}layout.torso": layout.torso,
        f"{prefix}layout.rectangles": int(layout.rectangles),
        f"{prefix}layout.regions": layout.regions,
    }


def regions_arguments(
    name: str,
    people: int,
    source: tuple[int, int],
    target: tuple[int, int],
    mask: str,
    pose: str,
    layout: Layout,
    threshold: float = 0.5,
    offset: int = 0,
    prefix: str = "",
) -> tuple[dict[str, object], torch.Tensor]:
    """The struct of `regions` but for ``map``, and the map that must come out."""
    generator = np.random.default_rng(seed_of(name))
    values = masks(mask, people, *source, generator)
    joints = keypoints(pose, people, *target, generator)
    if people > 2 and mask != "empty":
        values[1] = 0  # somebody whose mask is empty, among others
        joints[2, :, 2] = 0.0  # and somebody without keypoints
    tensor = torch.from_numpy(values)
    want = reference_regions.regions(tensor, torch.from_numpy(joints), target, layout, threshold)
    arguments: dict[str, object] = {
        "mask": Buffer(values, "in", offset * values.itemsize),
        "keypoints": Buffer(joints, "in", 4 * offset),
        "workspace": garbage(people * REGIONS_WORKSPACE, np.int32, seed_of(name), "scratch", 4 * offset),
        "people": people,
        "mask_height": source[0],
        "mask_width": source[1],
        "height": target[0],
        "width": target[1],
        "mask_is_float": int(values.dtype == np.float32),
        "limit": reference_regions.limit(tensor.dtype, source, target, threshold),
        "keypoint_threshold": 0.3,
    }
    arguments = {prefix + path: value for path, value in arguments.items()}
    return arguments | layout_arguments(layout, prefix), want


# name, people, mask's size, map's size, mask, keypoints, layout, threshold, offset
_REGIONS = (
    ("nobody", 0, (4, 4), (8, 8), "u8", "person", 0, 0.5, 0),
    ("one pixel", 1, (1, 1), (1, 1), "float", "person", 0, 0.1, 0),
    ("one pixel resampled", 2, (9, 7), (1, 1), "float", "point", 2, 0.5, 0),
    ("from one pixel", 2, (1, 1), (7, 5), "u8", "wild", 1, 0.5, 1),
    ("odd", 3, (33, 17), (33, 17), "float", "person", 0, 0.5, 0),
    ("odd, odd addresses", 3, (33, 17), (33, 17), "u8", "person", 1, 0.5, 1),
    ("odd, resampled", 3, (28, 28), (33, 17), "nan", "person", 2, 0.5, 3),
    ("one, odd", 1, (33, 17), (33, 17), "u8", "person", 0, 0.5, 0),
    ("one, odd, float", 1, (33, 17), (33, 17), "float", "person", 1, 0.5, 0),
    ("64 x 32", 3, (64, 32), (64, 32), "float", "person", 0, 0.5, 0),
    ("64 x 32, u8", 3, (64, 32), (64, 32), "u8", "person", 2, 0.5, 0),
    ("64 x 32, odd addresses", 3, (64, 32), (64, 32), "float", "person", 3, 0.5, 1),
    ("64 x 32, resampled", 3, (28, 28), (64, 32), "float", "person", 1, 0.5, 0),
    ("resampled across", 2, (64, 33), (64, 32), "u8", "person", 0, 0.5, 0),
    ("wide", 3, (20, 50), (13, 90), "u8", "wild", 3, 0.5, 5),
    ("no keypoints", 2, (48, 24), (48, 16), "float", "none", 0, 0.5, 0),
    ("no keypoints, parts", 2, (31, 24), (31, 24), "u8", "none", 1, 0.5, 0),
    ("no keypoints, box", 2, (31, 24), (48, 31), "u8", "none", 2, 0.5, 0),
    ("no keypoints, full", 1, (48, 24), (48, 24), "float", "none", 3, 0.5, 0),
    ("empty", 2, (32, 16), (32, 16), "empty", "person", 2, 0.5, 0),
    ("all foreground", 2, (32, 16), (32, 16), "empty", "wild", 0, 0.0, 0),
    ("threshold 1", 2, (32, 16), (33, 16), "float", "person", 0, 1.0, 0),
    ("not finite", 3, (40, 24), (40, 24), "nan", "wild", 2, 0.5, 2),
    ("one point", 2, (24, 40), (24, 40), "float", "point", 3, 0.5, 0),
    ("late", 2, (80, 64), (80, 64), "late", "none", 1, 0.5, 0),
    ("several tiles", 2, (60, 40), (131, 70), "float", "person", 2, 0.5, 0),
    ("whole size", 2, (256, 128), (256, 128), "float", "person", 0, 0.5, 0),
    ("whole size, box", 1, (56, 56), (256, 128), "u8", "person", 2, 0.5, 0),
    ("many people", 300, (1, 1), (1, 2), "u8", "person", 2, 0.3, 0),
)


def regions_cases() -> Iterator[Case]:
    for name, people, source, target, mask, pose, layout, threshold, offset in _REGIONS:
        arguments, want = regions_arguments(
            name, people, source, target, mask, pose, LAYOUTS[layout], threshold, offset
        )
        arguments["map"] = garbage(want.numel(), np.uint8, seed_of(name), "out", offset)
        heavy = people > 100 or target[0] > 200
        yield Case(name, "regions", arguments, {"map": bits_of(want)}, heavy=heavy)


# name, frame, bytes between rows, crops' size, offset
_CROPS = (
    ("no boxes", (9, 9), 0, (8, 8), 0),
    ("one pixel", (1, 1), 0, (1, 1), 0),
    ("an empty frame", (0, 5), 0, (7, 5), 0),
    ("crops of one pixel", (7, 5), 0, (1, 1), 1),
    ("frame of one pixel", (1, 1), 3, (9, 6), 0),
    ("tiny frame", (2, 3), 1, (33, 17), 3),
    ("odd", (60, 81), 0, (33, 17), 1),
    ("64 x 32", (90, 120), 0, (64, 32), 0),
    ("64 x 32, long rows", (90, 120), 16, (64, 32), 0),
    ("odd addresses", (90, 120), 7, (64, 32), 5),
    ("48 x 20", (50, 64), 0, (48, 20), 0),
    ("one column", (50, 64), 5, (40, 1), 0),
    ("one row", (50, 64), 0, (1, 70), 0),
    ("wide", (70, 40), 0, (16, 131), 2),
    ("whole size", (300, 400), 0, (256, 128), 0),
    ("many boxes", (5, 5), 0, (1, 1), 0),
)


def boxes_of(name: str, height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """float32 [N, 4]: inside, across every border, outside, empty, thin, huge and not finite."""
    if name == "no boxes":
        return np.zeros((0, 4), np.float32)
    corners = generator.uniform(-0.3, 0.8, (300 if "many" in name else 4, 2)) * (width, height)
    sizes = generator.uniform(0.1, 0.9, corners.shape) * (width, height)
    random = np.concatenate([corners, corners + sizes], 1)
    if "many" in name:
        return random.astype(np.float32)
    nan, inf = np.nan, np.inf
    special = [
        (0, 0, width, height),
        (1, 1, width - 1, height - 1),
        (-5.5, -3.25, width + 4.75, height + 9.5),
        (width, height, width + 3, height + 3),
        (-9, -9, -1, -1),
        (2, 2, 2, 5),
        (3, 4, 2, 6),
        (1.2, 0.3, 1.7, height),
        (0.4, 1.1, width, 1.2),
        (-1e30, -1e30, 1e30, 1e30),
        (-3e38, 0, 3e38, height),
        (1e9, 1e9, 2e9, 2e9),
        (nan, 0, 5, 5),
        (0, 0, inf, 5),
        (-inf, 0, 5, 5),
        (0, 0, 1e-30, 1e-30),
        (width - 1, height - 1, width, height),
    ]
    return np.concatenate([np.asarray(special), random]).astype(np.float32)


def crops_cases() -> Iterator[Case]:
    for name, (height, width), more, size, offset in _CROPS:
        generator = np.random.default_rng(seed_of(name))
        stride = 3 * width + more
        # The last row ends with the frame: nothing may be read behind it.
        frame = generator.integers(0, 256, max(0, (height - 1) * stride + 3 * width), np.uint8)
        rows = np.lib.stride_tricks.as_strided(frame, (height, width, 3), (stride, 3, 1), writeable=False)
        boxes = boxes_of(name, height, width, generator)
        if name == "whole size":
            boxes = boxes[[0, 2, -1]]
        want = reference_crops.crops(torch.from_numpy(rows.copy()), torch.from_numpy(boxes), size)
        arguments = {
            "frame": Buffer(frame, "in", offset),
            "boxes": Buffer(boxes, "in", 4 * (offset % 4)),
            "out": garbage(want.numel(), np.uint8, seed_of(name), "out", offset),
            "count": len(boxes),
            "row_stride": stride,
            "frame_height": height,
            "frame_width": width,
            "height": size[0],
            "width": size[1],
        }
        yield Case(name, "crops", arguments, {"out": bits_of(want)}, heavy=len(boxes) > 100 or size[0] > 200)
