"""Ranking, one query at a time: the definitions that `mgran_fast.metrics.rank` must equal.

For a query, gallery entries are *junk* when they show the query's person in the query's own camera (it may be
the query picture itself), or when their identity is -1 (nobody's picture: distractor boxes of Market-1501).
Junk is left out and the rest is sorted by distance. Of several entries at the same distance comes first

    ties "index"         the one with the lower gallery index
    ties "pessimistic"   what does not show the query's person
    ties "optimistic"    what does

and then the lower index. Let r_1 < ... < r_n be the 1-based ranks of the n entries that show the query's person.

    first              r_1
    CMC at k           1 when r_1 <= k, else 0
    AP "hits"          mean over i of i / r_i: the precision at each hit
    AP "trapezoid"     mean over i of (p_i + i / r_i) / 2, with p_i = (i - 1) / (r_i - 1) the precision just above
                       the hit, and 1 where the hit is at rank 1; the evaluation code published with Market-1501
    INP                n / r_n: how much of the list must be read to find every picture (Ye et al., 2021)

A query with n = 0 cannot be answered. It is left out of every mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Reference(NamedTuple):
    """What `rank` computes: ``cmc`` over the queries with a match, the others for each of the Q queries."""

    cmc: list[float]
    ap: list[float]
    inp: list[float]
    first: list[int]


def order(
    distances: Sequence[float],
    person: int,
    camera: int | None,
    people: Sequence[int],
    cameras: Sequence[int] | None,
    ties: str = "index",
) -> list[int]:
    """Gallery indices for one query, best first, without junk. ``camera`` None: no camera rule."""
    kept = []
    for index, other in enumerate(people):
        same_camera = camera is not None and cameras is not None and cameras[index] == camera
        if other != -1 and not (other == person and same_camera):
            kept.append(index)

    def later(index: int) -> bool:
        """Whether the entry lets others at its distance pass."""
        right = people[index] == person
        return {"index": False, "pessimistic": right, "optimistic": not right}[ties]

    return sorted(kept, key=lambda index: (distances[index], later(index), index))


def rank(
    distances: Sequence[Sequence[float]],
    query_ids: Sequence[int],
    gallery_ids: Sequence[int],
    query_cameras: Sequence[int] | None,
    gallery_cameras: Sequence[int] | None,
    *,
    ap: str = "hits",
    ties: str = "index",
    max_rank: int = 50,
) -> Reference:
    """Rank a gallery [G] for each of Q queries by ``distances`` [Q, G]; NaN and 0 where a query has no match."""
    precisions, inverse, first = [], [], []
    for query, person in enumerate(query_ids):
        camera = None if query_cameras is None else query_cameras[query]
        ranked = order(distances[query], person, camera, gallery_ids, gallery_cameras, ties)
        hits = [place for place, index in enumerate(ranked, start=1) if gallery_ids[index] == person]
        if not hits:
            precisions.append(math.nan)
            inverse.append(math.nan)
            first.append(0)
            continue
        total = 0.0
        for i, place in enumerate(hits, start=1):
            precision = i / place
            if ap == "trapezoid":
                above = 1.0 if place == 1 else (i - 1) / (place - 1)
                precision = (above + precision) / 2
            total += precision
        precisions.append(total / len(hits))
        inverse.append(len(hits) / hits[-1])
        first.append(hits[0])
    found = [place for place in first if place]
    cmc = [sum(place <= k for place in found) / len(found) for k in range(1, max_rank + 1)] if found else []
    return Reference(cmc, precisions, inverse, first)
