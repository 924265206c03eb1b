"""Tables: nothing that was measured is missing, and old records are read as well."""

from __future__ import annotations

import re
from typing import Any

from mgran_fast.bench import tables


def test_a_race_in_lines(suite_record: dict[str, Any]) -> None:
    row = next(one for one in suite_record["results"] if one["name"] == "embedding")
    head, ours, four, *_ = tables.race(row)
    assert head == "embedding, 8 people, float32, 2 threads: 632.9 ms, 12.6 a second"
    assert ours.split() == ["ours", "632.9", "ms", "(626.5", "to", "639.2)"]
    assert four.endswith("1,971 ms  (1,952 to 1,991)  3.11 times")


def test_for_a_terminal(suite_record: dict[str, Any]) -> None:
    lines = tables.text(suite_record)
    assert lines[0] == "A processor, 2 cores, avx512, Linux"
    assert "commit 0123abc" in lines[1]
    assert lines[2] == "openvino 2025.3, faiss-cpu 1.12.0"
    groups = [line for line in lines if line in ("ops", "MRA", "MA", "training", "ranking", "pipeline", "growth")]
    assert groups == ["ops", "MRA", "MA", "training", "ranking", "pipeline", "growth"]
    heads = [line for line in lines if re.search(r" ms(, [\d.,]+ a second)?$", line) and not line.startswith(" ")]
    assert len(heads) == sum("milliseconds" in one for one in suite_record["results"])
    assert "  ours: 8 ms + 25 ms each, exponent 0.99" in lines
    assert lines[-2:] == ["left out", "  oneDNN: not on this machine"]  # once, though it was in several races
    assert "  Rank-1, %: 87.5" in lines


def test_in_markdown(suite_record: dict[str, Any]) -> None:
    text = tables.markdown(suite_record)
    assert "| GB/s, copy | 14 |" in text
    assert (
        "| crops | 64 people, boxes of a frame | 2 | 1.2 | OpenCV: 3.92 times as long<br>plain torch: 25.8 times as"
        " long |"
    ) in text
    assert text.count("### ") == 5
    assert "| people | ours | eager | OpenVINO |\n|---|---|---|---|\n| 1 | 33 | 92 | 55 |\n" in text
    assert "| fixed, ms | 0.01 | 0.02 | 6 |" in text
    assert "## growth" not in text  # its races are the curves
    assert "| demo | Rank-1, % | 87.5 | `make demo` |" in text
    assert "- oneDNN: not on this machine" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_rows_without_group_or_circumstances() -> None:
    row = {"name": "a | b", "milliseconds": {"ours": {"median": 2.5}, "theirs": {"median": 5.0}}}
    old = {"format": 2, "machine": {"processor": "A"}, "results": [row]}
    assert tables.text(old) == ["A", "", "other", "a | b: 2.5 ms", "  ours         2.5 ms", "  theirs         5 ms"]
    assert "## other" in tables.markdown(old)
    assert r"| a \| b |  |  | 2.5 | theirs: 5 ms |" in tables.markdown(old)


def test_a_size_that_one_contestant_lacks(suite_record: dict[str, Any]) -> None:
    row = next(one for one in suite_record["results"] if one.get("at") == {"boxes": 200})
    del row["milliseconds"]["plain torch"]
    assert "| 200 | 3.81 | 15.02 | \u2013 |" in tables.markdown(suite_record)
