"""Loads, stores and atomic updates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .decode import Decoding, Lanes, Step, instruction
from .memory import WINDOW_SHIFT, WINDOWS
from .parser import Address, Entry, Operand, Pair, Register, Sink, Symbol, Vector
from .values import BITS, INTEGERS, TYPES, Array, PtxType

if TYPE_CHECKING:
    from .machine import Batch

LOADABLE = BITS | INTEGERS | {"b8", "u8", "s8", "f32", "f64"}
# How long to keep what in which cache: nothing that a result depends on.
CACHE = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc")
LEVELS = ("L1::no_allocate", "L1::evict_first", "L1::evict_last", "L2::64B", "L2::128B", "L2::256B")
SPACES = ("global", "shared", "shared::cta", "local", "param")
WINDOW_SPACES = {start >> int(WINDOW_SHIFT): space for space, start in WINDOWS.items()}


def _space(d: Decoding) -> str:
    return d.choice(*SPACES, default="generic").removesuffix("::cta")


def by_space(space: str, active: Array, addresses: Array) -> list[tuple[str, Array | slice, Array]]:
    """(space, indices, addresses in that space); generic addresses are told apart by their windows."""
    if space != "generic":
        return [(space, slice(None), addresses)]
    windows = addresses >> WINDOW_SHIFT
    found: list[tuple[str, Array | slice, Array]] = []
    for number in np.unique(windows):
        which = np.flatnonzero(windows == number)
        offsets = addresses[which] - (number << WINDOW_SHIFT)
        name = WINDOW_SPACES.get(int(number), "global")
        found.append((name, which, offsets if name == "global" else offsets.astype(np.int64)))
    return found


def load(batch: Batch, active: Array, space: str, addresses: Array, width: int, count: int, line: str) -> list[Array]:
    where = batch.where(active, line)
    if space == "global":
        batch.statistics.count(line, "ld", width * count, addresses, batch.warp[active])
        return batch.memory.load(addresses, width, count, where)
    if space == "shared":
        places, _ = _shared(batch, "ld", active, addresses, width * count, line)
        return batch.shared.load(places, width, count)
    return batch.local.load(space, addresses, active, width, count, where)


def store(batch: Batch, active: Array, space: str, addresses: Array, values: list[Array], line: str) -> None:
    where = batch.where(active, line)
    width = values[0].dtype.itemsize * len(values)
    if space == "global":
        batch.statistics.count(line, "st", width, addresses, batch.warp[active])
        batch.memory.store(addresses, values, where)
    elif space == "shared":
        _store_shared(batch, active, addresses, values, line)
    else:
        batch.local.store(space, addresses, active, values, where)


def _shared(
    batch: Batch, kind: str, active: Array, offsets: Array, width: int, line: str, values: list[Array] | None = None
) -> tuple[Array, Array]:
    """Checks and counts an access: its places, and the threads of a store that write together with other warps."""
    where, blocks, warps = batch.where(active, line), batch.block[active], batch.warp[active]
    shared = batch.shared
    places = shared.place(offsets, blocks, width, where)
    harmless = None if values is None else shared.holds(places, values)
    together = shared.check_race(kind, places, width, batch.epoch[blocks], warps, where, harmless)
    batch.statistics.count_shared(line, width, places, active)
    return places, together


def _store_shared(batch: Batch, active: Array, offsets: Array, values: list[Array], line: str) -> None:
    width = values[0].dtype.itemsize * len(values)
    places, together = _shared(batch, "st", active, offsets, width, line, values)
    batch.shared.store(places, values)
    if len(together):
        lost = ~batch.shared.holds(places[together], [value[together] for value in values])
        if lost.any():
            batch.shared.race("st", "st", int(together[lost.argmax()]), places, batch.where(active, line))


def shared_place(batch: Batch, active: Array, offsets: Array, width: int, line: str) -> None:
    """Checks a write of shared memory that is to come: bounds, alignment and races."""
    where, blocks, warps = batch.where(active, line), batch.block[active], batch.warp[active]
    places = batch.shared.place(offsets, blocks, width, where)
    batch.shared.check_race("st", places, width, batch.epoch[blocks], warps, where)


def _active(batch: Batch, lanes: Lanes) -> Array:
    return batch.lane if lanes is None else lanes


def _shared_width(space: str, width: int) -> int:
    return width if space in ("shared", "generic") else 0


@instruction("ld")
def _load(d: Decoding) -> Step:
    kind, space, count = _access(d)
    d.ignore("nc")
    d.done(2)
    address = d.address(1, space)
    writes = [d.extending_writer(item, kind) for item in d.items(0, count)]
    line, width, dtype = d.instruction.line, kind.bytes, kind.dtype

    def execute(batch: Batch, lanes: Lanes) -> None:
        active, addresses = _active(batch, lanes), address(batch, lanes)
        parts = by_space(space, active, addresses)
        if len(parts) == 1:
            values = load(batch, active, parts[0][0], parts[0][2], width, count, line)
        else:
            values = [np.empty(len(active), TYPES[f"u{8 * width}"].dtype) for _ in range(count)]
            for where, which, offsets in parts:
                some = load(batch, active[which], where, offsets, width, count, line)
                for value, part in zip(values, some, strict=True):
                    value[which] = part
        for write, value in zip(writes, values, strict=True):
            write(batch, lanes, value.view(dtype))

    return Step(d.instruction, execute, shared_width=_shared_width(space, width))


def _access(d: Decoding) -> tuple[PtxType, str, int]:
    """Type, space and number of elements of a load or a store; whatever only concerns caches is dropped."""
    kind = d.type(LOADABLE)
    count = int(d.choice("v2", "v4", default="v1")[1])
    if count * kind.bytes > 16:
        raise d.error()
    d.ignore(*CACHE, *LEVELS, "volatile", "weak")
    return kind, _space(d), count


@instruction("st")
def _store(d: Decoding) -> Step:
    kind, space, count = _access(d)
    if space == "param":
        raise d.error()
    d.done(2)
    address = d.address(0, space)
    reads = [d.reader(item, kind, wider=True) for item in d.items(1, count)]
    line, width, unsigned = d.instruction.line, kind.bytes, TYPES[f"u{kind.bits}"].dtype

    def execute(batch: Batch, lanes: Lanes) -> None:
        active, addresses = _active(batch, lanes), address(batch, lanes)
        values = [np.broadcast_to(read(batch, lanes).view(unsigned), active.shape) for read in reads]
        for where, which, offsets in by_space(space, active, addresses):
            store(batch, active[which], where, offsets, [value[which] for value in values], line)

    return Step(d.instruction, execute, shared_width=_shared_width(space, width))


ATOMIC_TYPES = {
    "add": {"u32", "s32", "u64", "f32", "f64"},
    "min": {"u32", "s32", "u64", "s64"},
    "max": {"u32", "s32", "u64", "s64"},
    "and": {"b32", "b64"},
    "or": {"b32", "b64"},
    "xor": {"b32", "b64"},
    "exch": {"b32", "b64"},
    "cas": {"b32", "b64"},
}
UPDATES: dict[str, np.ufunc] = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


@instruction("atom", "red")
def _atomic(d: Decoding) -> Step:
    kind = d.type(set().union(*ATOMIC_TYPES.values()))
    operation = d.choice(*ATOMIC_TYPES)
    if kind.name not in ATOMIC_TYPES[operation]:
        raise d.error()
    d.ignore("relaxed", "acquire", "release", "acq_rel")
    d.ignore("cta", "gpu", "sys")
    space = _space(d)
    if space in ("local", "param"):
        raise d.error()
    has_result = d.instruction.opcode == "atom"
    first = 1 if has_result else 0
    d.done(first + (3 if operation == "cas" else 2))
    wanted = has_result and is_read(d.entry, d.operands[0])
    write = d.write(0, kind) if wanted else None
    address = d.address(first, space)
    reads = [d.reader(o, kind) for o in d.operands[first + 1 :]]
    line, dtype = d.instruction.line, kind.dtype

    def execute(batch: Batch, lanes: Lanes) -> None:
        active, addresses = _active(batch, lanes), address(batch, lanes)
        values = [np.broadcast_to(read(batch, lanes), active.shape) for read in reads]
        before = np.empty(len(active), dtype)
        for where, which, offsets in by_space(space, active, addresses):
            some = [value[which] for value in values]
            for view, index, of_view in _cells(batch, active[which], where, offsets, kind, line):
                before_some = _update(view, index, operation, [value[of_view] for value in some], write is not None)
                if write is not None:
                    before[np.arange(len(active))[which][of_view]] = before_some
        if write is not None:
            write(batch, lanes, before)

    return Step(d.instruction, execute, shared_width=_shared_width(space, kind.bytes))


def _cells(
    batch: Batch, active: Array, space: str, addresses: Array, kind: PtxType, line: str
) -> list[tuple[Array, Array, Array | slice]]:
    """(array of the type, index of each access in it, which accesses)."""
    width = kind.bytes
    if space == "shared":
        places, _ = _shared(batch, "atom", active, addresses, width, line)
        return [(batch.shared.views[width].view(kind.dtype), places // width, slice(None))]
    batch.statistics.count(line, "atom", width, addresses, batch.warp[active])
    cells = []
    for buffer, which in batch.memory.parts(addresses, width, batch.where(active, line), write=True):
        buffer.mark("atom", addresses[which])
        skip = -buffer.start % width  # the first cell that is aligned
        view = buffer.bytes[skip : skip + (buffer.size - skip) // width * width].view(kind.dtype)
        offsets = (addresses[which] - np.uint64(buffer.start)).astype(np.int64) - skip
        cells.append((view, offsets // width, which))
    return cells


def _update(view: Array, index: Array, operation: str, values: list[Array], wants_result: bool) -> Array | None:
    """One thread after the other, in the order of the lanes; the values before where they are wanted."""
    if not wants_result and operation in UPDATES:
        UPDATES[operation].at(view, index, values[0])
        return None
    before = np.empty(len(index), view.dtype)
    for i, cell in enumerate(index.tolist()):
        before[i] = view[cell]
        if operation == "exch":
            view[cell] = values[0][i]
        elif operation == "cas":
            if before[i] == values[0][i]:
                view[cell] = values[1][i]
        else:
            view[cell] = UPDATES[operation](view[cell], values[0][i])
    return before


def is_read(entry: Entry, operand: Operand) -> bool:
    """Whether any instruction reads the register: an atom whose result nobody reads is a red."""
    if isinstance(operand, Sink):
        return False
    if not isinstance(operand, Register):
        return True
    return operand.slot in _read_slots(entry)


def _read_slots(entry: Entry) -> set[int]:
    if entry.read_slots is None:
        entry.read_slots = set()
        for one in entry.instructions:
            sources = list(one.operands)
            # The first operand is the destination, except of those that have none.
            if sources and isinstance(sources[0], (Register, Pair, Vector)) and one.opcode not in ("bar", "barrier"):
                sources = sources[1:]
            if one.guard is not None:
                sources.append(one.guard)
            for source in sources:
                entry.read_slots.update(_slots(source))
    return entry.read_slots


def _slots(operand: Operand) -> list[int]:
    if isinstance(operand, Register):
        return [operand.slot]
    if isinstance(operand, Vector):
        return [slot for item in operand.items for slot in _slots(item)]
    inner = operand.base if isinstance(operand, Address) else getattr(operand, "register", None)
    return [] if inner is None or isinstance(inner, Symbol) else _slots(inner)
