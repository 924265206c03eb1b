"""The ROC curve against all thresholds, one after the other, and figures by camera against galleries of one camera."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mgran_fast.metrics import rank
from mgran_fast.metrics.cameras import camera_pairs
from mgran_fast.metrics.problem import Problem
from mgran_fast.metrics.ranking import nearest_right
from mgran_fast.metrics.verification import roc


def problem(seed: int, queries: int = 14, entries: int = 60, levels: int = 30) -> dict[str, Any]:
    """Five people by three cameras, some junk, distances of few values, some of them infinite."""
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, levels, (queries, entries)).astype(np.float64)
    distances[rng.random(distances.shape) < 0.05] = np.inf
    return {
        "distances": distances,
        "query_ids": rng.integers(0, 5, queries), "gallery_ids": rng.integers(-1, 5, entries),
        "query_cameras": rng.integers(0, 3, queries), "gallery_cameras": rng.integers(0, 3, entries),
    }  # fmt: skip


def split(given: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The distances of pairs of one person, and of two."""
    same = given["query_ids"][:, None] == given["gallery_ids"]
    junk = (same & (given["query_cameras"][:, None] == given["gallery_cameras"])) | (given["gallery_ids"] == -1)
    return given["distances"][same & ~junk], given["distances"][~same & ~junk]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("chunk", [None, 1, 5])
def test_the_curve_by_hand(seed: int, chunk: int | None) -> None:
    given = problem(seed)
    one, two = split(given)
    found = roc(**given, chunk=chunk)
    assert (found.positives, found.negatives) == (len(one), len(two))
    assert found.threshold.tolist() == sorted(set(one))
    assert found.true == pytest.approx([(one <= t).mean() for t in found.threshold], abs=1e-15)
    assert found.false == pytest.approx([(two <= t).mean() for t in found.threshold], abs=1e-15)
    wins = (one[:, None] < two).mean() + (one[:, None] == two).mean() / 2
    assert found.auc == pytest.approx(wins, abs=1e-12)
    for share in (0.0, 1e-4, 0.01, 0.1, 0.5, 1.0):
        fits = [t for t in np.unique(np.concatenate([one, two])) if (two <= t).mean() <= share]
        assert found.at(share) == pytest.approx(max([(one <= t).mean() for t in fits], default=0.0), abs=1e-15)
        threshold = found.threshold_at(share)
        assert (two <= threshold).mean() <= share
        assert (one <= threshold).mean() == pytest.approx(found.at(share))


def test_from_embeddings() -> None:
    given = problem(0)
    del given["distances"]
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(14, 8, generator=generator), torch.randn(60, 8, generator=generator)
    found = roc(query, gallery, **given)
    want = roc(distances=torch.cdist(query.double(), gallery.double()), **given)
    assert found.auc == pytest.approx(want.auc, abs=1e-6)
    assert found.threshold == pytest.approx(want.threshold, abs=1e-5)


def test_what_has_no_curve() -> None:
    given = problem(1)
    with pytest.raises(ValueError, match="no query has a right match"):
        roc(**{**given, "query_ids": given["query_ids"] + 10})
    with pytest.raises(ValueError, match="no pair of two people"):
        roc(**{**given, "query_ids": np.ones(14, int), "gallery_ids": np.ones(60, int)})
    with pytest.raises(ValueError, match="query_cameras is missing"):
        roc(**{name: value for name, value in given.items() if "camera" not in name})
    with pytest.raises(ValueError, match="a rate is from 0 to 1, not 2"):
        roc(**given).at(2)


@pytest.mark.parametrize("options", [{}, {"ap": "trapezoid", "ties": "pessimistic"}])
def test_pairs_of_cameras(options: dict[str, str]) -> None:
    given = problem(3)
    found = camera_pairs(**given, **options)
    assert [(pair.query, pair.gallery) for pair in found] == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    for pair in found:
        rows, columns = given["query_cameras"] == pair.query, given["gallery_cameras"] == pair.gallery
        want = rank(
            distances=given["distances"][rows][:, columns], query_ids=given["query_ids"][rows],
            gallery_ids=given["gallery_ids"][columns], query_cameras=None, gallery_cameras=None, **options,
        )  # fmt: skip
        assert (pair.rank1, pair.map) == pytest.approx((want.at(1), want.map), abs=1e-12)
        assert pair.queries == int(want.valid.sum())
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(14, 8, generator=generator), torch.randn(60, 8, generator=generator)
    labels = {name: value for name, value in given.items() if name != "distances"}
    exact = camera_pairs(distances=torch.cdist(query.double(), gallery.double()), **labels)
    assert camera_pairs(query, gallery, **labels) == exact
    seen = {"query_visibility": torch.ones(14, 2), "gallery_visibility": torch.ones(60, 2)}
    assert len(camera_pairs(query, gallery, **labels, **seen)) == 6
    with pytest.raises(ValueError, match="must be given: these are figures by camera"):
        camera_pairs(**{**given, "query_cameras": None, "gallery_cameras": None})


@pytest.mark.parametrize("seed", range(4))
def test_the_nearest_right_match(seed: int) -> None:
    given = problem(seed, levels=6)
    labels = tuple(given[name] for name in ("query_ids", "gallery_ids", "query_cameras", "gallery_cameras"))
    given["distances"][3] = np.inf
    places, away = nearest_right(Problem.of(**given), chunk=4)
    same = labels[0][:, None] == labels[1]
    right = same & (labels[2][:, None] != labels[3])
    for q in range(14):
        mine = np.flatnonzero(right[q])
        want = -1 if not len(mine) else mine[given["distances"][q][mine].argmin()]
        assert places[q] == want
        assert away[q] == (np.inf if want < 0 else given["distances"][q][want])
