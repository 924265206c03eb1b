"""Ceilings: what is measured, and that the figures are of this machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mgran_fast.bench import ceilings


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "SIZES", {"cpu": (32, 64)})
    monkeypatch.setattr(ceilings, "LARGE", {"cpu": 1 << 20})


def slow(seconds: float) -> Callable[[torch.device], Callable[[Callable[[], object]], float]]:
    """A clock by which every call takes so long; it makes the call."""

    def clock(run: Callable[[], object]) -> float:
        run()
        return seconds

    return lambda device: clock


def test_work_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "clock_of", slow(1e-3))
    monkeypatch.setattr(ceilings, "computes", lambda dtype, device: True)
    found = ceilings.measure(torch.device("cpu"), 0.1)
    assert found["GB/s, copy"] == pytest.approx(2 * 2**20 / 1e6)  # read and written
    assert found["GB/s, sum"] == pytest.approx(2**20 / 1e6)
    # The larger one is the better one, and int8, which is no faster, is left out.
    assert found["GFLOP/s, float32"] == found["GFLOP/s, bfloat16"] == pytest.approx(2 * 64**3 / 1e6)
    assert "GFLOP/s, int8" not in found


def test_what_would_be_emulated_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "computes", lambda dtype, device: False)
    assert "GFLOP/s, bfloat16" not in ceilings.measure(torch.device("cpu"), 0.1)


def test_no_integer_product(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not on this device")

    monkeypatch.setattr(torch, "_int_mm", refuse)
    assert "GFLOP/s, int8" not in ceilings.measure(torch.device("cpu"), 0.1)
    monkeypatch.delattr(torch, "_int_mm")
    assert all(speed > 0 for speed in ceilings.measure(torch.device("cpu"), 0.1).values())


def test_a_size_that_takes_too_long_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "clock_of", slow(1.0))
    found = ceilings.measure(torch.device("cpu"), 0.1)
    assert found["GFLOP/s, float32"] == pytest.approx(2e-9 * 32**3)
