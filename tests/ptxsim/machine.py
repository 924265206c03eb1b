"""Runs a kernel: batches of blocks, a numpy lane for each thread, the group of lanes with the lowest pc first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from .copies import Copies
from .decode import Step, decode
from .memory import LocalMemory, Memory, SharedMemory, Where
from .parser import Entry
from .statistics import Statistics
from .values import TYPES, UNSIGNED, Array, PtxError

WARP = 32
MOST_THREADS, MOST_STATIC_SHARED = 1024, 48 * 1024
LANES = 8192  # threads of a batch
MOST_STEPS = 20_000_000  # of a batch: an endless loop ends as an error

Dimensions = tuple[int, int, int]


class Program:
    """An entry, decoded once for many launches. Unknown instructions raise here, executed or not."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.steps: list[Step] = [decode(instruction, entry) for instruction in entry.instructions]
        widths = [step.shared_width for step in self.steps if step.shared_width]
        self.grain = min([4, *widths])


def pack(entry: Entry, arguments: Sequence[bytes]) -> Array:
    """The launch's parameters as they lie in parameter memory."""
    if len(arguments) != len(entry.parameters):
        raise PtxError(f"'{entry.name}' takes {len(entry.parameters)} parameters, not {len(arguments)}")
    packed = np.zeros(entry.parameter_bytes, np.uint8)
    for parameter, value in zip(entry.parameters, arguments, strict=True):
        if len(value) != parameter.bytes:
            raise PtxError(f"parameter '{parameter.name}' has {parameter.bytes} bytes, not {len(value)}")
        packed[parameter.offset : parameter.offset + parameter.bytes] = np.frombuffer(value, np.uint8)
    return packed


