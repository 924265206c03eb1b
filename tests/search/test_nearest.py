"""The kernels of search against the definition: any width, few and many queries, every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mgran_fast.metrics.distances import terms
from mgran_fast.ops import backend
from mgran_fast.reference import search as reference
from mgran_fast.search import nearest as blocks
from mgran_fast.search.nearest import Embeddings, nearest

module = backend.extension()
pytestmark = [
    pytest.mark.skipif(module is None, reason="the extension is not built"),
    pytest.mark.usefixtures("processor_restored"),
]


def embeddings(count: int, width: int, seed: int, metric: str = "euclidean") -> Embeddings:
    """Small whole numbers: products are exact, and many distances are equal."""
    vectors = torch.randint(-2, 3, (count, width), generator=torch.Generator().manual_seed(seed)).float()
    return Embeddings(vectors, terms(vectors, metric, torch.float32, "vectors"))


@pytest.mark.parametrize("instructions", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("queries", "count", "width", "k"),
    [(1, 700, 5, 10), (4, 1, 64, 3), (6, 333, 33, 1), (9, 130, 100, 200), (0, 9, 4, 2)],
)
def test_against_the_definition(
    instructions: str, threads: int, queries: int, count: int, width: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module is not None
    module.limit_isa(instructions)
    torch.set_num_threads(threads)
    monkeypatch.setattr(blocks, "_BLOCK", 50 * width)
    query, held = embeddings(queries, width, 1), embeddings(count, width, 2)
    squares = (query.vectors.double()[:, None] - held.vectors.double()).square().sum(dim=2)
    # NumPy's roots are correctly rounded, as the kernel's are; torch's need not be.
    distances = np.sqrt(squares.float().numpy())
    some = torch.arange(0, count, 3)
    for places in (None, some, some[:0]):
        distance, index = nearest(query, held, "euclidean", k, places)
        for q in range(queries):
            want = reference.nearest(distances[q].tolist(), k, None if places is None else places.tolist())
            assert index[q].tolist() == [place for _, place in want] + [-1] * (k - len(want))
            assert distance[q].tolist() == [away for away, _ in want] + [float("inf")] * (k - len(want))


@pytest.mark.parametrize("queries", [3, 20])
def test_cosine_and_products_to_the_bit_of_every_instruction_set(queries: int) -> None:
    assert module is not None
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(count, 77, generator=generator) for count in (queries, 500)]
    query, held = (Embeddings(side, terms(side, "cosine", torch.float32, "vectors")) for side in sides)
    found = []
    for instructions in ("portable", "avx2", "avx512"):
        module.limit_isa(instructions)
        found.append(nearest(query, held, "cosine", 40, None))
    for distance, index in found[1:]:
        assert torch.equal(distance, found[0][0])
        assert torch.equal(index, found[0][1])
    exact = 1 - torch.nn.functional.cosine_similarity(sides[0].double()[:, None], sides[1].double(), dim=2)
    want = exact.sort(dim=1).values[:, :40]
    assert found[0][0].double().numpy() == pytest.approx(want.numpy(), abs=1e-6)


def test_places_that_lead_nowhere_are_refused() -> None:
    query, held = embeddings(2, 8, 1), embeddings(5, 8, 2)
    for place, error in ((-1, RuntimeError), (5, IndexError)):
        with pytest.raises(error):
            nearest(query, held, "euclidean", 2, torch.tensor([0, place]))
    assert np.isfinite(nearest(query, held, "euclidean", 2, torch.tensor([0, 4]))[0].numpy()).all()
