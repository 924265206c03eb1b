"""The part of triton_gate.py for the engine's kernels, pointwise.py and stem.py.

Of pointwise, each tile that the table gives the products of a ResNet-50, with what stands beside them there; on
ALL_SIZES with all that the table can give a product of any size. Which entries serve an architecture, tables.py says:
a tile that was timed on one GPU may not fit into another's shared memory.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

import occupancy
from mgran_fast.kernels import tables
from mgran_fast.kernels.tables import Tile
from mgran_fast.kernels.tune import BATCHES, PRODUCTS
from triton_dry import dry_launches, figures, load, never

PEOPLE, INPUTS, CROP, OUTS = 32, 4, (256, 128), 64  # of the stem
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
PLAIN, RESIDUAL, SHORTCUT = COMBINATIONS = ("plain", "residual", "shortcut")
ALL_SIZES = (80, 90)
VECTOR = 16  # bytes of the widest access of a thread
ELEMENT = 2  # bytes of float16 and bfloat16

# As in tune.py: grid, channels, outs, whether there is a residual, and the shortcut's channels and stride.
Shape = tuple[tuple[int, int], int, int, bool, "tuple[int, int] | None"]
# The last stage's, where a tile has to be compiled for a combination that no shape gives it.
STATED: dict[str, Shape] = {
    PLAIN: ((16, 8), 2048, 512, False, None),
    RESIDUAL: ((16, 8), 512, 2048, True, None),
    SHORTCUT: ((16, 8), 512, 2048, False, (1024, 1)),
}


def combination(shape: Shape) -> str:
    return RESIDUAL if shape[3] else SHORTCUT if shape[4] else PLAIN


def table_tile(arch: int, shape: Shape, images: int) -> Tile:
    """What the table gives a call."""
    (height, width), channels, outs, residual, shortcut = shape
    second = shortcut[0] if shortcut else 0
    return tables.pointwise(images * height * width, channels + second, outs, residual, shortcut is not None, arch)


@functools.cache
def chosen(capability: int) -> dict[tuple[Tile, str], None]:
    """Every tile that the entries of a capability give a call of any size, with what stands beside the product."""
    found: dict[tuple[Tile, str], None] = {}
    sizes = [size for k in range(4, 13) for size in (2**k, 3 * 2 ** (k - 1))]
    for rows, channels, outs in itertools.product([2**k for k in range(4, 23)], sizes, sizes):
        for name in COMBINATIONS:
            tile = tables.pointwise(rows, channels, outs, name == RESIDUAL, name == SHORTCUT, capability)
            found[tile, name] = None
    return found


def product_cases(arch: int) -> list[tuple[Shape, int, Tile]]:
    """Shape, images and tile of what is compiled: no two give the same code."""
    found: dict[tuple[object, ...], tuple[Shape, int, Tile]] = {}
    for people in BATCHES:
        for shape in PRODUCTS:
            images = people * INPUTS
            tile = table_tile(arch, shape, images)
            # Where a shortcut lies depends on the width, which Triton knows whether 16 divides, and on the stride.
            way = (shape[0][1] % 16 == 0, shape[4][1]) if shape[4] else None
            found.setdefault((tile, combination(shape), way), (shape, images, tile))
    if arch not in ALL_SIZES:
        return list(found.values())
    have = {(tile, combination(shape)) for shape, _, tile in found.values()}
    more = [(tile, name) for tile, name in chosen(arch) if (tile, name) not in have]
    return [*found.values(), *((STATED[name], PEOPLE * INPUTS, tile) for tile, name in more)]


def launch_product(module: ModuleType, dtype: torch.dtype, shape: Shape, images: int, tile: Tile) -> None:
    (height, width), channels, outs, residual, shortcut = shape

    def made(*sizes: int) -> torch.Tensor:
        tensor = torch.empty(sizes, dtype=dtype, device="meta")
        return tensor.to(memory_format=torch.channels_last) if len(sizes) == 4 else tensor

    second, stride = shortcut or (0, 1)
    module.forward(
        made(images, channels, height, width),
        made(outs, channels),
        torch.empty(outs, device="meta"),
        made(images, outs, height, width) if residual else None,
        made(images, second, height * stride, width * stride) if shortcut else None,
        made(outs, second) if shortcut else None,
        stride,
        tile=tile,
    )


def launch_stem(module: ModuleType, dtype: torch.dtype, people: int, size: tuple[int, int], outs: int) -> None:
    region_map = torch.empty((people, *size), dtype=torch.uint8, device="meta")
    crops = torch.empty((people, *size, 3), dtype=torch.uint8, device="meta")
    weight = torch.empty((outs, 7 * 32), dtype=dtype, device="meta")
    module.forward(crops, region_map, weight, torch.empty(outs, device="meta"), 0, INPUTS)


def kernels(
    architectures: tuple[int, ...],
    dtypes: tuple[str, ...] = tuple(DTYPES),
    pointwise: ModuleType | None = None,
    stem: ModuleType | None = None,
) -> list[dict[str, Any]]:
    """The figures of every kernel on the architectures that it runs on."""
    pointwise, stem = pointwise or load(name="pointwise"), stem or load(name="stem")
    result: list[dict[str, Any]] = []
    for arch in architectures:
        if arch < pointwise.LEAST_CAPABILITY:
            continue
        for dtype in dtypes:
            for shape, images, tile in product_cases(arch):
                with dry_launches(arch) as launches:
                    launch_product(pointwise, DTYPES[dtype], shape, images, tile)
                result.append(_row(*launches[0], arch, dtype, combination(shape), "pointwise.py", tile))
            with dry_launches(arch) as launches:
                launch_stem(stem, DTYPES[dtype], PEOPLE, CROP, OUTS)
            for grid, kernel in launches:
                seen = kernel.metadata.name == "_seen"  # has no type: once is enough
                if not seen or dtype == dtypes[0]:
                    row = _row(grid, kernel, arch, "" if seen else dtype, "", "stem.py", stem.TILE)
                    result.append(row | {"cells": stem.BLOCK_CELLS})
    return result


def _row(grid: tuple[int, ...], kernel: Any, arch: int, dtype: str, mode: str, file: str, tile: Tile) -> dict[str, Any]:
    words = {"file": file, "tile": [tile.rows, tile.outs, tile.channels, tile.num_warps, tile.num_stages]}
    return figures(kernel, grid, arch, dtype, mode) | words


def _accesses(entry: dict[str, Any]) -> Iterator[str]:
    """Global memory that is not moved in the widest accesses there are."""
    name, tile, block = entry["kernel"], Tile(*entry["tile"]), VECTOR * entry["threads"]
    loads, stores = entry["ld128"], entry["st128"]
    if name in ("product", "convolve"):
        results = tile.rows * tile.outs * ELEMENT // block
        residual = results if entry["mode"] == RESIDUAL else 0
        operands = (tile.rows + tile.outs) * tile.channels * ELEMENT // block
        # A pipeline copies its operands to shared memory asynchronously; one stage loads them, as often as it unrolls.
        copied = tile.num_stages > 1
        wide = entry["async128"] if copied else loads - residual
        if not wide or wide % operands or entry["async_narrow"] or entry["ld_tiny"]:
            yield (
                f"operands by {wide} {'asynchronous copies' if copied else 'loads'} of 16 bytes, not a multiple "
                f"of {operands}; {entry['async_narrow']} narrower copies, {entry['ld_tiny']} loads of 1 or 2 bytes"
            )
        if copied and loads != residual:
            yield f"{loads} wide loads of the residual, not {residual}"
        if (stores, entry["st_narrow"]) != (results, 0):
            yield f"{stores} wide and {entry['st_narrow']} narrow stores, not {results} and 0"
    elif name == "largest":
        results = entry["cells"] * tile.outs * ELEMENT // block
        if (loads, entry["ld_narrow"], stores, entry["st_narrow"]) != (9 * results, 0, results, 0):
            yield f"{loads} wide loads, {stores} wide stores and narrower ones, not {9 * results} and {results}"
    elif name == "seen":
        if not loads or entry["ld_narrow"]:
            yield f"{loads} wide and {entry['ld_narrow']} narrow loads of the map"
    # A pixel of four channels is 8 bytes, and a thread has one.
    elif not entry["st64"] or entry["st_narrow"] != entry["st64"]:
        yield f"{entry['st64']} of {entry['st_narrow']} stores have a whole pixel"


def faults(entry: dict[str, Any]) -> list[str]:
    """What is wrong with a kernel's figures; empty when nothing is."""
    device = occupancy.BY_ARCH[entry["arch"]]
    found = never(entry)
    held = occupancy.resident(device, entry["threads"], entry["registers"], entry["shared_bytes"])
    if entry["shared_bytes"] <= device.shared_block and held.blocks < 1:
        found.append(f"a block does not fit on {device.name}")
    if entry["kernel"] in ("product", "convolve") and not entry["tensor"]:
        found.append("no instruction of the tensor cores")
    return found + list(_accesses(entry))


def name_of(entry: dict[str, Any]) -> str:
    words = [entry["file"], entry["kernel"], entry["mode"], entry["dtype"]]
    if entry["kernel"] in ("product", "convolve"):
        rows, outs, channels, num_warps, num_stages = entry["tile"]
        words.append(f"[{rows} x {outs} x {channels}, {num_warps} warps, {num_stages} stages]")
    return " ".join(filter(None, words)) + f" sm_{entry['arch']}"


def line(entry: dict[str, Any]) -> str:
    """A kernel's figures for people."""
    return (
        f"{name_of(entry):82} registers {entry['registers']:3} shared {entry['shared_bytes']:6} "
        f"async128 {entry['async128']:2} ld128 {entry['ld128']:2} st128 {entry['st128']:2} tensor {entry['tensor']:3}"
    )


def gate(entries: list[dict[str, Any]]) -> list[str]:
    """Every fault of every kernel."""
    return [f"{name_of(entry)}: {fault}" for entry in entries for fault in faults(entry)]
