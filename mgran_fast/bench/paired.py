"""Side-by-side timing: the contestants take turns in one run, so that what disturbs one disturbs the others."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: Rounds that are not counted: first calls allocate, load and page in.
WARM_UP = 2


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant, one figure a round.

    Attributes:
        rounds: the seconds of every round.
    """

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.rounds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def race(
    contestants: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 4.0,
    least: int = 9,
    most: int = 101,
    warm_each: bool = False,
) -> dict[str, Timing]:
    """Time all contestants in turns: every round runs each of them once, and starts with another one.

    Rounds go on for ``seconds``, at least ``least`` and at most ``most``. Python's garbage collector waits until the
    end. What a contestant returns is dropped before the next one's turn. ``warm_each``: in each turn once more before,
    without counting, for what runs many times in a row elsewhere: who had the turn before has taken the caches.
    """
    names = list(contestants)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(WARM_UP):
        for run in contestants.values():
            run()
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for turn in range(most):
            if turn >= least and time.perf_counter() - start > seconds:
                break
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                run = contestants[name]
                if warm_each:
                    run()
                before = time.perf_counter()
                result = run()
                taken[name].append(time.perf_counter() - before)
                del result
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(rounds)) for name, rounds in taken.items()}


def ratio(peer: Timing, ours: Timing) -> float:
    """How many times longer the peer takes: the median over the rounds of peer / ours in the same round."""
    return statistics.median(p / o for p, o in zip(peer.rounds, ours.rounds, strict=True))


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks of any size for the next call; False where the C library is another one."""
    most_mapped, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    try:
        library = ctypes.CDLL("libc.so.6")
    except OSError:
        return False
    return bool(library.mallopt(most_mapped, 0)) and bool(library.mallopt(trim_threshold, 2**31 - 1))
