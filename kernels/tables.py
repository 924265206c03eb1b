"""Tile sizes of the kernels, from tables that ship with the package: nothing is tuned while a model runs.

A table is a JSON file of the kernel's stem. Each entry names the case that it was chosen for and the tile:

    kernel, mode, bytes (of an element), capability, channels, cells -> block_cells, block_channels, num_warps,
    num_stages

batchnorm.json has rows (of a group) and block_rows in place of cells, no mode, and programs; pointwise.json has cases
of its own (:func:`product`).

The nearest entry serves a call: of those with the call's kernel, mode and element size, the ones of the highest
capability that is not above the device's (of the lowest there is, on an older device), and of these the one with
the smallest |log2(channels / entry's)| + |log2(cells / entry's)|, the first of equals. A tile is then cut to the
next power of two of the call's own cells and channels.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import triton

TABLE = Path(__file__).with_name("pooling.json")
POINTWISE = Path(__file__).with_name("pointwise.json")
BATCHNORM = Path(__file__).with_name("batchnorm.json")
# Of a tile of batch norm, however few its channels are.
MOST_BLOCK_ROWS = 256


@dataclass(frozen=True)
class Blocks:
    """A tile of cells x channels and how it is run."""

    cells: int
    channels: int
    num_warps: int
    num_stages: int = 1


@dataclass(frozen=True)
class ShareBlocks:
    """Of the kernel that counts pixels: cells of a row of the grid, and a tile of y x x pixels of the map."""

    cells: int
    y: int
    x: int
    num_warps: int
    num_stages: int = 1


@dataclass(frozen=True)
class Tile:
    """A tile of a matrix product, rows x outs, how many channels are summed at a time, and how it is run."""

    rows: int
    outs: int
    channels: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class RowBlocks:
    """A tile of rows x channels, how it is run, and how many programs share a tensor where it is summed."""

    rows: int
    channels: int
    num_warps: int
    num_stages: int = 1
    programs: int = 1


@functools.lru_cache(maxsize=1)
def entries() -> tuple[dict[str, Any], ...]:
    """The table, read once."""
    return tuple(json.loads(TABLE.read_text(encoding="utf-8"))["entries"])


def _nearest(
    known: Sequence[dict[str, Any]],
    capability: int,
    differs: Callable[[dict[str, Any]], int] = lambda entry: 0,
    **sizes: int,
) -> dict[str, Any]:
    """See the top of this file; what ``differs`` counts is added to the distance of the sizes."""
    capabilities = {e["capability"] for e in known}
    newest = max((c for c in capabilities if c <= capability), default=min(capabilities))

    def distance(entry: dict[str, Any]) -> float:
        return sum(abs(math.log2(size / entry[name])) for name, size in sizes.items()) + differs(entry)

    return min((e for e in known if e["capability"] == newest), key=distance)


@functools.lru_cache(maxsize=1024)
def choose(kernel: str, mode: str, dtype: torch.dtype, channels: int, cells: int, capability: int) -> Blocks:
    """The tile of the nearest entry; see the top of this file for what nearest means."""
    fitting = [e for e in entries() if (e["kernel"], e["mode"], e["bytes"]) == (kernel, mode, dtype.itemsize)]
    if not fitting:
        raise ValueError(f"{TABLE.name} has no entry for {kernel}, {mode}, {dtype}")
    entry = _nearest(fitting, capability, channels=channels, cells=cells)
    return Blocks(
        cells=min(entry["block_cells"], triton.next_power_of_2(cells)),
        channels=min(entry["block_channels"], triton.next_power_of_2(channels)),
        num_warps=entry["num_warps"],
        num_stages=entry["num_stages"],
    )


@functools.lru_cache(maxsize=1)
def products() -> tuple[dict[str, Any], ...]:
    """The table of matrix products, read once."""
    return tuple(json.loads(POINTWISE.read_text(encoding="utf-8"))["entries"])


@functools.lru_cache(maxsize=1024)
def product(rows: int, channels: int, outs: int, residual: bool, shortcut: bool, capability: int) -> dict[str, Any]:
    """The nearest entry of pointwise.json, found as :func:`choose` finds its; a residual or shortcut counts 1 each."""
    return _nearest(
        products(),
        capability,
        lambda entry: (entry["residual"] != residual) + (entry["shortcut"] != shortcut),
        rows=rows,
        channels=channels,
        outs=outs,
    )


def pointwise(rows: int, channels: int, outs: int, residual: bool, shortcut: bool, capability: int) -> Tile:
    """The tile of the nearest entry; all sizes 1 or more, ``channels`` those of both sources together.

    A tile that was chosen by its time serves GPUs of its own capability alone: on others it may spill registers, or not
    fit. They take the newest of the entries that were not measured.
    """
    entry = product(rows, channels, outs, residual, shortcut, capability)
    if "measured" in entry and entry["capability"] != capability:
        plain = [e for e in products() if "measured" not in e]
        fitting = [e for e in plain if e["capability"] <= capability] or plain[:1]
        entry = max(fitting, key=lambda e: e["capability"])
    return Tile(*(entry[f"block_{name}"] for name in ("rows", "outs", "channels")), entry["num_warps"],
                entry["num_stages"])  # fmt: skip


@functools.lru_cache(maxsize=1)
def norms() -> tuple[dict[str, Any], ...]:
    """The table of batch norm, read once."""
    return tuple(json.loads(BATCHNORM.read_text(encoding="utf-8"))["entries"])


@functools.lru_cache(maxsize=1024)
def batchnorm(kernel: str, dtype: torch.dtype, channels: int, rows: int, capability: int) -> RowBlocks:
    """The tile of the nearest entry of batchnorm.json, found as :func:`choose` finds its.

    What was measured serves GPUs of its own capability alone, as in :func:`pointwise`.
    """
    fitting = [e for e in norms() if (e["kernel"], e["bytes"]) == (kernel, dtype.itemsize)]
    if not fitting:
        raise ValueError(f"{BATCHNORM.name} has no entry for {kernel}, {dtype}")
    fitting = [e for e in fitting if "measured" not in e or e["capability"] == capability]
    entry = _nearest(fitting, capability, channels=channels, rows=rows)
    names = ("block_rows", "block_channels", "num_warps", "num_stages")
    return narrow(RowBlocks(*(entry[name] for name in names), entry.get("programs", 1)), channels, rows)


def narrow(blocks: RowBlocks, channels: int, rows: int) -> RowBlocks:
    """A tile for a call of fewer channels, which make it longer by as much, and of fewer rows."""
    width = min(blocks.channels, triton.next_power_of_2(channels))
    length = min(blocks.rows * blocks.channels // width, MOST_BLOCK_ROWS, triton.next_power_of_2(rows))
    return replace(blocks, rows=length, channels=width)


def share_blocks(height: int, width: int, map_height: int, map_width: int) -> ShareBlocks:
    """A program counts up to 16 cells, and a thread loads 16 pixels: 2 KiB of map are 4 warps."""
    cells = min(16, triton.next_power_of_2(width))
    y = min(32, triton.next_power_of_2(triton.cdiv(map_height, height)))
    x = min(128, max(16, triton.next_power_of_2(map_width)))
    return ShareBlocks(cells=cells, y=y, x=x, num_warps=min(4, triton.next_power_of_2(triton.cdiv(x * y, 512))))


def options(blocks: Blocks | RowBlocks | ShareBlocks) -> dict[str, int | bool]:
    """The launch options of a tile."""
    # Fused multiply-adds are asked for by name: they only make sums more exact, and Triton's default is changing.
    return {"num_warps": blocks.num_warps, "num_stages": blocks.num_stages, "enable_fp_fusion": True}


def capability(device: torch.device) -> int:
    """Compute capability of the current device times 10; 0 for what is no NVIDIA GPU, Triton's interpreter too."""
    if device.type == "cpu":
        return 0
    arch = triton.runtime.driver.active.get_current_target().arch
    return arch if isinstance(arch, int) else 0


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, whatever device the tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
