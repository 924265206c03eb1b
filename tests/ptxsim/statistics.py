"""What a launch moved and executed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from .values import Array

SECTOR = 32  # bytes: the unit in which caches and memory move


@dataclass
class Traffic:
    """The accesses of one source line, kind and width to global memory."""

    accesses: int = 0  # threads
    requests: int = 0  # warps
    bytes: int = 0  # asked for
    sectors: int = 0  # touched, each once a request

    @property
    def efficiency(self) -> float:
        """The share of the moved bytes that was asked for; over 1 where threads of a warp share bytes."""
        return self.bytes / (SECTOR * self.sectors) if self.sectors else 1.0


@dataclass
class Statistics:
    banks: bool = False  # count the conflicts of shared memory's banks, which is slow
    instructions: int = 0  # steps of the simulator
    warp_instructions: int = 0
    traffic: dict[tuple[str, str, int], Traffic] = field(default_factory=lambda: defaultdict(Traffic))
    # By source line: requests to shared memory, and the passes over its 32 banks that they take.
    shared: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))

    def count(self, line: str, kind: str, width: int, addresses: Array, warps: Array) -> None:
        """One instruction's access: ``kind`` ld, st or atom; addresses uint64 and warps int64 of its threads."""
        # A warp's sectors as one number: addresses have 47 bits.
        keys = (addresses >> np.uint64(5)).astype(np.int64) | (warps << np.int64(44))
        traffic = self.traffic[(line, kind, width)]
        traffic.accesses += len(addresses)
        traffic.requests += _distinct(warps)
        traffic.bytes += width * len(addresses)
        traffic.sectors += _distinct(keys)

    def count_shared(self, line: str, width: int, places: Array, lanes: Array) -> None:
        """Bank conflicts: 32 banks of 4 bytes; 8- and 16-byte accesses go in halves and quarters of a warp."""
        if not self.banks:
            return
        words, parts = places // 4, lanes // (32 if width <= 4 else 128 // width)
        if width > 4:
            words = (words[:, None] + np.arange(width // 4)).ravel()
            parts = np.repeat(parts, width // 4)
        distinct = np.unique(parts * (1 << 24) + words)  # Threads that share a word take it together.
        bank_keys, counts = np.unique((distinct >> 24) * 32 + distinct % 32, return_counts=True)
        groups = bank_keys // 32
        first = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]])
        worst = np.maximum.reduceat(counts, first)
        entry = self.shared[line]
        entry[0] += len(worst)
        entry[1] += int(worst.sum())

    def total(self, kinds: tuple[str, ...] = ("ld", "st", "atom")) -> Traffic:
        result = Traffic()
        for (_, kind, _), traffic in self.traffic.items():
            if kind in kinds:
                result.accesses += traffic.accesses
                result.requests += traffic.requests
                result.bytes += traffic.bytes
                result.sectors += traffic.sectors
        return result


def _distinct(keys: Array) -> int:
    if len(keys) == 0:
        return 0
    steps = keys[1:] - keys[:-1]
    if (steps < 0).any():
        return len(np.unique(keys))
    return 1 + int(np.count_nonzero(steps))
