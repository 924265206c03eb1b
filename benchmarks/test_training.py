"""A training step: ours, eager modules, torch.compile, and four float32 passes, each in a process of its own.

ResNet-50, 8 crops of 256x128, four inputs each, losses and AdamW included. With MGRAN_DATA set, crops and maps are real
ones of its folder cuhk03. A process each, so that each has a peak of memory; they take turns in one run all the same.
With ``--memory kept`` all of them keep freed memory, as ``mgran-fast train`` does.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.bench import paired
from mgran_fast.bench.suite.training import COMPILED, EAGER, FOUR, OURS, WHOLE

WORKER = Path(__file__).with_name("training_worker.py")
PEOPLE = 8


class Contestant:
    """A worker that takes a step when it is asked to."""

    def __init__(self, kind: str, threads: int, memory: str) -> None:
        # Who waits for its turn must not spin.
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-W", "ignore", str(WORKER), kind, str(threads), memory]
        self.kind = kind
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, what: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the process of {self.kind} ended"
        return float(answer)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def contestants(threads: int, memory: str) -> Iterator[dict[str, Contestant]]:
    made = {kind: Contestant(kind, threads, memory) for kind in (OURS, WHOLE, EAGER, COMPILED, FOUR)}
    yield made
    for contestant in made.values():
        contestant.end()


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of seconds, which follow one another in a training run: five times, in each turn one more before."""
    monkeypatch.setattr(paired, "WARM_UP", 1)
    monkeypatch.setattr(paired, "race", functools.partial(paired.race, least=5, warm_each=True))


@pytest.mark.timeout(3600)
def test_step(
    compare: Callable[..., None],
    few_rounds: None,
    contestants: dict[str, Contestant],
    threads: int,
    memory: str,
    board: Any,
) -> None:
    losses = {kind: contestant.ask("step") for kind, contestant in contestants.items()}
    for kind, loss in losses.items():
        assert abs(loss / losses[EAGER] - 1) < 0.02, f"{kind} computes something else: {losses}"
    name = f"training step, {'real' if os.environ.get('MGRAN_DATA') else 'synthetic'} crops, {memory}"
    compare(
        name,
        {kind: functools.partial(contestant.ask, "step") for kind, contestant in contestants.items()},
        {f"{EAGER}|{COMPILED}": 1.2, FOUR: 2.9},
        count=PEOPLE,
    )
    peaks = {kind: contestant.ask("peak") / 1024 for kind, contestant in contestants.items()}
    bases = {kind: contestant.ask("base") / 1024 for kind, contestant in contestants.items()}
    board.rows[-1]["peak MB"], board.rows[-1]["of which before the first step"] = peaks, bases
    share = peaks[OURS] / peaks[EAGER]
    for kind, peak in peaks.items():
        sys.stdout.write(f"{kind}: peak {peak:.0f} MB, {bases[kind]:.0f} of them before the first step\n")
    sys.stdout.write(f"wanted at most 0.75 of {EAGER}'s peak: {share:.2f}, {'' if share <= 0.75 else 'NOT '}reached\n")
