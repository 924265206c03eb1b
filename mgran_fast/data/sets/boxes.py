"""Published sets in the Market-1501 layout: every name must parse, everyone must be there once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from mgran_fast.data.market import FOLDERS
from mgran_fast.data.records import Record
from mgran_fast.data.sets.checks import DISTRACTOR, JUNK, check_overlap, check_spelling, whole
from mgran_fast.data.sets.reading import PARTS, below, pictures_in
from mgran_fast.data.words import first, plural
from mgran_fast.errors import DataError

_NAME = re.compile(r"(-?\d+)_c(\d+)")


@dataclass(frozen=True)
class Rules:
    """How a set names its pictures.

    Attributes:
        example: a name, for errors.
        cameras: cameras are numbered from 1 to this.
        junk: whether pictures of person -1, no one in particular, are in it; they are left out.
        digits: how many a person is written with; None where that is not known.
    """

    example: str
    cameras: int
    junk: bool = False
    digits: int | None = 4


def locate(root: Path) -> Path:
    """The folder at or just below ``root`` with the parts of the layout."""
    return below(root, tuple(FOLDERS.values()), ", ".join(FOLDERS.values()))


def read_parts(folder: Path, rules: Rules, need: Collection[str] = PARTS) -> tuple[dict[str, tuple[Record, ...]], int]:
    """The records of train, query and gallery, sorted, and the number of junk pictures in the gallery.

    Raises:
        DataError: a needed part is missing or empty, a name does not parse, a picture or a person is there twice, or
            somebody is in train and in test.
    """
    parts: dict[str, tuple[Record, ...]] = {}
    junk = 0
    persons: dict[str, None] = {}
    for part, name in FOLDERS.items():
        parts[part] = ()
        if (folder / name).is_dir():
            parts[part], left = read_boxes(folder / name, rules, persons)
            junk += left if part == "gallery" else 0
        elif part in need:
            raise DataError(f"{folder}: no folder {name}; a data set holds {', '.join(FOLDERS.values())}")
        if part in need and not parts[part]:
            raise DataError(f"{folder / name}: no picture; expected files such as {rules.example}")
    check_spelling(folder, persons)
    check_overlap(folder, parts["train"], (*parts["query"], *parts["gallery"]), nobody=(JUNK, DISTRACTOR))
    return parts, junk


def read_boxes(folder: Path, rules: Rules, persons: dict[str, None] | None = None) -> tuple[tuple[Record, ...], int]:
    """The records of one folder, sorted, and the number of junk pictures. Adds to ``persons`` how people are written.

    Raises DataError for a name that does not parse, and for a picture with two extensions.
    """
    records = []
    junk = 0
    stems: dict[str, str] = {}
    wrong = []
    for name in pictures_in(folder):
        parsed = _parse(name, rules)
        if parsed is None:
            wrong.append(name)
            continue
        twin = stems.setdefault(Path(name).stem, name)
        if twin != name:
            raise DataError(f"{folder}: {twin} and {name} are one picture twice; remove one of them")
        person, camera = parsed
        if persons is not None:
            persons[name.partition("_")[0]] = None
        if person == JUNK:
            junk += 1
        else:
            records.append(Record(folder / name, person, camera))
    if wrong and persons is not None:
        # A person who is written in two ways is told as that, not as a name.
        check_spelling(folder, [*persons, *(name.partition("_")[0] for name in wrong)])
    if wrong:
        raise DataError(
            f"{folder / wrong[0]}: {len(wrong)} {plural(len(wrong), 'name')} in {folder.name} that "
            f"{'does' if len(wrong) == 1 else 'do'} not read as {rules.example} with a camera from 1 to "
            f"{rules.cameras} ({first(wrong)}); put the published files back, or read the data set market"
        )
    return tuple(records), junk


def _parse(name: str, rules: Rules) -> tuple[int, int] | None:
    match = _NAME.match(name)
    if match is None or not 1 <= int(match[2]) <= rules.cameras:
        return None
    person = whole(match[1])
    if person is None or (person < 0 and not (person == JUNK and rules.junk)):
        return None
    return (person, int(match[2])) if person < 0 or rules.digits in (None, len(match[1])) else None


def tree(parts: Mapping[str, str], indent: str = "  ") -> str:
    """The layout as a tree of text: folder -> an example of what is in it."""
    width = max(map(len, parts))
    return "\n".join(f"{indent}{name:<{width}}  {example}" for name, example in parts.items())
