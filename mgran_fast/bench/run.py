"""Runs races of the suite: the answers of the first round are compared before there is another."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch

from mgran_fast.bench import paired, record
from mgran_fast.bench.case import OURS, Case, DifferentAnswerError, Setting

#: Of a race whose case does not say so.
LEAST, MOST = 5, 101
#: Seconds of a race after which it ends with fewer rounds than its case asks for.
PATIENCE = 20.0
#: Seconds of a call that no peer is asked for where a smaller one says that it would take longer.
LONGEST = 30.0


def run(case: Case, setting: Setting, seconds: float = 1.5) -> tuple[record.Row, dict[str, paired.Timing]]:
    """Prepare, compare and time one race.

    Returns:
        A result as :mod:`mgran_fast.bench.record` describes it, and every round's time.

    Raises:
        DifferentAnswerError: a contestant computes something else than ours.
    """
    device = setting.device.type
    all_ = {name: case.why_not(name, device) or _too_slow(case, setting, name) for name in case.contestants}
    gone = {name: why for name, why in all_.items() if why}
    names = [name for name in case.contestants if name not in gone]
    with _threads(case.threads) as threads, warnings.catch_warnings():
        # What compilers, exporters and quantisers of other projects have to say is not ours to mend.
        warnings.simplefilter("ignore")
        with redirect_stdout(io.StringIO()):
            prepared = case.make(setting, names)
        contestants = {name: prepared.contestants[name] for name in names if name in prepared.contestants}
        warm_up, least, most = case.rounds or (None, LEAST, MOST)
        timings = paired.race(
            contestants, seconds=seconds, least=least, most=most, warm_up=warm_up,
            first=_comparison(case, prepared.alike), patience=PATIENCE, clock=paired.clock_of(setting.device),
        )  # fmt: skip
    if case.axis:
        setting.paces |= {(case.name, case.threads, name): one.median / case.size for name, one in timings.items()}
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


def _too_slow(case: Case, setting: Setting, contestant: str) -> str:
    """Of a curve, whose races go from small to large; ours is spared nothing."""
    expected = setting.paces.get((case.name, case.threads, contestant), 0.0) * case.size
    if contestant == OURS or expected <= LONGEST:
        return ""
    return f"{case.size} {case.axis} would take it about {expected:.0f} s, and {LONGEST:.0f} s is the most"


def _comparison(case: Case, alike: Callable[[Any, Any], bool] | None) -> Callable[[Mapping[str, Any]], None] | None:
    if alike is None:
        return None

    def compare(answers: Mapping[str, Any]) -> None:
        for name, theirs in answers.items():
            if name != OURS and not alike(answers[OURS], theirs):
                raise DifferentAnswerError(f"{case.title}: {name} computes something else than ours")

    return compare


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
