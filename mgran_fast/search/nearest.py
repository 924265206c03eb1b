"""The nearest rows of a gallery: all are looked at, a block at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from mgran_fast.metrics.distances import rows_per_chunk
from mgran_fast.metrics.hits import sorted_where

#: Numbers of embeddings in a block.
_BLOCK = 2**24


def nearest(
    compare: Callable[[slice | torch.Tensor], torch.Tensor],
    queries: int,
    width: int,
    k: int,
    places: torch.Tensor | None,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest entries of each query.

    Of two at one distance the one that was added first comes first.

    Args:
        compare: entries -> their distances to all queries [Q, n], a new tensor.
        queries: Q. width: D, the length of an embedding, for the size of a block.
        k: how many.
        places: int64, rising: the entries that may be found; None for all ``count``.

    Returns:
        Distances [Q, k], infinite where there are fewer than k entries, and places int64 [Q, k], -1 there.
    """
    total = count if places is None else len(places)
    step = max(1, min(rows_per_chunk(None, max(1, queries)), _BLOCK // max(1, width)))
    best = torch.full((queries, 0), torch.inf)
    where = torch.zeros((queries, 0), dtype=torch.int64)
    for start in range(0, total, step):
        stop = min(start + step, total)
        distances = compare(slice(start, stop) if places is None else places[start:stop])
        near, columns = _first(distances, k)
        near, columns = near.cpu(), columns.cpu()
        columns = columns + start if places is None else places.cpu()[start + columns]
        columns = columns.masked_fill(near.isinf(), -1)
        # What was found before has lower places, and stays before its equals.
        best, order = torch.cat([best.to(near.dtype), near], dim=1).sort(dim=1, stable=True)
        where = torch.cat([where, columns], dim=1).gather(1, order)
        best, where = best[:, :k], where[:, :k]
    short = k - best.shape[1]
    if short:
        best = torch.nn.functional.pad(best, (0, short), value=torch.inf)
        where = torch.nn.functional.pad(where, (0, short), value=-1)
    return best, where


def _first(distances: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first k of each row by distance and then column: values and columns; fewer columns where there are fewer."""
    # topk breaks ties as it likes: it tells how far the k-th is, and all up to there are put in order.
    last = distances.topk(min(k, distances.shape[1]), dim=1, largest=False).values[:, -1:]
    values, columns, _ = sorted_where(distances <= last, distances)
    return values[:, :k], columns[:, :k]
