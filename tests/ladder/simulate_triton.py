"""The Triton kernels of the rung `simulate`: pooling, forward and backward, against the reference in float64."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

import triton_dry
from cases_pooling import SLOPE, TOLERANCE
from mgran_fast.kernels import tables
from mgran_fast.reference import pooling as reference
from mutations import ROOT
from simulate_cases import Outcome, figures

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ptxsim import triton_front
from ptxsim.nvcc import Launched
from ptxsim.values import PtxError

MODES, POWER = ("mean", "max", "gem"), 3.0
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# people, inputs, channels, cells, map: aligned, odd, and a map coarser than the cells
SHAPES = ((2, 4, 64, (8, 4), (64, 32)), (2, 3, 37, (5, 3), (33, 17)), (2, 4, 33, (7, 5), (3, 2)))
TRAFFIC_SHAPE = (2, 4, 256, (16, 8), (256, 128))
KERNELS = ("_share", "_pool", "_spread")

Shape = tuple[int, int, int, tuple[int, int], tuple[int, int]]


@dataclass
class Setup:
    features: torch.Tensor
    region_map: torch.Tensor
    region: torch.Tensor
    visible: torch.Tensor  # bool [B, h, w]: cells with a pixel of the row's region


def setup(shape: Shape, dtype: torch.dtype, hidden: bool) -> Setup:
    """``hidden``: infinities and NaN in the cells that nobody may look at, an unseen person, regions that are not."""
    people, inputs, channels, cells, size = shape
    generator = torch.Generator().manual_seed(channels)
    stripes = (torch.arange(size[0]) * (inputs + 1) // size[0]).clamp(max=inputs - 1)
    region_map = stripes[None, :, None].expand(people, *size).to(torch.uint8).contiguous()
    region = torch.arange(people * inputs) % inputs
    if hidden:
        region_map[-1] = 0
        region[-2:] = torch.tensor([257, -1])
    features = torch.randn((people * inputs, channels, *cells), generator=generator).to(dtype)
    visible = reference.shares(region_map, region, *cells) > 0
    if hidden:
        strange = torch.tensor([float("inf"), float("-inf"), float("nan")]).to(dtype)
        where = (~visible)[:, None].expand(features.shape)
        features = torch.where(where, strange[torch.arange(features.numel()).view(features.shape) % 3], features)
    return Setup(features.contiguous(memory_format=torch.channels_last), region_map, region, visible)


def compare(got: torch.Tensor, want: torch.Tensor, tolerance: float) -> str:
    """What is wrong, empty when all is right."""
    error = (got.double() - want).abs()
    bound = tolerance * (want.abs() + want.abs().mean())
    right = (error <= bound) | (got.isnan() & want.isnan())  # NaN alone is wrong
    if right.all():
        return ""
    at = int((~right).flatten().nonzero()[0])
    return f"{int((~right).sum())} of {want.numel()} differ, the first {got.flatten()[at]}, not {want.flatten()[at]}"


def run(
    module: ModuleType, arch: int, shape: Shape, dtype: torch.dtype, mode: str, hidden: bool
) -> tuple[str, list[Launched]]:
    s = setup(shape, dtype, hidden)
    cells = shape[3][0] * shape[3][1]
    tiles = {k: tables.choose(k, mode, dtype, shape[2], cells, arch) for k in ("forward", "backward")}
    launches: list[Launched] = []
    try:
        with triton_front.simulated(arch) as launches:
            arguments = (s.features, s.region_map, s.region)
            out = module.forward(*arguments, mode, POWER, blocks=tiles["forward"])
            generator = torch.Generator().manual_seed(1)
            grad = torch.randn(out.shape, generator=generator).to(dtype)
            slope = module.backward(grad, *arguments, out, mode, POWER, blocks=tiles["backward"])
    except PtxError as error:
        return str(error), launches
    exact = s.features.double().requires_grad_()
    want = reference.pooling(exact, s.region_map, s.region, mode, POWER)
    want.backward(grad.double())
    assert exact.grad is not None
    words = compare(out, want.detach(), TOLERANCE[dtype])
    if words:
        return f"forward: {words}", launches
    words = compare(slope, exact.grad, SLOPE[dtype])
    return f"backward: {words}" if words else "", launches


def combinations() -> Iterator[tuple[Shape, torch.dtype, str]]:
    yield from itertools.product(SHAPES, DTYPES, MODES)


def values(arch: int, tree: Path = ROOT) -> Outcome:
    module, outcome = triton_dry.load(tree), Outcome(known=set(KERNELS))
    for shape, dtype, mode in combinations():
        words, launches = run(module, arch, shape, dtype, mode, hidden=True)
        outcome.count += 1
        outcome.ran |= {launched.kernel for launched in launches}
        if words:
            outcome.faults.append(f"pooling sm_{arch}: {mode}, {dtype}, {shape}: {words}")
    return outcome


def traffic(arch: int, tree: Path = ROOT) -> Outcome:
    """Bytes moved with channels that fill whole sectors."""
    module, outcome = triton_dry.load(tree), Outcome()
    people, inputs, channels, (height, width), size = TRAFFIC_SHAPE
    rows, cells, pixels = people * inputs, height * width, people * size[0] * size[1]
    words = f"[{rows}, {channels}, {height}, {width}], maps of {size[0]} x {size[1]}"
    for dtype, mode in itertools.product(DTYPES, MODES):
        found, launches = run(module, arch, TRAFFIC_SHAPE, dtype, mode, hidden=False)
        outcome.count += 1
        if found:
            outcome.faults.append(f"pooling sm_{arch}: {mode}, {dtype}: {found}")
            continue
        name, size_of = str(dtype).removeprefix("torch."), dtype.itemsize
        seen = int(setup(TRAFFIC_SHAPE, dtype, False).visible.sum()) * channels * size_of
        result, weights, region = rows * channels * size_of, rows * cells * 4, rows * 8
        # backward reads the pooled values' gradient; for max and gem also the features, and the values themselves.
        again = 0 if mode == "mean" else seen + result
        needs = {
            "_share": pixels + region + weights,
            "_pool": seen + weights + region + result,
            "_spread": result + weights + region + again + rows * cells * channels * size_of,
        }
        labels = {"_share": "share", "_pool": f"pool<{mode}, {name}>", "_spread": f"spread<{mode}, {name}>"}
        for launched in launches:
            label = "pooling.py " + labels[launched.kernel]
            if all(one.kernel != label for one in outcome.figures):
                outcome.figures.append(figures(label, words, launched, needs[launched.kernel]))
    return outcome
