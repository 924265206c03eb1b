"""Times the tiles of the Triton kernels on the GPU at hand and adds the fastest to their tables.

    python -m mgran_fast.kernels.tune                        prints the entries, as JSON
    python -m mgran_fast.kernels.tune --write                adds them to the tables, in place of those of the same case
    python -m mgran_fast.kernels.tune --only pointwise       of one table alone: pooling, batchnorm or pointwise

What is timed runs in a CUDA graph: the device's time, without the host's. ``--jobs`` processes compile beforehand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from triton.testing import do_bench_cudagraph

from mgran_fast.kernels import batchnorm, pointwise, pooling, tables
from mgran_fast.kernels.tables import Blocks, RowBlocks, Tile

# Feature maps of crops of 256 x 128 at the strides 16 and 32, of four inputs each.
PEOPLE, INPUTS, CROP = 32, 4, (256, 128)
SHAPES = ((2048, (16, 8)), (2048, (8, 4)), (512, (16, 8)))
DTYPES = (torch.float32, torch.bfloat16)
TILES = [
    Blocks(cells, channels, warps)
    for cells, channels, warps in itertools.product((4, 8, 16, 32, 64), (64, 128, 256), (2, 4, 8))
    # 4 to 64 features a thread: from one load of 16 bytes to what still fits the registers.
    if 128 * warps <= cells * channels <= 2048 * warps
]
# Batch norms of a ResNet-50 whose last stage does not stride.
NORMS = ((64, (64, 32)), (256, (64, 32)), (512, (32, 16)), (1024, (16, 8)), (2048, (16, 8)))
NORM_TILES = [
    RowBlocks(rows, 128, warps, stages, programs)
    for rows, warps, stages, programs in itertools.product((4, 8, 16, 32), (4, 8), (1, 2, 3, 4), (512, 1024, 2048))
    # 4 to 16 numbers a thread, of which the sums keep two each.
    if 4 * 32 * warps <= 128 * rows <= 16 * 32 * warps
]
# The 1x1 convolutions of a ResNet-50 whose last stage does not stride: grid, channels, outs, and a residual, or the
# shortcut's channels and stride.
PRODUCTS: list[tuple[tuple[int, int], int, int, bool, tuple[int, int] | None]] = [
    ((64, 32), 64, 64, False, None),
    ((64, 32), 64, 256, False, (64, 1)),
    ((64, 32), 64, 256, True, None),
    ((64, 32), 256, 64, False, None),
    ((64, 32), 256, 128, False, None),
    ((32, 16), 128, 512, False, (256, 2)),
    ((32, 16), 128, 512, True, None),
    ((32, 16), 512, 128, False, None),
    ((32, 16), 512, 256, False, None),
    ((16, 8), 256, 1024, False, (512, 2)),
    ((16, 8), 256, 1024, True, None),
    ((16, 8), 1024, 256, False, None),
    ((16, 8), 1024, 512, False, None),
    ((16, 8), 512, 2048, False, (1024, 1)),
    ((16, 8), 512, 2048, True, None),
    ((16, 8), 2048, 512, False, None),
]
BATCHES = (1, 8, 32)
# Operands of all stages stay below the 99 KB of shared memory that the smallest GPUs give a block, and no tile spills
# registers with a residual (tests/ladder/triton_products.py).
PRODUCT_TILES = [
    Tile(32, 64, 64, 4, 4),
    Tile(64, 64, 64, 4, 4),
    Tile(64, 64, 128, 4, 3),
    Tile(64, 128, 64, 4, 4),
    Tile(128, 64, 64, 4, 4),
    Tile(128, 64, 32, 4, 4),
    Tile(128, 128, 32, 8, 4),
    Tile(128, 128, 64, 8, 3),
    Tile(256, 64, 32, 8, 4),
]
# Milliseconds that one tile is timed for.
REPETITION = 10

Case = tuple[dict[str, Any], dict[str, Callable[[], object]]]


def pooling_cases(device: torch.device) -> Iterator[Case]:
    """What a table entry says of the case, and a run for each tile, by the tile's own words."""
    # Regions as bands, so that a row pools a part of its cells as it does with real people.
    region_map = (torch.arange(CROP[0], device=device) * 5 // CROP[0] % 4).to(torch.uint8)
    region_map = region_map[None, :, None].repeat(PEOPLE, 1, CROP[1])
    region = torch.arange(INPUTS, device=device).repeat(PEOPLE)
    for (channels, grid), dtype, mode in itertools.product(SHAPES, DTYPES, pooling.MODES):
        features = torch.rand((PEOPLE * INPUTS, channels, *grid), dtype=dtype, device=device)
        features = features.to(memory_format=torch.channels_last)
        out = pooling.forward(features, region_map, region, mode, 3.0)
        runs = {
            "forward": partial(pooling.forward, features, region_map, region, mode, 3.0),
            "backward": partial(pooling.backward, out, features, region_map, region, out, mode, 3.0),
        }
        for kernel, run in runs.items():
            case = {"kernel": kernel, "mode": mode, "bytes": dtype.itemsize, "capability": tables.capability(device),
                    "channels": channels, "cells": grid[0] * grid[1]}  # fmt: skip
            yield case, {words(blocks): partial(run, blocks=blocks) for blocks in TILES}


def batchnorm_cases(device: torch.device) -> Iterator[Case]:
    """As :func:`pooling_cases`: joint statistics, with a residual and ReLU."""
    for (channels, grid), dtype in itertools.product(NORMS, DTYPES):
        rand = partial(torch.randn, (PEOPLE * INPUTS, channels, *grid), dtype=dtype, device=device)
        x, residual, dy = (rand().to(memory_format=torch.channels_last) for _ in range(3))
        some = [torch.rand((1, channels), device=device) for _ in range(6)]
        runs = {
            "moments": partial(batchnorm.statistics, x, 1),
            "apply": partial(batchnorm.apply, x, residual, *some[:2], True),
            "reduce": partial(batchnorm.reduce, dy, x, residual, *some[:4], True),
            "grad": partial(batchnorm.grad, dy, x, residual, *some, True, True),
        }
        rows = PEOPLE * INPUTS * grid[0] * grid[1]
        for kernel, run in runs.items():
            case = {"kernel": kernel, "bytes": dtype.itemsize, "capability": tables.capability(device),
                    "channels": channels, "rows": rows}  # fmt: skip
            # Only sums have steps to overlap, and parts.
            plain = [replace(tile, num_stages=1, programs=1) for tile in NORM_TILES]
            tiles = NORM_TILES if kernel in ("moments", "reduce") else list(dict.fromkeys(plain))
            yield case, {words(tile): partial(run, blocks=tables.narrow(tile, channels, rows)) for tile in tiles}


def pointwise_cases(device: torch.device) -> Iterator[Case]:
    """As :func:`pooling_cases`; "library" is cuDNN's fused convolution, with one before it for a shortcut."""
    for people, ((h, w), channels, outs, residual, shortcut) in itertools.product(BATCHES, PRODUCTS):
        images = INPUTS * people

        def rand(*shape: int) -> torch.Tensor:
            made = torch.randn(shape, dtype=torch.bfloat16, device=device) / 8
            return made.to(memory_format=torch.channels_last) if len(shape) == 4 else made

        x, weight, bias = rand(images, channels, h, w), rand(outs, channels), rand(outs)
        z = rand(images, outs, h, w) if residual else None
        second, stride = shortcut or (0, 1)
        s = rand(images, second, h * stride, w * stride) if shortcut else None
        v = rand(outs, second) if shortcut else None
        case = {"capability": tables.capability(device), "rows": images * h * w, "channels": channels + second,
                "outs": outs, "residual": residual, "shortcut": shortcut is not None}  # fmt: skip
        sources = (x, weight, bias.float(), z, s, v, stride)
        runs = {words(tile): partial(pointwise.forward, *sources, tile=tile) for tile in PRODUCT_TILES}
        runs["library"] = partial(_cudnn, x, weight[:, :, None, None], bias, z, s, v, stride)
        yield case, runs


def _cudnn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    shortcut: torch.Tensor | None,
    shortcut_weight: torch.Tensor | None,
    stride: int,
) -> torch.Tensor:
    if shortcut is not None and shortcut_weight is not None:
        residual = torch.conv2d(shortcut, shortcut_weight[:, :, None, None], stride=stride)
    geometry = ([1, 1], [0, 0], [1, 1], 1)
    if residual is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
    return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *geometry)


