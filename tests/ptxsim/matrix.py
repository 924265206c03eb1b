"""ldmatrix and stmatrix, with which Triton rearranges 16-bit values through shared memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .access import load, store
from .decode import Decoding, Lanes, Step, instruction
from .values import TYPES, Array

if TYPE_CHECKING:
    from .machine import Batch

WARP, SIDE = 32, 8
ROW_BYTES = 16  # of an 8 x 8 matrix of 16-bit elements


@instruction("ldmatrix", "stmatrix")
def _matrix(d: Decoding) -> Step:
    d.type({"b16"})
    d.choice("sync")
    d.choice("aligned")
    d.choice("m8n8")
    d.choice("shared", "shared::cta")
    count, transposed = int(d.choice("x1", "x2", "x4")[1]), d.flag("trans")
    d.done(2)
    loads = d.instruction.opcode == "ldmatrix"
    address = d.address(1 if loads else 0, "shared")
    line = d.instruction.line
    items = d.items(0 if loads else 1, count)
    reads = [] if loads else [d.reader(item, TYPES["b32"]) for item in items]
    writes = [d.writer(item, TYPES["b32"]) for item in items] if loads else []

    def warps(batch: Batch, lanes: Lanes) -> Array:
        active = batch.lane if lanes is None else lanes
        if len(active) % WARP or (active.reshape(-1, WARP) != active[::WARP, None] + np.arange(WARP)).any():
            raise d.error("executed by a part of a warp")
        return active.reshape(-1, WARP)

    def execute_load(batch: Batch, lanes: Lanes) -> None:
        threads, addresses = warps(batch, lanes), address(batch, lanes).reshape(-1, WARP)
        for i, write in enumerate(writes):
            # Threads 8 i to 8 i + 7 give the addresses of the rows of matrix i.
            rows = slice(SIDE * i, SIDE * i + SIDE)
            values = load(batch, threads[:, rows].ravel(), "shared", addresses[:, rows].ravel(), 4, 4, line)
            cells = np.ascontiguousarray(np.stack(values, 1)).view(np.uint16).reshape(-1, SIDE, SIDE)
            write(batch, lanes, _to_lanes(cells.transpose(0, 2, 1) if transposed else cells).ravel())

    def execute_store(batch: Batch, lanes: Lanes) -> None:
        threads, addresses = warps(batch, lanes), address(batch, lanes).reshape(-1, WARP)
        for i, read in enumerate(reads):
            rows = slice(SIDE * i, SIDE * i + SIDE)
            cells = _from_lanes(np.broadcast_to(read(batch, lanes), threads.size).reshape(-1, WARP))
            if transposed:
                cells = np.ascontiguousarray(cells.transpose(0, 2, 1))
            words = cells.reshape(-1, SIDE).view(np.uint32)
            values = [words[:, k].copy() for k in range(4)]
            store(batch, threads[:, rows].ravel(), "shared", addresses[:, rows].ravel(), values, line)

    return Step(d.instruction, execute_load if loads else execute_store, shared_width=ROW_BYTES)


def _to_lanes(cells: Array) -> Array:
    """[n, 8, 8] uint16 -> [n, 32] uint32: a thread has two neighbours of row thread / 4."""
    pairs = np.ascontiguousarray(cells).view(np.uint32)
    return pairs.reshape(-1, WARP)


def _from_lanes(values: Array) -> Array:
    """[n, 32] uint32 -> [n, 8, 8] uint16."""
    return np.ascontiguousarray(values).view(np.uint16).reshape(-1, SIDE, SIDE)
