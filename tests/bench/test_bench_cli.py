"""mgran-fast bench: races are told as they end, and kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mgran_fast import MGRAN
from mgran_fast.bench import ceilings, record, suite
from mgran_fast.bench.case import OURS, Case, Prepared, Setting, Sizes, close
from mgran_fast.cli import app
from mgran_fast.errors import MGRANError


def sums(setting: Setting, names: Sequence[str]) -> Prepared:
    ways = {OURS: lambda: torch.zeros(3), "eager": lambda: torch.zeros(3)}
    return Prepared({name: ways[name] for name in names}, close(0), setting.sizes.people)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Of a small model; of two groups, a race each."""
    threads = torch.get_num_threads()

    def few(sizes: Sizes, *, quick: bool, device: str) -> list[Case]:
        at: dict[str, Any] = {"people": sizes.people, "quick": str(quick)}
        return [Case("ops", "sum", (OURS, "eager", "torchreid, Cython"), sums, at), Case("MA", "other", (OURS,), sums)]

    monkeypatch.setattr(suite, "cases", few)
    monkeypatch.setattr(ceilings, "measure", lambda device: {"GB/s, copy": 10.0})
    torch.manual_seed(0)
    MGRAN(size=(64, 32), trunk="resnet18").save(tmp_path / "model.safetensors")
    model = str(tmp_path / "model.safetensors")
    yield ["bench", "--checkpoint", model, "--seconds", "0.01", "--output", str(tmp_path / "out")]
    torch.set_num_threads(threads)


def test_races_of_one_group(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*arguments, "--only", "ops", "--people", "5", "--threads", "1", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said == record.load(tmp_path / "out" / "record.json")
    (row,) = said["results"]
    assert (row["name"], row["at"], row["threads"]) == ("sum", {"people": 5, "quick": "False"}, 1)
    assert set(row["milliseconds"]) == {OURS, "eager"}
    assert row["left out"] == {"torchreid, Cython": "torchreid not installed"}
    assert said["ceilings"] == {"GB/s, copy": 10.0}
    assert "sum" in (tmp_path / "out" / "tables.md").read_text()


def test_told_as_they_end(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*arguments, "--quick"])
    assert result.exit_code == 0, result.output
    words = result.stdout + result.stderr
    assert words.index("sum") < words.index("other") < words.index(f"record, tables and plots: {tmp_path / 'out'}")
    assert record.load(tmp_path / "out" / "record.json")["results"][0]["at"] == {"people": 2, "quick": "True"}


def test_a_group_that_there_is_not(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, [*arguments, "--only", "opps"])
    assert isinstance(result.exception, MGRANError)
    assert "--only must be one of ops, MRA, MA, training, ranking, pipeline, growth, not 'opps'" in str(
        result.exception
    )
