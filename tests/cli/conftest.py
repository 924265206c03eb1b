"""A tiny data set, a way to run the command line in this process, and one run of the real command."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.cli import common, main
from mgran_fast.data import DataSet
from mgran_fast.data.synthetic import write

#: Settings of a run of seconds.
QUICK = (
    "--size", "32x16", "--trunk", "resnet18", "--epochs", "1", "--people", "3", "--pictures", "2", "--batches", "2",
    "--workers", "0", "--evaluate-every", "0", "--precision", "float32",
)  # fmt: skip


@dataclass
class Outcome:
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON object and nothing else."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Cli = Callable[..., Outcome]


@pytest.fixture(scope="module", autouse=True)
def no_gpu(without_gpu: None) -> None:
    """Trains on the CPU everywhere."""


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    return QUICK


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write(tmp_path_factory.mktemp("tiny") / "data", people=(6, 4), cameras=2, views=2, size=(32, 16))


@pytest.fixture
def copied(tiny: DataSet, tmp_path: Path) -> Path:
    """A copy of the data set's folder, to break."""
    return Path(shutil.copytree(tiny.root, tmp_path / "copied"))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Runs the command line in this process, from the entry point on."""
    root, package = logging.getLogger(), logging.getLogger("mgran_fast")
    handlers, level, own = root.handlers[:], root.level, package.level
    # The console itself, whatever TERM says. Not its property ``width``, which would stay set.
    monkeypatch.setattr(common.console, "_width", 200)
    monkeypatch.setattr(common.console, "_height", 50)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["mgran-fast", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as leave:
            code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        return Outcome(code, *capsys.readouterr())

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)
    package.setLevel(own)


@pytest.fixture(scope="session")
def shell() -> Cli:
    """Runs the real command in a process of its own."""

    def run(*arguments: object) -> Outcome:
        command = [sys.executable, "-m", "mgran_fast", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, env=environment)
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@dataclass
class Trained:
    folder: Path
    outcome: Outcome


@pytest.fixture(scope="session")
def trained(tiny: DataSet, shell: Cli, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A finished run of the real command with --json. Tests that write take a copy."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    outcome = shell("train", "--data", tiny.root, "--output", folder, "--json", *QUICK)
    assert outcome.code == 0, outcome.err
    return Trained(folder, outcome)
