"""Cases of re-ranking's five steps on the CPU, to the bit: small problems, ties, and lists that lead nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from abi import UNSUPPORTED, Buffer
from cases import Case, garbage, seed_of

Vectors = tuple[np.ndarray, np.ndarray, np.ndarray]  # starts, members, weights


def nearest_cases() -> Iterator[Case]:
    # name, rows, width, k, levels of distance
    for name, rows, width, k, levels in (
        ("no rows", 0, 3, 2, 5),
        ("one", 1, 1, 1, 1),
        ("all of them", 3, 7, 7, 3),
        ("ties", 5, 90, 21, 4),
        ("long rows", 3, 3001, 21, 10**6),
    ):
        values = np.random.default_rng(seed_of(name)).integers(0, levels, (rows, width)).astype(np.float32)
        arguments = {
            "values": Buffer(values, "in", 4),
            "neighbours": garbage(rows * k, np.int32, 1, "out", 4),
            "largest": garbage(rows, np.float32, 2, "out"),
            "rows": rows,
            "width": width,
            "k": k,
        }
        expected = {"neighbours": _order(values)[:, :k], "largest": values.max(axis=1)}
        yield _case(name, "rerank_nearest", arguments, expected)
    for k in (0, 4):
        yield Case(f"k {k} of 3", "rerank_nearest", {"rows": 1, "width": 3, "k": k}, {}, status=UNSUPPORTED)


def expand_cases() -> Iterator[Case]:
    for name, n, k, few in (("one", 1, 1, 1), ("a few", 9, 4, 3), ("many", 130, 21, 11), ("all", 12, 12, 12)):
        neighbours = _neighbours(name, n, k)
        capacity = k * (1 + few)
        sets = [_expanded(neighbours, i, few) for i in range(n)]
        held = garbage(n * capacity, np.int32, 3, "out", 4)
        want = held.data.reshape(n, capacity).copy()
        for row, members in zip(want, sets, strict=True):
            row[: len(members)] = members
        arguments = {
            "neighbours": Buffer(neighbours, "in", 4),
            "counts": garbage(n, np.int32, 4, "out"),
            "out_members": held,
            "rows": n,
            "k": k,
            "few": few,
            "capacity": capacity,
        }
        expected = {"counts": np.array([len(members) for members in sets], np.int32), "out_members": want}
        yield _case(name, "rerank_expand", arguments, expected)
    good = {"neighbours": Buffer(_neighbours("few", 5, 2)), "rows": 5, "k": 2, "few": 1, "capacity": 4}
    for name, changes in (
        ("a neighbour too far", {"neighbours": Buffer(np.full((5, 2), 5, np.int32))}),
        ("a neighbour before the first", {"neighbours": Buffer(np.full((5, 2), -1, np.int32))}),
        ("more candidates than neighbours", {"few": 3, "capacity": 100}),
        ("too little room", {"capacity": 3}),
    ):
        yield Case(name, "rerank_expand", {**good, **changes}, {}, status=UNSUPPORTED)


def pairs_cases() -> Iterator[Case]:
    # name, queries, gallery entries, width
    for name, q, g, width in (("one", 0, 1, 1), ("no gallery", 3, 0, 5), ("a rest", 4, 9, 37), ("wide", 7, 30, 192)):
        generator = np.random.default_rng(seed_of(name))
        # Small whole numbers have exact products.
        values = generator.integers(-3, 4, (q + g, width)).astype(np.float32)
        starts, members, _ = _vectors(name, q + g, q + g)
        own = np.repeat(np.arange(q + g), np.diff(starts))
        arguments = {
            "values": Buffer(values[:q], "in", 4),
            "gallery": Buffer(values[q:], "in", 8),
            "starts": Buffer(starts),
            "members": Buffer(members, "in", 4),
            "out_weights": garbage(len(members), np.float32, 9, "out", 4),
            "rows": q + g,
            "width": width,
            "queries": q,
        }
        yield _case(name, "rerank_pairs", arguments, {"out_weights": (values[own] * values[members]).sum(axis=1)})
    for label, changes in (
        ("a member too far", {"members": Buffer(np.full(len(members), q + g, np.int32))}),
        ("more queries than pictures", {"queries": q + g + 1}),
        ("starts fall", {"starts": Buffer(np.where(np.arange(q + g + 1) == 1, starts[-1], starts))}),
    ):
        fresh = {"out_weights": garbage(len(members), np.float32, 9, "out", 4)}
        yield Case(label, "rerank_pairs", {**arguments, **fresh, **changes}, {}, status=UNSUPPORTED)


def mean_cases() -> Iterator[Case]:
    for name, n, k, few in (("one", 1, 1, 1), ("a few", 9, 4, 2), ("many", 130, 21, 6)):
        neighbours, (starts, members, weights) = _neighbours(name, n, k), _vectors(name, n, n)
        means = [_mean(neighbours[i, :few], starts, members, weights) for i in range(n)]
        given = {
            "neighbours": Buffer(neighbours, "in", 4),
            "starts": Buffer(starts),
            "members": Buffer(members, "in", 4),
            "weights": Buffer(weights, "in", 4),
            "rows": n,
            "k": k,
            "few": few,
        }
        lengths = np.array([len(at) for at, _ in means], np.int32)
        counted = {**given, "counts": garbage(n, np.int32, 4, "out")}
        yield _case(f"{name}, counted", "rerank_mean", counted, {"counts": lengths})
        total = int(lengths.sum())
        out_starts = np.append(0, lengths.cumsum()).astype(np.int64)
        written = {
            **given,
            "out_starts": Buffer(out_starts),
            "out_members": garbage(total, np.int32, 5, "out", 4),
            "out_weights": garbage(total, np.float32, 6, "out", 4),
        }
        at, values = (np.concatenate([mean[part] for mean in means]) for part in (0, 1))
        yield _case(name, "rerank_mean", written, {"out_members": at, "out_weights": values})
    for label, changes in (
        ("a member too far", {"members": Buffer(np.where(np.arange(len(members)) == 1, n, members).astype(np.int32))}),
        ("starts fall", {"starts": Buffer(np.where(np.arange(n + 1) == 1, starts[-1], starts))}),
        ("other lengths", {"out_starts": Buffer(np.where(np.arange(n + 1) == 1, 0, out_starts))}),
    ):
        fresh = {path: garbage(total, np.int32, 7, "out") for path in ("out_members", "out_weights")}
        yield Case(label, "rerank_mean", {**written, **fresh, **changes}, {}, status=UNSUPPORTED)


def jaccard_cases() -> Iterator[Case]:
    for name, rows, width in (("no rows", 0, 4), ("one", 1, 1), ("a few", 5, 40), ("many", 40, 300)):
        columns = rows + width
        starts, members, weights = _vectors(name, rows, columns)
        gallery = np.zeros((width, columns), np.float32)
        for row, at, values in _each(_vectors(f"{name}, gallery", width, columns)):
            gallery[row, at] = values
        column, entry = np.nonzero(gallery.T)
        want = np.zeros((rows, width), np.float32)
        for row, at, values in _each((starts, members, weights)):
            for member, weight in zip(at, values, strict=True):
                want[row] += np.minimum(weight, gallery[:, member])
        want = np.float32(1) - want / (np.float32(2) - want)
        arguments = {
            "starts": Buffer(starts),
            "members": Buffer(members, "in", 4),
            "weights": Buffer(weights, "in", 4),
            "column_starts": Buffer(np.searchsorted(column, np.arange(columns + 1)).astype(np.int64)),
            "column_rows": Buffer(entry.astype(np.int32)),
            "column_weights": Buffer(gallery[entry, column]),
            "out": garbage(rows * width, np.float32, 8, "out", 4),
            "rows": rows,
            "width": width,
            "columns": columns,
        }
        yield _case(name, "rerank_jaccard", arguments, {"out": want})
    for label, changes in (
        ("a member too far", {"members": Buffer(np.full(len(members), columns, np.int32))}),
        ("an entry too far", {"column_rows": Buffer(np.full(len(entry), width, np.int32))}),
        ("columns fall", {"column_starts": Buffer(np.arange(columns, -1, -1))}),
    ):
        out = garbage(rows * width, np.float32, 8, "out", 4)
        yield Case(label, "rerank_jaccard", {**arguments, "out": out, **changes}, {}, status=UNSUPPORTED)


def _case(name: str, op: str, arguments: dict[str, Any], expected: dict[str, np.ndarray]) -> Case:
    return Case(name, op, arguments, {path: _bytes(value) for path, value in expected.items()})


def _bytes(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def _order(values: np.ndarray) -> np.ndarray:
    return values.argsort(axis=1, kind="stable").astype(np.int32)


def _neighbours(name: str, n: int, k: int) -> np.ndarray:
    points = np.random.default_rng(seed_of(name)).normal(size=(n, 3))
    return _order(((points[:, None] - points) ** 2).sum(axis=2))[:, :k].copy()


def _reciprocal(neighbours: np.ndarray, i: int, k: int) -> list[int]:
    return [int(j) for j in neighbours[i, :k] if i in neighbours[j, :k]]


def _expanded(neighbours: np.ndarray, i: int, few: int) -> list[int]:
    own = _reciprocal(neighbours, i, neighbours.shape[1])
    found = set(own)
    for candidate in own:
        other = _reciprocal(neighbours, candidate, few)
        if 3 * len(set(other) & set(own)) > 2 * len(other):
            found |= set(other)
    return sorted(found)


def _vectors(name: str, rows: int, columns: int) -> Vectors:
    generator = np.random.default_rng(seed_of(name))
    members = [np.flatnonzero(generator.random(columns) < min(1, 8 / columns)) for _ in range(rows)]
    starts = np.append(0, np.cumsum([len(at) for at in members])).astype(np.int64)
    weights = generator.random(int(starts[-1])).astype(np.float32)
    return starts, np.concatenate([np.zeros(0, int), *members]).astype(np.int32), weights


def _each(vectors: Vectors) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    starts, members, weights = vectors
    for row in range(len(starts) - 1):
        part = slice(starts[row], starts[row + 1])
        yield row, members[part], weights[part]


def _mean(of: np.ndarray, starts: np.ndarray, members: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    total: dict[int, np.float32] = {}
    for one in of:
        for at in range(starts[one], starts[one + 1]):
            total[members[at]] = np.float32(total.get(members[at], np.float32(0)) + weights[at])
    order = sorted(total)
    return np.array(order, np.int32), np.array([total[at] / np.float32(len(of)) for at in order], np.float32)
