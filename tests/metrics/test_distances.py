"""Distances against their formulas in float64, and everything that must not change them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mgran_fast.metrics import cosine, euclidean, visible
from mgran_fast.metrics.distances import METRICS, pairwise


def embeddings(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    error = (found.double() - expected.double()).abs().max()
    assert error <= tolerance, f"off by {error}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_euclidean_is_the_length_of_the_difference(dtype: torch.dtype) -> None:
    a, b = embeddings(7, 33).to(dtype), embeddings(11, 33, seed=1).to(dtype)
    found = euclidean(a, b)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(found, (a.double()[:, None] - b.double()).norm(dim=2), 1e-12 if dtype == torch.float64 else 1e-5)


def test_cosine_does_not_see_the_length() -> None:
    a, b = embeddings(7, 33), embeddings(11, 33, seed=1)
    expected = 1 - torch.cosine_similarity(a.double()[:, None], b.double(), dim=2)
    close(cosine(a, b), expected, 1e-6)
    close(cosine(a * 1e-6, b * 1e6), expected, 1e-6)


def test_a_vector_is_at_distance_zero_of_itself_and_never_below() -> None:
    a = torch.nn.functional.normalize(embeddings(50, 64))
    for distance, tolerance in ((euclidean(a, a), 1e-3), (cosine(a, a), 1e-6)):
        assert bool((distance >= 0).all())
        close(distance.diagonal(), torch.zeros(50), tolerance)


def test_a_zero_vector_is_at_cosine_distance_one() -> None:
    assert torch.equal(cosine(torch.zeros(1, 3), embeddings(4, 3)), torch.ones(1, 4))


@pytest.mark.parametrize("metric", METRICS)
def test_visible_is_the_mean_over_the_parts_that_both_show(metric: str) -> None:
    a, b = embeddings(9, 4, 5), embeddings(13, 4, 5, seed=1)
    generator = torch.Generator().manual_seed(2)
    va, vb = (torch.rand(n, 4, generator=generator) < 0.5 for n in (9, 13))
    expected = torch.empty(9, 13, dtype=torch.float64)
    alone = 0
    for i in range(9):
        for j in range(13):
            shared = [p for p in range(4) if va[i, p] and vb[j, p]]
            cosines = [torch.cosine_similarity(a[i, p].double(), b[j, p].double(), dim=0) for p in shared]
            parts = [2 - 2 * c if metric == "euclidean" else 1 - c for c in cosines]
            expected[i, j] = sum(parts) / len(parts) if parts else (4 if metric == "euclidean" else 2)
            alone += not parts
    assert alone > 0
    close(visible(a, b, va, vb, metric=metric), expected, 1e-6)
    # As a model returns them: part after part, and visibilities as numbers.
    close(visible(a.flatten(1), b.flatten(1), va.float(), vb.long(), metric=metric), expected, 1e-6)


def test_hidden_parts_are_not_looked_at() -> None:
    a, b = embeddings(3, 2, 4), embeddings(5, 2, 4, seed=1)
    seen = torch.tensor([[1, 0]])
    before = visible(a, b, seen.expand(3, 2), seen.expand(5, 2))
    a[:, 1], b[:, 1] = 1e9, 0
    assert torch.equal(visible(a, b, seen.expand(3, 2), seen.expand(5, 2)), before)


def test_visible_squared_euclidean_agrees_with_euclidean_for_one_part() -> None:
    a, b = (torch.nn.functional.normalize(embeddings(n, 8, seed=n)) for n in (4, 6))
    found = visible(a, b, torch.ones(4, 1), torch.ones(6, 1))
    close(found, euclidean(a, b).square(), 1e-5)


def test_chunks_and_containers_do_not_matter() -> None:
    # Small whole numbers: every product and sum is exact, whatever the order.
    a, b = (embeddings(n, 6, seed=n).mul(4).round() for n in (10, 7))
    whole = euclidean(a, b)
    for chunk in (1, 3, 10, 99):
        assert torch.equal(euclidean(a, b, chunk=chunk), whole)
        close(cosine(a, b, chunk=chunk), cosine(a, b), 1e-6)
    reversed_twice = a.numpy()[::-1].copy()[::-1]
    read_only = b.numpy().copy()
    read_only.setflags(write=False)
    assert torch.equal(euclidean(reversed_twice, read_only), whole)
    # Within a bit of float32: its roots are not rounded alike on all processors.
    close(euclidean(a.numpy().astype(">f4"), b.double().T.contiguous().T).float(), whole, 4e-6)


def test_mixed_precision_of_the_process_is_not_used() -> None:
    a, b = embeddings(5, 64), embeddings(6, 64, seed=1)
    expected = euclidean(a, b)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = euclidean(a.requires_grad_(), b)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_no_rows_give_no_distances() -> None:
    assert euclidean(torch.zeros(0, 3), torch.zeros(4, 3)).shape == (0, 4)
    assert cosine(torch.zeros(4, 3), torch.zeros(0, 3)).shape == (4, 0)


FOUR = torch.zeros(4, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((FOUR, torch.zeros(4, 5)), ValueError, "a has 6 features a row and b 5"),
        ((FOUR, torch.zeros(6)), ValueError, r"must be \[N, D\]"),
        ((torch.zeros(4, 2, 3), torch.zeros(4, 2, 3)), ValueError, "need their visibility"),
        ((FOUR, FOUR.long()), TypeError, "b must be floating point"),
        ((FOUR, np.array([["a"]])), TypeError, "b must be a tensor or an array of numbers"),
        ((FOUR, [[1.0], [2.0, 3.0]]), TypeError, "b must be a tensor or an array of numbers"),
        ((FOUR, torch.full((4, 6), torch.nan)), ValueError, "b holds NaN.* in 4 rows, first in row 0"),
        ((torch.full((4, 6), 1e30), FOUR), ValueError, "a holds NaN, infinite or huge"),
        ((FOUR, FOUR, "manhattan"), ValueError, "metric must be one of"),
        ((FOUR, FOUR, "cosine", torch.ones(4, 2)), ValueError, "the visibility of b is missing"),
        ((FOUR, FOUR, "cosine", torch.ones(4, 2), torch.ones(3, 2)), ValueError, r"the visibility of b must be \[N, P"),
        ((FOUR, FOUR, "cosine", torch.ones(4, 4), torch.ones(4, 4)), ValueError, r"a must be \[N, 4, D\]"),
        ((FOUR, FOUR, "cosine", torch.ones(4, 2), torch.ones(4, 3)), ValueError, "the same parts"),
        ((FOUR, FOUR, "cosine", torch.ones(4, 2), torch.full((4, 2), 0.5)), ValueError, "b must be 0 or 1"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[object, ...], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        pairwise(*arguments)  # type: ignore[arg-type]


def test_a_chunk_has_at_least_one_row() -> None:
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        euclidean(FOUR, FOUR, chunk=0)
