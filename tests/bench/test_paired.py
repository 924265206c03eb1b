"""Races take turns, and clocks tell what they should."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from mgran_fast.bench import paired
from mgran_fast.bench.paired import DeviceClock, Timing, host_clock, race, ratio


def test_a_race_takes_turns() -> None:
    seen: list[str] = []
    timings = race({"ours": lambda: seen.append("a"), "other": lambda: seen.append("b")}, seconds=0, least=4)
    assert len(timings["ours"].rounds) == len(timings["other"].rounds) == 4
    # Two rounds to warm up, and every round begins with another one.
    assert "".join(seen[4:]) == "abbaabba"
    assert ratio(timings["ours"], timings["ours"]) == 1


def test_rounds_that_are_not_counted() -> None:
    seen: list[int] = []
    race({"ours": lambda: seen.append(0)}, seconds=0, least=3, most=3, warm_up=0)
    assert len(seen) == 3


@pytest.mark.parametrize("warm_up", [0, 1, 2])
def test_answers_of_the_first_round_are_told_once(warm_up: int) -> None:
    told: list[tuple[int, dict[str, object]]] = []
    calls: list[str] = []

    def contestant(name: str) -> Callable[[], int]:
        def run() -> int:
            calls.append(name)
            return len(calls)

        return run

    timings = race(
        {name: contestant(name) for name in ("ours", "other")}, seconds=0, least=3, most=3, warm_up=warm_up,
        first=lambda answers: told.append((len(calls), dict(answers))),
    )  # fmt: skip
    assert told == [(2, {"ours": 1, "other": 2})]
    assert len(calls) == 2 * (warm_up + 3)
    assert len(timings["ours"].rounds) == 3


def test_what_first_raises_ends_the_race() -> None:
    def refuse(answers: object) -> None:
        raise ValueError("no")

    calls: list[int] = []
    with pytest.raises(ValueError, match="no"):
        race({"ours": lambda: calls.append(0)}, seconds=0, warm_up=0, first=refuse)
    assert calls == [0]


def test_two_rounds_are_enough_once_patience_is_gone() -> None:
    for patience, rounds in ((0.0, 2), (60.0, 5)):
        timings = race({"ours": lambda: time.sleep(0.001)}, seconds=0, least=5, warm_up=0, patience=patience)
        assert len(timings["ours"].rounds) == rounds


def test_quantiles() -> None:
    timing = Timing(tuple(float(i) for i in range(10)))
    assert (timing.quantile(0.1), timing.median, timing.quantile(0.9)) == (1.0, 4.5, 9.0)


def test_host_clock() -> None:
    assert 0.02 <= host_clock(lambda: time.sleep(0.02)) < 5


def test_device_clock_flushes_waits_and_records_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed to see the order of what is asked of it."""
    said: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            said.append("record")

        def synchronize(self) -> None:
            said.append("wait for the end")

        def elapsed_time(self, end: Event) -> float:
            return 2.5

    flush = SimpleNamespace(zero_=lambda: said.append("flush"))
    monkeypatch.setattr(paired.torch, "empty", lambda *shape, **about: flush)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append("idle"))
    clock = DeviceClock(torch.device("cuda"))
    assert clock(lambda: said.append("call")) == 0.0025
    assert said == ["flush", "idle", "record", "call", "record", "wait for the end"]


def test_each_device_has_its_clock() -> None:
    assert paired.clock_of(torch.device("cpu")) is host_clock
