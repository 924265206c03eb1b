"""Cases of single gallery shots on the CPU: the same small problems as ranking's, and chances of a few ranks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from abi import UNSUPPORTED, Buffer
from cases import Case, garbage, seed_of
from cases_ranking import problem
from mgran_fast.reference import ranking
from mgran_fast.reference import shots as reference

_DTYPES = {"found": torch.float64, "first": torch.int64, "nan": torch.int64}
_TOLERANCE = {"found": 1e-12, "first": 0.0, "nan": 0.0}
# name, queries, gallery, people, levels of distance, ranks, offset in elements
_SHAPES = (
    ("no queries", 0, 5, 2, 3, 2, 0),
    ("no gallery", 3, 0, 2, 3, 1, 0),
    ("one", 1, 1, 1, 1, 1, 1),
    ("a short row", 4, 7, 2, 3, 3, 1),
    ("a row and its rest", 5, 83, 9, 9, 5, 3),
    ("several blocks", 2, 2199, 150, 900, 20, 0),
)


def shots_cases() -> Iterator[Case]:
    for name, *sizes, ranks, offset in _SHAPES:
        for dtype in (np.float32, np.float64):
            label = f"{name}, {np.dtype(dtype).name}"
            distances, labels = problem(np.random.default_rng(seed_of(label)), *sizes, dtype)
            yield _case(label, distances, labels, ranks, offset)
    distances, labels = problem(np.random.default_rng(1), 6, 90, 12, 12, np.float32)
    yield _case("no cameras", distances, {**labels, "query_cameras": None, "gallery_cameras": None}, 4, 0)
    odd = distances.copy()
    odd[2, 17] = np.nan
    yield _case("NaN", odd, labels, 3, 0, bad={2: 17})
    yield from _refused(distances, labels)


def _case(
    name: str,
    distances: np.ndarray,
    labels: dict[str, Any],
    ranks: int,
    offset: int,
    bad: dict[int, int] | None = None,
) -> Case:
    arguments = _arguments(distances, labels, ranks, offset, name)
    lists = [
        None if labels[key] is None else labels[key].tolist()
        for key in ("query_ids", "gallery_ids", "query_cameras", "gallery_cameras")
    ]
    given = np.nan_to_num(distances, nan=0.0, posinf=np.inf).tolist()
    _, each = reference.rank(given, *lists, max_rank=ranks)
    chances = [[np.nan] * ranks if one is None else [float(chance) for chance in one] for one in each]
    found = np.array(chances, float).reshape(len(distances), ranks)
    first = np.array(ranking.rank(given, *lists).first, int)
    wrong = np.full(len(distances), -1)
    for query, column in (bad or {}).items():
        # Nothing is ranked then.
        wrong[query], found[query], first[query] = column, np.nan, 0
    expected = {"found": found, "first": first.astype(float), "nan": wrong.astype(float)}
    return Case(name, "shots", arguments, expected, dtype=_DTYPES, tolerance=_TOLERANCE)


def _arguments(distances: np.ndarray, labels: dict[str, Any], ranks: int, offset: int, name: str) -> dict[str, Any]:
    queries, gallery = distances.shape
    order = labels["gallery_ids"].argsort(kind="stable")
    order = order[labels["gallery_ids"][order] != -1]
    people, begins = np.unique(labels["gallery_ids"][order], return_index=True)
    numbers = {person: number for number, person in enumerate(people)}
    arguments: dict[str, Any] = {
        "values": Buffer(distances, "in", offset * distances.itemsize),
        "persons": Buffer(np.array([numbers.get(person, -1) for person in labels["query_ids"]], np.int64)),
        "begins": Buffer(np.append(begins, len(order)).astype(np.int64)),
        "members": Buffer(order),
        "found": garbage(queries * ranks, np.float64, seed_of(name), "out"),
        "first": garbage(queries, np.int64, 1, "out"),
        "nan": garbage(queries, np.int64, 2, "out"),
        "queries": queries,
        "gallery": gallery,
        "people": len(people),
        "ranks": ranks,
        "is_double": int(distances.dtype == np.float64),
    }
    if labels["query_cameras"] is not None:
        for side in ("query", "gallery"):
            arguments[f"{side}_cameras"] = Buffer(labels[f"{side}_cameras"])
    return arguments


def _refused(distances: np.ndarray, labels: dict[str, Any]) -> Iterator[Case]:
    given = _arguments(distances, labels, 3, 0, "refused")
    outputs = {path: given[path].data.copy().view(np.uint8) for path in ("found", "first", "nan")}
    members, begins, persons = (given[path].data for path in ("members", "begins", "persons"))
    for name, changes in (
        ("metric -1", {"metric": -1}),
        ("no ranks", {"ranks": 0}),
        ("a member too far", {"members": Buffer(np.where(np.arange(len(members)) == 3, distances.shape[1], members))}),
        ("a member before the first", {"members": Buffer(np.where(np.arange(len(members)) == 3, -1, members))}),
        ("begins that fall", {"begins": Buffer(np.where(np.arange(len(begins)) == 2, 0, begins))}),
        ("begins that begin late", {"begins": Buffer(np.where(np.arange(len(begins)) == 0, 1, begins))}),
        ("a person too far", {"persons": Buffer(np.where(np.arange(len(persons)) == 1, len(begins) - 1, persons))}),
        ("a person before none", {"persons": Buffer(np.where(np.arange(len(persons)) == 1, -2, persons))}),
    ):
        fresh = {**given, **{path: Buffer(given[path].data.copy(), "out") for path in outputs}, **changes}
        yield Case(name, "shots", fresh, outputs, status=UNSUPPORTED)
