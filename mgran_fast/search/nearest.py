"""The nearest entries of a gallery: all are looked at, a block at a time. Definition: `mgran_fast.reference.search`.

On a CPU the distances of a few queries come from the native kernel ``search``, which reads entries where they lie,
those of many from a matrix product; what is nearest is found by the kernel. Plain torch does it on a GPU, where parts
are compared, or where the extension is not built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import torch

from mgran_fast.metrics.distances import METRICS, finish, pairwise, product, rows_per_chunk
from mgran_fast.metrics.hits import first_of
from mgran_fast.ops import backend
from mgran_fast.ops.launch import launch

#: Numbers of embeddings that a block holds where they are copied or multiplied.
_BLOCK = 2**24
#: So many queries are compared faster one by one than by a matrix product.
_FEW = 8

Nearest = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Of Q queries or N entries, on one device.

    Attributes:
        vectors: float32 [N, D], contiguous.
        terms: float32 [N], see :func:`mgran_fast.metrics.distances.terms`.
        visible: bool [N, P], or None: compares whole vectors.
    """

    vectors: torch.Tensor
    terms: torch.Tensor
    visible: torch.Tensor | None = None


def nearest(query: Embeddings, entries: Embeddings, metric: str, k: int, places: torch.Tensor | None) -> Nearest:
    """The k nearest entries of each query; of two at one distance the one with the lower place.

    Args:
        places: int64, rising, on the CPU: the entries that may be found; None for all.

    Returns:
        On the CPU, distances float32 [Q, k], infinite where there are fewer than k entries, and places int64 [Q, k],
        -1 there.
    """
    count = len(entries.vectors) if places is None else len(places)
    module = None
    if query.visible is None and query.vectors.device.type == "cpu":
        module = backend.native("search_first", "cpu")
    if module is not None:
        return _native(module, query, entries, metric, k, places, count)
    return _plain(_comparison(query, entries, metric), len(query.vectors), query.vectors.shape[1], k, places, count)


def _native(
    module: ModuleType,
    query: Embeddings,
    entries: Embeddings,
    metric: str,
    k: int,
    places: torch.Tensor | None,
    count: int,
) -> Nearest:
    queries, width = query.vectors.shape
    distance = torch.full((queries, k), torch.inf)
    index = torch.full((queries, k), -1)
    few = queries <= _FEW
    step = rows_per_chunk(None, max(1, queries))
    for start, stop in _spans(count, step if few else min(step, _BLOCK // max(1, width))):
        some = None if places is None else places[start:stop]
        at = slice(start, stop) if some is None else some
        arguments = {
            "query": query.vectors, "entries": entries.vectors, "places": some, "query_terms": query.terms,
            "gallery_terms": entries.terms[at], "distance": distance, "index": index, "queries": queries,
            "gallery": stop - start, "width": width, "held": len(entries.vectors), "begin": start, "k": k,
            "metric": 1 + METRICS.index(metric),
        }  # fmt: skip
        if few:
            values = torch.empty(queries, stop - start)
            launch(module, "search_products", values.device, values=values, **arguments)
        else:
            values = product(query.vectors, entries.vectors[at])
        launch(module, "search_first", values.device, values=values, **arguments)
    return distance, index


def _comparison(query: Embeddings, entries: Embeddings, metric: str) -> Callable[[slice | torch.Tensor], torch.Tensor]:
    """Places of entries -> their distances to all queries [Q, n], a new tensor."""

    def compare(some: slice | torch.Tensor) -> torch.Tensor:
        some = some.to(entries.vectors.device) if isinstance(some, torch.Tensor) else some
        if query.visible is not None and entries.visible is not None:
            parts = pairwise(query.vectors, entries.vectors[some], metric, query.visible, entries.visible[some])
            return parts.rows(0, len(query.vectors))
        products = product(query.vectors, entries.vectors[some])
        return finish(metric, products, query.terms[:, None], entries.terms[some])

    return compare


def _plain(
    compare: Callable[[slice | torch.Tensor], torch.Tensor],
    queries: int,
    width: int,
    k: int,
    places: torch.Tensor | None,
    count: int,
) -> Nearest:
    best = torch.full((queries, 0), torch.inf)
    where = torch.zeros((queries, 0), dtype=torch.int64)
    for start, stop in _spans(count, min(rows_per_chunk(None, max(1, queries)), _BLOCK // max(1, width))):
        distances = compare(slice(start, stop) if places is None else places[start:stop])
        near, columns, _ = first_of(distances, k)
        near, columns = near.cpu(), columns.cpu()
        columns = columns + start if places is None else places[start + columns]
        columns = columns.masked_fill(near.isinf(), -1)
        # What was found before has lower places, and stays before its equals.
        best, order = torch.cat([best, near], dim=1).sort(dim=1, stable=True)
        where = torch.cat([where, columns], dim=1).gather(1, order)
        best, where = best[:, :k], where[:, :k]
    short = k - best.shape[1]
    pad = torch.nn.functional.pad
    return pad(best, (0, short), value=torch.inf), pad(where, (0, short), value=-1)


def _spans(count: int, step: int) -> Iterator[tuple[int, int]]:
    step = max(1, step)
    return ((start, min(start + step, count)) for start in range(0, count, step))
