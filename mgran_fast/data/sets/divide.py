"""Draw a split for pictures that come without one: people to train on, and people to test on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from mgran_fast.data.records import Record
from mgran_fast.errors import DataError

Parts = dict[str, tuple[Record, ...]]

#: Cameras where none is told: a query's differs from the gallery's, so that no picture counts as seen by the same one.
UNTOLD = {"train": "1", "query": "1", "gallery": "2"}
#: What a reader notes then.
UNTOLD_NOTE = "no cameras are told: no gallery picture is left out as seen by the query's camera"


def divide(
    where: str | os.PathLike[str], records: Iterable[Record], seed: int, names: Mapping[int, str] | None = None
) -> Parts:
    """Half of the people to train on, the others to test on; of them the first picture by each camera is a query.

    People are ordered by the seed and their own name alone, so adding someone moves few of the others. A picture is a
    query only when the gallery keeps one of that person by another camera: no query is without a match.

    Args:
        where: the folder or file that errors name.
        records: all pictures.
        seed: 0 or more; another seed draws another split.
        names: what people are called, where that is not their number.

    Raises DataError when nobody is seen by two cameras among those to test on, or there are fewer than two people.
    """
    by_person: dict[int, list[Record]] = {}
    for record in sorted(records):
        by_person.setdefault(record.person, []).append(record)
    names = names or {}
    people = sorted(
        by_person, key=lambda person: hashlib.blake2b(f"{seed}:{names.get(person, person)}".encode()).digest()
    )
    tested = people[len(people) // 2 :]
    train = [record for person in people[: len(people) // 2] for record in by_person[person]]
    query: list[Record] = []
    gallery: list[Record] = []
    for person in tested:
        mine = by_person[person]
        asked = _queries(mine)
        query += asked
        gallery += [record for record in mine if record not in asked]
    if not train or not query:
        raise DataError(
            f"{os.fspath(where)}: no split can be drawn: it takes two people or more, and some to test on who are seen "
            f"by two cameras; there are {len(people)} people, and the split {seed} finds no query; try another --split"
        )
    return {"train": tuple(sorted(train)), "query": tuple(sorted(query)), "gallery": tuple(sorted(gallery))}


def untold(people: Iterable[str]) -> list[str]:
    """Cameras for pictures to be split, which tell theirs nowhere, in order: a person's first picture asks."""
    seen: set[str] = set()
    cameras = []
    for person in people:
        cameras.append(UNTOLD["gallery" if person in seen else "query"])
        seen.add(person)
    return cameras


def _queries(records: list[Record]) -> list[Record]:
    """The first picture by each camera, as long as another camera keeps one."""
    left = list(records)
    asked = []
    for camera in sorted({record.camera for record in records}):
        one = next(record for record in records if record.camera == camera)
        if any(record.camera != camera for record in left):
            asked.append(one)
            left.remove(one)
    # Taking a picture must not have taken the last match of a query before it.
    return [one for one in asked if any(record.camera != one.camera for record in left)]


def undivided(root: Path) -> DataError:
    """The error for pictures without a split, and without a seed to draw one."""
    return DataError(f"{root}: nothing tells who is to train on and who to test on; split them, or draw it: --split 0")
