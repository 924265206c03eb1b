"""Two records: a change of ours is told apart from noise and from a machine that drifted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from mgran_fast.bench.compare import Comparison, compare

Rows = dict[str, Any]


def slowed(made: Rows, times: float, what: Callable[[Rows, str], bool]) -> Rows:
    """The same record with longer times of those contestants of a race."""
    found = copy.deepcopy(made)
    for row in found["results"]:
        for name, figures in row.get("milliseconds", {}).items():
            if what(row, name):
                figures.update({key: times * ms for key, ms in figures.items()})
    return found


def verdicts(found: Comparison) -> tuple[int, int, int]:
    slower, faster, same = (len(found.those(name)) for name in ("slower", "faster", "same"))
    return slower, faster, same


def test_with_itself(suite_record: Rows) -> None:
    found = compare(suite_record, suite_record)
    races = sum("milliseconds" in row for row in suite_record["results"])
    assert verdicts(found) == (0, 0, races)
    assert (found.machine, found.new, found.gone) == ((), (), ())
    assert found.text == [f"{races} races in both: 0 slower, 0 faster, {races} same"]


def test_ours_alone_got_slower(suite_record: Rows) -> None:
    after = slowed(suite_record, 1.3, lambda row, name: row["name"] == "align" and name == "ours")
    found = compare(suite_record, after)
    assert [one.name for one in found.slower] == ["ops: align, 64 people, 2 threads"]
    assert found.slower[0].change == pytest.approx(1.3)
    assert found.text[0].startswith("slower: ops: align, 64 people, 2 threads: 1.30 times as long (13 to 16.9 ms")
    assert [one.name for one in compare(after, suite_record).those("faster")] == ["ops: align, 64 people, 2 threads"]


def test_a_slower_machine_is_no_change(suite_record: Rows) -> None:
    after = slowed(suite_record, 1.3, lambda row, name: True)
    found = compare(suite_record, after)
    assert not found.slower
    assert not found.those("faster")
    assert all(one.change == pytest.approx(1) and one.drift == pytest.approx(1.3) for one in found.changes)


def test_a_race_without_peers_takes_the_drift_of_all(suite_record: Rows) -> None:
    """MRA's other contestants are ours as well: what slows them says nothing of the machine."""
    after = slowed(suite_record, 1.3, lambda row, name: row["group"] == "MRA")
    assert [one.name for one in compare(suite_record, after).slower] == [
        "MRA: masks and keypoints, 8 people, 2 threads"
    ]
    everything = slowed(suite_record, 1.3, lambda row, name: True)
    assert not compare(suite_record, everything).slower


def test_ours_stayed_while_the_machine_got_faster(suite_record: Rows) -> None:
    after = slowed(suite_record, 0.7, lambda row, name: not (row["name"] == "align" and name == "ours"))
    assert [one.name for one in compare(suite_record, after).slower] == ["ops: align, 64 people, 2 threads"]


@pytest.mark.parametrize(
    ("spread", "change", "slower"), [(0.0, 1.02, 0), (0.0, 1.04, 1), (0.1, 1.1, 0), (0.1, 1.25, 1)]
)
def test_noise(suite_record: Rows, spread: float, change: float, slower: int) -> None:
    for row in suite_record["results"]:
        for figures in row.get("milliseconds", {}).values():
            figures["10 %"], figures["90 %"] = ((1 + sign * spread) * figures["median"] for sign in (-1, 1))
    after = slowed(suite_record, change, lambda row, name: row["name"] == "regions" and name == "ours")
    assert len(compare(suite_record, after).slower) == slower


def test_of_two_rounds_nothing_small_is_believed(suite_record: Rows) -> None:
    for row in suite_record["results"]:
        row["rounds"] = 2
    after = slowed(suite_record, 1.08, lambda row, name: row["name"] == "regions" and name == "ours")
    assert not compare(suite_record, after).slower


def test_new_gone_and_another_machine(suite_record: Rows) -> None:
    after = copy.deepcopy(suite_record)
    after["machine"]["cores"] = 4
    after["results"][0]["at"] = {"people": 32}
    found = compare(suite_record, after)
    assert found.text[0] == "different machines: cores: 2, then 4"
    assert found.new == ("ops: crops, 32 people, 2 threads",)
    assert found.gone == ("ops: crops, 64 people, boxes of a frame, 2 threads",)


def test_old_records() -> None:
    row = {"name": "x", "milliseconds": {"ours": {"median": 2.0}}}
    slower = {"name": "x", "milliseconds": {"ours": {"median": 3.0}}}
    found = compare({"machine": {}, "results": [row]}, {"machine": {}, "results": [slower]})
    assert [(one.name, one.drift) for one in found.slower] == [("other: x", 1.0)]