CASES = {"pooling": pooling_cases, "batchnorm": batchnorm_cases, "pointwise": pointwise_cases}
FILES = {"pooling": tables.TABLE, "batchnorm": tables.BATCHNORM, "pointwise": tables.POINTWISE}
SIZES = {Blocks: ("cells", "channels"), RowBlocks: ("rows", "channels"), Tile: ("rows", "outs", "channels")}


def words(tile: Blocks | RowBlocks | Tile) -> str:
    """The tile's part of a table entry, as JSON."""
    return json.dumps(
        {f"block_{name}": getattr(tile, name) for name in SIZES[type(tile)]}
        | {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
        | ({"programs": tile.programs} if isinstance(tile, RowBlocks) and tile.programs > 1 else {})
    )


def measure(name: str, device: torch.device) -> Iterator[dict[str, Any]]:
    """Table entries, one for each case."""
    for case, runs in CASES[name](device):
        timed = {}
        for tile, run in runs.items():
            try:
                timed[tile] = 1e3 * do_bench_cudagraph(run, rep=REPETITION, return_mode="median")
            except Exception as error:  # a tile that this GPU has no shared memory for
                if tile == "library":
                    raise
                sys.stderr.write(f"{name} {case}: {tile}: {type(error).__name__}\n")
        library = {"library": round(timed.pop("library"), 2)} if "library" in timed else {}
        best = min(timed, key=lambda tile: timed[tile])
        yield case | json.loads(best) | {"microseconds": round(timed[best], 2)} | library | {
            "measured": torch.cuda.get_device_name(device)
        }  # fmt: skip


def compile_ahead(share: tuple[str, int, int]) -> None:
    """Every n-th case of a table, each tile run once: what is compiled stays in Triton's cache."""
    name, first, step = share
    device = torch.device("cuda", torch.cuda.current_device())
    for case, runs in itertools.islice(CASES[name](device), first, None, step):
        for tile, run in runs.items():
            try:
                run()
            except Exception as error:  # told when it is timed
                sys.stderr.write(f"{name} {case}: {tile}: {type(error).__name__}\n")


def merge(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of both, the new one where both have the same case."""
    keys = ("kernel", "mode", "bytes", "capability", "channels", "cells", "rows", "outs", "residual", "shortcut")

    def case(entry: dict[str, Any]) -> tuple[object, ...]:
        return tuple(entry.get(key) for key in keys)

    return list(({case(entry): entry for entry in old} | {case(entry): entry for entry in new}).values())


def text_of(about: str, entries: list[dict[str, Any]]) -> str:
    """A table as it is written: one entry a line."""
    lines = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
    return f'{{\n  "about": {json.dumps(about)},\n  "entries": [\n{lines}\n  ]\n}}\n'


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="time the tiles of the Triton kernels on this GPU")
    parser.add_argument("--write", action="store_true", help="add the fastest to the tables")
    parser.add_argument("--only", choices=list(CASES), help="one table")
    parser.add_argument("--jobs", type=int, default=min(16, os.cpu_count() or 1), help="processes that compile")
    parser.add_argument("--folder", type=Path, help="where --write writes, in place of the package's folder")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("there is no GPU to tune on")
    device = torch.device("cuda", torch.cuda.current_device())
    for name in [options.only] if options.only else list(CASES):
        if options.jobs > 1:
            shares = [(name, i, options.jobs) for i in range(options.jobs)]
            with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
                pool.map(compile_ahead, shares)
        found = list(measure(name, device))
        file = FILES[name]
        table = json.loads(file.read_text(encoding="utf-8"))
        text = text_of(table["about"], merge(table["entries"], found) if options.write else found)
        if options.write:
            (options.folder / file.name if options.folder else file).write_text(text, encoding="utf-8")
        else:
            sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
