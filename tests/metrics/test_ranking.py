"""Ranking against the reference on small random problems full of ties and junk, and against results by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgran_fast.metrics import cosine, euclidean, rank, rank_shots, top, visible
from mgran_fast.reference import ranking as reference

NO_CAMERAS: dict[str, Any] = {"query_cameras": None, "gallery_cameras": None}
LABELS = ("query_ids", "gallery_ids", "query_cameras", "gallery_cameras")


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Few people, few cameras and few distinct distances: ties, junk and unmatched queries all the time."""
    q, g = draw(st.integers(1, 6)), draw(st.integers(1, 14))
    values = draw(st.sampled_from([[1.0], [0.0, -0.0, 1.0], [-1.5, 0.0, 2.0, math.inf], [i / 7 for i in range(50)]]))
    people, camera = st.integers(-1, 2), st.integers(0, 2)

    def several(what: st.SearchStrategy[int], n: int) -> list[int]:
        return draw(st.lists(what, min_size=n, max_size=n))

    distances = np.array(draw(st.lists(st.sampled_from(values), min_size=q * g, max_size=q * g))).reshape(q, g)
    labels = (several(people, q), several(people, g), several(camera, q), several(camera, g))
    problem: dict[str, Any] = {"distances": distances, **dict(zip(LABELS, labels, strict=True))}
    return {**problem, **NO_CAMERAS} if draw(st.booleans()) else problem


