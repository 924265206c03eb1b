"""Cases of ranking on the CPU: small problems full of ties and junk, rows of several blocks, hundreds of matches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from abi import UNSUPPORTED, Buffer
from cases import Case, garbage, seed_of
from mgran_fast.reference import ranking as reference

TIES = ("index", "pessimistic", "optimistic")
# name, queries, gallery, people, levels of distance, offset in elements
_SHAPES = (
    ("no queries", 0, 5, 2, 3, 0),
    ("no gallery", 3, 0, 2, 3, 0),
    ("one", 1, 1, 1, 1, 1),
    ("a short row", 4, 7, 2, 3, 1),
    ("a row and its rest", 5, 83, 4, 9, 3),
    ("several blocks", 3, 8222, 60, 500, 0),
    ("many matches", 2, 1500, 2, 40, 1),
    ("one person", 2, 1200, 1, 10**6, 0),
)


def ranking_cases() -> Iterator[Case]:
    for at, (name, *sizes, offset) in enumerate(_SHAPES):
        for dtype in (np.float32, np.float64):
            for ties in range(3):
                label = f"{name}, {np.dtype(dtype).name}, {TIES[ties]}"
                generator = np.random.default_rng(seed_of(label))
                distances, labels = problem(generator, *sizes, dtype)
                yield _case(label, distances, distances, labels, offset, ties=ties, trapezoid=(at + ties) % 2)
    generator = np.random.default_rng(1)
    distances, labels = problem(generator, 6, 90, 5, 12, np.float32)
    yield _case("no cameras", distances, distances, {**labels, "query_cameras": None, "gallery_cameras": None}, 0)
    yield from _products()
    for column in (0, 17, 89):
        odd = distances.copy()
        odd[2, column] = np.nan
        yield _case(f"NaN at {column}", odd, odd, labels, 0, bad={2: column})
    yield from _refused(distances, labels)


def problem(
    generator: np.random.Generator, queries: int, gallery: int, people: int, levels: int, dtype: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Distances of a few levels, infinite ones and -0 among them; identities from -1 on, and cameras."""
    distances = (generator.integers(0, levels, (queries, gallery)) / 7).astype(dtype)
    distances[generator.random(distances.shape) < 0.02] = np.inf
    distances[generator.random(distances.shape) < 0.05] = -0.0
    numbers = {"ids": people, "cameras": 3}
    return distances, {
        f"{side}_{what}": generator.integers(-1 if what == "ids" else 0, most, count)
        for side, count in (("query", queries), ("gallery", gallery))
        for what, most in numbers.items()
    }


def _products() -> Iterator[Case]:
    """Products of embeddings, of which the kernel makes distances."""
    for metric, name in ((1, "euclidean"), (2, "cosine")):
        for dtype in (torch.float32, torch.float64):
            generator = np.random.default_rng(seed_of(name))
            _, labels = problem(generator, 9, 77, 6, 3, np.float32)
            query, gallery = (torch.from_numpy(generator.integers(-1, 2, (n, 5))).to(dtype) for n in (9, 77))
            products = query @ gallery.T
            terms = [side.square().sum(1) for side in (query, gallery)]
            if metric == 2:
                terms = [torch.where(squares > 0, squares.sqrt().reciprocal(), 0) for squares in terms]
                distances = products.mul(terms[0][:, None]).mul(terms[1]).neg().add(1).clamp(0, 2)
            else:
                distances = products.mul(-2).add(terms[0][:, None]).add(terms[1]).clamp(min=0).sqrt()
            label = f"{name}, {str(dtype).removeprefix('torch.')}"
            given = [term.numpy() for term in terms]
            yield _case(label, products.numpy(), distances.numpy(), labels, 1, metric=metric, terms=given)


