"""Ranking a gallery: CMC, mean average precision and mean inverse negative penalty.

The rules are those of Market-1501, spelled out in `mgran_fast.reference.ranking`: gallery entries of the query's
person in the query's camera, and entries of identity -1, are junk and left out; a query without a right match left
is left out of every mean and reported apart; of two entries at the same distance the lower gallery index comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from mgran_fast.metrics.distances import Numbers, Rows, as_tensor, pairwise, rows_per_chunk

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

#: The definitions of average precision, see `mgran_fast.reference.ranking`.
AP = ("hits", "trapezoid")


@dataclass(frozen=True, eq=False)
class Ranking:
    """How well Q queries find their people in a gallery.

    Attributes:
        cmc: float64 [K], the cumulative match characteristic: ``cmc[k - 1]`` is the fraction of the valid queries
            with a right match among the first k. Where the gallery is shorter than K, the end is flat.
        ap: float64 [Q], average precision in (0, 1]; NaN for a query without a match.
        inp: float64 [Q], inverse negative penalty in (0, 1]: matches / rank of the last one; NaN likewise.
        first: int64 [Q], the 1-based rank of the first right match; 0 for a query without one.
    """

    cmc: Floats
    ap: Floats
    inp: Floats
    first: Ints

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

    def summary(self, ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float | int]:
        """The numbers that papers report, as fractions: ``rank1``..., ``map``, ``minp``; then the counts."""
        scores: dict[str, float | int] = {f"rank{k}": self.at(k) for k in ranks}
        counts = {"queries": len(self.first), "unmatched": len(self.unmatched)}
        return {**scores, "map": self.map, "minp": self.minp, **counts}


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
    query_cameras: Numbers | None,
    gallery_cameras: Numbers | None,
    metric: str = "euclidean",
    query_visibility: Numbers | None = None,
    gallery_visibility: Numbers | None = None,
    ap: str = "hits",
    max_rank: int = 50,
    chunk: int | None = None,
) -> Ranking:
    """Rank a gallery for each query, from embeddings or from distances.

    Works on ``chunk`` queries at a time and never holds the whole distance matrix, unless it is given one. The
    temporary memory on a CPU is about 20 * chunk * G bytes, 170 MB by default, and up to 100 * chunk * G where most
    of the gallery matches a query or is at the same distance. Given distances, the result does not depend on
    ``chunk`` or on the device; given embeddings, products of another shape may differ in the last bit, and two
    entries that are equally far up to rounding may change places.

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
        max_rank: K, the length of the CMC curve.
        chunk: queries per step; by default about 8 million distances.

    Raises:
        TypeError: an argument is not of numbers, or not of the right kind of numbers.
        ValueError: arguments are missing, doubled, empty, of shapes that do not fit, or hold NaN; or no query at
            all has a right match: the message says why that is likely.
    """
    if ap not in AP:
        raise ValueError(f"ap must be one of {', '.join(AP)}, not {ap!r}")
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, not {max_rank}")
    embeddings = (query, gallery, query_visibility, gallery_visibility)
    labels = (query_ids, gallery_ids, query_cameras, gallery_cameras)
    problem = Problem.of(embeddings, distances, labels, metric)
    parts = []
    for distance, right, junk in problem.chunks(chunk):
        ranks, counts = _hit_ranks(distance, right, junk)
        parts.append(_scores(ranks.cpu(), counts.cpu(), ap))
    scores, inverse, found = (torch.cat(part) for part in zip(*parts, strict=True))
    if not bool(found.any()):
        raise ValueError(problem.why_unmatched())
    hits = torch.bincount(found[(found > 0) & (found <= max_rank)], minlength=max_rank + 1)[1:]
    cmc = hits.cumsum(0).double() / int((found > 0).sum())
    return Ranking(cmc.numpy(), scores.numpy(), inverse.numpy(), found.numpy())


@torch.no_grad()
def top(
    query: Numbers | None = None,
    gallery: Numbers | None = None,
    *,
    distances: Numbers | None = None,
    query_ids: Numbers,
    gallery_ids: Numbers,
    query_cameras: Numbers | None,
    gallery_cameras: Numbers | None,
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
    embeddings = (query, gallery, query_visibility, gallery_visibility)
    labels = (query_ids, gallery_ids, query_cameras, gallery_cameras)
    problem = Problem.of(embeddings, distances, labels, metric)
    q, g = problem.shape
    index, distance, right = np.full((q, k), -1), np.full((q, k), np.inf), np.zeros((q, k), dtype=bool)
    start = 0
    for chunk_distance, chunk_right, junk in problem.chunks(chunk):
        rows = slice(start, start + len(chunk_distance))
        # topk breaks ties as it likes. So it only tells how far the k-th entry is; everything up to that distance
        # is then sorted by distance and index.
        chunk_distance.masked_fill_(junk, torch.inf)
        last = chunk_distance.topk(min(k, g), dim=1, largest=False).values[:, -1:]
        values, columns, counts = sorted_where((chunk_distance <= last) & ~junk, chunk_distance)
        width = min(k, values.shape[1])
        values, columns = values[:, :width], columns[:, :width]
        held = (torch.arange(width, device=counts.device) < counts[:, None]).cpu().numpy()
        index[rows, :width] = np.where(held, columns.cpu().numpy(), -1)
        distance[rows, :width] = np.where(held, values.cpu().numpy(), np.inf)
        right[rows, :width] = held & chunk_right.gather(1, columns).cpu().numpy()
        start = rows.stop
    return Top(index, distance, right)


@dataclass(frozen=True)
class Problem:
    """Checked inputs. Identities and cameras are int64 tensors on the CPU."""

    rows: Rows
    shape: tuple[int, int]
    query_ids: torch.Tensor
    gallery_ids: torch.Tensor
    query_cameras: torch.Tensor | None
    gallery_cameras: torch.Tensor | None

    @classmethod
    def of(
        cls,
        embeddings: tuple[Numbers | None, Numbers | None, Numbers | None, Numbers | None],
        distances: Numbers | None,
        labels: tuple[Numbers, Numbers, Numbers | None, Numbers | None],
        metric: str,
    ) -> Problem:
        query, gallery, query_visibility, gallery_visibility = embeddings
        query_ids, gallery_ids, query_cameras, gallery_cameras = labels
        if distances is not None:
            names = ("query", "gallery", "query_visibility", "gallery_visibility")
            given = [name for name, values in zip(names, embeddings, strict=True) if values is not None]
            if given:
                raise ValueError(f"give either distances or query and gallery: {given[0]} is given with distances")
            rows, q, g = _given(distances)
        elif query is None or gallery is None:
            missing = "query" if query is None else "gallery"
            raise ValueError(f"{missing} is missing: give query and gallery embeddings, or distances")
        else:
            rows, q, g = pairwise(
                query, gallery, metric, query_visibility, gallery_visibility, names=("query", "gallery")
            )
        if q == 0 or g == 0:
            raise ValueError(f"there are {q} queries and {g} gallery entries: nothing to rank")
        if (query_cameras is None) != (gallery_cameras is None):
            missing = "query_cameras" if query_cameras is None else "gallery_cameras"
            raise ValueError(f"{missing} is missing: give both cameras, or None for both to rank without them")
        return cls(
            rows,
            (q, g),
            _labels(query_ids, "query_ids", q),
            _labels(gallery_ids, "gallery_ids", g),
            None if query_cameras is None else _labels(query_cameras, "query_cameras", q),
            None if gallery_cameras is None else _labels(gallery_cameras, "gallery_cameras", g),
        )

    def chunks(self, chunk: int | None) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """For each chunk of n queries: distances float [n, G] to write to, right matches and junk bool [n, G]."""
        q, g = self.shape
        step = rows_per_chunk(chunk, g)
        for start in range(0, q, step):
            stop = min(start + step, q)
            distance = self.rows(start, stop)
            bad = distance.isnan()
            if bool(bad.any()):
                row, column = bad.nonzero()[0].tolist()
                raise ValueError(f"distances: NaN between query {start + row} and gallery entry {column}")
            device = distance.device
            person = self.gallery_ids.to(device)
            right = self.query_ids[start:stop, None].to(device) == person
            nobody = person == -1
            if self.query_cameras is None or self.gallery_cameras is None:
                junk = nobody.expand_as(right).clone()
            else:
                junk = self.query_cameras[start:stop, None].to(device) == self.gallery_cameras.to(device)
                junk.logical_and_(right).logical_or_(nobody)
            yield distance, right.logical_and_(~junk), junk

    def why_unmatched(self) -> str:
        """Why no query at all may have a right match."""
        people = self.gallery_ids[self.gallery_ids != -1]
        common = torch.isin(self.query_ids, people)
        if not bool(common.any()):
            q, g = (", ".join(map(str, ids[:3].tolist())) for ids in (self.query_ids, self.gallery_ids))
            return (
                f"no query has a right match: query_ids ({q}, ...) and gallery_ids ({g}, ...) have no identity in "
                "common; check that both are numbered alike"
            )
        cameras = "each person's gallery entries are all from the camera of the query"
        if self.query_cameras is not None and self.gallery_cameras is not None:
            together = set(self.query_cameras.tolist()) | set(self.gallery_cameras.tolist())
            if len(together) == 1:
                cameras = f"query_cameras and gallery_cameras are {together.pop()} everywhere"
        return (
            f"no query has a right match: {cameras}, and same-camera matches are left out; without real camera "
            "numbers pass query_cameras=None, gallery_cameras=None"
        )


def _given(distances: Numbers) -> tuple[Rows, int, int]:
    """Rows of a matrix that exists; a memory-mapped one is read chunk by chunk."""
    is_array = isinstance(distances, (torch.Tensor, np.ndarray))
    matrix: Any = distances if is_array else as_tensor(distances, "distances")
    if matrix.ndim != 2:
        raise ValueError(f"distances must be [Q, G], not {list(matrix.shape)}")
    kind = as_tensor(matrix[:0], "distances")
    if not kind.is_floating_point():
        raise TypeError(f"distances must be floating point, not {kind.dtype}")
    dtype = torch.promote_types(kind.dtype, torch.float32)

    def rows(start: int, stop: int) -> torch.Tensor:
        # The sum is a copy that may be written to, and turns -0 into 0, which some sorts tell apart.
        return as_tensor(matrix[start:stop], "distances").to(dtype).add(0.0).contiguous()

    return rows, matrix.shape[0], matrix.shape[1]


def _labels(values: Numbers, name: str, length: int) -> torch.Tensor:
    labels = as_tensor(values, name)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, not {labels.dtype}")
    if tuple(labels.shape) != (length,):
        side = "queries" if name.startswith("query") else "gallery entries"
        raise ValueError(f"{name} must be [{length}], one for each of the {side}, not {list(labels.shape)}")
    return labels.to("cpu", torch.int64)


def sorted_where(mask: torch.Tensor, distance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The entries of each row where ``mask`` [n, G] holds, sorted by distance, then by column.

    Returns distances [n, m], padded with infinity, columns int64 [n, m], padded with 0, and counts int64 [n];
    m is the largest count.
    """
    row, column = mask.nonzero(as_tuple=True)
    counts = mask.sum(dim=1)
    slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    width = int(counts.max())
    values = distance.new_full((len(mask), width), torch.inf)
    values[row, slot] = distance[row, column]
    columns = column.new_zeros(len(mask), width)
    columns[row, slot] = column
    # Stable: the slots are in the order of the columns, and padding comes after entries that are infinitely far.
    values, by_distance = values.sort(dim=1, stable=True)
    return values, columns.gather(1, by_distance), counts


