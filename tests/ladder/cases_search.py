"""Cases of search's two steps on the CPU, to the bit: small whole numbers have exact products, and many are tied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from abi import UNSUPPORTED, Buffer
from cases import Case, garbage, seed_of

# name, queries, entries, width, how many of them may be found (None: all), offset in elements
_SHAPES: tuple[tuple[str, int, int, int, int | None, int], ...] = (
    ("no queries", 0, 3, 5, None, 0),
    ("no entries", 2, 3, 5, 0, 1),
    ("one", 1, 1, 1, None, 1),
    ("a short row and its rest", 3, 20, 37, None, 3),
    ("rows together and one apart", 5, 70, 64, 33, 1),
    ("several blocks", 4, 200, 96, None, 0),
    ("ties", 6, 150, 3, None, 0),
)
# Entries of calls before this one.
_BEFORE = 7


def products_cases() -> Iterator[Case]:
    for name, *sizes, offset in _SHAPES:
        arguments, query, chosen = _given(name, offset, *sizes)
        values = garbage(len(query) * len(chosen), np.float32, seed_of(name), "out", 4 * offset)
        yield Case(
            name, "search_products", {**arguments, "values": values}, {"values": _bytes(query @ chosen.T)}
        )  # fmt: skip
    yield from _refused("search_products", {**arguments, "values": values}, ())


def first_cases() -> Iterator[Case]:
    for name, *sizes, offset in _SHAPES:
        for k, metric in ((1, 1), (_BEFORE, 1), (_BEFORE, 2)):
            arguments, query, chosen = _given(name, offset, *sizes)
            queries = len(query)
            products = (query @ chosen.T).astype(np.float32)
            if metric == 1:
                own, other = (query**2).sum(axis=1), (chosen**2).sum(axis=1)
                away = np.sqrt((products * np.float32(-2) + own[:, None]) + other)
            else:
                # Powers of two: products with them are exact.
                own, other = np.full(queries, 2.0**-6, np.float32), np.full(len(chosen), 2.0**-5, np.float32)
                away = np.clip(np.float32(1) - products * own[:, None] * other, 0, 2)
            # What was found before is often at a distance of what is found now; there are fewer than k for some.
            near = np.sort(np.random.default_rng(3).choice([0.0, 1.0, 2.0, 3.0, 8.0], (queries, k)), axis=1)
            nothing = np.arange(k) >= (np.arange(queries) % (k + 1))[:, None]
            distance = np.where(nothing, np.inf, near).astype(np.float32)
            index = np.where(nothing, -1, np.arange(k)).astype(np.int64)
            arguments = {
                **arguments,
                "values": Buffer(products, "in", 4 * offset),
                "query_terms": Buffer(own, "in", 4 * offset),
                "gallery_terms": Buffer(other, "in", 4 * offset),
                "distance": Buffer(distance, "out", 4 * offset),
                "index": Buffer(index, "out"),
                "k": k,
                "metric": metric,
            }
            expected = _joined(distance, index, away, _places(arguments))
            yield Case(f"{name}, k {k}, metric {metric}", "search_first", arguments, expected)
    yield from _refused("search_first", arguments, ("distance", "index"))


def _given(
    name: str, offset: int, queries: int, count: int, width: int, some: int | None
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Arguments of both steps, the queries, and the entries that may be found."""
    generator = np.random.default_rng(seed_of(name))
    query = generator.integers(-2, 3, (queries, width)).astype(np.float32)
    entries = generator.integers(-2, 3, (_BEFORE + count, width)).astype(np.float32)
    arguments: dict[str, Any] = {
        "query": Buffer(query, "in", 4 * offset),
        "entries": Buffer(entries, "in", 4 * offset),
        "queries": queries,
        "width": width,
        "held": _BEFORE + count,
        "begin": _BEFORE,
        "gallery": count if some is None else some,
    }
    if some is not None:
        places = _BEFORE + np.sort(generator.permutation(count)[:some])
        arguments["places"] = Buffer(places.astype(np.int64))
    return arguments, query, entries[_places(arguments)]


def _places(arguments: dict[str, Any]) -> np.ndarray:
    if "places" in arguments:
        places: np.ndarray = arguments["places"].data
        return places
    return arguments["begin"] + np.arange(arguments["gallery"])


def _joined(distance: np.ndarray, index: np.ndarray, away: np.ndarray, places: np.ndarray) -> dict[str, np.ndarray]:
    """The nearest of those before and those of this call, by distance and then place."""
    rows = []
    for near, old, far in zip(distance, index, away, strict=True):
        pairs = [(float(d), int(i)) for d, i in zip(near, old, strict=True) if i >= 0]
        pairs += [(float(d), int(i)) for d, i in zip(far, places, strict=True)]
        best = sorted(pairs)[: len(near)]
        rows.append(best + [(np.inf, -1)] * (len(near) - len(best)))
    shape = (*distance.shape, 2)
    found = np.array(rows, float).reshape(shape)
    return {"distance": _bytes(found[..., 0].astype(np.float32)), "index": _bytes(found[..., 1].astype(np.int64))}


def _refused(op: str, arguments: dict[str, Any], written: tuple[str, ...]) -> Iterator[Case]:
    count = arguments["gallery"]
    outputs = (*written, *(() if written else ("values",)))
    for name, changes in (
        ("a place too far", {"places": Buffer(np.full(count, arguments["held"], np.int64))}),
        ("a place before the first", {"places": Buffer(np.full(count, -1, np.int64))}),
        ("more than are held", {"begin": arguments["begin"] + 1}),
        ("before the first", {"begin": -1}),
        *((("no k", {"k": 0}), ("no metric", {"metric": 0})) if written else ()),
    ):
        fresh = {path: Buffer(arguments[path].data.copy(), "out") for path in outputs}
        expected = {path: _bytes(buffer.data.copy()) for path, buffer in fresh.items()}
        yield Case(name, op, {**arguments, **fresh, **changes}, expected, status=UNSUPPORTED)


def _bytes(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)
