"""mgran-fast evaluate and train score each data set by its own rule, and say which."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mgran_fast.data.sets import miniature
from mgran_fast.mra import Estimate

Cli = Callable[..., Any]


class Middle(nn.Module):
    """Sees a person in the middle of every crop."""

    def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        mask = torch.zeros(crops.shape[:3])
        mask[:, 2:-2, 2:-2] = 1
        return Estimate(mask, torch.full((len(crops), 17, 3), 0.5), torch.ones(len(crops)))


def with_masks(name: str, folder: Path, cli: Cli) -> Path:
    """A miniature with a region cache."""
    miniature(name, folder, size=(32, 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mgran_fast.cli.common.open_estimator", lambda name: Middle())
        outcome = cli(
            "masks", folder, "--dataset", name, "--counts", "any", "--size", "32x16", "--workers", "0", "--json"
        )
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def evaluate(cli: Cli, trained: Any) -> Cli:
    """Runs ``evaluate`` on a miniature with the checkpoint of a finished run."""
    checkpoint = trained.folder / "model.safetensors"
    return lambda name, data, *arguments: cli(
        "evaluate", "--data", data, "--dataset", name, "--counts", "any", "--checkpoint", checkpoint, "--workers", "0",
        *arguments, "--json",
    )  # fmt: skip


def told(outcome: Any, *words: str) -> None:
    """One line of an error, and no result."""
    assert (outcome.code, outcome.out) == (1, "")
    assert "Traceback" not in outcome.err
    line = outcome.err.splitlines()[-1]
    assert line.startswith("mgran-fast: ")
    for word in words:
        assert word in line, line


def test_market(evaluate: Cli, cli: Cli, tmp_path: Path) -> None:
    data = with_masks("market1501", tmp_path / "data", cli)
    single = evaluate("market1501", data)
    assert single.code == 0, single.err
    assert single.json["scored"]["protocol"] == "market"
    assert (single.json["scored"]["queries"], single.json["scored"]["ap"]) == ("single", "hits")
    assert f"rule: {single.json['scored']['rule']}" in single.err
    low, high = single.json["intervals"]["map"]
    assert low <= single.json["map"] <= high
    assert f"mAP {100 * low:.1f} to {100 * high:.1f} %" in single.err
    assert 0 <= single.json["verification"]["tpr at fpr 0.01"] <= 1
    assert "verification, true positives at false positives: " in single.err
    assert {(pair["query"], pair["gallery"]) for pair in single.json["cameras"]} == {(1, 2), (2, 1)}
    odd = evaluate(
        "market1501", data, "--flip", "--visible", "--metric", "cosine", "--ties", "optimistic", "--no-cameras"
    )
    assert odd.code == 0, odd.err
    assert (odd.json["scored"]["ties"], odd.json["scored"]["flip"], odd.json["cameras"]) == ("optimistic", True, [])
    assert "whatever the camera; cosine distance of the parts that both pictures show" in odd.err
    report = tmp_path / "report.html"
    multiple = evaluate("market1501", data, "--queries", "multiple", "--report", report, "--ap", "trapezoid")
    assert multiple.code == 0, multiple.err
    scored = multiple.json["scored"]
    assert (scored["queries"], scored["ap"]) == ("multiple", "trapezoid")
    again = evaluate("market1501", data, "--rerank")
    assert again.code == 0, again.err
    assert again.json["scored"]["reranked"] is True
    assert "re-ranked by k-reciprocal neighbours" in again.err
    # Six queries of three people by two cameras, each with two pictures in gt_bbox.
    assert multiple.json["counts"]["pictures of queries"] == 12
    assert multiple.json["counts"]["queries without further pictures"] == 0
    assert 0 < multiple.json["map"] <= 1
    assert "mAP" in multiple.err
    page = report.read_text(encoding="utf-8")
    assert "Market-1501 multiple query" in page
    assert "a ranked list shows one picture of its query" in page
    assert "By camera" in page
    assert "ROC curve" in page
    # Of one query all further pictures go: it keeps its own, and that is told.
    for path in (data / "gt_bbox").glob("0001_c1*"):
        path.unlink()
    fewer = evaluate("market1501", data, "--queries", "multiple")
    assert fewer.code == 0, fewer.err
    assert fewer.json["counts"]["queries without further pictures"] == 1
    assert "queries without further pictures: 1\n" in fewer.err
    told(evaluate("market1501", data, "--draws", "3"), "--draws 3", "rule market", "leave it out")
    told(evaluate("market1501", data, "--queries", "both"), "--queries both: choose single or multiple")
    told(evaluate("market1501", data, "--ap", "area"), "--ap area: choose hits or trapezoid")
    told(evaluate("market1501", data, "--ties", "any"), "--ties any: choose index or pessimistic or optimistic")
    told(evaluate("market1501", data, "--metric", "l1"), "--metric l1: choose euclidean or cosine")
    told(evaluate("market1501", data, "--rerank", "--visible"), "take one of the two")
    for path in (data / "gt_bbox").iterdir():
        path.unlink()
    told(evaluate("market1501", data, "--queries", "multiple"), "--queries multiple", "gt_bbox", "take single queries")
    assert evaluate("market1501", data, "--draws", "0").code == 2


def test_cuhk03_classic(evaluate: Cli, cli: Cli, tmp_path: Path, quick: tuple[str, ...]) -> None:
    pytest.importorskip("h5py")
    data = with_masks("cuhk03-classic", tmp_path / "data", cli)
    report = tmp_path / "report.html"
    exact = evaluate("cuhk03-classic", data, "--report", report)
    assert exact.code == 0, exact.err
    found = exact.json
    assert (found["map"], found["minp"]) == (None, None)
    # Two people are tested on.
    assert found["rank5"] == found["rank10"] == pytest.approx(1.0, abs=1e-12)
    assert 0 < found["rank1"] <= 1
    assert found["scored"]["protocol"] == "single-gallery-shot"
    assert (found["scored"]["ap"], found["scored"]["draws"]) == (None, None)
    page = report.read_text(encoding="utf-8")
    for text in (exact.err, page):
        assert "single gallery shot, single query" in text
        assert "exact expectation over all draws" in text
        assert "no mAP" in text
        assert not re.search(r"\b(nan|None) ?%", text.replace("\u00a0", " "))
    assert "mAP" not in page.replace("this protocol has no mAP", "")
    assert "none are drawn" in page
    drawn = evaluate("cuhk03-classic", data, "--draws", "200")
    assert drawn.code == 0, drawn.err
    scored = drawn.json["scored"]
    assert scored["draws"] == 200
    assert "mean of 200 draws" in drawn.err
    assert abs(drawn.json["rank1"] - found["rank1"]) <= 4 * scored["standard_error"]["rank1"] + 1e-9
    assert evaluate("cuhk03-classic", data, "--draws", "200", "--seed", "0").json["rank1"] == drawn.json["rank1"]
    told(evaluate("cuhk03-classic", data, "--queries", "multiple"), "no pictures for them")
    told(evaluate("cuhk03-classic", data, "--ap", "trapezoid"), "--ap trapezoid", "has no mAP")


def test_training_on_cuhk03_classic_has_no_map(cli: Cli, tmp_path: Path, quick: tuple[str, ...]) -> None:
    pytest.importorskip("h5py")
    data = with_masks("cuhk03-classic", tmp_path / "data", cli)
    options = list(quick)
    options[options.index("--evaluate-every") + 1] = "1"
    run = tmp_path / "run"
    outcome = cli(
        "train", "--data", data, "--dataset", "cuhk03-classic", "--counts", "any", "--output", run, "--json", *options
    )
    assert outcome.code == 0, outcome.err
    found = outcome.json
    assert found["scored"]["protocol"] == "single-gallery-shot"
    assert all(found[name]["map"] is None for name in ("untrained", "trained"))
    assert 0 < found["trained"]["rank1"] <= 1
    assert "before training: Rank-1 " in outcome.err
    assert "mAP" not in outcome.err.replace("this protocol has no mAP", "").replace("and no mAP", "")
    with (run / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["rank1"]) == pytest.approx(found["trained"]["rank1"], abs=1e-5)
    assert not any(row.get("map") for row in rows)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "single gallery shot" in page
    assert "mAP" not in page.replace("this protocol has no mAP", "")
