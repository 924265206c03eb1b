"""The fixture ``compare`` and the table at the end: every benchmark is a race of contestants in one run."""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import mgran_fast
from mgran_fast.bench import paired
from mgran_fast.ops import backend


def _load(name: str) -> Any:
    # The folder is no package: pytest runs with --import-mode=importlib.
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@dataclass
class Board:
    """What the session measured."""

    rows: list[dict[str, Any]] = field(default_factory=list)


BOARD = pytest.StashKey[Board]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", metavar="FILE", help="write the benchmarks' figures to a JSON file")
    parser.addoption("--memory", choices=["new", "kept"], default="new", help="what results are written to")
    parser.addoption("--compile-mode", default="max-autotune", help="of torch.compile on a GPU; none leaves it out")
    parser.addoption("--seconds", type=float, default=4.0, help="how long each race goes on (default 4)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BOARD] = Board()
    # For the whole process: what was freed once cannot be made new again.
    if config.getoption("--memory") == "kept" and not paired.keep_freed_memory():
        raise pytest.UsageError("--memory kept: this C library has no mallopt")


@pytest.fixture
def board(request: pytest.FixtureRequest) -> Board:
    """What was measured so far: for figures besides times."""
    found: Board = request.config.stash[BOARD]
    return found


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
def compare(request: pytest.FixtureRequest, threads: int) -> Callable[..., None]:
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
        timings = paired.race(contestants, seconds=request.config.getoption("--seconds"), **fixed)
        ours = timings["ours"]
        wanted = {}
        for peers, bar in (bars or {}).items():
            best = min((timings[peer] for peer in peers.split("|")), key=lambda timing: timing.median)
            wanted[peers] = {"bar": bar, "reached": paired.ratio(best, ours)}
        request.config.stash[BOARD].rows.append(
            {
                "name": name,
                "threads": threads,
                "rounds": len(ours.rounds),
                "milliseconds": {
                    key: {
                        "median": 1e3 * timing.median,
                        "10 %": 1e3 * timing.quantile(0.1),
                        "90 %": 1e3 * timing.quantile(0.9),
                    }
                    for key, timing in timings.items()
                },
                "ratios": {key: paired.ratio(t, ours) for key, t in timings.items() if key != "ours"},
                "wanted": wanted,
                "per second": None if count is None else count / ours.median,
            }
        )

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[BOARD].rows
    if not rows:
        return
    terminalreporter.section("side by side: medians, and how many times longer the others take")
    for row in rows:
        if "MB" in row:
            verdict = "reached" if row["MB"] <= row["wanted MB"] else "NOT REACHED"
            terminalreporter.write_line(f"{row['name']}: {row['MB']:.0f} MB, wanted {row['wanted MB']}, {verdict}")
            continue
        ours = row["milliseconds"]["ours"]["median"]
        speed = "" if row["per second"] is None else f", {row['per second']:,.0f} a second"
        terminalreporter.write_line(f"{row['name']}, {row['threads']} thread(s): {ours:.3f} ms{speed}")
        for peer, times in row["ratios"].items():
            terminalreporter.write_line(f"    {peer}: {row['milliseconds'][peer]['median']:.3f} ms, {times:.2f}x")
        for peers, bar in row["wanted"].items():
            verdict = "reached" if bar["reached"] >= bar["bar"] else "NOT REACHED"
            terminalreporter.write_line(
                f"    wanted {bar['bar']:.2f}x against {peers}: {bar['reached']:.2f}x, {verdict}"
            )
    target = config.getoption("--record")
    if target:
        record = {"machine": machine(), "results": rows}
        Path(target).write_text(json.dumps(record, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What a record says of where it was made."""
    module = backend.extension()
    return {
        "processor": _processor(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mgran_fast": mgran_fast.__version__,
        "compiler": None if module is None else module.compiler,
        "instructions": None if module is None else module.isa(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
