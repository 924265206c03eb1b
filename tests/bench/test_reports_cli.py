"""bench-report and bench-compare, from the shell."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mgran_fast.bench import record
from mgran_fast.cli import app
from mgran_fast.errors import DataError


@pytest.fixture
def path(suite_record: dict[str, Any], tmp_path: Path) -> Path:
    record.save(tmp_path / "a" / "record.json", suite_record)
    return tmp_path / "a" / "record.json"


def slower(suite_record: dict[str, Any], folder: Path) -> Path:
    made = copy.deepcopy(suite_record)
    figures = made["results"][2]["milliseconds"]["ours"]
    figures.update({key: 1.5 * ms for key, ms in figures.items()})
    record.save(folder / "slower.json", made)
    return folder / "slower.json"


def test_report_beside_the_record(path: Path) -> None:
    pytest.importorskip("matplotlib")
    before = path.read_bytes()
    result = CliRunner().invoke(app, ["bench-report", str(path)])
    assert result.exit_code == 0, result.output
    assert "align, 64 people, 2 threads: 13 ms" in result.stdout
    assert (path.parent / "tables.md").read_text(encoding="utf-8").startswith("# Benchmarks")
    assert len(list(path.parent.glob("*.svg"))) == 8
    assert path.read_bytes() == before


def test_report_into_a_folder_without_matplotlib(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = tmp_path / "new" / "out"
    result = CliRunner().invoke(app, ["bench-report", str(path), "--output", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["written"] == [str(folder / "tables.md")]
    assert [one.name for one in folder.iterdir()] == ["tables.md"]


def test_compare(path: Path, suite_record: dict[str, Any], tmp_path: Path) -> None:
    other = slower(suite_record, tmp_path)
    same = CliRunner().invoke(app, ["bench-compare", str(path), str(path)])
    assert same.exit_code == 0, same.output
    found = CliRunner().invoke(app, ["bench-compare", str(path), str(other)])
    assert found.exit_code == 1
    assert "slower: ops: align, 64 people, 2 threads: 1.50 times as long" in found.stdout
    told = CliRunner().invoke(app, ["bench-compare", str(path), str(other), "--json"])
    assert told.exit_code == 1
    assert [one["name"] for one in json.loads(told.stdout)["slower"]] == ["ops: align, 64 people, 2 threads"]
    assert CliRunner().invoke(app, ["bench-compare", str(other), str(path)]).exit_code == 0  # faster is no failure


@pytest.mark.parametrize("command", ["bench-report", "bench-compare"])
def test_a_wrong_file(command: str, path: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text("{}", encoding="utf-8")
    words = [command, str(wrong)] if command == "bench-report" else [command, str(path), str(wrong)]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, DataError)
    assert "wrong.json is no record of format 2" in str(result.exception)