def launch(
    program: Program,
    grid: Dimensions,
    block: Dimensions,
    arguments: Sequence[bytes],
    memory: Memory,
    dynamic_shared: int = 0,
    lanes: int = LANES,
    banks: bool = False,
) -> Statistics:
    """Runs the whole grid, each of ``arguments`` the bytes of a parameter; ``banks``: count bank conflicts too."""
    entry = program.entry
    threads = block[0] * block[1] * block[2]
    if min(grid) < 1 or grid[0] > 2**31 - 1 or max(grid[1:]) > 65535:
        raise PtxError(f"'{entry.name}': no such grid: {grid}")
    if min(block) < 1 or threads > MOST_THREADS or block[2] > 64:
        raise PtxError(f"'{entry.name}': no such block: {block}")
    if entry.most_threads is not None and threads > entry.most_threads:
        raise PtxError(f"'{entry.name}': {threads} threads in a block, compiled for at most {entry.most_threads}")
    if entry.required_threads is not None and threads != entry.required_threads:
        raise PtxError(f"'{entry.name}': {threads} threads in a block, compiled for {entry.required_threads}")
    if entry.shared_bytes > MOST_STATIC_SHARED:
        raise PtxError(f"'{entry.name}': {entry.shared_bytes} bytes of static shared memory")
    parameters = pack(entry, arguments)
    statistics = Statistics(banks=banks)
    total = grid[0] * grid[1] * grid[2]
    together = max(1, lanes // (-(-threads // WARP) * WARP))
    with np.errstate(all="ignore"):
        for first in range(0, total, together):
            blocks = np.arange(first, min(total, first + together), dtype=np.int64)
            Batch(program, grid, block, blocks, parameters, memory, dynamic_shared, statistics).run()
    return statistics


class Batch:
    """Blocks that run together. Lanes are padded to whole warps; a padding lane has ended from the start."""

    def __init__(
        self,
        program: Program,
        grid: Dimensions,
        block: Dimensions,
        blocks: Array,
        parameters: Array,
        memory: Memory,
        dynamic_shared: int,
        statistics: Statistics,
    ) -> None:
        entry = program.entry
        self.program, self.memory, self.statistics = program, memory, statistics
        threads = block[0] * block[1] * block[2]
        self.width = -(-threads // WARP) * WARP  # lanes of a block
        self.blocks, self.count = blocks, len(blocks) * self.width
        self.thread = np.tile(np.arange(self.width, dtype=np.int64), len(blocks))
        self.block = np.repeat(np.arange(len(blocks), dtype=np.int64), self.width)
        self.lane = np.arange(self.count, dtype=np.int64)
        self.warp = self.lane // WARP
        self.special = self._specials(grid, block)
        shared = -(-entry.shared_bytes // 16) * 16 + dynamic_shared if dynamic_shared else entry.shared_bytes
        self.shared = SharedMemory(len(blocks), shared, program.grain)
        self.local = LocalMemory(self.count, entry.local_bytes, parameters)
        # Poisoned: what was never written reads as NaN or -1.
        self.registers = [
            np.zeros(self.count, np.bool_) if kind == "pred" else np.full(self.count, 2 ** TYPES[kind].bits - 1, d)
            for kind in entry.registers
            for d in [UNSIGNED.get(TYPES[kind].bits)]
        ]
        self.end = len(program.steps)
        self.pc = np.where(self.thread < threads, 0, self.end)
        self.padding = self.thread >= threads
        self.waiting = np.zeros(self.count, np.bool_)
        self.epoch = np.zeros(len(blocks), np.int32)  # barriers that each block has passed
        # cp.async: what is on its way to shared memory, and how many groups each lane has committed.
        self.copies: list[Copies] = []
        self.committed = np.zeros(self.count, np.int64)

    def _specials(self, grid: Dimensions, block: Dimensions) -> dict[str, Array]:
        thread, index = self.thread, np.repeat(self.blocks, self.width)
        values = {
            "%tid.x": thread % block[0],
            "%tid.y": thread // block[0] % block[1],
            "%tid.z": thread // (block[0] * block[1]),
            "%ctaid.x": index % grid[0],
            "%ctaid.y": index // grid[0] % grid[1],
            "%ctaid.z": index // (grid[0] * grid[1]),
            "%laneid": thread % WARP,
            "%warpid": thread // WARP,
        }
        for axis, extent, many in zip("xyz", block, grid, strict=True):
            values[f"%ntid.{axis}"] = np.full(self.count, extent)
            values[f"%nctaid.{axis}"] = np.full(self.count, many)
        return {name: value.astype(np.uint32) for name, value in values.items()}

    def where(self, lanes: Array, line: str) -> Where:
        def words(at: int) -> str:
            lane = int(lanes[at])
            block = int(self.blocks[self.block[lane]])
            return f"block {block} thread {int(self.thread[lane])}, source line {line}"

        return words

    def run(self) -> None:
        for count in itertools.count():
            if count > MOST_STEPS:
                raise PtxError(f"'{self.program.entry.name}' does not end")
            pc, waiting = self.pc, self.waiting
            ready = np.flatnonzero((pc < self.end) & ~waiting)
            if len(ready) == 0:
                if not waiting.any():
                    return
                self._release()
                continue
            positions = pc[ready]
            low = int(positions.min())
            here = positions == low
            lanes = ready if here.all() else ready[here]
            # Straight on until a branch, or until lanes elsewhere can join.
            stop = self.end if len(lanes) == len(ready) else int(positions[~here].min())
            self._straight(lanes, low, stop)

    def _straight(self, lanes: Array, pc: int, stop: int) -> None:
        warps = self.warp[lanes]
        warp_count = 1 + int(np.count_nonzero(warps[1:] != warps[:-1]))
        everyone = len(lanes) == self.count
        steps, statistics = self.program.steps, self.statistics
        while pc < stop:
            step = steps[pc]
            statistics.instructions += 1
            statistics.warp_instructions += warp_count
            active = None if everyone else lanes
            if step.guard is not None:
                wanted = step.guard(self, active)
                if not wanted.all():
                    active = np.flatnonzero(wanted) if everyone else lanes[wanted]
            if active is None or len(active):
                if step.control is not None:
                    step.control(self, self.lane if active is None else active, lanes, pc)
                    return
                step.execute(self, active)
            elif step.control is not None:
                self.pc[lanes] = pc + 1
                return
            pc += 1
        self.pc[lanes] = pc

    def _release(self) -> None:
        """Every lane that has not ended waits: let the blocks pass their barriers."""
        alive = (self.pc < self.end).reshape(-1, self.width)
        waiting, pc = self.waiting.reshape(-1, self.width), self.pc.reshape(-1, self.width)
        padding = self.padding.reshape(-1, self.width)
        for block in np.flatnonzero(waiting.any(1)):
            at = int(pc[block][waiting[block]][0]) - 1
            step = self.program.steps[at]
            if not (alive[block] | padding[block]).all():
                raise step.instruction.error(f"divergent barrier: threads of block {self.blocks[block]} have returned")
            if (pc[block][waiting[block]] != at + 1).any():
                raise step.instruction.error(f"divergent barrier: block {self.blocks[block]} waits at different ones")
            lanes = block * self.width + np.flatnonzero(waiting[block])
            if step.release is not None:
                step.release(self, lanes)
            self.waiting[lanes] = False
            self.epoch[block] += 1
