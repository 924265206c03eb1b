"""Records: written, read again, and refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.bench import record
from mgran_fast.bench.paired import Timing
from mgran_fast.errors import DataError

RECORDS = Path(__file__).parents[2] / "benchmarks" / "results"


def made() -> dict[str, Any]:
    timings = {"ours": Timing((0.001, 0.002, 0.003)), "eager": Timing((0.002, 0.004, 0.009))}
    row = {**record.row("embedding", 2, timings, count=8), "group": "MA", "at": {"people": 8}}
    return record.record([row, {"name": "demo", "values": {"Rank-1, %": 87.5}}], {"GB/s, copy": 20.0})


def test_what_a_row_says() -> None:
    row = made()["results"][0]
    assert row["milliseconds"]["ours"]["median"] == pytest.approx(2)
    assert row["ratios"] == {"eager": pytest.approx(2)}  # the median of 2, 2 and 3, not of medians
    assert row["per second"] == pytest.approx(4000)
    assert row["rounds"] == 3


def test_written_and_read_again(tmp_path: Path) -> None:
    wanted = made()
    record.save(tmp_path / "new" / "record.json", wanted)
    assert record.load(tmp_path / "new" / "record.json") == json.loads(json.dumps(wanted))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["record.json"]
    assert {"processor", "cores", "python", "torch", "mgran_fast", "commit"} <= set(wanted["machine"])
    assert wanted["versions"]["numpy"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "mgran-fast bench writes a record"),
        ("{", "is no JSON"),
        ("[]", "is no record of format"),
        ('{"machine": {}, "results": []}', r"format: None\); run the benchmarks again"),
        ('{"format": 2, "results": []}', "lacks its machine or its results"),
        ('{"format": 2, "machine": {}, "results": [{"name": "x"}]}', "without name or figures"),
    ],
)
def test_what_is_no_record(content: str | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "record.json").write_text(content)
    with pytest.raises(DataError, match=words):
        record.load(tmp_path / "record.json")


def test_the_one_that_is_meant() -> None:
    results = made()["results"]
    assert record.only(results, "emb", threads=2, people=8, group="MA") is results[0]
    with pytest.raises(DataError, match="embedding, threads 1: 0 results, not 1"):
        record.only(results, "embedding", threads=1)
    with pytest.raises(DataError, match="2 results"):
        record.only(results, "")


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_committed_records_are_of_this_format(path: Path) -> None:
    assert record.load(path)["results"]