def _case(
    name: str,
    values: np.ndarray,
    distances: np.ndarray,
    labels: dict[str, Any],
    offset: int,
    *,
    ties: int = 0,
    trapezoid: int = 0,
    metric: int = 0,
    terms: list[np.ndarray] | None = None,
    bad: dict[int, int] | None = None,
) -> Case:
    arguments = _arguments(values, labels, offset, name)
    arguments.update(ties=ties, trapezoid=trapezoid, metric=metric)
    if terms is not None:
        arguments.update(query_terms=Buffer(terms[0]), gallery_terms=Buffer(terms[1]))
    lists = {key: None if value is None else value.tolist() for key, value in labels.items()}
    right = reference.rank(
        np.nan_to_num(distances, nan=0.0, posinf=np.inf).tolist(), *(lists[f"{side}_{what}"] for what, side in _ORDER),
        ap="trapezoid" if trapezoid else "hits", ties=TIES[ties],
    )  # fmt: skip
    expected = {"ap": np.array(right.ap, float), "inp": np.array(right.inp, float), "first": np.array(right.first, int)}
    wrong = np.full(len(values), -1)
    for query, column in (bad or {}).items():
        wrong[query] = column
        # Nothing is ranked then.
        expected["ap"][query] = expected["inp"][query] = np.nan
        expected["first"][query] = 0
    expected["nan"] = wrong
    return Case(name, "ranking", arguments, {path: value.view(np.uint8) for path, value in expected.items()})


_ORDER = [("ids", "query"), ("ids", "gallery"), ("cameras", "query"), ("cameras", "gallery")]


def _arguments(values: np.ndarray, labels: dict[str, Any], offset: int, name: str) -> dict[str, Any]:
    queries, gallery = values.shape
    order = labels["gallery_ids"].argsort(kind="stable")
    people = labels["gallery_ids"][order]
    begins = np.searchsorted(people, labels["query_ids"])
    ends = np.where(labels["query_ids"] == -1, begins, np.searchsorted(people, labels["query_ids"], "right"))
    nobody = order[people == -1]
    arguments: dict[str, Any] = {
        "values": Buffer(values, "in", offset * values.itemsize),
        "begins": Buffer(begins),
        "ends": Buffer(ends),
        "members": Buffer(order),
        "nobody": Buffer(nobody),
        "queries": queries,
        "gallery": gallery,
        "count": gallery,
        "nobodies": len(nobody),
        "is_double": int(values.dtype == np.float64),
    }
    if labels["query_cameras"] is not None:
        for side in ("query", "gallery"):
            arguments[f"{side}_cameras"] = Buffer(labels[f"{side}_cameras"])
    for output, kind in (("ap", np.float64), ("inp", np.float64), ("first", np.int64), ("nan", np.int64)):
        arguments[output] = garbage(queries, kind, seed_of(name + output), "out")
    return arguments


def _refused(distances: np.ndarray, labels: dict[str, Any]) -> Iterator[Case]:
    given = _arguments(distances, labels, 0, "refused")
    outputs = {path: given[path].data.copy().view(np.uint8) for path in ("ap", "inp", "first", "nan")}
    count = distances.shape[1]
    begins, ends = given["begins"].data, given["ends"].data
    for name, changes in (
        ("metric 3", {"metric": 3}),
        ("ties -1", {"ties": -1}),
        ("ties 3", {"ties": 3}),
        ("a member too far", {"members": Buffer(np.where(np.arange(count) == 3, count, given["members"].data))}),
        ("a member before the first", {"members": Buffer(np.where(np.arange(count) == 3, -1, given["members"].data))}),
        ("a nobody too far", {"nobody": Buffer(np.array([count])), "nobodies": 1}),
        ("a range that begins before", {"begins": Buffer(begins - (np.arange(len(begins)) == 1) * 1000)}),
        ("a range that ends beyond", {"ends": Buffer(ends + (np.arange(len(ends)) == 1) * 1000)}),
        ("a range that ends before it begins", {"ends": Buffer(np.where(np.arange(len(ends)) == 1, begins - 1, ends))}),
    ):
        fresh = {**given, **{path: Buffer(given[path].data.copy(), "out") for path in outputs}, **changes}
        yield Case(name, "ranking", fresh, outputs, status=UNSUPPORTED)
