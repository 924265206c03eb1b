"""A single gallery shot: against going through all draws, on problems full of ties and junk; draws against both."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgran_fast.metrics import euclidean, rank, shots
from mgran_fast.metrics.shots import rank_shots
from mgran_fast.reference import shots as reference

LABELS = ("query_ids", "gallery_ids", "query_cameras", "gallery_cameras")
NO_CAMERAS: dict[str, Any] = {"query_cameras": None, "gallery_cameras": None}


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """So small that all draws can be gone through: ties, junk, distractors and unmatched queries all the time."""
    q, g = draw(st.integers(1, 4)), draw(st.integers(1, 11))
    values = draw(st.sampled_from([[1.0], [0.0, -0.0, 1.0], [-1.5, 0.0, 2.0, math.inf], [i / 7 for i in range(50)]]))
    distances = np.array(draw(st.lists(st.sampled_from(values), min_size=q * g, max_size=q * g))).reshape(q, g)
    labels = [
        draw(st.lists(numbers, min_size=n, max_size=n))
        for numbers in (st.integers(-1, 3), st.integers(0, 2))
        for n in (q, g)
    ]
    problem: dict[str, Any] = {"distances": distances, **dict(zip(LABELS, labels, strict=True))}
    return {**problem, **NO_CAMERAS} if draw(st.booleans()) else problem


def by_hand(problem: dict[str, Any], max_rank: int) -> list[list[Fraction] | None]:
    """Of each query, by going through all draws."""
    cameras = problem["query_cameras"]
    return [
        reference.enumerated(
            problem["distances"][q].tolist(), person, None if cameras is None else cameras[q], problem["gallery_ids"],
            problem["gallery_cameras"], max_rank,
        )
        for q, person in enumerate(problem["query_ids"])
    ]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(1, 6), st.sampled_from([None, 1, 3]))
def test_the_expectation_equals_going_through_all_draws(
    problem: dict[str, Any], max_rank: int, chunk: int | None
) -> None:
    want = by_hand(problem, max_rank)
    valid = [one for one in want if one is not None]
    if not valid:
        for draws in (None, 2):
            with pytest.raises(ValueError, match="no query has a right match"):
                rank_shots(**problem, max_rank=max_rank, chunk=chunk, draws=draws)
        return
    mean, each = reference.rank(problem["distances"].tolist(), *(problem[n] for n in LABELS), max_rank=max_rank)
    assert each == want, "both references are exact"
    found = rank_shots(**problem, max_rank=max_rank, chunk=chunk)
    assert np.abs(found.cmc - [float(one) for one in mean]).max() <= 1e-12
    assert found.found.shape == (len(want), max_rank)
    for got, one in zip(found.found, want, strict=True):
        if one is None:
            assert np.isnan(got).all()
        else:
            assert np.abs(got - [float(value) for value in one]).max() <= 1e-12
    # Who can be answered, and where the nearest match is when nothing is drawn, are as in ordinary ranking.
    ordinary = rank(**problem)
    assert found.first.tolist() == ordinary.first.tolist()
    assert found.unmatched.tolist() == ordinary.unmatched.tolist() == [i for i, one in enumerate(want) if one is None]
    assert rank_shots(**problem, draws=1, max_rank=max_rank).first.tolist() == ordinary.first.tolist()


def crowd(people: int = 40, views: int = 6, width: int = 8) -> dict[str, Any]:
    """Queries and gallery of people who look alike; the number of pictures differs."""
    random = np.random.default_rng(3)
    ids = np.repeat(np.arange(people), random.integers(2, views + 1, people))
    cameras = np.arange(len(ids)) % 2
    looks = random.standard_normal((people, width))[ids] + 1.2 * random.standard_normal((len(ids), width))
    return {
        "query": looks, "gallery": looks, "query_ids": ids, "gallery_ids": ids, "query_cameras": cameras,
        "gallery_cameras": cameras,
    }  # fmt: skip


def test_a_larger_problem_equals_the_reference() -> None:
    problem = crowd(people=15, views=4)
    found = rank_shots(**problem, max_rank=20)
    distances = euclidean(problem["query"], problem["gallery"])
    want, _ = reference.rank(distances.tolist(), *(problem[name].tolist() for name in LABELS), max_rank=20)
    assert np.abs(found.cmc - [float(one) for one in want]).max() <= 1e-12
    assert 0.1 < found.at(1) < 0.9, "no problem that is solved or hopeless"
    assert found.at(20) == pytest.approx(1.0, abs=1e-12)


def test_draws_agree_with_the_expectation() -> None:
    problem = crowd()
    exact, drawn = rank_shots(**problem), rank_shots(**problem, draws=400, seed=1)
    assert (exact.draws, drawn.draws, drawn.each.shape) == (0, 400, (400, 50))
    assert not exact.error.any()
    # Each query draws for itself, so that its chances tell the standard error of the mean.
    chance = exact.found[exact.valid]
    error = np.sqrt((chance * (1 - chance)).sum(axis=0) / 400) / len(chance)
    assert 0.0005 < error[0] < 0.004
    assert drawn.error[:10] == pytest.approx(error[:10], rel=0.2)
    # 4 standard errors: at each rank a seed has a chance of 1 in 16,000 to fail.
    assert (np.abs(drawn.cmc - exact.cmc) <= 4 * error + 1e-12).all()
    # And no closer than chance has it: figures of a few draws are spread as wide as their standard error.
    few = [rank_shots(**problem, draws=5, seed=seed).cmc[0] for seed in range(30)]
    assert np.std(few) == pytest.approx(error[0] * np.sqrt(80), rel=0.4)


def a_few(seed: int, queries: int = 6, people: int = 12) -> dict[str, Any]:
    """Distances of queries to people with 1 to 6 pictures each; a query's own person is nearer than others are."""
    random = np.random.default_rng(seed)
    ids = np.repeat(np.arange(people), random.integers(1, 7, people))
    query_ids = random.choice(people, queries, replace=False)
    # People look more or less like the query, and pictures of one person differ.
    distances = random.standard_normal((queries, people))[:, ids] + random.standard_normal((queries, len(ids)))
    distances[query_ids[:, None] == ids] -= 0.7
    return {"distances": distances, "query_ids": query_ids, "gallery_ids": ids, **NO_CAMERAS}


