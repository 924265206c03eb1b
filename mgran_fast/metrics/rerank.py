"""Re-ranking by k-reciprocal neighbours (Zhong et al. 2017), with sparse vectors.

What the usual code holds are several dense matrices of all pictures by all pictures. Here nothing is held but the
nearest neighbours of each picture, a sparse vector for each, and the result. The definition is spelled out in
`mgran_fast.reference.rerank`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from mgran_fast.metrics.distances import PRODUCT_ROWS, Numbers, as_tensor, finish, pairwise, product, rows_per_chunk
from mgran_fast.metrics.hits import first_of
from mgran_fast.ops import backend, rows
from mgran_fast.ops.launch import launch
from mgran_fast.reference import rerank as reference

#: The settings of Zhong et al.: neighbours that are looked at, those that vectors are averaged over, and the weight of
#: the original distance.
K1, K2, WEIGHT = 20, 6, 0.3

_CPU = torch.device("cpu")


@torch.no_grad()
def rerank(
    query: Numbers | None = None,
    gallery: Numbers | None = None,
    *,
    distances: tuple[Numbers, Numbers, Numbers] | None = None,
    k1: int = K1,
    k2: int = K2,
    weight: float = WEIGHT,
    metric: str = "euclidean",
    chunk: int | None = None,
) -> torch.Tensor:
    """Distances that also ask who the neighbours of both pictures are, for :func:`mgran_fast.rank`'s ``distances``.

    Besides its result, float32 [Q, G], it takes about 8 * k1 * k2 bytes for each picture, and the distances of a chunk.
    The neighbours of embeddings on a GPU are found there; what follows runs on the CPU.

    Args:
        query: floating point [Q, D], tensor or array.
        gallery: floating point [G, D], on the same device.
        distances: instead of the two: of queries to queries [Q, Q], of queries to the gallery [Q, G], and of the
            gallery to itself [G, G]; at least 0, and not squared.
        k1: how many neighbours of a picture are looked at, itself not counted.
        k2: over how many neighbours, itself counted, the vectors are averaged; 1 leaves them as they are.
        weight: of the original distance, from 0 to 1.
        metric: "euclidean" or "cosine", of the embeddings.
        chunk: pictures per step; by default about 8 million distances, of embeddings at least 384 pictures.

    Returns:
        float32 [Q, G], from 0 to 1, on the CPU.

    Raises:
        TypeError: an input is not of floating point numbers.
        ValueError: an argument is missing, doubled, out of its range, of a shape that does not fit, or holds NaN.
    """
    if k1 < 1:
        raise ValueError(f"k1 must be at least 1, not {k1}")
    if not 1 <= k2 <= k1 + 1:
        raise ValueError(f"k2 must be from 1 to k1 + 1 = {k1 + 1}, not {k2}")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be from 0 to 1, not {weight}")
    if distances is not None:
        if query is not None or gallery is not None:
            raise ValueError("give either distances or query and gallery, not both")
        pictures = _given(distances)
    elif query is None or gallery is None:
        raise ValueError(f"{'query' if query is None else 'gallery'} is missing: give both embeddings, or distances")
    else:
        pictures = _embedded(query, gallery, metric)
    if pictures.queries == 0 or pictures.count == pictures.queries:
        raise ValueError(
            f"there are {pictures.queries} queries and {pictures.count - pictures.queries} gallery entries: "
            "nothing to rank"
        )
    module = backend.native("rerank_nearest", "cpu")
    if module is None:
        q = pictures.queries
        whole = torch.cat([pictures.rows(*span) for span in pictures.spans(chunk)])
        return reference.rerank(whole[:q, :q], whole[:q, q:], whole[q:, q:], k1, k2, weight).float()
    return _sparse(module, pictures, k1, k2, weight, chunk)


@dataclass(frozen=True, eq=False)
class _Pictures:
    """Queries, then the gallery, and the distances between all of them.

    Attributes:
        block: (start, stop) -> [stop - start, n], new; on any device.
        pairs: the module, starts int64 [n + 1], members int32 [M], and of each of these its picture, int64 [M] ->
            float32 [M] on the CPU: the distances of the pictures and their members.
        least: rows of a block, unless somebody asks for fewer.
    """

    queries: int
    count: int
    block: Callable[[int, int], torch.Tensor]
    pairs: Callable[[ModuleType, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
    least: int = 1

    def spans(self, chunk: int | None) -> Iterator[tuple[int, int]]:
        """None of them holds queries and gallery entries at once."""
        step = rows_per_chunk(chunk, self.count, self.least)
        for begin, end in ((0, self.queries), (self.queries, self.count)):
            for start in range(begin, end, step):
                yield start, min(start + step, end)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        found = self.block(start, stop).float().contiguous()
        # The least of some is NaN where one of them is.
        if not float(found.min()) >= 0:
            row, column = (~(found >= 0)).nonzero()[0].tolist()
            raise ValueError(
                f"distances must be at least 0, not {float(found[row, column])} between pictures {start + row} and "
                f"{column} of queries and gallery in a row"
            )
        return found


def _embedded(query: Numbers, gallery: Numbers, metric: str) -> _Pictures:
    names = ("query", "gallery")
    # What is no floating point number stays what it is, for the words of errors.
    given = [as_tensor(side, name) for side, name in zip((query, gallery), names, strict=True)]
    sides = [side.float().contiguous() if side.is_floating_point() else side for side in given]
    checked = pairwise(sides[0], sides[1], metric, names=names)
    assert checked.row_terms is not None
    assert checked.column_terms is not None
    terms = torch.cat([checked.row_terms, checked.column_terms])
    q, n = len(sides[0]), len(terms)

    def block(start: int, stop: int) -> torch.Tensor:
        rows = sides[0][start:stop] if start < q else sides[1][start - q : stop - q]
        found = rows.new_empty(len(rows), n)
        product(rows, sides[0], found[:, :q])
        product(rows, sides[1], found[:, q:])
        return finish(metric, found, terms[start:stop, None], terms)

    def pairs(module: ModuleType, starts: torch.Tensor, members: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        products, each = torch.empty(len(members)), terms.cpu()
        _run(
            module, "pairs", values=sides[0].cpu(), gallery=sides[1].cpu(), starts=starts, members=members,
            out_weights=products, rows=n, width=sides[0].shape[1], queries=q,
        )  # fmt: skip
        return finish(metric, products, each[own], each[members.long()])

    return _Pictures(q, n, block, pairs, PRODUCT_ROWS)


def _given(distances: tuple[Numbers, Numbers, Numbers]) -> _Pictures:
    names = ("query to query", "query to gallery", "gallery to gallery")
    if not isinstance(distances, tuple) or len(distances) != 3:
        raise ValueError(f"distances must be three matrices in a tuple: {', '.join(names)}")
    queries, between, galleries = (
        as_tensor(matrix, f"distances, {name}") for matrix, name in zip(distances, names, strict=True)
    )
    for matrix, name in zip((queries, between, galleries), names, strict=True):
        if not matrix.is_floating_point():
            raise TypeError(f"distances, {name}, must be floating point, not {matrix.dtype}")
        if matrix.ndim != 2:
            raise ValueError(f"distances, {name}, must be a matrix, not {list(matrix.shape)}")
    q, g = between.shape
    for matrix, size, name in ((queries, q, names[0]), (galleries, g, names[2])):
        if tuple(matrix.shape) != (size, size):
            raise ValueError(
                f"distances, {name}, must be [{size}, {size}] beside those of {q} queries to a gallery of {g}, not "
                f"{list(matrix.shape)}"
            )

    def block(start: int, stop: int) -> torch.Tensor:
        if start < q:
            return torch.cat([queries[start:stop], between[start:stop]], dim=1)
        return torch.cat([between[:, start - q : stop - q].T, galleries[start - q : stop - q]], dim=1)

    def pairs(module: ModuleType, starts: torch.Tensor, members: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        j, found = members.long(), torch.empty(len(i))
        for of_query, to_query in ((True, True), (True, False), (False, True), (False, False)):
            at = (((i < q) == of_query) & ((j < q) == to_query)).nonzero()[:, 0]
            a, b = i[at] - (0 if of_query else q), j[at] - (0 if to_query else q)
            if of_query == to_query:
                values = (queries if of_query else galleries)[a, b]
            else:
                values = between[a, b] if of_query else between[b, a]
            found[at] = values.float().cpu()
        return found

    return _Pictures(q, q + g, block, pairs)


def _sparse(
    module: ModuleType, pictures: _Pictures, k1: int, k2: int, weight: float, chunk: int | None
) -> torch.Tensor:
    n, q = pictures.count, pictures.queries
    k = min(k1 + 1, n)
    neighbours, largest = torch.empty((n, k), dtype=torch.int32), torch.empty(n)
    # The queries' distances to the gallery are wanted again at the end: they wait where the result will be.
    out = torch.empty((q, n - q))
    for start, stop in pictures.spans(chunk):
        values = pictures.rows(start, stop)
        if start < q:
            out[start:stop] = values[:, q:]
        if values.device.type != "cpu":
            neighbours[start:stop], largest[start:stop] = nearest_of(values, k)
        else:
            _run(
                module, "nearest", values=values, neighbours=neighbours[start:stop], largest=largest[start:stop],
                rows=stop - start, width=n, k=k,
            )  # fmt: skip
        del values  # before the next ones are there
    # Where all distances are 0 so are the shares.
    largest = torch.where(largest > 0, largest, 1)
    starts, members = _expand(module, neighbours, min(round(k1 / 2) + 1, k))
    own = torch.repeat_interleave(torch.arange(n), starts.diff())
    weights = torch.exp(-(pictures.pairs(module, starts, members, own) / largest[own]).square())
    weights /= torch.zeros(n).index_add_(0, own, weights)[own]
    if k2 > 1:
        starts, members, weights = _mean(module, neighbours, min(k2, n), starts, members, weights)
    out.div_(largest[:q, None]).square_().mul_(weight)
    for span, jaccard in _jaccard(module, q, starts, members, weights, chunk):
        out[span].add_(jaccard, alpha=1 - weight)
    return out


def nearest_of(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the kernel's first step does, in plain torch on any device.

    Of distances [n, M] the columns of the k least in each row, int64 [n, k], the least first and of two at one distance
    the lower column, and the largest of each row [n].
    """
    return first_of(values, k)[1], values.amax(dim=1)


