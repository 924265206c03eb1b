"""Two records: what got slower, faster, stayed, is new, is gone.

A machine's speed drifts from day to day. The peers of a race did the same thing both times, so what changed for them
as well is the machine, and only what is beyond it is a change of ours.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mgran_fast.bench.case import OURS
from mgran_fast.bench.tables import OTHER, circumstances

#: No difference below this is believed; of fewer than FEW rounds, whose quantiles say nothing, none below the second.
LEAST, LEAST_OF_FEW, FEW = 0.03, 0.10, 3
#: What figures depend on besides the code.
MACHINE = ("processor", "cores", "device", "torch")
Row = Mapping[str, Any]
Key = tuple[str, str, str, int | None]


@dataclass(frozen=True)
class Change:
    """A race that is in both records.

    Attributes:
        name: group, race and circumstances.
        before, after: ours, in milliseconds.
        drift: after / before of the peers: of the machine.
        change: after / before of ours, without the drift; above 1 is slower.
        noise: a change within 1 + noise is none.
    """

    name: str
    before: float
    after: float
    drift: float
    change: float
    noise: float

    @property
    def verdict(self) -> str:
        """slower, faster or same."""
        if self.change > 1 + self.noise:
            return "slower"
        return "faster" if self.change < 1 / (1 + self.noise) else "same"

    @property
    def text(self) -> str:
        return (
            f"{self.name}: {self.change:.2f} times as long ({self.before:.3g} to {self.after:.3g} ms, peers"
            f" {self.drift:.2f}, noise {100 * self.noise:.0f} %)"
        )


@dataclass(frozen=True)
class Comparison:
    """What differs between two records.

    Attributes:
        machine: what differs of the machines, e.g. "cores: 2, then 4".
        changes: of every race that is in both.
        new, gone: races that are in one of them.
    """

    machine: tuple[str, ...]
    changes: tuple[Change, ...]
    new: tuple[str, ...]
    gone: tuple[str, ...]

    def those(self, verdict: str) -> list[Change]:
        """That got slower, faster, or stayed the same; the largest change first."""
        found = [one for one in self.changes if one.verdict == verdict]
        return sorted(found, key=lambda one: -abs(math.log(one.change)))

    @property
    def slower(self) -> list[Change]:
        return self.those("slower")

    @property
    def text(self) -> list[str]:
        """Lines for a terminal."""
        lines = [f"different machines: {'; '.join(self.machine)}"] if self.machine else []
        for verdict in ("slower", "faster"):
            lines += [f"{verdict}: {one.text}" for one in self.those(verdict)]
        lines += [f"new: {name}" for name in self.new] + [f"gone: {name}" for name in self.gone]
        counts = ", ".join(f"{len(self.those(verdict))} {verdict}" for verdict in ("slower", "faster", "same"))
        return [*lines, f"{len(self.changes)} races in both: {counts}"]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "machine": list(self.machine),
            **{verdict: [vars(one) for one in self.those(verdict)] for verdict in ("slower", "faster", "same")},
            "new": list(self.new),
            "gone": list(self.gone),
        }


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Comparison:
    """Two records, as :func:`mgran_fast.bench.record.load` gives them.

    Races are the same whose group, name, circumstances and threads are.
    """
    old, new = _races(before["results"]), _races(after["results"])
    both = [key for key in new if key in old]
    everywhere = [(old[key], new[key], name) for key in both for name in _peers(old[key], new[key])]
    changes = []
    for key in both:
        own = [(old[key], new[key], name) for name in _peers(old[key], new[key])]
        changes.append(_change(old[key], new[key], own or everywhere))
    was, is_ = before["machine"], after["machine"]
    differs = [f"{name}: {was.get(name)}, then {is_.get(name)}" for name in MACHINE if was.get(name) != is_.get(name)]
    return Comparison(
        tuple(differs),
        tuple(changes),
        tuple(_name(new[key]) for key in new if key not in old),
        tuple(_name(old[key]) for key in old if key not in new),
    )


def _races(results: Iterable[Row]) -> dict[Key, Row]:
    found: dict[Key, Row] = {}
    for row in results:
        if OURS in row.get("milliseconds", {}):
            at = json.dumps(row.get("at", {}), sort_keys=True)
            found[row.get("group", OTHER), row["name"], at, row.get("threads")] = row
    return found


def _name(row: Row) -> str:
    return f"{row.get('group', OTHER)}: " + ", ".join([row["name"], *circumstances(row)])


def _peers(before: Row, after: Row) -> list[str]:
    """Contestants of both that are none of ours."""
    return [name for name in after["milliseconds"] if name in before["milliseconds"] and not name.startswith(OURS)]


def _change(before: Row, after: Row, peers: list[tuple[Row, Row, str]]) -> Change:
    drifts = [_median(new, name) / _median(old, name) for old, new, name in peers]
    drift = statistics.median(drifts) if drifts else 1.0
    # What the middle of several peers is off by, is as much less as they are more.
    of_peers = [_half(row, name) / len(peers) for old, new, name in peers for row in (old, new)]
    noise = math.hypot(_half(before, OURS), _half(after, OURS), *of_peers)
    few = min(row.get("rounds", FEW) for row in (before, after)) < FEW
    ours = _median(before, OURS), _median(after, OURS)
    return Change(_name(after), *ours, drift, ours[1] / ours[0] / drift, max(noise, LEAST_OF_FEW if few else LEAST))


def _median(row: Row, name: str) -> float:
    return float(row["milliseconds"][name]["median"])


def _half(row: Row, name: str) -> float:
    """Half of what lies between the 10 % and the 90 % quantile, as a share of the median."""
    figures = row["milliseconds"][name]
    median = figures["median"]
    return float(figures.get("90 %", median) - figures.get("10 %", median)) / 2 / float(median)
