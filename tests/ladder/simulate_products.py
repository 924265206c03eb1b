"""The engine's kernels of the rung `simulate`: pointwise and stem, against their references in float64.

For sm_80 alone: their products for Hopper and Blackwell are instructions that the simulator does not know.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import triton_dry
from mgran_fast.kernels import tables
from mgran_fast.kernels.tables import Tile
from mgran_fast.reference import pointwise as pointwise_reference
from mgran_fast.reference import stem as stem_reference
from mutations import ROOT
from simulate_cases import Outcome
from simulate_triton import compare

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ptxsim import triton_front
from ptxsim.nvcc import Launched
from ptxsim.values import PtxError

ARCHITECTURE = 80
# One rounding to 16 bits, of a sum taken in float32.
TOLERANCE = {torch.float16: 2.0**-11 + 1e-5, torch.bfloat16: 2.0**-8 + 1e-5}
KERNELS = ("_product", "_seen", "_pack", "_convolve", "_largest")
# images, channels, grid, outs, shortcut's channels and stride, residual: more steps than stages, a tile cut in rows
# and outputs, sizes that no vector divides, everything at once, and 1
PRODUCTS = (
    (1, 160, (11, 13), 64, None, False),
    (2, 64, (5, 7), 96, None, True),
    (3, 32, (4, 6), 80, (64, 2), False),
    (3, 37, (5, 3), 21, None, True),
    (1, 24, (2, 7), 17, (19, 3), True),
    (1, 1, (1, 1), 1, (1, 1), True),
)
# people, crop, outs, first region and inputs
STEMS = (
    (3, (16, 8), 64, 0, 4),
    (2, (13, 9), 17, 2, 1),
    (1, (1, 1), 16, 0, 4),
)
# For a product of several blocks in both directions, and a pipeline of two stages.
SMALL = Tile(rows=32, outs=32, channels=16, num_warps=2, num_stages=2)


def rand(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)
    return made.to(memory_format=torch.channels_last) if made.dim() == 4 else made


def wide(given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in given)


def run(call: Callable[[], torch.Tensor], want: torch.Tensor, tolerance: float) -> tuple[str, list[Launched]]:
    """What is wrong, and the launches. New tensors hold NaN: an element that no kernel writes shows."""
    launches: list[Launched] = []
    torch.use_deterministic_algorithms(True)
    try:
        with triton_front.simulated(ARCHITECTURE) as launches:
            got = call()
    except PtxError as error:
        return str(error), launches
    finally:
        torch.use_deterministic_algorithms(False)
    return compare(got, want, tolerance), launches


def product(module: ModuleType, case: Any, dtype: torch.dtype, small: bool) -> tuple[str, list[Launched]]:
    images, channels, (h, w), outs, shortcut, residual = case
    second, stride = shortcut or (0, 1)
    given = (
        rand(images, channels, h, w, seed=0, dtype=dtype),
        rand(outs, channels, seed=1, dtype=dtype),
        rand(outs, seed=2, dtype=torch.float32),
        rand(images, outs, h, w, seed=3, dtype=dtype) if residual else None,
        rand(images, second, h * stride, (w - 1) * stride + 1, seed=4, dtype=dtype) if shortcut else None,
        rand(outs, second, seed=5, dtype=dtype) if shortcut else None,
        stride,
    )
    rows = images * h * w
    tile = tables.pointwise(rows, channels + second, outs, residual, shortcut is not None, ARCHITECTURE)
    want = pointwise_reference.pointwise(*wide(given))
    return run(lambda: module.forward(*given, tile=SMALL if small else tile), want, TOLERANCE[dtype])


def stem(module: ModuleType, case: Any, dtype: torch.dtype) -> tuple[str, list[Launched]]:
    people, size, outs, first, inputs = case
    generator = torch.Generator().manual_seed(people)
    crops = torch.randint(0, 256, (people, *size, 3), dtype=torch.uint8, generator=generator)
    region_map = torch.randint(0, 4, (people, *size), dtype=torch.uint8, generator=generator)
    region_map[0] = 0  # nobody is seen: the whole crop
    weight = stem_reference.pack(rand(outs, 4, 7, 7, seed=0, dtype=torch.float32) / 64).to(dtype)
    given = (crops, region_map, weight, rand(outs, seed=1, dtype=torch.float32), first, inputs)
    return run(lambda: module.forward(*given), stem_reference.stem(*wide(given)), TOLERANCE[dtype])


def runs(tree: Path, only: str) -> Iterator[tuple[str, tuple[str, list[Launched]]]]:
    """A case's name, what is wrong with it, and its launches."""
    pointwise, of_stem = triton_dry.load(tree, "pointwise"), triton_dry.load(tree, "stem")
    for dtype in TOLERANCE:
        for case, small in itertools.product(PRODUCTS, (False, True)) if only in "pointwise" else ():
            yield f"pointwise {case}{', small tiles' * small}, {dtype}", product(pointwise, case, dtype, small)
        for crop in STEMS if only in "stem" else ():
            yield f"stem {crop}, {dtype}", stem(of_stem, crop, dtype)


def values(tree: Path = ROOT, only: str = "") -> Outcome:
    """``only``: of one file's kernels, and no further than the first fault."""
    outcome = Outcome(known=set(KERNELS))
    for name, (words, launches) in runs(tree, only):
        outcome.count += 1
        outcome.ran |= {launched.kernel for launched in launches}
        if words:
            outcome.faults.append(f"sm_{ARCHITECTURE} {name}: {words}")
            if only:
                break
    return outcome
