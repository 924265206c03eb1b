"""The memories of a launch: global buffers (arrays of the host, used in place), shared and local.

Every access is checked for its bounds and its alignment; shared memory also for races between warps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .statistics import SECTOR
from .values import UNSIGNED, Array, PtxError

# Generic addresses: the space is told by bits that no address of the host has.
WINDOWS = {"shared": 1 << 56, "local": 2 << 56, "param": 3 << 56}
WINDOW_SHIFT = np.uint64(56)

Where = Callable[[int], str]  # the i-th of the accessing threads, in words


class Buffer:
    def __init__(self, name: str, array: Array, read_only: bool) -> None:
        self.read_only = read_only
        flat = array.reshape(-1).view(np.uint8) if array.ndim != 1 else array.view(np.uint8)
        if not np.shares_memory(flat, array):
            raise ValueError(f"buffer '{name}' is not contiguous")
        self.name, self.bytes = name, flat
        self.start, self.size = flat.ctypes.data, flat.nbytes
        self.views = {1: flat}
        for width in (2, 4, 8):
            if self.start % width == 0:
                self.views[width] = flat[: self.size // width * width].view(UNSIGNED[8 * width])
        sectors = (self.start + self.size - 1) // SECTOR - self.start // SECTOR + 1
        self.touched = {"ld": np.zeros(sectors, np.bool_), "st": np.zeros(sectors, np.bool_)}

    def holds(self, low: int, high: int) -> bool:
        return low >= self.start and high <= self.start + self.size

    def mark(self, kind: str, addresses: Array) -> None:
        sectors = ((addresses >> np.uint64(5)) - np.uint64(self.start // SECTOR)).astype(np.int64)
        for one in ("ld", "st") if kind == "atom" else (kind,):
            self.touched[one][sectors] = True


class Memory:
    """What a kernel may touch. Arrays must stay alive and in place; a kernel's results appear in them."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self._starts: Array = np.zeros(0, np.uint64)
        self._last: Buffer | None = None

    def add(self, name: str, array: Array, read_only: bool = False) -> int:
        """The array's address. Arrays may not overlap."""
        if array.nbytes == 0:
            return int(array.ctypes.data)
        buffer = Buffer(name, array, read_only)
        for other in self.buffers:
            if buffer.start < other.start + other.size and other.start < buffer.start + buffer.size:
                raise ValueError(f"buffers '{name}' and '{other.name}' overlap")
        self.buffers.append(buffer)
        self.buffers.sort(key=lambda b: b.start)
        self._starts = np.array([b.start for b in self.buffers], np.uint64)
        return buffer.start

    def forget(self) -> None:
        """Starts counting what is touched anew."""
        for buffer in self.buffers:
            for touched in buffer.touched.values():
                touched[:] = False

    def touched_bytes(self) -> tuple[int, int]:
        """Whole sectors loaded and stored since ``forget``, each counted once."""
        loaded, stored = (sum(int(b.touched[k].sum()) for b in self.buffers) * SECTOR for k in ("ld", "st"))
        return loaded, stored

    def parts(
        self, addresses: Array, width: int, where: Where, write: bool = False
    ) -> list[tuple[Buffer, Array | slice]]:
        """The buffers that the accesses lie in, each with the indices of its accesses; checked."""
        found = self._find(addresses, width, where)
        for buffer, which in found if write else ():
            if buffer.read_only:
                at = 0 if isinstance(which, slice) else int(which[0])
                raise PtxError(f"a write to '{buffer.name}', which is only to be read; {where(at)}")
        return found

    def _find(self, addresses: Array, width: int, where: Where) -> list[tuple[Buffer, Array | slice]]:
        misaligned = addresses & np.uint64(width - 1)
        if misaligned.any():
            at = int(np.flatnonzero(misaligned)[0])
            raise PtxError(f"misaligned: {width}-byte access at address {int(addresses[at]):#x}; {where(at)}")
        low, high = int(addresses.min()), int(addresses.max()) + width
        if self._last is None or not self._last.holds(low, high):
            self._last = next((b for b in self.buffers if b.holds(low, high)), None)
        if self._last is not None:
            return [(self._last, slice(None))]
        index = np.searchsorted(self._starts, addresses, "right").astype(np.int64) - 1
        found = []
        for k in np.unique(index):
            buffer, of_buffer = self.buffers[max(int(k), 0)], np.flatnonzero(index == k)
            ends = addresses[of_buffer] + np.uint64(width)
            outside = (ends > np.uint64(buffer.start + buffer.size)) | (k < 0)
            if outside.any():
                at = int(of_buffer[np.flatnonzero(outside)[0]])
                distance = int(addresses[at]) - buffer.start
                raise PtxError(
                    f"out of bounds: {width}-byte access {distance} bytes from the start of '{buffer.name}' "
                    f"({buffer.size} bytes); {where(at)}"
                )
            found.append((buffer, of_buffer))
        return found

    def load(self, addresses: Array, width: int, count: int, where: Where) -> list[Array]:
        """``count`` unsigned integers of ``width`` bytes from each address."""
        values = [np.empty(len(addresses), UNSIGNED[8 * width]) for _ in range(count)]
        for buffer, which in self.parts(addresses, width * count, where):
            offsets = (addresses[which] - np.uint64(buffer.start)).astype(np.int64)
            buffer.mark("ld", addresses[which])
            view = buffer.views.get(width)
            for k in range(count):
                if view is not None:
                    values[k][which] = view[offsets // width + k]
                else:
                    gathered = buffer.bytes[(offsets + width * k)[:, None] + np.arange(width)]
                    values[k][which] = gathered.view(UNSIGNED[8 * width])[:, 0]
        return values

    def store(self, addresses: Array, values: list[Array], where: Where) -> None:
        width = values[0].dtype.itemsize
        for buffer, which in self.parts(addresses, width * len(values), where, write=True):
            offsets = (addresses[which] - np.uint64(buffer.start)).astype(np.int64)
            buffer.mark("st", addresses[which])
            view = buffer.views.get(width)
            for k, value in enumerate(values):
                if view is not None:
                    view[offsets // width + k] = value[which]
                else:
                    flat = np.ascontiguousarray(value[which]).view(np.uint8).reshape(-1, width)
                    buffer.bytes[(offsets + width * k)[:, None] + np.arange(width)] = flat


_NOBODY, _MANY = -1, -2
_NO_THREADS = np.zeros(0, np.int64)


class SharedMemory:
    """The shared memories of the blocks that run together, poisoned at the start.

    Races: two warps of a block touch the same bytes without a barrier between, one of them writing, not both
    atomically. ``grain`` is the narrowest access of the kernel: finer than that nothing needs telling apart.
    """

    def __init__(self, blocks: int, size: int, grain: int) -> None:
        self.size, self.stride = size, -(-max(size, 16) // 16) * 16
        self.bytes = np.full(blocks * self.stride, 0xFF, np.uint8)
        self.views = {w: self.bytes.view(UNSIGNED[8 * w]) for w in (1, 2, 4, 8)}
        self.grain = grain
        grains = len(self.bytes) // grain
        # Who read, wrote or updated atomically since the barrier of that epoch: one warp, or many.
        self.epochs = {kind: np.full(grains, -1, np.int32) for kind in ("ld", "st", "atom")}
        self.warps = {kind: np.full(grains, _NOBODY, np.int32) for kind in ("ld", "st", "atom")}
        self.seen: set[str] = set()

    def place(self, offsets: Array, blocks: Array, width: int, where: Where) -> Array:
        """Checked offsets -> positions in ``bytes``."""
        misaligned, outside = offsets % width != 0, (offsets < 0) | (offsets + width > self.size)
        if misaligned.any() or outside.any():
            at = int(np.flatnonzero(misaligned | outside)[0])
            word = "out of bounds" if outside[at] else "misaligned"
            raise PtxError(
                f"{word}: {width}-byte access to shared memory at {int(offsets[at])} of {self.size} bytes; {where(at)}"
            )
        return offsets + blocks * self.stride

    def check_race(
        self,
        kind: str,
        places: Array,
        width: int,
        epochs: Array,
        warps: Array,
        where: Where,
        harmless: Array | None = None,
    ) -> Array:
        """Raises for a race with what came before; marks the access.

        Args:
            kind: ld, st or atom.
            harmless: which threads write what stands there already: two warps may write the same value.

        Returns:
            The threads of a store whose bytes another warp writes in this very instruction.
        """
        grains = places // self.grain
        threads = np.arange(len(places))
        if width > self.grain:
            pieces = width // self.grain
            grains = (grains[:, None] + np.arange(pieces)).ravel()
            epochs, warps, threads = (np.repeat(v, pieces) for v in (epochs, warps, threads))
        for other in {"ld": ("st", "atom"), "st": ("ld", "st", "atom"), "atom": ("ld", "st")}[kind]:
            if other not in self.seen:
                continue
            clash = (self.epochs[other][grains] == epochs) & (self.warps[other][grains] != warps)
            if other == "st" and harmless is not None:
                clash &= ~harmless[threads]
            if clash.any():
                self.race(kind, other, int(threads[np.flatnonzero(clash)[0]]), places, where)
        self.seen.add(kind)
        mine, of_epoch = self.warps[kind], self.epochs[kind]
        earlier = (of_epoch[grains] == epochs) & (mine[grains] != warps)
        of_epoch[grains] = epochs
        mine[grains] = warps
        together = mine[grains] != warps
        shared = earlier | together
        if shared.any():
            mine[grains[shared]] = _MANY
        return np.unique(threads[together]) if kind == "st" and together.any() else _NO_THREADS

    def race(self, kind: str, other: str, thread: int, places: Array, where: Where) -> None:
        words = {"ld": "read", "st": "write", "atom": "atomic update"}
        raise PtxError(
            f"race: a {words[kind]} of shared memory at {int(places[thread]) % self.stride} and a {words[other]} "
            f"by another warp, no barrier between; {where(thread)}"
        )

    def load(self, places: Array, width: int, count: int) -> list[Array]:
        return [self.views[width][places // width + k] for k in range(count)]

    def store(self, places: Array, values: list[Array]) -> None:
        width = values[0].dtype.itemsize
        for k, value in enumerate(values):
            self.views[width][places // width + k] = value

    def holds(self, places: Array, values: list[Array]) -> Array:
        """Which threads' values stand in memory already."""
        width = values[0].dtype.itemsize
        found = self.load(places, width, len(values))
        return np.logical_and.reduce([old == new for old, new in zip(found, values, strict=True)])


class LocalMemory:
    """Each thread's own memory, and the launch's parameters as every thread sees them."""

    def __init__(self, threads: int, size: int, parameters: Array) -> None:
        self.size = size
        self.stride = -(-max(size, 16) // 16) * 16
        self.bytes = np.full(threads * self.stride, 0xFF, np.uint8)
        # Spare bytes, so that views of every width exist.
        self.parameter_size = len(parameters)
        self.parameters = np.zeros(len(parameters) + 16 - len(parameters) % 16, np.uint8)
        self.parameters[: len(parameters)] = parameters

    def place(self, space: str, offsets: Array, threads: Array, width: int, where: Where) -> tuple[Array, Array]:
        """Checked offsets -> the bytes of the space and the positions in them."""
        size = self.size if space == "local" else self.parameter_size
        bad = (offsets % width != 0) | (offsets < 0) | (offsets + width > size)
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise PtxError(
                f"out of bounds or misaligned: {width}-byte access to {space} memory at {int(offsets[at])} "
                f"of {size} bytes; {where(at)}"
            )
        if space == "local":
            return self.bytes, offsets + threads * self.stride
        return self.parameters, offsets

    def load(self, space: str, offsets: Array, threads: Array, width: int, count: int, where: Where) -> list[Array]:
        memory, places = self.place(space, offsets, threads, width * count, where)
        view = memory.view(UNSIGNED[8 * width])
        return [view[places // width + k] for k in range(count)]

    def store(self, space: str, offsets: Array, threads: Array, values: list[Array], where: Where) -> None:
        if space != "local":
            raise PtxError(f"a store to {space} memory; {where(0)}")
        width = values[0].dtype.itemsize
        memory, places = self.place(space, offsets, threads, width * len(values), where)
        view = memory.view(UNSIGNED[8 * width])
        for k, value in enumerate(values):
            view[places // width + k] = value
