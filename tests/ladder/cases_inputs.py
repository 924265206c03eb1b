"""Cases of inputs and align."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from abi import UNSUPPORTED, Buffer
from cases import DTYPES, Case, bits_of, garbage, seed_of
from cases_geometry import LAYOUTS, regions_arguments
from mgran_fast.reference import inputs as reference

SCALE, MEAN, STD = 1 / 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ITEM = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2}

# name, people, height, width, regions, dtype, offsets of crops, map and out in elements
_INPUTS = (
    ("nobody", 0, 8, 8, 3, 0, (0, 0, 0)),
    ("no pixels", 2, 0, 8, 3, 0, (0, 0, 0)),
    ("one pixel", 1, 1, 1, 3, 0, (0, 0, 0)),
    ("one pixel, odd addresses", 3, 1, 1, 3, 1, (1, 1, 1)),
    ("odd", 3, 33, 17, 3, 0, (0, 0, 0)),
    ("odd, f16", 3, 33, 17, 3, 1, (0, 0, 0)),
    ("odd, bf16", 3, 33, 17, 3, 2, (0, 0, 0)),
    ("64 x 32", 3, 64, 32, 3, 0, (0, 0, 0)),
    ("64 x 32, f16", 3, 64, 32, 3, 1, (0, 0, 0)),
    ("64 x 32, bf16", 3, 64, 32, 3, 2, (0, 0, 0)),
    ("odd crops", 2, 64, 32, 3, 0, (1, 0, 0)),
    ("odd map", 2, 64, 32, 3, 2, (0, 1, 0)),
    ("odd out", 2, 64, 32, 3, 2, (0, 0, 1)),
    ("odd everything", 2, 64, 32, 3, 1, (3, 5, 3)),
    ("odd everything, f32", 2, 40, 26, 3, 0, (7, 9, 1)),
    ("a multiple of 16", 2, 13, 16, 3, 0, (0, 0, 0)),
    ("a multiple of 8", 3, 13, 8, 3, 1, (0, 0, 0)),
    ("a multiple of 4", 3, 13, 4, 3, 2, (0, 0, 0)),
    ("more than a tile by 7", 2, 1, 1031, 3, 2, (0, 0, 0)),
    ("more than two tiles by 16", 2, 1, 2064, 3, 0, (0, 0, 0)),
    ("late", 2, 82, 100, 3, 2, (0, 0, 0)),
    ("no regions", 3, 21, 16, 0, 0, (0, 0, 0)),
    ("one region", 2, 21, 16, 1, 1, (0, 0, 0)),
    ("six regions", 2, 33, 16, 6, 2, (0, 0, 0)),
    ("fifteen regions", 2, 17, 16, 15, 0, (0, 0, 0)),
    ("255 regions", 2, 7, 3, 255, 2, (0, 0, 0)),
    ("no such dtype", 2, 8, 8, 3, None, (0, 0, 0)),
    ("whole size", 2, 256, 128, 3, 0, (0, 0, 0)),
    ("whole size, bf16", 2, 256, 128, 3, 2, (0, 0, 0)),
    ("many people", 300, 1, 1, 1, 2, (0, 0, 0)),
)


def statistics(prefix: str = "", plain: bool = False) -> dict[str, object]:
    mean, std, scale = ((0.0,) * 3, (1.0,) * 3, 1.0) if plain else (MEAN, STD, SCALE)
    return {f"{prefix}scale": scale, f"{prefix}mean": mean, f"{prefix}std": std}


def expected(
    crops: np.ndarray, map_: torch.Tensor, regions: int, dtype: torch.dtype, plain: bool = False
) -> torch.Tensor:
    """[people, 1 + R, H, W, 3]: the reference's result as the kernels lay it out."""
    numbers = statistics(plain=plain)
    result = reference.inputs(
        torch.from_numpy(crops), map_, numbers["scale"], numbers["mean"], numbers["std"], dtype, regions
    )
    return result.permute(0, 1, 3, 4, 2).contiguous()


