"""The kernels of ranking and shots against plain torch: longer rows, many matches, every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mgran_fast.metrics import rank, rank_shots
from mgran_fast.ops import backend

module = backend.extension()
pytestmark = [
    pytest.mark.skipif(module is None, reason="the extension is not built"),
    pytest.mark.usefixtures("processor_restored"),
]
INSTRUCTIONS = pytest.mark.parametrize("instructions", ["portable", "avx2", "avx512"])


def problem(q: int, g: int, people: int, levels: int, dtype: type = np.float32, seed: int = 0) -> dict[str, Any]:
    """Distances of a few levels, so that many are tied, with infinite ones among them."""
    generator = np.random.default_rng(seed)
    distances = generator.integers(0, levels, (q, g)).astype(dtype) / dtype(7)
    distances[generator.random((q, g)) < 0.01] = np.inf
    return {
        "distances": distances,
        "query_ids": generator.integers(-1, people, q),
        "gallery_ids": generator.integers(-1, people, g),
        "query_cameras": generator.integers(0, 4, q),
        "gallery_cameras": generator.integers(0, 4, g),
    }


def both(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """The kernels' answers are those of plain torch: of ranking to the bit, of shots up to the order of sums."""
    shots = {name: value for name, value in options.items() if name not in ("ap", "ties")}
    for call, given, tolerance in ((rank, options, 0.0), (rank_shots, {**shots, "max_rank": 7}, 1e-13)):
        monkeypatch.setenv("MGRAN_BACKEND", "native")
        ours = call(**given)
        monkeypatch.setenv("MGRAN_BACKEND", "reference")
        for name, value in vars(call(**given)).items():
            if isinstance(value, str):
                assert getattr(ours, name) == value
            else:
                np.testing.assert_allclose(getattr(ours, name), value, rtol=tolerance, atol=0, err_msg=name)


@INSTRUCTIONS
@pytest.mark.parametrize("ties", ["index", "pessimistic", "optimistic"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("q", "g", "people", "levels"),
    # A row shorter than a vector; one of several blocks with a rest; nearly all different; hundreds of matches.
    [(5, 7, 2, 3), (20, 9001, 300, 40), (9, 4096, 40, 10**6), (6, 1500, 2, 30), (4, 900, 1, 10**5)],
)
def test_the_kernel_is_plain_torch(
    monkeypatch: pytest.MonkeyPatch, instructions: str, ties: str, dtype: type, q: int, g: int, people: int, levels: int
) -> None:
    assert module is not None
    module.limit_isa(instructions)
    for seed, ap in enumerate(("hits", "trapezoid")):
        both(monkeypatch, **problem(q, g, people, levels, dtype, seed), ties=ties, ap=ap)


@INSTRUCTIONS
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_products_become_distances_as_torch_makes_them(
    monkeypatch: pytest.MonkeyPatch, instructions: str, metric: str, dtype: torch.dtype
) -> None:
    assert module is not None
    module.limit_isa(instructions)
    labels = {name: value for name, value in problem(30, 501, 20, 9).items() if name != "distances"}
    generator = torch.Generator().manual_seed(1)
    # Small integers: equal embeddings at distance 0, opposite ones, and a zero vector.
    query, gallery = (torch.randint(-1, 2, (n, 6), generator=generator).to(dtype) for n in (30, 501))
    gallery[:30] = query
    gallery[40], query[3] = 0, 0
    both(monkeypatch, query=query, gallery=gallery, metric=metric, chunk=7, **labels)


def test_threads_do_not_matter() -> None:
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append({**vars(rank(**problem(50, 700, 30, 40))), **vars(rank_shots(**problem(50, 700, 30, 40)))})
    for other in found[1:]:
        for name, value in found[0].items():
            np.testing.assert_array_equal(other[name], value)


@pytest.mark.parametrize("place", [0, 15, 699])
def test_a_nan_is_found_wherever_it_is(place: int) -> None:
    options = problem(50, 700, 30, 40)
    options["distances"][33, place] = np.nan
    for call in (rank, rank_shots):
        with pytest.raises(ValueError, match=f"NaN between query 33 and gallery entry {place}; .*look at the embed"):
            call(**options)
