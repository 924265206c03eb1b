"""Search in a gallery of 200,000 embeddings of 512: one query, and 64 at once; exact, and by an inverted file.

Peers: NumPy's product and argpartition, and FAISS's exact index, which give the same entries.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mgran_fast import Gallery
from mgran_fast.bench import peers

ENTRIES, WIDTH, K = 200_000, 512, 10


@functools.cache
def embeddings(count: int, seed: int) -> torch.Tensor:
    """About a centre for each of a tenth as many people, unit norm."""
    generator = torch.Generator().manual_seed(seed)
    people = torch.randn(ENTRIES // 10, WIDTH, generator=torch.Generator().manual_seed(99))
    own = people[torch.randint(0, len(people), (count,), generator=generator)]
    return torch.nn.functional.normalize(own + torch.randn(count, WIDTH, generator=generator), dim=1)


@functools.cache
def gallery() -> Gallery:
    found = Gallery()
    found.add(embeddings(ENTRIES, 0), [str(i) for i in range(ENTRIES)], cameras=[i % 6 for i in range(ENTRIES)])
    found.index()
    return found


@pytest.mark.parametrize("queries", [1, 64])
def test_search(queries: int, compare: Callable[..., None]) -> None:
    held, asked = gallery(), embeddings(queries, 1)
    rows, query = held.embeddings.numpy(), asked.numpy()
    squares = np.square(rows).sum(axis=1)
    want = held.search(asked, K).index
    assert np.array_equal(peers.first_k(query, rows, squares, K), want)
    some = held.search(asked, K, approximate=True).index
    recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(some, want, strict=True)])
    sys.stdout.write(f"of the nearest {K} the inverted file finds {100 * recall:.1f} %\n")
    contestants: dict[str, Callable[[], object]] = {
        "ours": lambda: held.search(asked, K),
        "ours, one of six cameras": lambda: held.search(asked, K, cameras=[3]),
        "ours, inverted file": lambda: held.search(asked, K, approximate=True),
        "NumPy": lambda: peers.first_k(query, rows, squares, K),
    }
    try:
        faiss = importlib.import_module("faiss")
    except ImportError:
        sys.stdout.write("FAISS is not there: not raced\n")
    else:
        exact = faiss.IndexFlatL2(WIDTH)
        exact.add(rows)
        faiss.omp_set_num_threads(torch.get_num_threads())
        contestants["FAISS, exact"] = lambda: exact.search(query, K)
    compare(f"search, {queries} in {ENTRIES} x {WIDTH}", contestants, {}, count=queries)
