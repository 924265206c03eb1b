"""Runs races of the suite: answers are compared before anything is timed."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch

from mgran_fast.bench import paired, record
from mgran_fast.bench.case import OURS, Case, DifferentAnswerError, Setting

#: Of a race whose case does not say so.
LEAST, MOST = 5, 101


def run(case: Case, setting: Setting, seconds: float = 1.5) -> tuple[record.Row, dict[str, paired.Timing]]:
    """Prepare, compare and time one race.

    Returns:
        A result as :mod:`mgran_fast.bench.record` describes it, and every round's time.

    Raises:
        DifferentAnswerError: a contestant computes something else than ours.
    """
    device = setting.device.type
    gone = {name: why for name in case.contestants if (why := case.why_not(name, device))}
    names = [name for name in case.contestants if name not in gone]
    with _threads(case.threads) as threads, warnings.catch_warnings():
        # What compilers, exporters and quantisers of other projects have to say is not ours to mend.
        warnings.simplefilter("ignore")
        with redirect_stdout(io.StringIO()):
            prepared = case.make(setting, names)
        contestants = {name: prepared.contestants[name] for name in names if name in prepared.contestants}
        _compare(case, contestants, prepared.alike)
        warm_up, least, most = case.rounds or (None, LEAST, MOST)
        timings = paired.race(
            contestants, seconds=seconds, least=least, most=most, warm_up=warm_up, clock=paired.clock_of(setting.device)
        )
    made = record.row(case.name, threads, timings, count=prepared.count)
    made |= {"group": case.group, "at": dict(case.at)}
    made |= {"left out": gone} if gone else {}
    for name in ("operations", "bytes"):
        if getattr(prepared, name) is not None:
            made[name] = getattr(prepared, name)
    return made, timings


def run_all(
    cases: Iterable[Case], setting: Setting, seconds: float = 1.5, said: Callable[[record.Row], None] | None = None
) -> list[record.Row]:
    """All of them, one after another; those whose own side cannot run are left out. ``said`` is called with each."""
    rows = []
    for case in cases:
        if case.why_not(OURS, setting.device.type):
            continue
        made, _ = run(case, setting, seconds)
        rows.append(made)
        if said is not None:
            said(made)
    return rows


def _compare(
    case: Case, contestants: dict[str, Callable[[], object]], alike: Callable[[Any, Any], bool] | None
) -> None:
    if alike is None:
        return
    ours = contestants[OURS]()
    for name, other in contestants.items():
        if name != OURS and not alike(ours, other()):
            raise DifferentAnswerError(f"{case.title}: {name} computes something else than ours")


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
