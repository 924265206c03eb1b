"""cp.async: copies from global to shared memory that a thread starts, gathers in groups and waits for.

A copy lands when its thread waits for its group, the last moment it may: who reads without waiting reads what was
there before. It counts as a write of shared memory twice, when it starts and when it lands, so that a warp that still
reads what is overwritten, or reads what another warp waited for with no barrier between, is a race.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .access import load, shared_place, store
from .decode import Decoding, Lanes, Step, instruction
from .values import TYPES, Array

if TYPE_CHECKING:
    from .machine import Batch

WORD = 4
OPEN = -1  # the group of a copy that is not committed


@dataclass
class Copies:
    """Of one instruction, by lane: where to, what, and the lane's group."""

    lanes: Array
    offsets: Array  # in shared memory
    words: list[Array]
    groups: Array
    line: str


@instruction("cp")
def _copy(d: Decoding) -> Step:
    d.choice("async")
    if "shared" in d.modifiers or "shared::cta" in d.modifiers:
        return _start(d)
    if d.flag("commit_group"):
        d.done(0)
        return Step(d.instruction, _commit)
    everything = d.flag("wait_all")
    if not everything:
        d.choice("wait_group")
    d.done(0 if everything else 1)
    # A constant reads no batch.
    pending = 0 if everything else int(d.read(0, "u32")(None, None)[0])  # type: ignore[arg-type]

    def wait(batch: Batch, lanes: Lanes) -> None:
        if everything:
            _commit(batch, lanes)
        here = np.zeros(batch.count, np.bool_)
        here[slice(None) if lanes is None else lanes] = True
        for copies in batch.copies:
            landing = here[copies.lanes] & (copies.groups != OPEN)
            landing &= copies.groups < batch.committed[copies.lanes] - pending
            if landing.any():
                words = [word[landing] for word in copies.words]
                store(batch, copies.lanes[landing], "shared", copies.offsets[landing], words, copies.line)
                _keep(copies, ~landing)
        batch.copies = [copies for copies in batch.copies if len(copies.lanes)]

    return Step(d.instruction, wait)


def _keep(copies: Copies, which: Array) -> None:
    copies.lanes, copies.offsets, copies.groups = (
        values[which] for values in (copies.lanes, copies.offsets, copies.groups)
    )
    copies.words = [word[which] for word in copies.words]


def _commit(batch: Batch, lanes: Lanes) -> None:
    here = np.zeros(batch.count, np.bool_)
    here[slice(None) if lanes is None else lanes] = True
    for copies in batch.copies:
        newly = here[copies.lanes] & (copies.groups == OPEN)
        copies.groups[newly] = batch.committed[copies.lanes[newly]]
    batch.committed[here] += 1


def _start(d: Decoding) -> Step:
    """cp.async.cg.shared.global [to], [from], bytes, bytes to read: what is not read is 0."""
    d.choice("ca", "cg")
    d.choice("shared", "shared::cta")
    d.choice("global")
    d.ignore("L2::64B", "L2::128B", "L2::256B")
    d.done(3, 4)
    size = int(d.read(2, "u32")(None, None)[0])  # type: ignore[arg-type]  # a constant
    if size not in (4, 8, 16):
        raise d.error()
    to, source = d.address(0, "shared"), d.address(1, "global")
    read_bytes = d.read(3, "u32") if len(d.operands) == 4 else None
    line = d.instruction.line

    def execute(batch: Batch, lanes: Lanes) -> None:
        active = batch.lane if lanes is None else lanes
        offsets, addresses = to(batch, lanes), source(batch, lanes)
        words = [np.zeros(len(active), TYPES["b32"].dtype) for _ in range(size // WORD)]
        wanted = (
            np.full(len(active), size)
            if read_bytes is None
            else np.broadcast_to(read_bytes(batch, lanes), active.shape)
        )
        if not ((wanted == 0) | (wanted == size)).all():
            raise d.error("reads a part of the bytes that it writes")
        some = wanted == size
        if some.any():
            for word, value in zip(
                words, load(batch, active[some], "global", addresses[some], WORD, size // WORD, line), strict=True
            ):
                word[some] = value
        shared_place(batch, active, offsets, size, line)
        batch.copies.append(Copies(active.copy(), offsets, words, np.full(len(active), OPEN), line))

    return Step(d.instruction, execute, shared_width=size)
