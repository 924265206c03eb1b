"""Ranking against the reference on a thousand random problems; that they hold all that may be odd is counted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mgran_fast.metrics import rank
from mgran_fast.metrics.hits import AP, TIES
from mgran_fast.reference import ranking as reference

PROBLEMS = 1000
#: Problems of one test.
BLOCK = 100
LARGE = 2**40
MAX_RANK = 10
LABELS = ("query_ids", "gallery_ids", "query_cameras", "gallery_cameras")


def people(random: np.random.Generator) -> list[int]:
    """Who there is, one person or several, 0 among them at times."""
    count = int(random.choice([1, 2, 3, 5, 12]))
    ids = random.integers(0, 2) + np.arange(count)
    if random.random() < 0.3:
        # Who is the same person to 32 bits, and is not.
        ids = np.append(ids, ids + LARGE)
    if random.random() < 0.3:
        # From -5 down; -1 would be nobody.
        ids = np.append(ids, -5 - ids)
    return [int(person) for person in ids]


def distances_of(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray[Any, Any]:
    """Float32 or float64, some below 0; often so few values that most are tied, and some infinite."""
    levels = int(random.choice([0, 0, 1, 2, 7, 40]))
    values = random.standard_normal(shape)
    if levels:
        values = random.integers(0, levels, shape) / 7 - 0.2
    if random.random() < 0.25:
        values[random.random(shape) < 0.2] = math.inf
        values[random.random(shape) < 0.02] = -math.inf
    return values.astype(np.float32 if random.random() < 0.5 else np.float64)


def problem_of(seed: int) -> dict[str, Any]:
    """Arguments of `rank`, with lists of labels."""
    random = np.random.default_rng(seed)
    q, g = int(random.integers(1, 8)), int(random.integers(1, random.choice([4, 15, 40, 40, 150])))
    there = people(random)
    query_ids, gallery_ids = random.choice(there, q), random.choice(there, g)
    if random.random() < 0.4:
        gallery_ids[random.random(g) < 0.2] = -1
    if random.random() < 0.4:
        gallery_ids[random.random(g) < 0.3] = 0
    if random.random() < 0.5:
        query_ids[random.random(q) < 0.3] = random.choice([-1, 77, LARGE + 77, -77])
    # Of the queries and of the gallery; their numbers mean no more than identities'. None: no camera rule.
    few, many, large = [-1, 0], [0, 1, 2, 3, 4, 5], [1, LARGE + 1, -LARGE]
    kinds: list[Sequence[Sequence[int] | None]] = [
        (None, None), ([3], [3]), ([3], [4]), ([0], few), (few, few), (many, many), (many, many), (large, large)
    ]  # fmt: skip
    query_cameras, gallery_cameras = (
        None if cameras is None else random.choice(cameras, n)
        for cameras, n in zip(kinds[random.choice(len(kinds), p=[0.2, 0.05, *[0.125] * 6])], (q, g), strict=True)
    )
    odd = random.random()
    if odd < 0.03:
        gallery_ids[:] = -1
    elif odd < 0.08 and query_cameras is not None and gallery_cameras is not None:
        # All that is there of the queries' only person is from the queries' only camera.
        gallery_ids[:] = query_ids[:] = query_ids[0]
        gallery_cameras[:] = query_cameras[:] = query_cameras[0]
    elif odd < 0.1:
        query_ids += 1000
    labels = (query_ids, gallery_ids, query_cameras, gallery_cameras)
    lists = (None if one is None else one.tolist() for one in labels)
    return {"distances": distances_of(random, (q, g)), **dict(zip(LABELS, lists, strict=True))}


@pytest.mark.parametrize("start", range(0, PROBLEMS, BLOCK))
@pytest.mark.usefixtures("implementation")
def test_rank_equals_the_reference(start: int) -> None:
    for seed in range(start, start + BLOCK):
        problem = problem_of(seed)
        rows = problem["distances"].tolist()
        for ap in AP:
            for ties in TIES:
                told = f"problem_of({seed}), {ap}, {ties}"
                options: dict[str, Any] = {"ap": ap, "ties": ties, "max_rank": MAX_RANK}
                right = reference.rank(rows, *(problem[name] for name in LABELS), **options)
                if not any(right.first):
                    with pytest.raises(ValueError, match="no query has a right match"):
                        rank(**problem, **options)
                    continue
                found = rank(**problem, **options)
                assert found.first.tolist() == right.first, told
                for name in ("ap", "inp", "cmc"):
                    want = getattr(right, name)
                    np.testing.assert_allclose(
                        getattr(found, name), want, rtol=0, atol=1e-12, err_msg=f"{told}, {name}"
                    )


def oddities(problem: dict[str, Any]) -> dict[str, bool]:
    """What is odd about a problem, by what it holds."""
    distances, (query, gallery) = problem["distances"], (np.array(problem[name]) for name in LABELS[:2])
    right = query[:, None] == gallery
    junk = np.broadcast_to(gallery == -1, right.shape)
    cameras = problem["query_cameras"], problem["gallery_cameras"]
    if cameras[0] is not None:
        junk = junk | (right & (np.array(cameras[0])[:, None] == np.array(cameras[1])))
    right, wrong = right & ~junk, ~right & ~junk
    matched = right.any(axis=1)
    tied = [bool(np.isin(row[one], row[other]).any()) for row, one, other in zip(distances, right, wrong, strict=True)]
    present = {*problem["query_ids"], *problem["gallery_ids"]}
    truncated = len({person % 2**32 for person in present}) < len(present)
    kinds = {
        "a right and a wrong entry are tied": any(tied),
        "a right entry is infinitely far": bool(np.isinf(distances[right]).any()),
        "nobody is in the gallery": -1 in gallery,
        "nobody is asked for": -1 in query,
        "a distractor": 0 in gallery and 0 not in query,
        "a match is 0": 0 in gallery[right.any(axis=0)],
        "a match is negative": bool((gallery[right.any(axis=0)] < -1).any()),
        "a match is beyond 32 bits": bool((gallery[right.any(axis=0)] > LARGE).any()),
        "two people are alike to 32 bits": truncated,
        "no cameras": cameras[0] is None,
        "one camera": cameras[0] is not None and len({*cameras[0], *cameras[1]}) == 1 < len(query),
        "the queries' camera is not in the gallery": cameras[0] is not None and not {*cameras[0]} & {*cameras[1]},
        "several cameras": cameras[0] is not None and len({*cameras[0]}) > 1 and len({*cameras[1]}) > 1,
        "some entries are junk by the camera": bool((junk & (gallery != -1)).any()),
        "one person": len({*gallery.tolist()} - {-1}) == 1 and bool(matched.any()),
        "some queries are without a match": bool(matched.any() and not matched.all()),
        "all queries are without a match": not matched.any(),
        "everybody in the gallery is nobody": bool((gallery == -1).all()),
        "the whole gallery is junk by the camera": bool(junk.all() and (gallery != -1).any()),
        "more than a vector of entries": len(gallery) > 64,
        "a single entry": len(gallery) == 1,
        "float32": distances.dtype == np.float32,
        "float64": distances.dtype == np.float64,
    }
    return {kind: bool(there) for kind, there in kinds.items()}


def test_the_problems_are_odd() -> None:
    """Each oddity is in one of fifty problems at least; and two thirds of all can be answered."""
    counts: Counter[str] = Counter()
    for seed in range(PROBLEMS):
        counts.update({kind: int(there) for kind, there in oddities(problem_of(seed)).items()})
    assert {kind: count for kind, count in counts.items() if count < PROBLEMS // 50} == {}
    assert counts["all queries are without a match"] < PROBLEMS // 3


@pytest.mark.usefixtures("implementation")
def test_an_empty_gallery_is_refused() -> None:
    cameras: tuple[tuple[Any, Any], ...] = ((None, None), ([1, 1, 1], []))
    for of_queries, of_gallery in cameras:
        with pytest.raises(ValueError, match="there are 3 queries and 0 gallery entries: nothing to rank"):
            rank(
                distances=np.zeros((3, 0)), query_ids=[1, 2, 3], gallery_ids=np.zeros(0, dtype=np.int64),
                query_cameras=of_queries, gallery_cameras=of_gallery,
            )  # fmt: skip
