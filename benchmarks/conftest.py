"""The fixture ``compare``: every benchmark is a race of contestants in one run. What is measured, the plugin tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from mgran_fast.bench import paired, record
from mgran_fast.bench.plugin import BOARD, Board, wanted


def pytest_configure(config: pytest.Config) -> None:
    # For the whole process: what was freed once cannot be made new again.
    if config.getoption("--memory") == "kept" and not paired.keep_freed_memory():
        raise pytest.UsageError("--memory kept: this C library has no mallopt")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if wanted(config):
        return
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.skip(reason="benchmarks run with --benchmark"))


@pytest.fixture
def board(request: pytest.FixtureRequest) -> Board:
    """What was measured so far: for figures besides times."""
    return request.config.stash[BOARD]


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> str:
    """Where the contestants' results go, all alike: "new memory" or "kept memory" (the option ``--memory``).

    The C library gives large blocks back to the system at once, so that the next one is new memory, which the system
    clears page by page: for a kernel that only writes, most of its time. Kept: the C library is told to keep what is
    freed, as jemalloc, tcmalloc and GPUs' caching allocators do.
    """
    return f"{request.config.getoption('--memory')} memory"


@pytest.fixture
def compare(request: pytest.FixtureRequest, threads: int, board: Board) -> Callable[..., None]:
    """``compare(name, contestants, bars)`` races the contestants; the one called "ours" against the others.

    ``bars`` says what is wanted: contestant (or several, "a|b": the best of them) -> how many times longer it must
    take than ours; below 1 ours may take longer. ``count`` people are handled by one call, for the speed's sake.
    ``rounds``: so many, for calls that take seconds.
    """

    def run(
        name: str,
        contestants: Mapping[str, Callable[[], object]],
        bars: Mapping[str, float] | None = None,
        count: int | None = None,
        rounds: int | None = None,
    ) -> None:
        fixed = {} if rounds is None else {"least": rounds, "most": rounds}
        timings = paired.race(contestants, seconds=request.config.getoption("--seconds") or 4.0, **fixed)
        ours, met = timings["ours"], {}
        for peers, bar in (bars or {}).items():
            best = min((timings[peer] for peer in peers.split("|")), key=lambda timing: timing.median)
            met[peers] = {"bar": bar, "reached": paired.ratio(best, ours)}
        board.rows.append({**record.row(name, threads, timings, count=count), "wanted": met})

    return run
