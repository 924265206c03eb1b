"""How sure a figure is: what it would be with other queries of the same kind.

A test set of 200 queries is a sample, and a difference of 3 points in Rank-1 on it is chance as likely as not. The
bootstrap (Efron 1979) draws as many queries as there are from them, with repetition, again and again: where 95 % of the
figures lie is the interval. Two models on the same queries are compared query by query, which leaves out how hard the
queries are; the chance of such a difference between models that are alike is found by exchanging the two at random
(Fisher's permutation test).

The queries are taken as independent. Several queries of one person are not quite, so that intervals are a little too
narrow for people that were never seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mgran_fast.metrics.ranking import Bools, Floats, Ranking
from mgran_fast.metrics.shots import ShotRanking

# Draws times queries at once.
_DRAWN = 2**22


@dataclass(frozen=True)
class Interval:
    """A figure, as a fraction, and where it lies with most samples of queries."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


@dataclass(frozen=True)
class Difference:
    """How much larger a figure of one ranking is than that of another, over the queries that both answer.

    Attributes:
        value, low, high: the difference, and its interval.
        chance: of a difference as large, in either direction, were the two alike: a two-sided p-value, at least
            1 / (draws + 1).
        queries: how many were compared.
    """

    value: float
    low: float
    high: float
    chance: float
    queries: int


def intervals(
    ranking: Ranking | ShotRanking,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Bootstrap intervals of "rank1" and so on, and of "map" and "minp" where the ranking has them.

    Args:
        ranks: each at most the length of the CMC curve for single gallery shots.
        confidence: above 0 and below 1.
        draws: how often queries are drawn, at least 1. seed: of the draws, at least 0.

    Raises ValueError for an argument out of its range.
    """
    _check(confidence, draws, seed)
    values = _values(ranking, ranks)
    names = list(values)
    each = np.stack([values[name][ranking.valid] for name in names])
    means = _resampled(each, draws, seed)
    return {
        name: Interval(float(own.mean()), *_between(drawn, confidence))
        for name, own, drawn in zip(names, each, means, strict=True)
    }


def compare(
    one: Ranking | ShotRanking,
    other: Ranking | ShotRanking,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Difference]:
    """How much better ``one`` is than ``other`` on the same queries, in the same order; arguments of :func:`intervals`.

    Raises ValueError where the two are not of the same number of queries, or of different kinds, or have no query with
    a right match in common; or for an argument out of its range.
    """
    _check(confidence, draws, seed)
    if len(one.first) != len(other.first):
        raise ValueError(f"the rankings are of {len(one.first)} and of {len(other.first)} queries: not the same ones")
    if isinstance(one, Ranking) != isinstance(other, Ranking):
        raise ValueError("one of the rankings is of single gallery shots: their figures are not comparable")
    if isinstance(one, Ranking) and isinstance(other, Ranking) and one.definition != other.definition:
        raise ValueError(f"average precision is {one.definition} of one ranking and {other.definition} of the other")
    both: Bools = one.valid & other.valid
    if not both.any():
        raise ValueError("no query has a right match in both rankings")
    mine, theirs = _values(one, ranks), _values(other, ranks)
    names = list(mine)
    each = np.stack([mine[name][both] - theirs[name][both] for name in names])
    count = each.shape[1]
    means = _resampled(each, draws, seed)
    generator = np.random.default_rng((seed, 1))
    exchanged = np.concatenate(
        [each @ (1 - 2 * generator.integers(0, 2, (count, step), dtype=np.int8)) for step in _steps(count, draws)],
        axis=1,
    )
    # As large up to rounding is as large.
    reached = np.abs(exchanged) >= np.abs(each.sum(axis=1, keepdims=True)) - 1e-9
    chances = (1 + reached.sum(axis=1)) / (draws + 1)
    return {
        name: Difference(float(own.mean()), *_between(drawn, confidence), float(chance), count)
        for name, own, drawn, chance in zip(names, each, means, chances, strict=True)
    }


def _check(confidence: float, draws: int, seed: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1, not {confidence}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, not {draws}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, not {seed}")


def _values(ranking: Ranking | ShotRanking, ranks: Sequence[int]) -> dict[str, Floats]:
    """The figures of each query; those without a right match hold anything."""
    for k in ranks:
        ranking.at(k)  # refuses what there is no such figure for
    if isinstance(ranking, ShotRanking):
        return {f"rank{k}": ranking.found[:, k - 1] for k in ranks}
    found = {f"rank{k}": ((ranking.first > 0) & (ranking.first <= k)).astype(np.float64) for k in ranks}
    return {**found, "map": ranking.ap, "minp": ranking.inp}


def _steps(count: int, draws: int) -> Iterator[int]:
    step = max(1, _DRAWN // count)
    return (min(step, draws - done) for done in range(0, draws, step))


def _resampled(each: Floats, draws: int, seed: int) -> Floats:
    """Means [figures, draws] of the figures [figures, queries], over queries that are drawn with repetition."""
    generator = np.random.default_rng(seed)
    count = each.shape[1]
    parts = (each[:, generator.integers(0, count, (step, count))].mean(axis=2) for step in _steps(count, draws))
    return np.concatenate(list(parts), axis=1)


def _between(drawn: Floats, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
