"""k-reciprocal re-ranking against its definition, on small problems; and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mgran_fast.metrics import cosine, euclidean, rank, rerank
from mgran_fast.metrics.rerank import _run, nearest_of
from mgran_fast.ops.backend import native
from mgran_fast.reference import rerank as reference


def embeddings(q: int, g: int, width: int = 5, people: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """About a centre for each person, so that there are reciprocal neighbours."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(people, width, generator=generator)
    made = [
        centres[torch.randint(people, (n,), generator=generator)] + 0.5 * torch.randn(n, width, generator=generator)
        for n in (q, g)
    ]
    return made[0], made[1]


def matrices(query: torch.Tensor, gallery: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In float64: no two of the distances are equal by rounding."""
    query, gallery = query.double(), gallery.double()
    return torch.cdist(query, query), torch.cdist(query, gallery), torch.cdist(gallery, gallery)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("q", "g", "k1", "k2"),
    [(1, 1, 1, 1), (1, 1, 20, 6), (3, 9, 20, 6), (12, 50, 5, 3), (12, 50, 6, 1), (30, 90, 7, 8), (20, 130, 20, 6)],
)
def test_rerank_is_its_definition(
    monkeypatch: pytest.MonkeyPatch, q: int, g: int, k1: int, k2: int, backend: str
) -> None:
    monkeypatch.setenv("MGRAN_BACKEND", backend)
    for seed, weight in enumerate((0.3, 0.0, 1.0)):
        query, gallery = embeddings(q, g, seed=seed)
        given = matrices(query, gallery)
        want = reference.rerank(*given, k1, k2, weight)
        for chunk in (None, 1, 7):
            found = rerank(distances=given, k1=k1, k2=k2, weight=weight, chunk=chunk)
            assert (found.dtype, found.shape) == (torch.float32, (q, g))
            torch.testing.assert_close(found.double(), want, rtol=0, atol=1e-6)
        # Distances of embeddings are in float32: near ties may change places, but not in so few pictures.
        torch.testing.assert_close(
            rerank(query, gallery, k1=k1, k2=k2, weight=weight).double(), want, rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("threads", [1, 3])
def test_neither_threads_nor_chunks_matter(threads: int) -> None:
    query, gallery = embeddings(40, 200, seed=5)
    given = matrices(query, gallery)
    want = rerank(distances=given)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(rerank(distances=given, chunk=13), want)
    finally:
        torch.set_num_threads(before)


def test_ties_go_to_the_lower_index() -> None:
    generator = torch.Generator().manual_seed(2)
    points = torch.randint(0, 4, (60, 2), generator=generator).double()
    given = matrices(points[:10], points[10:])
    torch.testing.assert_close(rerank(distances=given, k1=6, k2=3).double(), reference.rerank(*given, 6, 3))


def test_pictures_that_are_all_alike_are_all_as_near() -> None:
    found = rerank(torch.ones(2, 3), torch.ones(4, 3), k1=3, k2=2)
    assert bool(found.isfinite().all())
    zeros = (torch.zeros(2, 2), torch.zeros(2, 4), torch.zeros(4, 4))
    torch.testing.assert_close(rerank(distances=zeros, k1=3, k2=2).double(), reference.rerank(*zeros, 3, 2))


def test_cosine_distances_are_those_of_cosine() -> None:
    query, gallery = embeddings(10, 60, seed=3)
    given = cosine(query, query), cosine(query, gallery), cosine(gallery, gallery)
    torch.testing.assert_close(rerank(query, gallery, metric="cosine"), rerank(distances=given), rtol=0, atol=1e-4)


def test_it_helps_where_neighbours_are_people() -> None:
    generator = np.random.default_rng(0)
    people = np.repeat(np.arange(25), 12)
    centres = generator.normal(size=(25, 16))
    points = torch.from_numpy(centres[people] + 1.1 * generator.normal(size=(300, 16)))
    order = generator.permutation(300)
    ids, points = people[order], points[order]
    labels: dict[str, Any] = {
        "query_ids": ids[:50], "gallery_ids": ids[50:], "query_cameras": None, "gallery_cameras": None
    }  # fmt: skip
    plain = rank(points[:50], points[50:], **labels)
    again = rank(distances=rerank(points[:50], points[50:], k1=10, k2=4), **labels)
    assert again.map > plain.map + 0.03


def bad(place: tuple[int, int], value: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    given = tuple(matrix.clone() for matrix in matrices(*embeddings(3, 5)))
    given[1][place] = value
    return given[0], given[1], given[2]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ValueError, "query is missing"),
        ({"query": torch.ones(2, 3)}, ValueError, "gallery is missing"),
        ({"query": torch.ones(2, 3), "gallery": torch.ones(0, 3)}, ValueError, "2 queries and 0 gallery entries"),
        ({"query": torch.ones(2, 3), "distances": bad((0, 0), 1)}, ValueError, "either distances or query"),
        ({"query": torch.ones(2, 3), "gallery": torch.ones(4, 2)}, ValueError, "must come from the same model"),
        ({"query": torch.ones(2, 3), "gallery": torch.full((4, 3), torch.nan)}, ValueError, "gallery holds NaN"),
        ({"query": torch.ones(2, 3).int(), "gallery": torch.ones(4, 3)}, TypeError, "query must be floating point"),
        ({"distances": bad((1, 2), torch.nan)}, ValueError, "at least 0, not nan between pictures 1 and 5"),
        ({"distances": bad((1, 2), -1.0)}, ValueError, r"at least 0, not -1.0 between pictures 1 and 5"),
        ({"distances": torch.ones(2, 2)}, ValueError, "three matrices in a tuple"),
        ({"distances": (torch.ones(2, 2), torch.ones(2, 3), torch.ones(4, 4))}, ValueError, r"must be \[3, 3\] beside"),
        ({"distances": (torch.ones(2), torch.ones(2, 3), torch.ones(3, 3))}, ValueError, "must be a matrix"),
        ({"distances": (torch.ones(2, 2).int(), torch.ones(2, 3), torch.ones(3, 3))}, TypeError, "floating point"),
        ({"distances": bad((0, 0), 1), "k1": 0}, ValueError, "k1 must be at least 1"),
        ({"distances": bad((0, 0), 1), "k2": 0}, ValueError, r"k2 must be from 1 to k1 \+ 1 = 21"),
        ({"distances": bad((0, 0), 1), "k1": 2, "k2": 4}, ValueError, r"k2 must be from 1 to k1 \+ 1 = 3"),
        ({"distances": bad((0, 0), 1), "weight": 1.5}, ValueError, "weight must be from 0 to 1"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        rerank(**options)


def test_distances_of_embeddings_are_those_of_euclidean() -> None:
    query, gallery = embeddings(10, 60, seed=4)
    given = euclidean(query, query), euclidean(query, gallery), euclidean(gallery, gallery)
    torch.testing.assert_close(rerank(query, gallery), rerank(distances=given), rtol=0, atol=1e-4)


@pytest.mark.parametrize("levels", [2, 9, 10**6])
def test_neighbours_in_plain_torch_are_those_of_the_kernel(levels: int) -> None:
    """What finds them on a GPU."""
    values = torch.randint(0, levels, (7, 60), generator=torch.Generator().manual_seed(0)).float()
    columns, largest = nearest_of(values, 21)
    assert columns.tolist() == [row.argsort(stable=True)[:21].tolist() for row in values]
    assert torch.equal(largest, values.max(dim=1).values)
    module = native("rerank_nearest", "cpu")
    if module is not None:
        neighbours, most = torch.empty((7, 21), dtype=torch.int32), torch.empty(7)
        _run(module, "nearest", values=values, neighbours=neighbours, largest=most, rows=7, width=60, k=21)
        assert torch.equal(neighbours.long(), columns)
        assert torch.equal(most, largest)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("width", [3, 31, 32, 100, 2048])
def test_embeddings_of_any_width(metric: str, width: int) -> None:
    query, gallery = embeddings(9, 40, width)
    compare = euclidean if metric == "euclidean" else cosine
    between = (compare(query.double(), query.double()), compare(query.double(), gallery.double()))
    want = reference.rerank(*between, compare(gallery.double(), gallery.double()), 6, 3, 0.3)
    assert rerank(query, gallery, k1=6, k2=3, metric=metric).numpy() == pytest.approx(want.numpy(), abs=2e-4)
    # Parts of other tensors, in other precisions, lie otherwise in memory.
    wide = torch.zeros(9, 2 * width, dtype=torch.float64)
    wide[:, ::2] = query
    found = rerank(wide[:, ::2], gallery, k1=6, k2=3, metric=metric)
    assert found.numpy() == pytest.approx(want.numpy(), abs=2e-4)