@pytest.mark.usefixtures("implementation")
def test_a_hundred_thousand_draws_agree_with_the_expectation() -> None:
    """Within 4 standard errors at each rank of each problem, and as far off as chance has it.

    Differences at several ranks of one query depend on each other. But how often it was found at exactly each rank
    makes Pearson's statistic, which is a sum of as many squares of independent errors as there are ranks, less one.
    """
    draws, squares, free = 100_000, 0.0, 0
    for seed in range(8):
        problem = a_few(seed)
        people = int(problem["gallery_ids"].max()) + 1
        exact = rank_shots(**problem, max_rank=people)
        drawn = rank_shots(**problem, max_rank=people, draws=draws, seed=seed)
        assert drawn.draws == draws
        # What hardly ever happens has no bell curve: there a few draws are let off.
        few = 3 / draws
        assert (np.abs(drawn.cmc - exact.cmc) <= 4 * drawn.error + few).all()
        assert 1e-4 < drawn.error[0] < 1e-3
        for chance, share in zip(exact.found, drawn.found, strict=True):
            expected, counted = (np.diff(found, prepend=0) * draws for found in (chance, share))
            assert counted.sum() == pytest.approx(draws, abs=1e-4)
            assert (counted[expected < 1e-6] < 0.5).all(), "what cannot happen was drawn"
            # Ranks that are hardly ever reached count as one, with the likeliest.
            rare = expected < 25
            rare[expected.argmax()] = True
            expected, counted = (np.append(one[~rare], one[rare].sum()) for one in (expected, counted))
            squares += ((counted - expected) ** 2 / expected).sum()
            free += len(expected) - 1
    assert free > 250
    # The mean of so many squares is off 1 by more than 4 of its own standard errors about once in 16,000 times.
    assert abs(squares / free - 1) <= 4 * math.sqrt(2 / free)


def test_draws_depend_on_the_seed_alone() -> None:
    problem = crowd(people=12)
    one = rank_shots(**problem, draws=3, seed=5)
    assert np.array_equal(one.each, rank_shots(**problem, draws=3, seed=5, chunk=2).each)
    assert not np.array_equal(one.each, rank_shots(**problem, draws=3, seed=6).each)
    assert np.allclose(one.cmc, one.each.mean(axis=0))
    assert np.allclose(one.cmc, one.found[one.valid].mean(axis=0))
    # Of one query, a draw finds the person or does not.
    assert set(np.unique(rank_shots(**problem, draws=1).found[0])) <= {0.0, 1.0}
    assert np.isnan(rank_shots(**problem, draws=1).error).all()


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = crowd(people=12)
    distances = euclidean(problem.pop("query"), problem.pop("gallery"))
    want = rank_shots(**problem, distances=distances)
    monkeypatch.setattr(shots, "CHUNK_COUNTS", 1)
    monkeypatch.setattr(shots, "CHUNK_CHANCES", 100)
    found = rank_shots(**problem, distances=distances)
    assert np.array_equal(found.found, want.found)
    assert np.array_equal(found.first, want.first)


