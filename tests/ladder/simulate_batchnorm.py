"""The kernels of batch norm of the rung `simulate`: statistics, apply, reduce and grad, against the reference."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import triton_dry
from mgran_fast.kernels import tables
from mgran_fast.kernels.tables import RowBlocks
from mgran_fast.reference import batchnorm as reference
from mutations import ROOT
from simulate_cases import Outcome, figures
from simulate_triton import compare

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ptxsim import triton_front
from ptxsim.nvcc import Launched
from ptxsim.values import PtxError

# One rounding, of what was computed in float32; and the sums of a few hundred terms.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2.0**-11 + 2e-6, torch.bfloat16: 2.0**-8 + 2e-6}
SUMS = 1e-5
KERNELS = ("_moments", "_combine_moments", "_apply", "_reduce", "_combine_sums", "_grad")
# Several steps of a pipeline for some programs and fewer for others.
SMALL = RowBlocks(rows=4, channels=32, num_warps=1, num_stages=3, programs=6)


@dataclass(frozen=True)
class Shape:
    images: int
    channels: int
    height: int
    width: int
    groups: int


# Type, residual, ReLU, and whether the tiles are SMALL: whole and cut tiles, rows that no vector divides, and 1.
VALUES = (
    (Shape(6, 64, 3, 3, 2), torch.bfloat16, True, True, True),
    (Shape(6, 64, 3, 3, 2), torch.bfloat16, True, True, False),
    (Shape(3, 37, 5, 3, 1), torch.float32, True, True, False),
    (Shape(5, 37, 5, 1, 1), torch.float16, False, True, True),
    (Shape(4, 64, 2, 2, 4), torch.float32, False, False, False),
    (Shape(4, 1, 1, 1, 4), torch.float32, True, False, False),
)
# Of traffic. One group in two parts: partial sums are as large a share of the bytes as in a whole training batch.
TRAFFIC, PARTS = Shape(8, 256, 16, 8, 1), 2
TRAFFIC_DTYPES = (torch.float32, torch.bfloat16)


class Numbers:
    """Numbers on a grid, so that z is exact in float32, and 0 in many places: every z has the sign it should have."""

    def __init__(self, shape: Shape, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(shape.channels)

        def whole(high: int, *size: int) -> torch.Tensor:
            return torch.randint(-high, high + 1, size, generator=generator).float()

        def field(high: int) -> torch.Tensor:
            made = whole(high, shape.images, shape.channels, shape.height, shape.width) / 4
            return made.to(dtype).to(memory_format=torch.channels_last)

        def of_group(high: int, by: float) -> torch.Tensor:
            return whole(high, shape.groups, shape.channels) / by

        self.x, self.residual, self.dy = field(12), field(8), field(9)
        self.scale, self.shift = of_group(4, 2.0), of_group(3, 4.0)
        self.moments = (of_group(9, 7.0), of_group(9, 3.0))
        self.sums = (of_group(9, 11.0), of_group(9, 13.0))


def run(
    module: ModuleType,
    arch: int,
    shape: Shape,
    dtype: torch.dtype,
    residual: bool,
    relu: bool,
    choose: Callable[[str], RowBlocks | None],
) -> tuple[str, list[Launched]]:
    """What is wrong, and the launches. New tensors hold NaN: an element that no kernel writes shows."""
    n = Numbers(shape, dtype)
    given = (n.x, n.residual if residual else None, n.scale, n.shift)
    launches: list[Launched] = []
    torch.use_deterministic_algorithms(True)
    try:
        with triton_front.simulated(arch) as launches:
            statistics = module.statistics(n.x, shape.groups, blocks=choose("moments"))
            y = module.apply(*given, relu, blocks=choose("apply"))
            sums = module.reduce(n.dy, *given, *n.moments, relu, blocks=choose("reduce"))
            slopes = module.grad(n.dy, *given, *n.moments, *n.sums, relu, residual, blocks=choose("grad"))
    except PtxError as error:
        return str(error), launches
    finally:
        torch.use_deterministic_algorithms(False)
    wide: tuple[Any, ...] = tuple(None if t is None else t.double() for t in given)
    want = (
        *reference.statistics(n.x.double(), shape.groups),
        reference.apply(*wide, relu),
        *reference.reduce(n.dy.double(), *wide, *n.moments, relu),
        *reference.grad(n.dy.double(), *wide, *n.moments, *n.sums, relu),
    )
    names = ("mean", "variance", "y", "dbias", "dweight", "dx", "dresidual")
    for name, a, b in zip(names, (*statistics, y, *sums, *slopes), want, strict=True):
        if a is not None and (words := compare(a, b, TOLERANCE[dtype] if a.dim() == 4 else SUMS)):
            return f"{name}: {words}", launches
    return "", launches


def _from_table(module: ModuleType, shape: Shape, dtype: torch.dtype, arch: int) -> Callable[[str], RowBlocks | None]:
    rows = shape.images // shape.groups * shape.height * shape.width
    return lambda kernel: tables.batchnorm(kernel, dtype, shape.channels, rows, arch)


def values(arch: int, tree: Path = ROOT, only_first: bool = False) -> Outcome:
    """``only_first``: no further than the first fault."""
    module, outcome = triton_dry.load(tree, "batchnorm"), Outcome(known=set(KERNELS))
    for shape, dtype, residual, relu, small in VALUES:
        choose = (lambda _: SMALL) if small else _from_table(module, shape, dtype, arch)
        words, launches = run(module, arch, shape, dtype, residual, relu, choose)
        outcome.count += 1
        outcome.ran |= {launched.kernel for launched in launches}
        if words:
            outcome.faults.append(f"batchnorm sm_{arch}: {shape}, {dtype}, small tiles {small}: {words}")
            if only_first:
                break
    return outcome


def traffic(arch: int, tree: Path = ROOT) -> Outcome:
    """Bytes moved with a residual and ReLU, by the table's tiles."""
    module, outcome = triton_dry.load(tree, "batchnorm"), Outcome()
    s = TRAFFIC
    words = f"[{s.images}, {s.channels}, {s.height}, {s.width}] in {s.groups} group"
    numbers, of_group = s.images * s.channels * s.height * s.width, s.groups * s.channels * 4
    for dtype in TRAFFIC_DTYPES:
        table = _from_table(module, s, dtype, arch)
        found, launches = run(module, arch, s, dtype, True, True, lambda kernel, t=table: _in_parts(t(kernel)))
        outcome.count += 1
        if found:
            outcome.faults.append(f"batchnorm sm_{arch}: {dtype}: {found}")
            continue
        whole, name = numbers * dtype.itemsize, str(dtype).removeprefix("torch.")
        needs = {
            "_moments": whole,
            "_combine_moments": 2 * of_group,
            "_apply": 3 * whole + 2 * of_group,
            "_reduce": 3 * whole + 4 * of_group,
            "_combine_sums": 2 * of_group,
            "_grad": 5 * whole + 6 * of_group,
        }
        for launched in launches:
            kernel = launched.kernel
            mode = "residual, " if kernel in ("_apply", "_reduce", "_grad") else ""
            label = f"batchnorm.py {kernel[1:]}" + ("" if kernel == "_combine_sums" else f"<{mode}{name}>")
            if all(one.kernel != label for one in outcome.figures):
                outcome.figures.append(figures(label, words, launched, needs[kernel]))
    return outcome


def _in_parts(blocks: RowBlocks | None) -> RowBlocks:
    assert blocks is not None
    return RowBlocks(
        blocks.rows, blocks.channels, blocks.num_warps, blocks.num_stages, PARTS * (TRAFFIC.channels // blocks.channels)
    )
