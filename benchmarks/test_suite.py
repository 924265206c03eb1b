"""The side-by-side suite of :mod:`mgran_fast.bench.suite`: ``pytest --benchmark``, or ``--benchmark-quick``.

Each contestant of a race is a test: the first of them runs the race, and each hands its own rounds to pytest-benchmark.
Who cannot run here is skipped, with what to install. ``-k`` chooses, e.g. ``-k "MA and int8"``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch

from mgran_fast import MGRAN
from mgran_fast.bench.case import FULL, OURS, QUICK, Case, Setting
from mgran_fast.bench.ceilings import measure
from mgran_fast.bench.paired import Timing
from mgran_fast.bench.plugin import BOARD
from mgran_fast.bench.run import run
from mgran_fast.bench.suite import cases

pytestmark = [pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore")]


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    quick = metafunc.config.getoption("mgran_quick")
    found = cases(QUICK if quick else FULL, quick=quick, device=device())
    pairs = [(case, contestant) for case in found for contestant in case.contestants]
    names = [f"{case.group}: {case.title}: {contestant}" for case, contestant in pairs]
    metafunc.parametrize(("case", "contestant"), pairs, ids=names)


class Races:
    """Runs each race once, and knows what came of it."""

    def __init__(self, setting: Setting, seconds: float, board: list[dict[str, object]]) -> None:
        self.setting, self.seconds, self.board = setting, seconds, board
        self.done: dict[str, tuple[dict[str, Timing], dict[str, str]] | Exception] = {}

    def of(self, case: Case) -> tuple[dict[str, Timing], dict[str, str]]:
        """Every round of each contestant, and who was left out and why; what stopped the race stops it for all."""
        key = f"{case.group}: {case.title}"
        if key not in self.done:
            try:
                row, timings = run(case, self.setting, self.seconds)
                self.board.append(row)
                self.done[key] = timings, row.get("left out", {})
            except Exception as error:
                self.done[key] = error
        found = self.done[key]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture(scope="session")
def races(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Races]:
    quick = request.config.getoption("mgran_quick")
    torch.manual_seed(0)
    model = MGRAN().eval().to(device())
    setting = Setting(model, tmp_path_factory.mktemp("suite"), QUICK if quick else FULL)
    seconds = request.config.getoption("--seconds") or (0.4 if quick else 1.5)
    board = request.config.stash[BOARD]
    yield Races(setting, seconds, board.rows)
    board.ceilings = measure(model.device)


def replay(timing: Timing) -> Callable[[], float]:
    """A clock that tells the rounds of a race again: it is asked before and after each of them."""
    steps = itertools.accumulate(itertools.chain.from_iterable((0.0, seconds) for seconds in timing.rounds))
    return lambda: next(steps)


def test_race(case: Case, contestant: str, races: Races, request: pytest.FixtureRequest) -> None:
    why = case.why_not(OURS, device()) or case.why_not(contestant, device())
    if why:
        pytest.skip(f"{contestant}: {why}")
    timings, left_out = races.of(case)
    if contestant in left_out:
        pytest.skip(f"{contestant}: {left_out[contestant]}")
    timing = timings[contestant]
    group = f"{case.group}: {case.title}"
    request.node.add_marker(pytest.mark.benchmark(group=group, timer=replay(timing), warmup=False, disable_gc=False))
    request.getfixturevalue("benchmark").pedantic(lambda: None, rounds=len(timing.rounds), iterations=1)
