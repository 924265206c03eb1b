"""Side-by-side timing: the contestants take turns in one run, so that what disturbs one disturbs the others."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

#: Takes what is to be timed, calls it, and tells the seconds.
Clock = Callable[[Callable[[], object]], float]
#: Rounds that are not counted: first calls allocate, load and page in.
WARM_UP = 2
#: Rounds that are counted however long they take.
ENOUGH = 2


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


def host_clock(run: Callable[[], object]) -> float:
    """Seconds of the host, until the call returns. What it returns is dropped after the time was taken."""
    before = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - before
    del result
    return seconds


class DeviceClock:
    """Seconds of a CUDA device, from the call's first launch to its last, by events.

    The device is idle before the call, and its L2 cache holds nothing of the call's: ``flush`` bytes were written
    since. What launches slowly leaves gaps, which count.
    """

    def __init__(self, device: torch.device, flush: int = 256 << 20) -> None:
        self._flush = torch.empty(flush, dtype=torch.uint8, device=device)
        self._device = device

    def __call__(self, run: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        torch.cuda.synchronize(self._device)
        start.record()
        result = run()
        end.record()
        end.synchronize()
        del result
        return float(start.elapsed_time(end)) / 1e3


def clock_of(device: torch.device) -> Clock:
    """What times calls on this device."""
    return DeviceClock(device) if device.type == "cuda" else host_clock


def race(
    contestants: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 4.0,
    least: int = 9,
    most: int = 101,
    warm_each: bool = False,
    warm_up: int | None = None,
    first: Callable[[Mapping[str, Any]], None] | None = None,
    patience: float = math.inf,
    clock: Clock = host_clock,
) -> dict[str, Timing]:
    """Time all contestants in turns: every round runs each of them once, and starts with another one.

    Rounds go on for ``seconds``, at least ``least`` and at most ``most``. Python's garbage collector waits until the
    end. What a contestant returns is dropped before the next one's turn. ``warm_each``: in each turn once more before,
    without counting, for what runs many times in a row elsewhere: who had the turn before has taken the caches.
    ``warm_up``: rounds that are not counted, WARM_UP by default. ``first`` is called once, with what each returned in
    the very first round, counted or not: those are kept for so long. ``patience``: seconds after which two rounds are
    enough, whatever ``least`` says. ``clock``: how a call is timed.
    """
    names = list(contestants)
    answers: dict[str, Any] = {}
    runs = contestants if first is None else {name: _keeping(contestants, name, answers) for name in names}

    def told() -> Mapping[str, Callable[[], object]]:
        if first is not None and answers:
            first(answers)
            answers.clear()
        return contestants

    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(WARM_UP if warm_up is None else warm_up):
        for run in runs.values():
            run()
        runs = told()
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for turn in range(most):
            gone = time.perf_counter() - start
            if (turn >= least and gone > seconds) or (turn >= ENOUGH and gone > patience):
                break
            begins = turn % len(names)
            for name in names[begins:] + names[:begins]:
                run = runs[name]
                if warm_each:
                    run()
                taken[name].append(clock(run))
            runs = told()
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(rounds)) for name, rounds in taken.items()}


def _keeping(
    contestants: Mapping[str, Callable[[], object]], name: str, answers: dict[str, Any]
) -> Callable[[], object]:
    def run() -> object:
        answers[name] = found = contestants[name]()
        return found

    return run


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
