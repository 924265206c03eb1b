"""Plots: which are drawn, what they tell of their record, and that the same record gives the same bytes."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.bench import plots
from mgran_fast.errors import MGRANError

NEEDS = {
    "pipeline.svg": "pictures to embeddings",
    "precision.svg": "embedding",
    "people.svg": "embedding, more people",
    "threads.svg": "embedding, more people",
    "crops.svg": "crops of a frame",
    "search.svg": "search, larger gallery",
    "ranking.svg": "ranking, larger gallery",
}


def test_all_of_a_whole_record(suite_record: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = plots.draw(suite_record, tmp_path / "new")
    assert [path.name for path in written] == list(plots.PLOTS)
    for path in written:
        assert plots.drawn_from(path) == plots.digest(suite_record)
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    before = {path.name: path.read_bytes() for path in written}
    again = plots.draw(dict(reversed(suite_record.items())), tmp_path / "again")
    assert {path.name: path.read_bytes() for path in again} == before


@pytest.mark.parametrize("name", NEEDS)
def test_without_its_races_a_plot_is_left_out(name: str, suite_record: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert plots.PLOTS[name](suite_record) is not None
    suite_record["results"] = [row for row in suite_record["results"] if row["name"] != NEEDS[name]]
    assert plots.PLOTS[name](suite_record) is None


def test_a_plot_of_an_earlier_record_goes(suite_record: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "roofline.svg").write_text("earlier")
    (tmp_path / "other.svg").write_text("somebody's")
    suite_record["results"] = [row for row in suite_record["results"] if row["name"] == "crops of a frame"]
    assert [path.name for path in plots.draw(suite_record, tmp_path)] == ["crops.svg"]
    assert {path.name for path in tmp_path.iterdir()} == {"crops.svg", "other.svg"}
    assert plots.drawn_from(tmp_path / "other.svg") is None
    assert plots.draw({**suite_record, "results": []}, tmp_path) == []


@pytest.mark.parametrize("ceilings", [{}, {"GB/s, copy": 14.0}, {"GFLOP/s, float32": 150.0}])
def test_no_roofline_without_roofs(ceilings: dict[str, float], suite_record: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    assert plots.PLOTS["roofline.svg"]({**suite_record, "ceilings": ceilings}) is None


def test_what_the_pipeline_says(suite_record: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    figure = plots.PLOTS["pipeline.svg"](suite_record)
    assert figure is not None
    assert figure.get_suptitle() == "Pictures to embeddings: 170 times as fast as the published way, 2 threads"
    top, bottom = figure.axes
    # Both bars at one scale, and the lower panel's alone: milliseconds of each stage of a person.
    widths = [bar.get_width() for bar in top.patches]  # type: ignore[attr-defined]
    assert widths == pytest.approx([1.8, 6450, 4.5, 210, 1.5, 22.5, 0.4, 15])
    assert len(bottom.patches) == 3 * 4
    assert sum(bar.get_width() for bar in bottom.patches[4:8]) == pytest.approx(24.4 + 40)  # type: ignore[attr-defined]


def test_a_quick_record_is_drawn_as_well(suite_record: dict[str, Any], tmp_path: Path) -> None:
    """One precision, few sizes, one point below the roofs, nothing that moves bytes alone."""
    pytest.importorskip("matplotlib")
    kept = [
        row
        for row in suite_record["results"]
        if row.get("at", {}).get("precision", "bfloat16") == "bfloat16"
        and row["name"] not in ("regions", "align", "search", "crops", "inputs", "pooling", "pooling and gradient")
        and row.get("at", {}).get("people", 0) != 8
        and row.get("at", {}).get("boxes", 0) < 3
    ]
    written = plots.draw({**suite_record, "results": kept}, tmp_path)
    assert [path.name for path in written] == list(plots.PLOTS)


def test_another_record_has_another_digest(suite_record: dict[str, Any]) -> None:
    before = plots.digest(suite_record)
    suite_record["results"][0]["milliseconds"]["ours"]["median"] += 1e-9
    assert plots.digest(suite_record) != before


def test_without_matplotlib(suite_record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MGRANError, match=r"pip install 'mgran_fast\[train\]'"):
        plots.draw(suite_record, tmp_path)
