"""The README's table of figures is what the records of races say."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.errors import DataError

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


@pytest.fixture
def copied(figures: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """README, records and plots in a folder of their own."""
    shutil.copy(figures.README, tmp_path)
    shutil.copytree(figures.RECORDS, tmp_path / "results")
    shutil.copytree(figures.PLOTS, tmp_path / "plots")
    for name, path in (("README", "README.md"), ("RECORDS", "results"), ("PLOTS", "plots")):
        monkeypatch.setattr(figures, name, tmp_path / path)
    return tmp_path


def changed(figures: Any, copied: Path, file: str, change: Callable[[Any], None]) -> str:
    """What the README says anew after a record was changed: the check must see it, and tell."""
    path = copied / "results" / file
    record = json.loads(path.read_text())
    change(record["results"])
    path.write_text(json.dumps(record))
    before = (copied / "README.md").read_text()
    with pytest.MonkeyPatch.context() as patch:
        assert run(figures, patch, "--check") == 1
        assert (copied / "README.md").read_text() == before
        assert run(figures, patch) == 0
        after = (copied / "README.md").read_text()
        assert run(figures, patch, "--check") == 0
    return "\n".join(line for line in after.splitlines() if line not in before.splitlines())


def test_a_record_that_changed_is_seen_and_written(
    figures: Any, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def faster(results: Any) -> None:
        row = next(row for row in results if row["name"].endswith("distances") and row["threads"] == 2)
        next(iter(row["wanted"].values()))["reached"] = 123.4

    said = changed(figures, copied, "ranking.json", faster)
    assert "README.md differ from the records: run python docs/figures.py" in capsys.readouterr().err
    assert "**123 times**" in said
    assert len(said.splitlines()) == 1


def test_sentences_are_written_from_records(figures: Any, copied: Path) -> None:
    def other(results: Any) -> None:
        next(row for row in results if row["name"].startswith("demo"))["values"]["Rank-1, %"] = 12.3

    assert "to 12.3 % on synthetic people" in changed(figures, copied, "values.json", other)


def test_plots_are_drawn_anew(figures: Any, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def slower(results: Any) -> None:
        row = next(row for row in results if row["name"] == "pictures to embeddings")
        row["ratios"]["as published"] = 321.0

    names = sorted(path.name for path in (copied / "plots").iterdir())
    assert "**321 times**" in changed(figures, copied, "suite.json", slower)
    assert "pipeline.svg" in capsys.readouterr().err
    assert sorted(path.name for path in (copied / "plots").iterdir()) == names


def test_a_race_that_is_missing(figures: Any) -> None:
    line = figures.Line("x", "y", "ranking.json", ("no such race",), 2, "torchreid, Cython", "{low}")
    with pytest.raises(DataError, match="no such race, threads 2: 0 results, not 1"):
        line.figure()
