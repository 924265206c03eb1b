"""What every reader of a data set checks: counts, people who are there twice, people on both sides of a test."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mgran_fast.data.records import DataSet, Record
from mgran_fast.data.words import first, plural
from mgran_fast.errors import DataError

#: A detection that shows no one in particular, and a wrong answer that belongs to the gallery (Market-1501).
JUNK, DISTRACTOR = -1, 0


class Tally(NamedTuple):
    """How many pictures, people and cameras something has; None is not told, and not compared."""

    pictures: int | None = None
    people: int | None = None
    cameras: int | None = None


@dataclass(frozen=True)
class Counts:
    """Numbers of a data set, by part: "train", "query", "gallery", and what else a set is made of, such as "junk".

    Attributes:
        parts: the numbers of each part; a part that is not named is not compared.
        source: whose numbers they are, as errors call them: "published".
    """

    parts: Mapping[str, Tally]
    source: str = "published"

    def differences(self, found: Counts) -> list[str]:
        """Where ``found`` differs from this, a phrase for each part: "train: 12,930 pictures instead of 12,936".

        Parts that ``found`` does not have are not compared.
        """
        phrases = []
        for part, wanted in self.parts.items():
            if part not in found.parts:
                continue
            different = [
                f"{has:,} {what} instead of {wants:,}"
                for what, wants, has in zip(Tally._fields, wanted, found.parts[part], strict=True)
                if wants is not None and has is not None and wants != has
            ]
            if different:
                phrases.append(f"{part}: {', '.join(different)}")
        return phrases

    def to_json(self) -> dict[str, dict[str, int]]:
        """Of each part what is known: {"train": {"pictures": 12936, "people": 751, "cameras": 6}}."""
        return {
            part: {name: number for name, number in zip(Tally._fields, tally, strict=True) if number is not None}
            for part, tally in self.parts.items()
        }

    @classmethod
    def from_json(cls, value: Any, source: str) -> Counts:
        """The counts that :meth:`to_json` gave. Raises ValueError for anything else."""
        if not isinstance(value, Mapping) or not value:
            raise ValueError('must be an object such as {"train": {"pictures": 100, "people": 10, "cameras": 2}}')
        parts = {}
        for part, tally in value.items():
            if not isinstance(tally, Mapping) or not tally.keys() <= set(Tally._fields):
                raise ValueError(f"{part}: must be an object with {', '.join(Tally._fields)}")
            if any(isinstance(number, bool) or not isinstance(number, int) for number in tally.values()):
                raise ValueError(f"{part}: must hold whole numbers")
            parts[str(part)] = Tally(**tally)
        return cls(parts, source)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Counts:
        """Counts from a JSON file, see :meth:`from_json`; a whole answer of ``mgran-fast datasets check --json`` will
        do. Raises DataError."""
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls.from_json(value.get("counts", value) if isinstance(value, dict) else value, f"{path}'s")
        except OSError as error:
            raise DataError(f"{path}: cannot be read as counts ({error.strerror}); check the path") from error
        except ValueError as error:
            raise DataError(f"{path}: no counts ({error}); write the file again") from error


def tally(records: Iterable[Record]) -> Tally:
    """The numbers of some records."""
    records = tuple(records)
    return Tally(len(records), len({r.person for r in records}), len({r.camera for r in records}))


def count(dataset: DataSet, **others: Tally) -> Counts:
    """The numbers of a data set's parts, those that have pictures, and ``others``."""
    parts = {"train": dataset.train, "query": dataset.query, "gallery": dataset.gallery}
    return Counts({**{part: tally(records) for part, records in parts.items() if records}, **others}, "found")


def check_overlap(
    where: str | os.PathLike[str], train: Sequence[Record], test: Iterable[Record], nobody: Collection[int] = ()
) -> None:
    """Raise DataError when someone is to be trained and tested on.

    Args:
        where: the folder or file that the error names.
        train, test: the records; ``test`` is query and gallery together.
        nobody: numbers that stand for no one in particular.
    """
    people = {record.person for record in train} - set(nobody)
    shared = sorted({record.person for record in test} & people)
    if shared:
        raise DataError(
            f"{os.fspath(where)}: {len(shared)} {plural(len(shared), 'person', 'people')} in train and in test "
            f"({first(map(str, shared))}): scores would be too good; keep each person on one side"
        )


def check_spelling(where: str | os.PathLike[str], names: Iterable[str], what: str = "person") -> None:
    """Raise DataError when one number is written in two ways, "2" and "0002": it would be one person twice.

    Args:
        where: the folder or file that the error names.
        names: as the data set writes them; those that are no whole number are not looked at.
        what: what they name.
    """
    seen: dict[int, str] = {}
    for name in names:
        number = whole(name)
        if number is not None and seen.setdefault(number, name) != name:
            raise DataError(
                f"{os.fspath(where)}: {what} {number} is there twice, as {seen[number]} and as {name}; "
                "give one of them another name, or put both together"
            )


def whole(text: str) -> int | None:
    """The whole number that a text writes, or None."""
    digits = text[1:] if text.startswith("-") else text
    return int(text) if digits.isascii() and digits.isdigit() else None


def numbered(names: Iterable[str]) -> tuple[dict[str, int], dict[int, str]]:
    """A number for each name: its own when all are whole numbers, otherwise its place in the sorted list, from 1.

    Returns:
        Name -> number, and number -> name where the numbers are places; that one is empty otherwise.
    """
    known = sorted(set(names))
    numbers = {name: whole(name) for name in known}
    if all(number is not None for number in numbers.values()):
        return {name: number for name, number in numbers.items() if number is not None}, {}
    places = {name: place for place, name in enumerate(known, 1)}
    return places, {place: name for name, place in places.items()}


def safe(where: str | os.PathLike[str], entry: str, line: int | None = None) -> str:
    """A path that a list names, relative and with forward slashes, or a DataError: lists come from strangers.

    Args:
        where: the list, as the error names it.
        entry: the path as it stands there.
        line: its line, from 1.
    """
    path = PurePosixPath(entry.replace("\\", "/"))
    at = f"{os.fspath(where)}" + ("" if line is None else f", line {line}")
    if not path.parts or "\0" in entry:
        raise DataError(f"{at}: no path; each line must name a picture")
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise DataError(f"{at}: {entry}: leads out of the data set; name pictures by their place below its folder")
    return path.as_posix()
