"""Ranking a gallery: CMC, mean average precision and mean inverse negative penalty.

The rules are those of Market-1501, spelled out in `mgran_fast.reference.ranking`: gallery entries of the query's
person in the query's camera, and entries of identity -1, are junk and left out; a query without a right match left
is left out of every mean and reported apart; of two entries at the same distance the lower gallery index comes first,
unless something else is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from mgran_fast.metrics.distances import Numbers
from mgran_fast.metrics.hits import AP, TIES, first_of, score
from mgran_fast.metrics.problem import UNSAID, Cameras, Problem

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

#: What a mean is divided by: the number of queries with a right match, or of all, where one without counts as 0.
DIVISORS = ("valid", "all")


@dataclass(frozen=True, eq=False)
class Ranking:
    """How well Q queries find their people in a gallery.

    Attributes:
        cmc: float64 [K], the cumulative match characteristic: ``cmc[k - 1]`` is the fraction of the valid queries
            with a right match among the first k. Where the gallery is shorter than K, the end is flat.
        ap: float64 [Q], average precision in (0, 1]; NaN for a query without a match.
        inp: float64 [Q], inverse negative penalty in (0, 1]: matches / rank of the last one; NaN likewise.
        first: int64 [Q], the 1-based rank of the first right match; 0 for a query without one.
        definition: that of ``ap``, one of :data:`AP`.
        ties: what came first of entries at one distance, one of :data:`TIES`.
    """

    cmc: Floats
    ap: Floats
    inp: Floats
    first: Ints
    definition: str = "hits"
    ties: str = "index"

    @property
    def valid(self) -> Bools:
        """bool [Q]: the query has a right match in the gallery, so it counts."""
        return self.first > 0

    @property
    def unmatched(self) -> Ints:
        """int64, the indices of the queries without a right match; they are in no mean."""
        return np.flatnonzero(self.first == 0).astype(np.int64)

    @property
    def map(self) -> float:
        """Mean average precision over the valid queries, in (0, 1]."""
        return float(self.ap[self.valid].mean())

    @property
    def minp(self) -> float:
        """Mean inverse negative penalty over the valid queries, in (0, 1]."""
        return float(self.inp[self.valid].mean())

    def at(self, k: int) -> float:
        """Rank-k: the fraction of the valid queries with a right match among the first k, for any k >= 1."""
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        return float((self.first[self.valid] <= k).mean())

    def summary(self, ranks: Sequence[int] = (1, 5, 10), divisor: str = "valid") -> dict[str, float | int]:
        """The numbers that papers report, as fractions: ``rank1``..., ``map``, ``minp``; then the counts.

        ``divisor``: "valid" leaves queries without a right match out of every mean, as the field does; "all" counts
        them as never found, which some toolkits do.
        """
        if divisor not in DIVISORS:
            raise ValueError(f"divisor must be one of {', '.join(DIVISORS)}, not {divisor!r}")
        share = 1.0 if divisor == "valid" else float(self.valid.mean())
        scores: dict[str, float | int] = {f"rank{k}": self.at(k) * share for k in ranks}
        counts = {"queries": len(self.first), "unmatched": len(self.unmatched)}
        return {**scores, "map": self.map * share, "minp": self.minp * share, **counts}


@dataclass(frozen=True, eq=False)
class Top:
    """The first k gallery entries of Q queries, junk left out.

    Attributes:
        index: int64 [Q, k], gallery indices, nearest first; -1 where fewer than k entries are left.
        distance: float64 [Q, k]; infinite where the index is -1.
        right: bool [Q, k], the entry shows the query's person; False where the index is -1.
    """

    index: Ints
    distance: Floats
    right: Bools


@torch.no_grad()
def rank(
    query: Numbers | None = None,
    gallery: Numbers | None = None,
    *,
    distances: Numbers | None = None,
    query_ids: Numbers,
    gallery_ids: Numbers,
    query_cameras: Cameras = UNSAID,
    gallery_cameras: Cameras = UNSAID,
    metric: str = "euclidean",
    query_visibility: Numbers | None = None,
    gallery_visibility: Numbers | None = None,
    ap: str = "hits",
    ties: str = "index",
    max_rank: int = 50,
    chunk: int | None = None,
) -> Ranking:
    """Rank a gallery for each query, from embeddings or from distances.

    Works on ``chunk`` queries at a time and never holds the whole distance matrix, unless it is given one. On a CPU it
    takes, besides what it is given, one row of the gallery for each thread, and with embeddings the distances of a
    chunk: 4 * chunk * G bytes, by default 34 MB, or 384 queries where that is more. (Plain torch, on a GPU or without
    the extension: 20 * chunk * G, and up to 100 where most of the gallery matches a query or is at the same distance.)
    Given distances, the result does not depend on ``chunk`` or on the device; given embeddings, products of another
    shape may differ in the last bit, and two entries that are equally far up to rounding may change places.

    Args:
        query: floating point [Q, D], tensor or array; with visibility [Q, P, D] or [Q, P * D].
        gallery: floating point [G, D]; likewise.
        distances: floating point [Q, G] instead of the two: smaller is more alike. Infinite values are fine.
        query_ids, gallery_ids: integers [Q] and [G], identities; -1 in the gallery is junk for every query.
        query_cameras, gallery_cameras: integers [Q] and [G]; None for both leaves out the camera rule.
        metric: "euclidean" or "cosine", see :mod:`mgran_fast.metrics.distances`.
        query_visibility, gallery_visibility: 0 and 1 (or bool), [Q, P] and [G, P]: compares part by part, see
            :func:`mgran_fast.metrics.visible`.
        ap: "hits", the mean of the precision at each hit, or "trapezoid", the code published with Market-1501,
            which usually gives 0.5 to 3 points less.
        ties: which of several entries at one distance comes first: "index", that with the lower gallery index;
            "pessimistic", the wrong ones, or "optimistic", the right ones: between these two lies whatever an unstable
            sort may give.
        max_rank: K, the length of the CMC curve.
        chunk: queries per step; by default about 8 million distances.

    Raises:
        TypeError: an argument is not of numbers, or not of the right kind of numbers.
        ValueError: arguments are missing, doubled, empty, of shapes that do not fit, or hold NaN; or no query at
            all has a right match: the message says why that is likely.
    """
    if ap not in AP:
        raise ValueError(f"ap must be one of {', '.join(AP)}, not {ap!r}")
    if ties not in TIES:
        raise ValueError(f"ties must be one of {', '.join(TIES)}, not {ties!r}")
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, not {max_rank}")
    problem = Problem.of(
        query, gallery, distances=distances, query_ids=query_ids, gallery_ids=gallery_ids, query_cameras=query_cameras,
        gallery_cameras=gallery_cameras, metric=metric, query_visibility=query_visibility,
        gallery_visibility=gallery_visibility,
    )  # fmt: skip
    average, inverse, found = score(problem, ap, ties, chunk)
    if not bool(found.any()):
        raise ValueError(problem.why_unmatched())
    hits = torch.bincount(found[(found > 0) & (found <= max_rank)], minlength=max_rank + 1)[1:]
    cmc = hits.cumsum(0).double() / int((found > 0).sum())
    return Ranking(cmc.numpy(), average.numpy(), inverse.numpy(), found.numpy(), ap, ties)


@torch.no_grad()
def top(
    query: Numbers | None = None,
    gallery: Numbers | None = None,
    *,
    distances: Numbers | None = None,
    query_ids: Numbers,
    gallery_ids: Numbers,
    query_cameras: Cameras = UNSAID,
    gallery_cameras: Cameras = UNSAID,
    metric: str = "euclidean",
    query_visibility: Numbers | None = None,
    gallery_visibility: Numbers | None = None,
    k: int = 10,
    chunk: int | None = None,
) -> Top:
    """The first ``k`` gallery entries of each query, in the order of :func:`rank`, to look at.

    Arguments, memory and errors as for :func:`rank`, but queries without a right match are answered like the others.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    problem = Problem.of(
        query, gallery, distances=distances, query_ids=query_ids, gallery_ids=gallery_ids, query_cameras=query_cameras,
        gallery_cameras=gallery_cameras, metric=metric, query_visibility=query_visibility,
        gallery_visibility=gallery_visibility,
    )  # fmt: skip
    q = problem.shape[0]
    index, distance, right = np.full((q, k), -1), np.full((q, k), np.inf), np.zeros((q, k), dtype=bool)
    start = 0
    for chunk_distance, chunk_right, junk in problem.chunks(chunk):
        rows = slice(start, start + len(chunk_distance))
        values, columns, counts = first_of(chunk_distance.masked_fill_(junk, torch.inf), k, junk)
        width = values.shape[1]
        held = (torch.arange(width, device=counts.device) < counts[:, None]).cpu().numpy()
        index[rows, :width] = np.where(held, columns.cpu().numpy(), -1)
        distance[rows, :width] = np.where(held, values.cpu().numpy(), np.inf)
        right[rows, :width] = held & chunk_right.gather(1, columns).cpu().numpy()
        start = rows.stop
    return Top(index, distance, right)


def nearest_right(problem: Problem, chunk: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest right match of each query: its place in the gallery, int64 [Q], -1 without one, and its distance.

    Of several at one distance it is the one with the lower index.
    """
    places, distances = [], []
    for distance, right, _ in problem.chunks(chunk):
        # The index of min is any of several, and of what lies infinitely far one that is no match.
        away = distance.masked_fill_(~right, torch.inf).amin(dim=1)
        alike = (distance == away[:, None]) & right
        place = alike.int().argmax(dim=1)
        places.append(place.masked_fill(~right.any(dim=1), -1).cpu())
        distances.append(away.cpu())
    return torch.cat(places), torch.cat(distances)