@pytest.mark.parametrize("draws", [None, 50])
def test_one_picture_each_is_ordinary_ranking(draws: int | None) -> None:
    problem = {**crowd(people=30, views=2), **NO_CAMERAS}
    once = np.unique(problem["gallery_ids"], return_index=True)[1]
    problem.update(gallery=problem["gallery"][once], gallery_ids=problem["gallery_ids"][once])
    found = rank_shots(**problem, draws=draws)
    assert found.cmc == pytest.approx(rank(**problem).cmc, abs=1e-12)
    assert found.error.max() < 1e-12


def test_more_pictures_of_a_person_are_no_more_people() -> None:
    """By hand: of the right person's two pictures one is nearer than all; the other is behind 2 of 3 of the others'."""
    found = rank_shots(
        distances=np.array([[0.1, 0.5, 0.2, 0.3, 0.9]]), query_ids=[1], gallery_ids=[1, 1, 2, 2, 2], max_rank=3,
        **NO_CAMERAS,
    )  # fmt: skip
    assert found.cmc == pytest.approx([(1 + 1 / 3) / 2, 1, 1], abs=1e-15)
    assert found.first.tolist() == [1]


@pytest.mark.parametrize("draws", [None, 4])
def test_pictures_infinitely_far_are_ranked_too(draws: int | None) -> None:
    """By hand: the first query's only match is behind one other by its index, and before junk; the second has two."""
    inf = math.inf
    found = rank_shots(
        distances=np.array([[inf, inf, inf, inf], [0.5, 0.1, 0.2, 0.3]]),
        query_ids=[1, 2], query_cameras=[1, 1], gallery_ids=[1, 3, 2, 1], gallery_cameras=[1, 2, 2, 2],
        max_rank=2, draws=draws,
    )  # fmt: skip
    assert found.found.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert found.first.tolist() == [3, 2]
    later = rank_shots(
        distances=np.array([[0.2, inf, 0.1, inf], [0.1, 0.2, 0.5, 0.3]]),
        query_ids=[2, 1], gallery_ids=[1, 1, 3, 2], max_rank=3, draws=draws, **NO_CAMERAS,
    )  # fmt: skip
    # Both pictures of person 1 are before the match, one of them by its index.
    assert later.found.tolist() == [[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]


def test_there_is_no_map() -> None:
    found = rank_shots(**crowd(people=5))
    assert found.map is None
    assert found.minp is None
    summary = found.summary()
    assert list(summary) == ["rank1", "rank5", "rank10", "queries", "unmatched"]
    assert summary["rank5"] == found.at(5) == found.cmc[4]
    for k in (0, 51):
        with pytest.raises(ValueError, match="k must be from 1 to 50"):
            found.at(k)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 0}, "draws must be at least 1, or None"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"max_rank": 0}, "max_rank must be at least 1"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"gallery_ids": [1, 2]}, r"gallery_ids must be \[5\]"),
        ({"gallery_ids": [-1] * 5}, "no identity in common"),
        ({"distances": np.array([[math.nan] * 5])}, "NaN between query 0"),
        ({"query_cameras": [1]}, "gallery_cameras is missing"),
    ],
    ids=str,
)
@pytest.mark.parametrize("draws", [None, 3])
def test_bad_input(change: dict[str, Any], message: str, draws: int | None) -> None:
    problem: dict[str, Any] = {
        "distances": np.zeros((1, 5)), "query_ids": [1], "gallery_ids": [1, 1, 2, 2, 3], "draws": draws, **NO_CAMERAS
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        rank_shots(**{**problem, **change})


def test_tensors_of_any_kind_do() -> None:
    problem = crowd(people=6)
    want = rank_shots(**problem).cmc
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in problem.items()}
    assert np.array_equal(rank_shots(**tensors).cmc, want)
