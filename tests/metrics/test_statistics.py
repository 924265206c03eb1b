"""Bootstrap intervals and paired comparisons: against what is known of means, and what they refuse."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from mgran_fast.metrics import rank, rank_shots
from mgran_fast.metrics.ranking import Ranking
from mgran_fast.metrics.statistics import compare, intervals


def ranking(q: int = 300, better: float = 0.0, seed: int = 0) -> Ranking:
    """Queries of ten people in a gallery of a hundred; ``better`` draws right matches nearer."""
    generator = np.random.default_rng(seed)
    query_ids, gallery_ids = generator.integers(0, 10, q), generator.integers(0, 10, 100)
    distances = generator.random((q, 100)) - better * (query_ids[:, None] == gallery_ids)
    return rank(
        distances=distances, query_ids=query_ids, gallery_ids=gallery_ids, query_cameras=None, gallery_cameras=None
    )


def test_an_interval_is_about_two_standard_errors_to_each_side() -> None:
    found = ranking()
    told = intervals(found, ranks=(1, 5), draws=4000)
    assert set(told) == {"rank1", "rank5", "map", "minp"}
    for name, values in {"map": found.ap, "rank1": (found.first == 1).astype(float)}.items():
        error = values.std() / np.sqrt(len(values))
        one = told[name]
        # Rank-1 counts queries: it moves by whole ones.
        near = 0.15 * error + (1 / len(values) if name == "rank1" else 0)
        assert one.value == pytest.approx(values.mean(), rel=1e-12)
        assert one.low == pytest.approx(one.value - 1.96 * error, abs=near)
        assert one.high == pytest.approx(one.value + 1.96 * error, abs=near)
    assert str(told["map"]).startswith(f"{100 * found.map:.1f} % (")
    narrow = intervals(found, confidence=0.5)["map"]
    assert told["map"].low < narrow.low < narrow.value < narrow.high < told["map"].high


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = 0
    truth = np.mean([ranking(200, seed=seed).map for seed in range(1000, 1060)])
    for seed in range(100):
        one = intervals(ranking(200, seed=seed), draws=200)["map"]
        held += one.low <= truth <= one.high
    assert 85 <= held <= 100


def test_queries_without_a_match_are_in_no_interval() -> None:
    found = ranking(50)
    first, ap, inp = (
        np.append(values, extra) for values, extra in ((found.first, 0), (found.ap, np.nan), (found.inp, np.nan))
    )
    more = Ranking(found.cmc, ap, inp, first)
    assert intervals(more) == intervals(found)


def test_a_better_model_is_told_from_chance() -> None:
    worse, better, alike = ranking(), ranking(better=0.2), ranking()
    found = compare(better, worse)
    assert found["map"].value == pytest.approx(better.map - worse.map)
    assert found["map"].low > 0
    assert found["map"].chance < 0.01
    assert found["map"].queries == 300
    reverse = compare(worse, better)["map"]
    assert (reverse.value, reverse.chance) == (pytest.approx(-found["map"].value), found["map"].chance)
    none = compare(alike, worse)
    assert (none["map"].value, none["rank1"].chance) == (0, 1)


def test_the_chance_is_that_of_all_exchanges() -> None:
    one, other = ranking(9, seed=1), ranking(9, seed=2)
    differences = one.ap - other.ap
    all_sums = [abs(differences @ signs) for signs in itertools.product((-1, 1), repeat=9)]
    exact = np.mean(np.array(all_sums) >= abs(differences.sum()) - 1e-9)
    assert compare(one, other, draws=20000)["map"].chance == pytest.approx(exact, abs=0.015)


def test_single_gallery_shots_have_ranks_alone() -> None:
    generator = np.random.default_rng(3)
    options: dict[str, Any] = {
        "query_ids": generator.integers(0, 9, 40), "gallery_ids": np.arange(45) % 9,
        "query_cameras": None, "gallery_cameras": None,
    }  # fmt: skip
    one, other = (rank_shots(distances=generator.random((40, 45)), **options, max_rank=10) for _ in range(2))
    told = intervals(one)
    assert set(told) == {"rank1", "rank5", "rank10"}
    assert told["rank5"].value == pytest.approx(one.at(5), rel=1e-12)
    assert set(compare(one, other, ranks=(1,))) == {"rank1"}
    with pytest.raises(ValueError, match="k must be from 1 to 10"):
        intervals(one, ranks=(11,))
    with pytest.raises(ValueError, match="single gallery shots"):
        compare(one, ranking(40))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"confidence": 1.0}, "confidence must be above 0 and below 1"),
        ({"draws": 0}, "draws must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"ranks": (0,)}, "k must be at least 1"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], words: str) -> None:
    for call in (intervals, lambda found, **more: compare(found, found, **more)):
        with pytest.raises(ValueError, match=words):
            call(ranking(20), **options)


def test_rankings_that_are_not_comparable() -> None:
    with pytest.raises(ValueError, match="of 20 and of 30 queries"):
        compare(ranking(20), ranking(30))
    one = ranking(20)
    with pytest.raises(ValueError, match="average precision is hits of one ranking and trapezoid of the other"):
        compare(one, Ranking(one.cmc, one.ap, one.inp, one.first, "trapezoid"))
    nobody = Ranking(one.cmc, one.ap * np.nan, one.inp * np.nan, one.first * 0)
    with pytest.raises(ValueError, match="no query has a right match in both"):
        compare(one, nobody)
