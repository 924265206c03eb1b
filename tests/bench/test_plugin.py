"""``pytest --benchmark``, as people type it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mgran_fast.bench.case import QUICK

ROOT = Path(__file__).parents[2]


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", *words]
    # pytest-benchmark keeps still in the processes that xdist starts, which these variables tell of.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False, timeout=240)


def test_a_race_from_a_folder_within(tmp_path: Path) -> None:
    """Tables, a record and pytest-benchmark's own file, of one race and a contestant that is named."""
    done = run(
        ROOT / "tests" / "bench", "--benchmark-quick", "-k", "ops and align", "--seconds", "0.01",
        "--benchmark-output", str(tmp_path / "out"), "--benchmark-json", str(tmp_path / "own.json"),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    assert "side by side" in done.stdout
    found = json.loads((tmp_path / "out" / "record.json").read_text())
    assert [row["name"] for row in found["results"]] == ["align"]
    assert found["ceilings"]["GB/s, copy"] > 0
    assert "align" in (tmp_path / "out" / "tables.md").read_text()
    own = json.loads((tmp_path / "own.json").read_text())["benchmarks"]
    assert {one["group"] for one in own} == {f"ops: align, {QUICK.crops} people"}
    ours = next(one for one in own if one["name"].endswith("ours]"))
    figures = found["results"][0]["milliseconds"]["ours"]
    assert 1e3 * ours["stats"]["median"] == pytest.approx(figures["median"], rel=1e-6)
    assert ours["stats"]["rounds"] == found["results"][0]["rounds"]


def test_plainly_nothing_is_raced() -> None:
    done = run(ROOT / "benchmarks", "-q", "test_crops.py", "test_suite.py", "-k", "crops")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "benchmarks run with --benchmark" in done.stdout
    assert "passed" not in done.stdout


def test_not_in_several_processes() -> None:
    done = run(ROOT, "--benchmark", "-n", "2", "--collect-only")
    assert done.returncode == 4
    assert "races run one at a time; leave -n out" in done.stderr


def test_collected_from_the_root() -> None:
    done = run(ROOT, "--benchmark", "--collect-only", "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    listed = [line for line in done.stdout.splitlines() if "::" in line]
    assert listed
    assert all(line.startswith("benchmarks/test_suite.py::test_race[") for line in listed)
    for group in ("ops", "MRA", "MA", "training", "ranking", "pipeline", "growth"):
        assert any(f"[{group}: " in line for line in listed)