def inputs_cases() -> Iterator[Case]:
    for name, people, height, width, regions, code, offsets in _INPUTS:
        generator = np.random.default_rng(seed_of(name))
        dtype = DTYPES[code or 0]
        plain = name in ("odd, f16", "no regions")
        crops = generator.integers(0, 256, (people, height, width, 3), np.uint8)
        # Stripes of regions with background between them, and regions that no input is for.
        stripes = (np.arange(height * width).reshape(height, width) // 5) % (regions + 3)
        map_ = np.broadcast_to(stripes, (people, height, width)).astype(np.uint8)
        map_ = np.where(map_ == regions + 2, 255, map_).astype(np.uint8)
        map_[generator.random(map_.shape) < 0.3] = 0
        if name == "late":
            map_[0].reshape(-1)[:-7] = 0  # the first of a region is among the last pixels
        if people > 1:
            map_[-1] = 0  # nobody is seen: the whole crop
        if people > 2 and height * width > 0:
            map_[1] = 0
            map_[1, -1, -1] = 1  # a single pixel is seen, the last
        want = expected(crops, torch.from_numpy(map_), regions, dtype, plain)
        size = ITEM[dtype]
        out = garbage(want.numel() * size, np.uint8, seed_of(name), "out", offsets[2] * size)
        status = 0 if code is not None else UNSUPPORTED
        arguments = {
            "crops": Buffer(crops, "in", offsets[0]),
            "map": Buffer(map_, "in", offsets[1]),
            "out": out,
            "workspace": garbage(people, np.int32, seed_of(name), "scratch"),
            "people": people,
            "pixels": height * width,
            "regions": regions,
            "dtype": 9 if code is None else code,
            **statistics(plain=plain),
        }
        heavy = people > 100 or height > 200
        # A refused call writes nothing.
        bits = bits_of(want) if code is not None else out.data.copy()
        yield Case(name, "inputs", arguments, {"out": bits}, status, heavy, dtype)


# name, people, mask's size, map's size, mask, keypoints, layout, dtype, with the map, offset
_ALIGN = (
    ("nobody", 0, (4, 4), (8, 8), "u8", "person", 0, 0, True, 0),
    ("one pixel", 1, (1, 1), (1, 1), "float", "person", 0, 0, False, 0),
    ("odd", 3, (33, 17), (33, 17), "float", "person", 0, 0, True, 0),
    ("odd, no map", 3, (28, 28), (33, 17), "u8", "person", 1, 1, False, 1),
    ("odd, box", 3, (33, 17), (33, 17), "nan", "wild", 2, 2, False, 0),
    ("64 x 32", 3, (64, 32), (64, 32), "float", "person", 0, 2, False, 0),
    ("64 x 32, map", 3, (64, 32), (64, 32), "u8", "person", 0, 0, True, 0),
    ("64 x 32, resampled", 3, (28, 28), (64, 32), "float", "person", 1, 1, True, 0),
    ("64 x 32, box", 3, (28, 28), (64, 32), "float", "person", 2, 0, False, 0),
    ("64 x 32, box, map", 3, (64, 32), (64, 32), "u8", "person", 2, 2, True, 0),
    ("odd addresses", 3, (64, 32), (64, 32), "float", "person", 2, 2, True, 1),
    ("full", 2, (40, 24), (40, 24), "u8", "wild", 3, 2, False, 0),
    ("empty", 2, (32, 16), (32, 16), "empty", "person", 2, 0, False, 0),
    ("no keypoints", 3, (48, 24), (48, 16), "float", "none", 1, 2, False, 0),
    ("late", 2, (80, 64), (80, 64), "late", "person", 0, 2, False, 0),
    ("several tiles", 2, (60, 40), (131, 70), "float", "person", 2, 2, False, 0),
    ("whole size", 2, (256, 128), (256, 128), "float", "person", 0, 2, False, 0),
    ("many people", 300, (1, 1), (1, 1), "u8", "person", 2, 2, False, 0),
)


def align_cases() -> Iterator[Case]:
    for name, people, source, target, mask, pose, chosen, code, with_map, offset in _ALIGN:
        dtype, layout = DTYPES[code], LAYOUTS[chosen]
        arguments, map_ = regions_arguments(
            "align " + name, people, source, target, mask, pose, layout, offset=offset, prefix="regions."
        )
        generator = np.random.default_rng(seed_of(name))
        crops = generator.integers(0, 256, (people, *target, 3), np.uint8)
        want = expected(crops, map_, layout.regions, dtype)
        arguments |= {
            "inputs.crops": Buffer(crops, "in", offset),
            "inputs.out": garbage(want.numel() * ITEM[dtype], np.uint8, seed_of(name), "out", offset * ITEM[dtype]),
            "inputs.people": people,
            "inputs.pixels": target[0] * target[1],
            "inputs.regions": layout.regions,
            "inputs.dtype": code,
            **statistics("inputs."),
        }
        wanted = {"inputs.out": bits_of(want)}
        if with_map:
            arguments["regions.map"] = garbage(map_.numel(), np.uint8, seed_of(name), "out", offset)
            wanted["regions.map"] = bits_of(map_)
        yield Case(name, "align", arguments, wanted, heavy=people > 100 or target[0] > 200, dtype=dtype)