@contextmanager
def backend_of(choice: str) -> Iterator[None]:
    """The native kernel, where it is built, or plain torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MGRAN_BACKEND", "auto" if choice == "native" else choice)
        yield


def expected(problem: dict[str, Any], **options: Any) -> reference.Reference:
    return reference.rank(problem["distances"].tolist(), *(problem[name] for name in LABELS), **options)


@settings(max_examples=250)
@given(
    problems(),
    st.sampled_from(["hits", "trapezoid"]),
    st.sampled_from(["index", "pessimistic", "optimistic"]),
    st.integers(1, 20),
    st.sampled_from([None, 1, 2, 5]),
    st.sampled_from(["native", "reference"]),
)
def test_rank_equals_the_reference(
    problem: dict[str, Any], ap: str, ties: str, max_rank: int, chunk: int | None, backend: str
) -> None:
    right = expected(problem, ap=ap, ties=ties, max_rank=max_rank)
    options: dict[str, Any] = {**problem, "ap": ap, "ties": ties, "max_rank": max_rank, "chunk": chunk}
    with backend_of(backend):
        if not any(right.first):
            with pytest.raises(ValueError, match="no query has a right match"):
                rank(**options)
            return
        found = rank(**options)
    assert (found.definition, found.ties) == (ap, ties)
    assert found.first.tolist() == right.first
    assert found.cmc.tolist() == right.cmc
    np.testing.assert_array_equal(found.ap, right.ap)
    np.testing.assert_array_equal(found.inp, right.inp)
    assert found.unmatched.tolist() == [i for i, place in enumerate(right.first) if place == 0]
    assert not found.valid[found.unmatched].any()
    valid = [value for value in right.ap if not math.isnan(value)]
    assert found.map == pytest.approx(sum(valid) / len(valid), rel=1e-12)
    assert found.at(max_rank) == right.cmc[-1]


@settings(max_examples=80)
@given(problems(), st.integers(1, 20), st.sampled_from([None, 1, 2]))
def test_top_lists_what_the_reference_orders(problem: dict[str, Any], k: int, chunk: int | None) -> None:
    found = top(**problem, k=k, chunk=chunk)
    assert found.index.shape == found.distance.shape == found.right.shape == (len(problem["query_ids"]), k)
    for i, person in enumerate(problem["query_ids"]):
        camera = problem["query_cameras"] and problem["query_cameras"][i]
        line = problem["distances"][i].tolist()
        order = reference.order(line, person, camera, problem["gallery_ids"], problem["gallery_cameras"])[:k]
        rest = k - len(order)
        assert found.index[i].tolist() == order + [-1] * rest
        assert found.distance[i].tolist() == [line[j] for j in order] + [math.inf] * rest
        assert found.right[i].tolist() == [problem["gallery_ids"][j] == person for j in order] + [False] * rest


def by_hand() -> dict[str, Any]:
    """Query 0 (person 1, camera 0) and its gallery, nearest first:

    junk (own camera), person 2, person 1 (rank 2), -1 (junk), person 1 (rank 3), person 2, person 1 (rank 5).
    Query 1 (person 2) finds 0 of the same list first. Query 2 (person 9) has nobody.
    """
    gallery_ids = [1, 2, 1, -1, 1, 2, 1]
    line = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    return {
        "distances": np.array([line, line[::-1], line]),
        "query_ids": [1, 2, 9],
        "gallery_ids": gallery_ids,
        "query_cameras": [0, 3, 0],
        "gallery_cameras": [0, 0, 1, 1, 2, 0, 1],
    }


def test_by_hand_average_precision_at_the_hits() -> None:
    found = rank(**by_hand(), max_rank=6)
    # Query 0 hits at 2, 3, 5. Query 1, the list backwards without the -1: 1, 2, 1, 1, 2, 1: hits at 2 and 5.
    assert found.first.tolist() == [2, 2, 0]
    assert found.ap[0] == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)
    assert found.ap[1] == pytest.approx((1 / 2 + 2 / 5) / 2)
    assert found.inp[:2].tolist() == [3 / 5, 2 / 5]
    assert np.isnan(found.ap[2])
    assert np.isnan(found.inp[2])
    assert found.unmatched.tolist() == [2]
    assert found.cmc.tolist() == [0, 1, 1, 1, 1, 1]
    assert found.minp == pytest.approx(1 / 2)
    assert (found.at(1), found.at(2), found.at(1000)) == (0, 1, 1)
    expected_map = (found.ap[0] + found.ap[1]) / 2
    assert found.summary((1, 5)) == {
        "rank1": 0,
        "rank5": 1,
        "map": pytest.approx(expected_map),
        "minp": pytest.approx(0.5),
        "queries": 3,
        "unmatched": 1,
    }


def test_by_hand_average_precision_by_trapezoids() -> None:
    found = rank(**by_hand(), ap="trapezoid")
    assert found.ap[0] == pytest.approx(((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 4 + 3 / 5) / 2) / 3)
    assert found.ap[1] == pytest.approx(((0 + 1 / 2) / 2 + (1 / 4 + 2 / 5) / 2) / 2)
    perfect = rank(distances=[[0.0, 1.0, 2.0]], query_ids=[5], gallery_ids=[5, 5, 6], ap="trapezoid", **NO_CAMERAS)
    assert perfect.map == 1


def test_ties_go_to_the_lower_index() -> None:
    same = {"distances": np.ones((1, 4)), "query_ids": [7], "gallery_ids": [1, 7, 1, 7], **NO_CAMERAS}
    found = rank(**same)
    assert found.first.tolist() == [2]
    assert found.ap[0] == (1 / 2 + 2 / 4) / 2
    assert top(**same, k=3).index.tolist() == [[0, 1, 2]]


def test_ties_may_go_to_the_wrong_or_the_right_ones() -> None:
    same = {"distances": np.ones((1, 4)), "query_ids": [7], "gallery_ids": [1, 7, 1, 7], **NO_CAMERAS}
    worst, best = rank(**same, ties="pessimistic"), rank(**same, ties="optimistic")
    assert (worst.first.tolist(), best.first.tolist()) == ([3], [1])
    assert (worst.map, best.map) == ((1 / 3 + 2 / 4) / 2, 1.0)


def test_queries_without_a_match_may_count_as_never_found() -> None:
    found = rank(**by_hand(), max_rank=6)
    valid, every = found.summary((2,)), found.summary((2,), divisor="all")
    assert (valid["rank2"], every["rank2"]) == (1, 2 / 3)
    assert every["map"] == pytest.approx(found.map * 2 / 3)
    assert every["minp"] == pytest.approx(found.minp * 2 / 3)
    with pytest.raises(ValueError, match="divisor must be one of valid, all"):
        found.summary(divisor="some")


def test_negative_zero_is_zero() -> None:
    found = top(distances=[[0.0, -0.0, 0.0]], query_ids=[1], gallery_ids=[1, 2, 3], **NO_CAMERAS)
    assert found.index[0, :3].tolist() == [0, 1, 2]


def random_problem(q: int = 40, g: int = 300) -> dict[str, Any]:
    generator = np.random.default_rng(3)
    labels = (generator.integers(-1, 30, n) for n in (q, g))
    cameras = (generator.integers(0, 5, n) for n in (q, g))
    return dict(zip(LABELS, (*labels, *cameras), strict=True))


def assert_same(a: Any, b: Any) -> None:
    for name in vars(a):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "visible"])
def test_embeddings_rank_like_their_distances(metric: str) -> None:
    labels = random_problem()
    generator = np.random.default_rng(4)
    query, gallery = (generator.standard_normal((n, 12)) for n in (40, 300))
    options: dict[str, Any] = {"metric": metric}
    if metric == "visible":
        seen = [generator.integers(0, 2, (n, 4)) for n in (40, 300)]
        options = {"query_visibility": seen[0], "gallery_visibility": seen[1]}
        distances = visible(query, gallery, *seen)
    else:
        distances = {"euclidean": euclidean, "cosine": cosine}[metric](query, gallery)
    for call in (rank, top):
        assert_same(call(query, gallery, **options, **labels), call(distances=distances, **labels))


def test_tensors_arrays_and_chunks_give_the_same() -> None:
    labels = random_problem()
    distances = np.random.default_rng(5).integers(0, 90, (40, 300)).astype(np.float32) / 90
    whole = rank(distances=distances, **labels)
    as_tensors = {name: torch.from_numpy(values) for name, values in labels.items()}
    assert_same(rank(distances=torch.from_numpy(distances), **as_tensors), whole)
    assert_same(rank(distances=torch.from_numpy(distances.T.copy()).T.requires_grad_(), **labels), whole)
    assert_same(rank(distances=distances[::-1].copy()[::-1], **{k: v.tolist() for k, v in labels.items()}), whole)
    for chunk in (1, 7, 40, 1000):
        assert_same(rank(distances=distances, chunk=chunk, **labels), whole)
        assert_same(top(distances=distances, chunk=chunk, **labels), top(distances=distances, **labels))


def test_a_memory_mapped_matrix_is_read_and_left_alone(tmp_path: Path) -> None:
    labels = random_problem()
    distances = np.random.default_rng(6).random((40, 300))
    before = distances.copy()
    np.save(tmp_path / "distances.npy", distances)
    mapped = np.load(tmp_path / "distances.npy", mmap_mode="r")
    assert_same(rank(distances=mapped, chunk=16, **labels), rank(distances=distances, **labels))
    assert_same(top(distances=mapped, chunk=16, **labels), top(distances=distances, **labels))
    np.testing.assert_array_equal(distances, before)


def test_half_precision_distances_rank_as_they_are() -> None:
    labels = random_problem()
    half = torch.rand(40, 300, generator=torch.Generator().manual_seed(7)).half()
    assert_same(rank(distances=half, **labels), rank(distances=half.double(), **labels))


def test_without_a_match_the_likely_reason_is_told() -> None:
    options: dict[str, Any] = {"distances": np.ones((1, 2)), "query_ids": [1]}
    with pytest.raises(ValueError, match=r"query_ids \(1, ...\) and gallery_ids \(2, 3, ...\) have no identity"):
        rank(**options, gallery_ids=[2, 3], query_cameras=[0], gallery_cameras=[0, 1])
    with pytest.raises(ValueError, match=r"are 4 everywhere.*leave that rule out: query_cameras=None"):
        rank(**options, gallery_ids=[1, 1], query_cameras=[4], gallery_cameras=[4, 4])
    with pytest.raises(ValueError, match="all from the camera of the query"):
        rank(**options, gallery_ids=[1, 2], query_cameras=[4], gallery_cameras=[4, 5])


def nan_distances() -> np.ndarray[Any, Any]:
    distances = np.ones((3, 7))
    distances[2, 5] = np.nan
    return distances


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"distances": None}, ValueError, "query is missing"),
        ({"distances": None, "query": torch.zeros(3, 2)}, ValueError, "gallery is missing"),
        ({"query": torch.zeros(3, 2)}, ValueError, "query is given with distances"),
        ({"gallery_visibility": torch.zeros(3, 2)}, ValueError, "gallery_visibility is given with distances"),
        ({"distances": np.ones(3)}, ValueError, r"distances must be \[Q, G\]"),
        ({"distances": np.ones((3, 7), dtype=int)}, TypeError, "distances must be floating point"),
        ({"distances": np.ones((0, 7))}, ValueError, "0 queries and 7 gallery entries"),
        ({"distances": np.ones((3, 0))}, ValueError, "3 queries and 0 gallery entries"),
        ({"distances": nan_distances()}, ValueError, "NaN between query 2 and gallery entry 5"),
        ({"distances": nan_distances(), "chunk": 1}, ValueError, "NaN between query 2 and gallery entry 5"),
        ({"query_ids": [1, 2]}, ValueError, r"query_ids must be \[3\], one for each of the queries, not \[2\]"),
        ({"gallery_cameras": [0]}, ValueError, r"gallery_cameras must be \[7\]"),
        ({"gallery_ids": np.ones(7)}, TypeError, "gallery_ids must be integers"),
        ({"query_ids": [True, True, False]}, TypeError, "query_ids must be integers"),
        ({"query_ids": ["a", "b", "c"]}, TypeError, "query_ids must be a tensor or an array of numbers"),
        ({"query_cameras": None}, ValueError, "query_cameras is missing"),
        ({"ap": "mean"}, ValueError, "ap must be one of hits, trapezoid"),
        ({"ties": "random"}, ValueError, "ties must be one of index, pessimistic, optimistic"),
        ({"max_rank": 0}, ValueError, "max_rank must be at least 1"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        rank(**{**by_hand(), **changes})


@pytest.mark.parametrize("given", [{}, {"query_cameras": [1, 1, 2]}])
def test_cameras_must_be_given_or_left_out(given: dict[str, Any]) -> None:
    problem = {name: value for name, value in by_hand().items() if not name.endswith("cameras")}
    missing = "gallery_cameras" if given else "query_cameras"
    for ranks in (rank, top, rank_shots):
        with pytest.raises(ValueError, match=f"{missing} is missing: give both .* or None for both, to rank without"):
            ranks(**problem, **given)


def test_a_rank_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        top(**by_hand(), k=0)
    with pytest.raises(ValueError, match="k must be at least 1"):
        rank(**by_hand()).at(0)


def test_embeddings_with_nan_are_refused() -> None:
    labels = {"query_ids": [1], "gallery_ids": [1, 2], **NO_CAMERAS}
    with pytest.raises(ValueError, match=r"gallery holds NaN.*first in row 1"):
        rank(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [0.0, torch.nan]]), **labels)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same() -> None:
    labels = random_problem()
    distances = torch.rand(40, 300, generator=torch.Generator().manual_seed(8)).mul(50).round()
    assert_same(rank(distances=distances.cuda(), **labels), rank(distances=distances, **labels))
    assert_same(top(distances=distances.cuda(), **labels), top(distances=distances, **labels))
