"""What other toolkits give on the problems in golden/, which tells where each figure is from and how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgran_fast.metrics import Ranking, rank, rank_shots, rerank

GOLDEN = Path(__file__).with_name("golden")
LABELS = ("query_ids", "gallery_ids", "query_cameras", "gallery_cameras")
CASES: dict[str, dict[str, Any]] = {
    case["name"]: case for case in json.loads((GOLDEN / "ranking.json").read_text())["cases"]
}
SHOTS = CASES.pop("shots")
RERANKED = json.loads((GOLDEN / "rerank.json").read_text())

#: How far figures may be apart that a toolkit sums in float32, and in float64.
SINGLE, DOUBLE = 1e-6, 1e-12

pytestmark = pytest.mark.usefixtures("implementation")
each_case = pytest.mark.parametrize("name", CASES)


def problem(case: dict[str, Any], dtype: type = np.float64) -> dict[str, Any]:
    return {"distances": np.array(case["distances"], dtype=dtype), **{name: case[name] for name in LABELS}}


def assert_near(found: Any, figures: Any, tolerance: float) -> None:
    np.testing.assert_allclose(found, figures, rtol=0, atol=tolerance)


def assert_curve(found: Ranking, figures: dict[str, Any], tolerance: float, divisor: str = "valid") -> None:
    """The CMC, read from the curve and from the summary."""
    ranks = range(1, len(figures["cmc"]) + 1)
    summary = found.summary(ranks, divisor)
    assert_near([summary[f"rank{k}"] for k in ranks], figures["cmc"], tolerance)
    share = found.valid.mean() if divisor == "all" else 1
    assert_near(found.cmc[: len(ranks)] * share, figures["cmc"], tolerance)


@each_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_torchreid(name: str, dtype: type) -> None:
    found = rank(**problem(CASES[name], dtype))
    compiled, python = (CASES[name]["figures"][f"torchreid, {kind}"] for kind in ("Cython", "Python"))
    for figures in (compiled, python):
        assert_curve(found, figures, SINGLE)
    assert_near(found.map, compiled["map"], SINGLE)
    assert_near(found.map, python["map"], DOUBLE)


@each_case
def test_fastreid(name: str) -> None:
    """The one that gives inverse negative penalties."""
    found, figures = rank(**problem(CASES[name])), CASES[name]["figures"]["FastReID"]
    assert_curve(found, figures, SINGLE)
    assert_near(found.ap[found.valid], figures["ap"], DOUBLE)
    assert_near(found.inp[found.valid], figures["inp"], DOUBLE)
    assert_near(found.minp, np.mean(figures["inp"]), DOUBLE)


@each_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_evaluation_published_with_market_1501(name: str, dtype: type) -> None:
    found, figures = rank(**problem(CASES[name], dtype), ap="trapezoid"), CASES[name]["figures"]["Market-1501"]
    assert_curve(found, figures, DOUBLE, divisor="all")
    assert_near(np.where(found.valid, found.ap, 0), figures["ap"], DOUBLE)
    assert_near(found.summary(divisor="all")["map"], figures["map"], DOUBLE)


@each_case
def test_its_port_to_python(name: str) -> None:
    found, figures = rank(**problem(CASES[name]), ap="trapezoid"), CASES[name]["figures"]["layumi's port"]
    assert_curve(found, figures, SINGLE, divisor="all")
    assert found.unmatched.tolist() == [query for query, ap in enumerate(figures["ap"]) if ap is None]
    assert_near(found.ap[found.valid], [ap for ap in figures["ap"] if ap is not None], DOUBLE)
    assert_near(found.summary(divisor="all")["map"], figures["map"], DOUBLE)


def test_the_mean_of_torchreids_draws_of_single_shots() -> None:
    """It draws ten times in a run. The mean over thousands of runs is within 4 standard errors of the expectation."""
    figures = SHOTS["figures"]["torchreid, Cython"]
    errors = np.array(figures["error"])
    assert (errors < 5e-4).all()
    found = rank_shots(**problem(SHOTS), max_rank=len(errors))
    assert (np.abs(found.cmc - figures["cmc"]) <= 4 * errors + SINGLE).all()
    assert found.first.tolist() == rank(**problem(SHOTS)).first.tolist()


@pytest.mark.parametrize("case", RERANKED["cases"], ids=lambda case: f"k1={case['k1']}, k2={case['k2']}")
def test_rerank(case: dict[str, Any]) -> None:
    """torchreid and the authors' own code agree to 1e-6, both in float32."""
    figures = np.array(case["reranked"])
    points = torch.tensor(RERANKED["points"], dtype=torch.float64)
    between = (points[:, None] - points[None]).square().sum(dim=2).sqrt()
    q = len(figures)
    given = between[:q, :q], between[:q, q:], between[q:, q:]
    options = {name: case[name] for name in ("k1", "k2", "weight")}
    assert_near(rerank(distances=given, **options), figures, 1e-5)
    # From points, distances are in float32 all the way; none of these come to stand in another order.
    assert_near(rerank(points[:q], points[q:], **options), figures, 1e-5)
    # The figures do depend on the settings.
    assert np.abs(rerank(distances=given, **{**options, "k1": case["k1"] + 2}).numpy() - figures).max() > 0.01


def junk_of(case: dict[str, Any]) -> np.ndarray[Any, Any]:
    """bool [Q, G]: the entry shows the query's person in the query's camera."""
    query, gallery, query_camera, gallery_camera = (np.array(case[name]) for name in LABELS)
    junk: np.ndarray[Any, Any] = (query[:, None] == gallery) & (query_camera[:, None] == gallery_camera)
    return junk


def test_the_cases_hold_what_they_are_for() -> None:
    for case in (*CASES.values(), SHOTS):
        q, g = len(case["query_ids"]), len(case["gallery_ids"])
        assert [sorted(row) for row in case["distances"]] == [list(range(g))] * q, (
            "ties are none of the toolkits' rules"
        )
    market, unmatched, short = CASES["market"], CASES["unmatched"], CASES["short"]
    assert {-1, 0} <= set(market["gallery_ids"])
    assert junk_of(market).any()
    assert set(CASES["two cameras"]["query_cameras"] + CASES["two cameras"]["gallery_cameras"]) == {1, 2}
    assert 3 <= unmatched["figures"]["layumi's port"]["ap"].count(None) <= 10
    assert len(short["gallery_ids"]) - junk_of(short).sum(axis=1).max() == 4
    assert junk_of(CASES["itself"]).diagonal().all()
    assert max(CASES["large numbers"]["gallery_ids"]) > 2**40
    assert set(CASES["perfect"]["figures"]["FastReID"]["ap"]) == {1}
    assert len(set(CASES["one person"]["gallery_ids"])) == 1
    low, high = (np.mean(CASES[name]["figures"]["FastReID"]["ap"]) for name in ("many", "short"))
    assert low < 0.3 < 0.8 < high
