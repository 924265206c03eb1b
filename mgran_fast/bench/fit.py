"""Cost that grows: the curves of a record, and what a call costs besides what each person, box or entry costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mgran_fast.bench.suite.growth import AXES
from mgran_fast.errors import DataError


@dataclass(frozen=True)
class Fit:
    """A fitted cost, in the unit of the times that were given.

    Attributes:
        fixed: of a call, whatever its size.
        each: of one more.
        exponent: d log t / d log n over the upper half of the sizes; 1 where twice as many take twice as long.
    """

    fixed: float
    each: float
    exponent: float

    def at(self, size: float) -> float:
        """The time of this size."""
        return self.fixed + self.each * size

    @property
    def text(self) -> str:
        """For times in milliseconds."""
        return f"{self.fixed:.3g} ms + {self.each:.3g} ms each, exponent {self.exponent:.2f}"


@dataclass(frozen=True)
class Curve:
    """Races that differ in their size alone.

    Attributes:
        name: of the races.
        axis: what there is more and more of.
        at: what is the same for all of them, threads aside.
        threads: of the CPU; None where the record does not say.
        milliseconds: contestant -> size -> median, by size.
    """

    name: str
    axis: str
    at: Mapping[str, int | str]
    threads: int | None
    milliseconds: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        """All of them, ascending."""
        return sorted({size for times in self.milliseconds.values() for size in times})

    def fit(self, contestant: str) -> Fit | None:
        """Of a contestant with at least three sizes: two lie on any line."""
        times = self.milliseconds.get(contestant, {})
        return fit(list(times), list(times.values())) if len(times) > 2 else None


def fit(sizes: Sequence[float], times: Sequence[float]) -> Fit:
    """Least squares of the relative errors of ``fixed + each * size``; neither of the two is negative.

    Args:
        sizes: above 0, two different ones at least.
        times: of the same length, above 0.

    Raises:
        DataError: they are not so.
    """
    n, t = np.asarray(sizes, np.float64), np.asarray(times, np.float64)
    if n.shape != t.shape or n.ndim != 1 or len(np.unique(n)) < 2 or not ((n > 0) & (t > 0)).all():
        raise DataError(f"a fit wants times above 0 of two different sizes above 0 or more, not {n} and {t}")
    order = np.argsort(n, kind="stable")
    n, t = n[order], t[order]
    columns = np.stack([1 / t, n / t], 1)
    fixed, each = np.linalg.lstsq(columns, np.ones(len(t)), rcond=None)[0].tolist()
    if each < 0:
        fixed, each = _alone(columns[:, 0]), 0.0
    elif fixed < 0:
        fixed, each = 0.0, _alone(columns[:, 1])
    distinct = np.unique(n)
    upper = n >= min(distinct[len(distinct) // 2], distinct[-2])
    exponent = np.polyfit(np.log(n[upper]), np.log(t[upper]), 1)[0]
    return Fit(float(fixed), float(each), float(exponent))


def curves(results: Iterable[Mapping[str, Any]]) -> list[Curve]:
    """The curves among a record's results, in the order in which they come."""
    found: dict[object, Curve] = {}
    rows = [row for row in results if row["name"] in AXES and AXES[row["name"]] in row.get("at", {})]
    for row in sorted(rows, key=lambda row: int(row["at"][AXES[row["name"]]])):
        at = dict(row["at"])
        axis = AXES[row["name"]]
        size = int(at.pop(axis))
        key = row["name"], tuple(sorted(at.items())), row.get("threads")
        curve = found.setdefault(key, Curve(row["name"], axis, at, row.get("threads")))
        for contestant, figures in row.get("milliseconds", {}).items():
            curve.milliseconds.setdefault(contestant, {})[size] = figures["median"]
    names = list(AXES)
    return sorted(found.values(), key=lambda curve: (names.index(curve.name), -(curve.threads or 0)))


def _alone(column: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """The least squares of one term."""
    return float(column.sum() / np.square(column).sum())
