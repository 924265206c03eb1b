"""ldmatrix and stmatrix, with which Triton rearranges 16-bit values through shared memory, and mma, their product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .access import load, store
from .decode import Decoding, Lanes, Step, instruction
from .values import TYPES, Array, bfloat16_to_float32, canonical

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

    def execute_load(batch: Batch, lanes: Lanes) -> None:
        threads, addresses = _warps(d, batch, lanes), address(batch, lanes).reshape(-1, WARP)
        for i, write in enumerate(writes):
            # Threads 8 i to 8 i + 7 give the addresses of the rows of matrix i.
            rows = slice(SIDE * i, SIDE * i + SIDE)
            values = load(batch, threads[:, rows].ravel(), "shared", addresses[:, rows].ravel(), 4, 4, line)
            cells = np.ascontiguousarray(np.stack(values, 1)).view(np.uint16).reshape(-1, SIDE, SIDE)
            write(batch, lanes, _to_lanes(cells.transpose(0, 2, 1) if transposed else cells).ravel())

    def execute_store(batch: Batch, lanes: Lanes) -> None:
        threads, addresses = _warps(d, batch, lanes), address(batch, lanes).reshape(-1, WARP)
        for i, read in enumerate(reads):
            rows = slice(SIDE * i, SIDE * i + SIDE)
            cells = _from_lanes(np.broadcast_to(read(batch, lanes), threads.size).reshape(-1, WARP))
            if transposed:
                cells = np.ascontiguousarray(cells.transpose(0, 2, 1))
            words = cells.reshape(-1, SIDE).view(np.uint32)
            values = [words[:, k].copy() for k in range(4)]
            store(batch, threads[:, rows].ravel(), "shared", addresses[:, rows].ravel(), values, line)

    return Step(d.instruction, execute_load if loads else execute_store, shared_width=ROW_BYTES)


def _warps(d: Decoding, batch: Batch, lanes: Lanes) -> Array:
    """The active lanes as [warps, 32]; they must be whole warps."""
    active = batch.lane if lanes is None else lanes
    if len(active) % WARP or (active.reshape(-1, WARP) != active[::WARP, None] + np.arange(WARP)).any():
        raise d.error("executed by a part of a warp")
    return active.reshape(-1, WARP)


@instruction("mma")
def _multiply(d: Decoding) -> Step:
    """d [16, 8] = a [16, 16] b [16, 8] + c, a matrix a warp; rows and columns of the result 8 to a register pair.

    Products of 16-bit floats are exact in float64; their sum is rounded once, where the device rounds in its own way.
    """
    kind = next((name for name in ("f16", "bf16") if d.modifiers[-3:-1] == [name, name]), None)
    if kind is None or d.modifiers != ["sync", "aligned", "m16n8k16", "row", "col", "f32", kind, kind, "f32"]:
        raise d.error()
    d.modifiers.clear()
    d.done(4)
    writes = [d.writer(item, TYPES["f32"]) for item in d.items(0, 4)]
    read_a = [d.reader(item, TYPES["b32"]) for item in d.items(1, 4)]
    read_b = [d.reader(item, TYPES["b32"]) for item in d.items(2, 2)]
    read_c = [d.reader(item, TYPES["f32"]) for item in d.items(3, 4)]

    def halves(bits: Array) -> Array:
        """[32] registers a warp -> [warps, 8, 8]: thread t has two neighbours of line t / 4."""
        cells = _from_lanes(bits.reshape(-1, WARP))
        return (bfloat16_to_float32(cells) if kind == "bf16" else cells.view(np.float16)).astype(np.float64)

    def execute(batch: Batch, lanes: Lanes) -> None:
        many = _warps(d, batch, lanes).size
        a0, a1, a2, a3 = (halves(np.broadcast_to(read(batch, lanes), many)) for read in read_a)
        b0, b1 = (halves(np.broadcast_to(read(batch, lanes), many)).transpose(0, 2, 1) for read in read_b)
        c0, c1, c2, c3 = (np.broadcast_to(read(batch, lanes), many).reshape(-1, SIDE, SIDE // 2) for read in read_c)
        # The registers of a are its quarters, column by column; those of b, whose lines are columns, the upper half
        # and the lower one; c's first two are neighbours of the upper half.
        for left, right, even, odd, to in ((a0, a2, c0, c1, writes[:2]), (a1, a3, c2, c3, writes[2:])):
            total = left @ b0 + right @ b1 + np.stack((even, odd), -1).reshape(-1, SIDE, SIDE)
            result = canonical(total.astype(np.float32))
            for at, write in enumerate(to):
                write(batch, lanes, np.ascontiguousarray(result[:, :, at::2]).ravel())

    return Step(d.instruction, execute)


def _to_lanes(cells: Array) -> Array:
    """[n, 8, 8] uint16 -> [n, 32] uint32: a thread has two neighbours of row thread / 4."""
    pairs = np.ascontiguousarray(cells).view(np.uint32)
    return pairs.reshape(-1, WARP)


def _from_lanes(values: Array) -> Array:
    """[n, 32] uint32 -> [n, 8, 8] uint16."""
    return np.ascontiguousarray(values).view(np.uint16).reshape(-1, SIDE, SIDE)
