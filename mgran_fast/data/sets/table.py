"""One's own pictures by a table, CSV or Parquet: path, person, camera and, maybe, split.

    path,person,camera,split
    street/0001.jpg,alice,door,train

A path is relative to the table's folder. People and cameras are whole numbers or any text. ``split`` is train, query
or gallery; without that column a split is drawn. Without the column ``camera`` no picture counts as seen by a query's
camera.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mgran_fast.data.records import DataSet, Record
from mgran_fast.data.sets.checks import JUNK, Counts, Tally, check_overlap, check_spelling, count, numbered, safe, whole
from mgran_fast.data.sets.divide import UNTOLD, UNTOLD_NOTE, divide, undivided, untold
from mgran_fast.data.sets.draw import put
from mgran_fast.data.sets.info import SetInfo
from mgran_fast.data.sets.people import LAST_SEED
from mgran_fast.data.sets.reading import PARTS, Reading, Request
from mgran_fast.data.tables import SUFFIXES, read_rows
from mgran_fast.data.words import plural
from mgran_fast.errors import DataError

#: The columns of a table; others are not looked at.
COLUMNS, SPLIT = ("path", "person", "camera"), "split"
#: Those that it must have.
NEEDED = COLUMNS[:2]


class _Row(NamedTuple):
    line: int
    path: str
    person: str
    camera: str
    split: str


def recognise(root: Path) -> bool:
    """Whether this is the file of a table."""
    return root.suffix.lower() in SUFFIXES and not root.is_dir()


def read(file: Path, request: Request) -> Reading:
    """Read a table."""
    told = f"a table has {', '.join(COLUMNS)} and maybe {SPLIT}"
    rows = [_row(file, line, texts) for line, texts in read_rows(file, (*COLUMNS, SPLIT), NEEDED, told)]
    if not rows:
        raise DataError(f"{file}: no rows; each names a picture, a person and a camera")
    _check_rows(file, rows)
    notes = []
    kept = [row for row in rows if whole(row.person) != JUNK]
    if len(kept) < len(rows):
        junk = len(rows) - len(kept)
        notes.append(f"{junk} junk {plural(junk, 'picture')} (person -1) left out")
    if not kept or not kept[0].camera:
        notes.append(UNTOLD_NOTE)
        kept = _with_cameras(kept)
    people, person_names = numbered(row.person for row in kept)
    cameras, camera_names = numbered(row.camera for row in kept)
    root = file.parent
    records = [(row, Record(root / row.path, people[row.person], cameras[row.camera])) for row in kept]
    if any(row.split for row in rows):
        if request.split is not None:
            raise DataError(f"{file}: has a column {SPLIT}; leave --split out")
        parts = {part: tuple(sorted(r for row, r in records if row.split == part)) for part in PARTS}
    elif request.split is None:
        raise undivided(file)
    else:
        parts = divide(file, [record for _, record in records], request.split, person_names)
    empty = [part for part in request.need if not parts[part]]
    if empty:
        raise DataError(f"{file}: no picture for {', '.join(empty)}; the column {SPLIT} tells train, query or gallery")
    check_overlap(file, parts["train"], (*parts["query"], *parts["gallery"]))
    dataset = DataSet(
        name=file.stem,
        root=root,
        train=parts["train"],
        query=parts["query"],
        gallery=parts["gallery"],
        notes=tuple(notes),
        person_names=person_names,
        camera_names=camera_names,
    )
    return Reading(dataset, count(dataset))


def _row(file: Path, line: int, texts: Mapping[str, str]) -> _Row:
    for name in COLUMNS:
        if texts.get(name) == "":
            raise DataError(f"{file}, line {line}: no {name}; every row must tell it")
    split = texts.get(SPLIT, "")
    if SPLIT in texts and split not in PARTS:
        raise DataError(f"{file}, line {line}: {SPLIT} {split!r}; it must be {', '.join(PARTS[:-1])} or {PARTS[-1]}")
    return _Row(line, safe(file, texts["path"], line), texts["person"], texts.get("camera", ""), split)


def _with_cameras(rows: Sequence[_Row]) -> list[_Row]:
    """Rows of a table without the column: cameras by which nothing is left out."""
    rows = sorted(rows, key=lambda row: row.path)
    cameras = [UNTOLD[row.split] if row.split else camera for row, camera in
               zip(rows, untold(row.person for row in rows), strict=True)]  # fmt: skip
    return [row._replace(camera=camera) for row, camera in zip(rows, cameras, strict=True)]


def _check_rows(file: Path, rows: Sequence[_Row]) -> None:
    people: dict[str, _Row] = {}
    for row in rows:
        before = people.setdefault(row.path, row)
        if before is not row:
            more = "" if before.person == row.person else f", as person {before.person} and person {row.person}"
            raise DataError(f"{file}, line {row.line}: {row.path} is named twice{more}; remove one of the rows")
        number = whole(row.person)
        if number is not None and number < JUNK:
            raise DataError(f"{file}, line {row.line}: person {row.person}; numbers must be 0 or more, or -1 for junk")
    check_spelling(file, [row.person for row in rows])
    missing = [row for row in rows if not (file.parent / row.path).is_file()]
    if missing:
        raise DataError(
            f"{file.parent / missing[0].path}: {file.name}, line {missing[0].line} names it, and it is not there, one "
            f"of {len(missing)} such; paths are relative to the table's folder"
        )


def draw(folder: Path, variant: str, size: tuple[int, int], seed: int) -> Counts:
    """A miniature: ``people.csv`` with text for people and cameras and, where pyarrow is, the same as Parquet."""
    rows = []
    for number, person in enumerate(("alice", "bob", "carol", "dave", "erin"), 1):
        for camera, door in ((1, "door"), (2, "gate")):
            for view in range(2):
                place = f"pictures/{number}{camera}{view}.jpg"
                put(folder / place, number, camera, view, size, seed)
                rows.append((place, person, door, "train" if number <= 3 else "query" if view == 0 else "gallery"))
    with open(folder / "people.csv", "w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows([(*COLUMNS, SPLIT), *rows])
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        pass
    else:
        columns = dict(zip((*COLUMNS, SPLIT), map(list, zip(*rows, strict=True)), strict=True))
        parquet.write_table(pyarrow.table(columns), folder / "people.parquet")
    return Counts({"train": Tally(12, 3, 2), "query": Tally(4, 2, 2), "gallery": Tally(4, 2, 2)}, "drawn")


TABLE = SetInfo(
    name="table",
    title="a table of your own",
    layout="""\
people.csv or people.parquet, the file to give
  path      of a picture, relative to the table's folder
  person    a whole number, or any text
  camera    a whole number, or any text; without this column no camera is told
  split     train, query or gallery; without this column --split SEED draws it
""",
    where="in the pictures' folder, or above it",
    read=read,
    draw=draw,
    splits=(0, LAST_SEED),
    drawn=True,
    packages=("pyarrow",),
)
