"""Shuffles, votes and reductions within a warp.

All threads that the mask names must execute the instruction together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .control import active_masks, check_members
from .decode import Decoding, Execute, Lanes, instruction
from .parser import Pair
from .values import TYPES, Array

if TYPE_CHECKING:
    from .machine import Batch

WARP = 32


def spread(batch: Batch, lanes: Lanes, values: Array) -> tuple[Array, Array]:
    """Values of the active lanes as [warps, 32], and which of those are active."""
    active = batch.lane if lanes is None else lanes
    full = np.zeros(batch.count, values.dtype)
    full[active] = values
    here = np.zeros(batch.count, np.bool_)
    here[active] = True
    return full.reshape(-1, WARP), here.reshape(-1, WARP)


def gather(batch: Batch, lanes: Lanes, values: Array) -> Array:
    """[warps, 32] -> the active lanes' values."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return flat if lanes is None else flat[lanes]


@instruction("shfl")
def _shuffle(d: Decoding) -> Execute:
    d.type({"b32"})
    d.choice("sync")
    mode = d.choice("up", "down", "bfly", "idx")
    d.done(5)
    target = d.operands[0]
    pair = isinstance(target, Pair)
    write = d.writer(target.first if isinstance(target, Pair) else target, TYPES["b32"])
    write_inside = d.writer(target.second, TYPES["pred"]) if isinstance(target, Pair) else None
    value, operand, limits, mask = d.read(1, "b32"), d.read(2, "u32"), d.read(3, "u32"), d.read(4, "b32")

    def execute(batch: Batch, lanes: Lanes) -> None:
        check_members(batch, lanes, mask(batch, lanes), d)
        values, here = spread(batch, lanes, value(batch, lanes))
        step, _ = spread(batch, lanes, (operand(batch, lanes) & np.uint32(31)).astype(np.int64))
        limit, _ = spread(batch, lanes, limits(batch, lanes).astype(np.int64))
        lane = np.arange(WARP)[None]
        segment, clamp = limit >> 8 & 31, limit & 31
        highest, lowest = (lane & segment) | (clamp & ~segment), lane & segment
        source = {
            "up": lane - step,
            "down": lane + step,
            "bfly": lane ^ step,
            "idx": lowest | (step & ~segment),
        }[mode]
        inside = source >= highest if mode == "up" else source <= highest
        source = np.where(inside, source, lane)
        if (here & ~np.take_along_axis(here, source, 1)).any():
            raise d.error("a shuffle reads a thread that is not here")
        result = gather(batch, lanes, np.take_along_axis(values, source, 1))
        if pair and write_inside is not None:
            write_inside(batch, lanes, gather(batch, lanes, inside))
        write(batch, lanes, result)

    return execute


@instruction("vote")
def _vote(d: Decoding) -> Execute:
    kind = d.type({"pred", "b32"})
    d.choice("sync")
    mode = d.choice("ballot") if kind.name == "b32" else d.choice("any", "all", "uni")
    d.done(3)
    predicate, mask, write = d.read(1, "pred"), d.read(2, "b32"), d.write(0, kind)

    def execute(batch: Batch, lanes: Lanes) -> None:
        check_members(batch, lanes, mask(batch, lanes), d)
        votes, here = spread(batch, lanes, predicate(batch, lanes))
        if mode == "ballot":
            bits = (votes.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1, dtype=np.uint64)
            result = bits.astype(np.uint32)
        else:
            every, some = (votes | ~here).all(1), votes.any(1)
            result = {"any": some, "all": every, "uni": every | ~some}[mode]
        write(batch, lanes, gather(batch, lanes, np.repeat(result, WARP)))

    return execute


@instruction("redux")
def _reduce(d: Decoding) -> Execute:
    kind = d.type({"u32", "s32", "b32"})
    d.choice("sync")
    operation = d.choice(*(("and", "or", "xor") if kind.kind == "b" else ("add", "min", "max")))
    d.done(3)
    value, mask, write = d.read(1, kind), d.read(2, "b32"), d.write(0, kind)
    function = {
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
    }[operation]
    neutral = {"and": -1, "or": 0, "xor": 0, "add": 0}
    limits = np.iinfo(kind.dtype)
    start = {"min": limits.max, "max": limits.min}.get(operation, neutral.get(operation, 0) & 0xFFFFFFFF)

    def execute(batch: Batch, lanes: Lanes) -> None:
        check_members(batch, lanes, mask(batch, lanes), d)
        values, here = spread(batch, lanes, value(batch, lanes))
        filled = np.where(here, values, np.array(start, np.int64).astype(kind.dtype))
        result = function.reduce(filled, axis=1).astype(kind.dtype)
        write(batch, lanes, gather(batch, lanes, np.repeat(result, WARP)))

    return execute


@instruction("activemask")
def _active_mask(d: Decoding) -> Execute:
    d.type({"b32"})
    d.done(1)
    write = d.write(0, "b32")

    def execute(batch: Batch, lanes: Lanes) -> None:
        write(batch, lanes, active_masks(batch, batch.lane if lanes is None else lanes))

    return execute