def _expand(module: ModuleType, neighbours: torch.Tensor, few: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The members of each picture's R*: starts int64 [n + 1], and members int32."""
    n, k = neighbours.shape
    capacity = k * (1 + few)
    counts, found = [], []
    # In pieces: most sets are far smaller than the largest one that there can be.
    held = torch.empty((n, capacity), dtype=torch.int32)
    lengths = torch.empty(n, dtype=torch.int32)
    _run(
        module, "expand", neighbours=neighbours, counts=lengths, out_members=held, rows=n, k=k, few=few,
        capacity=capacity,
    )  # fmt: skip
    for length, part in zip(lengths.split(4096), held.split(4096), strict=True):
        found.append(part[torch.arange(capacity) < length[:, None]])
        counts.append(length)
    return _starts(torch.cat(counts)), torch.cat(found)


def _mean(
    module: ModuleType,
    neighbours: torch.Tensor,
    few: int,
    starts: torch.Tensor,
    members: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, k = neighbours.shape
    given = {"neighbours": neighbours, "starts": starts, "members": members, "weights": weights, "rows": n, "k": k}
    counts = torch.empty(n, dtype=torch.int32)
    _run(module, "mean", **given, few=few, counts=counts)
    out_starts = _starts(counts)
    out_members = torch.empty(int(out_starts[-1]), dtype=torch.int32)
    out_weights = torch.empty(len(out_members))
    _run(
        module, "mean", **given, few=few, out_starts=out_starts, out_members=out_members, out_weights=out_weights
    )  # fmt: skip
    return out_starts, out_members, out_weights


def _jaccard(
    module: ModuleType, q: int, starts: torch.Tensor, members: torch.Tensor, weights: torch.Tensor, chunk: int | None
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Spans of queries, and their Jaccard distances to the gallery."""
    n = len(starts) - 1
    first = int(starts[q])
    # The gallery's vectors by member: who has it, and how much of it.
    inverse = rows.invert(members[first:], n)
    entry = torch.repeat_interleave(torch.arange(n - q, dtype=torch.int32), starts[q:].diff())
    at = inverse.members.long()
    columns = {"column_starts": inverse.starts.long(), "column_rows": entry[at], "column_weights": weights[first:][at]}
    step = rows_per_chunk(chunk, n - q)
    for start in range(0, q, step):
        stop = min(start + step, q)
        begin, end = int(starts[start]), int(starts[stop])
        out = torch.empty((stop - start, n - q))
        _run(
            module, "jaccard", starts=starts[start : stop + 1] - begin, members=members[begin:end],
            weights=weights[begin:end], **columns, out=out, rows=stop - start, width=n - q, columns=n,
        )  # fmt: skip
        yield slice(start, stop), out


def _starts(counts: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])


def _run(module: ModuleType, step: str, **arguments: Any) -> None:
    tensors = (
        "values", "gallery", "neighbours", "largest", "starts", "members", "weights", "counts", "out_members",
        "out_starts", "out_weights", "column_starts", "column_rows", "column_weights", "out",
    )  # fmt: skip
    numbers = ("rows", "width", "columns", "queries", "k", "few", "capacity")
    launch(module, f"rerank_{step}", _CPU, **{**dict.fromkeys(tensors), **dict.fromkeys(numbers, 0), **arguments})
