"""Branches, ends, barriers, and what has no effect here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .decode import Decoding, Execute, Lanes, Step, instruction
from .parser import Immediate, Label
from .values import Array

if TYPE_CHECKING:
    from .machine import Batch


def _nothing(batch: Batch, lanes: Lanes) -> None:
    pass


@instruction("bra")
def _branch(d: Decoding) -> Step:
    d.ignore("uni")
    d.done(1)
    label = d.operands[0]
    if not isinstance(label, Label):
        raise d.error()
    target = d.entry.labels[label.name]

    def control(batch: Batch, active: Array, group: Array, pc: int) -> None:
        if len(active) != len(group):
            batch.pc[group] = pc + 1
        batch.pc[active] = target

    return Step(d.instruction, _nothing, control=control)


@instruction("ret", "exit")
def _end(d: Decoding) -> Step:
    d.ignore("uni")
    d.done(0)

    def control(batch: Batch, active: Array, group: Array, pc: int) -> None:
        batch.pc[group] = pc + 1
        batch.pc[active] = batch.end

    return Step(d.instruction, _nothing, control=control)


@instruction("trap")
def _trap(d: Decoding) -> Execute:
    d.done(0)

    def execute(batch: Batch, lanes: Lanes) -> None:
        active = batch.lane if lanes is None else lanes
        raise d.error(f"trap; {batch.where(active, d.instruction.line)(0)}")

    return execute


@instruction("membar", "fence", "griddepcontrol")
def _order(d: Decoding) -> Execute:
    """Lanes run in lockstep on one memory: nothing to wait for. Ordering between blocks is not checked."""
    allowed = {"membar": ("cta", "gl", "sys"), "fence": ("acq_rel", "sc", "cta", "gpu", "sys")}
    d.ignore(*allowed.get(d.instruction.opcode, ("wait", "launch_dependents")))
    d.done(0)
    return _nothing


@instruction("bar", "barrier")
def _barrier(d: Decoding) -> Step | Execute:
    if d.flag("warp"):
        return _warp_barrier(d)
    d.ignore("cta", "aligned")
    reduction = d.flag("red")
    if not reduction:
        d.choice("sync")
        d.done(1)
        _only_barrier_zero(d, 0)
        return Step(d.instruction, _nothing, control=_wait)
    operation = d.choice("popc", "and", "or")
    kind = d.type({"u32" if operation == "popc" else "pred"})
    d.done(3)
    _only_barrier_zero(d, 1)
    predicate, write = d.read(2, "pred"), d.write(0, kind)

    def release(batch: Batch, lanes: Array) -> None:
        # Called once a block; the predicates' registers have not changed since the lanes arrived.
        values = np.broadcast_to(predicate(batch, lanes), lanes.shape)
        result = {"popc": values.sum(), "and": values.all(), "or": values.any()}[operation]
        write(batch, lanes, np.full(len(lanes), result, kind.dtype))

    return Step(d.instruction, _nothing, control=_wait, release=release)


def _only_barrier_zero(d: Decoding, at: int) -> None:
    operand = d.operands[at]
    if not isinstance(operand, Immediate) or operand.bits != 0:
        raise d.error()


def _wait(batch: Batch, active: Array, group: Array, pc: int) -> None:
    batch.pc[group] = pc + 1
    batch.waiting[active] = True


def _warp_barrier(d: Decoding) -> Execute:
    d.choice("sync")
    d.done(1)
    mask = d.read(0, "b32")

    def execute(batch: Batch, lanes: Lanes) -> None:
        check_members(batch, lanes, mask(batch, lanes), d)

    return execute


def check_members(batch: Batch, lanes: Lanes, mask: Array, d: Decoding) -> Array:
    """The masks of active threads, one a lane. Every thread that a mask names must be here, and nobody else."""
    active = batch.lane if lanes is None else lanes
    present = active_masks(batch, active)
    wrong = np.broadcast_to(mask, active.shape) != present
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        named = int(np.broadcast_to(mask, active.shape)[at])
        raise d.error(
            f"threads {int(present[at]):#010x} of the warp are here, the mask names {named:#010x}; "
            f"{batch.where(active, d.instruction.line)(at)}"
        )
    return present


def active_masks(batch: Batch, active: Array) -> Array:
    """For each active lane the mask of its warp's active lanes."""
    if len(active) == batch.count:
        return np.full(batch.count, 0xFFFFFFFF, np.uint32)
    warps = batch.warp[active]
    masks = np.zeros(batch.count // 32, np.uint32)
    np.bitwise_or.at(masks, warps, np.uint32(1) << (active % 32).astype(np.uint32))
    return masks[warps]
