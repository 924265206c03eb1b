"""Races take turns, and clocks tell what they should."""

from __future__ import annotations

import time
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
