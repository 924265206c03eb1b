"""The README's table of figures is what the records of races say."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "figures", module)
    spec.loader.exec_module(module)
    return module


def run(figures: Any, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["figures.py", *options])
    code: int = figures.main()
    return code


def test_the_readme_says_what_was_measured(figures: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(figures, monkeypatch, "--check") == 0


def test_a_record_that_changed_is_seen_and_written(
    figures: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(figures.README, tmp_path)
    shutil.copytree(figures.RECORDS, tmp_path / "results")
    monkeypatch.setattr(figures, "README", tmp_path / "README.md")
    monkeypatch.setattr(figures, "RECORDS", tmp_path / "results")
    file = tmp_path / "results" / "ranking.json"
    record = json.loads(file.read_text())
    row = next(row for row in record["results"] if row["name"].endswith("distances") and row["threads"] == 2)
    next(iter(row["wanted"].values()))["reached"] = 123.4
    file.write_text(json.dumps(record))
    before = (tmp_path / "README.md").read_text()
    assert run(figures, monkeypatch, "--check") == 1
    assert "run python docs/figures.py" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == before
    assert run(figures, monkeypatch) == 0
    after = (tmp_path / "README.md").read_text()
    changed = [line for line in after.splitlines() if line not in before.splitlines()]
    assert len(changed) == 1
    assert "**123 times**" in changed[0]
    assert run(figures, monkeypatch, "--check") == 0


def test_a_race_that_is_missing(figures: Any) -> None:
    line = figures.Line("x", "y", "ranking.json", ("no such race",), 2, "NumPy", "{low}")
    with pytest.raises(SystemExit, match="no such race, 2 threads, against NumPy: 0 races, not 1"):
        line.figure()