def _hit_ranks(distance: torch.Tensor, right: torch.Tensor, junk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The 1-based ranks of the right matches, ascending, int64 [n, m] (padding: anything), and their counts [n].

    Sorting the distances alone is far cheaper than an argsort: a match has as many entries before it as distances
    are smaller. Only rows where something else lies at the distance of a match need the order of the entries too.
    """
    values, columns, counts = sorted_where(right, distance)
    held = torch.arange(values.shape[1], device=values.device) < counts[:, None]
    ordered = _sort(distance.masked_fill(junk, torch.inf))
    before = torch.searchsorted(ordered, values)
    # Junk at infinity counts as tied with an infinitely far match; the row is then looked at closely, no more.
    tied = (((torch.searchsorted(ordered, values, right=True) - before) > 1) & held).any(dim=1)
    ranks = before + 1
    if bool(tied.any()):
        order = distance[tied].argsort(dim=1, stable=True)
        places = (~junk[tied]).gather(1, order).cumsum(dim=1)
        of_column = torch.empty_like(places).scatter_(1, order, places)
        ranks[tied] = of_column.gather(1, columns[tied])
    return ranks, counts


def _sort(distance: torch.Tensor) -> torch.Tensor:
    """``distance`` with its rows sorted, in place where possible."""
    if distance.device.type == "cpu":
        # torch sorts indices along, which takes many times as long.
        distance.numpy().sort(axis=1)
        return distance
    return distance.sort(dim=1).values


def _scores(ranks: torch.Tensor, counts: torch.Tensor, ap: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """AP and INP, float64 [n], NaN without a match, and the rank of the first match, int64 [n], 0 without one."""
    if ranks.shape[1] == 0:
        nothing = torch.full((len(ranks),), torch.nan, dtype=torch.float64)
        return nothing, nothing.clone(), torch.zeros(len(ranks), dtype=torch.int64)
    hit = torch.arange(1, ranks.shape[1] + 1)
    place = ranks.double()
    precision = hit / place
    if ap == "trapezoid":
        above = torch.where(ranks > 1, (hit - 1) / (place - 1).clamp(min=1), 1.0)
        precision = (precision + above) / 2
    end = (counts - 1).clamp(min=0)[:, None]
    # A running sum adds in one order whatever the padding, so a chunk does not change the last bit.
    average = precision.cumsum(dim=1).gather(1, end)[:, 0].div(counts).masked_fill(counts == 0, torch.nan)
    last = ranks.gather(1, end)[:, 0]
    inverse = torch.where(counts > 0, counts / last.double(), torch.nan)
    return average, inverse, torch.where(counts > 0, ranks[:, 0], 0)
