"""MSMT17, version 1 and version 2 (whose faces are masked), from its four lists."""

from __future__ import annotations

import dataclasses
import filecmp
import functools
import re
from collections.abc import Sequence
from pathlib import Path

from mgran_fast.data.records import DataSet, Record
from mgran_fast.data.sets.checks import Counts, Tally, count, safe, tally
from mgran_fast.data.sets.draw import put
from mgran_fast.data.sets.info import SetInfo
from mgran_fast.data.sets.reading import Reading, Request, below, scan, walk
from mgran_fast.data.words import first, plural
from mgran_fast.errors import DataError

#: The folders of training and test pictures in each version.
VERSIONS = {"v1": ("train", "test"), "v2": ("mask_train_v2", "mask_test_v2")}
#: The list of each part, and which of the two folders its pictures are in.
LISTS = {"train": ("list_train.txt", 0), "val": ("list_val.txt", 0)}
TEST_LISTS = {"query": ("list_query.txt", 1), "gallery": ("list_gallery.txt", 1)}

# 0000/0000_000_01_0303morning_0015_0.jpg: folder of the person, person, picture, camera, date and time, ...
_PLACE = re.compile(r"(\d+)/\d+_\d+_(\d+)_[^/]+\.jpg")
_CAMERAS = 15
_TEST = {"query": Tally(11_659, 3_060, 15), "gallery": Tally(82_161, 3_060, 15)}
_PUBLISHED = Counts({"train and val": Tally(32_621, 1_041, 15), **_TEST})


def recognise(root: Path) -> bool:
    """Whether a folder looks like this set."""
    return any((root / name).is_file() for name in ("list_train.txt", "list_query.txt")) and _version(root) is not None


def choose(root: Path) -> str:
    """The version that a folder holds; "v1" where it cannot be told."""
    return next((found for folder in [root, *_inner(root)] if (found := _version(folder)) is not None), "v1")


def _inner(root: Path) -> list[Path]:
    return [Path(entry.path) for entry in scan(root) if entry.is_dir()] if root.is_dir() else []


def _version(folder: Path) -> str | None:
    return next((name for name, (train, test) in VERSIONS.items() if (folder / test).is_dir()), None)


def read(root: Path, request: Request, *, with_val: bool = False) -> Reading:
    """Read MSMT17.

    Both sides number their people from 0. Test people get numbers from the first one that no training person has.

    Args:
        root: the folder with the lists, or one around it.
        request: what is wanted.
        with_val: train on the pictures of ``list_val.txt`` as well; they show training people.
    """
    marks = [name for name, _ in (LISTS | TEST_LISTS).values()]
    folder = below(root, marks, ", ".join(marks))
    sides = [_Side(folder / name) for name in VERSIONS[request.variant]]
    train, val, query, gallery = (
        _list(folder / name, sides[side], needed=part in request.need)
        for part, (name, side) in (LISTS | TEST_LISTS).items()
    )
    _check_once(train, val, f"both {LISTS['train'][0]} and {LISTS['val'][0]} name it")
    _check_once(query, gallery, f"both {TEST_LISTS['query'][0]} and {TEST_LISTS['gallery'][0]} name it")
    _check_sides(folder, sides, (*train, *val), (*query, *gallery))
    offset = max((record.person for record in (*train, *val)), default=-1) + 1
    query, gallery = (
        tuple(dataclasses.replace(record, person=record.person + offset) for record in records)
        for records in (query, gallery)
    )
    notes = [f"test people are numbered from {offset}"] if offset else []
    if val:
        notes.append(f"{LISTS['val'][0]}: {len(val)} pictures {'trained on as well' if with_val else 'left out'}")
    dataset = DataSet(
        name=f"MSMT17 {request.variant}{', train and val' if with_val else ''}",
        root=folder,
        train=tuple(sorted((*train, *val))) if with_val else train,
        query=query,
        gallery=gallery,
        notes=tuple(notes),
        variant=request.variant,
    )
    both = {"train and val": tally((*train, *val))} if train and val else {}
    return Reading(dataset, count(dataset, **both), _PUBLISHED)


class _Side:
    """The folder of training or of test pictures, and what is in it, listed once."""

    def __init__(self, top: Path) -> None:
        self.top = top

    @functools.cached_property
    def places(self) -> frozenset[str]:
        return frozenset(path.relative_to(self.top).as_posix() for path in walk(self.top))


def _list(file: Path, side: _Side, *, needed: bool) -> tuple[Record, ...]:
    """The records of one list, sorted."""
    if not needed and not (file.is_file() and side.top.is_dir()):
        return ()
    if not file.is_file():
        names = ", ".join(name for name, _ in (LISTS | TEST_LISTS).values())
        raise DataError(f"{file}: no such list; MSMT17 holds {names}")
    if not side.top.is_dir():
        raise DataError(f"{side.top}: no such folder; {file.name} names pictures in it")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); put the published list back") from error
    people: dict[str, int] = {}
    seen: set[str] = set()
    records, missing = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place, record = _entry(file, number, line.strip(), side.top)
        if place in seen:
            raise DataError(f"{file}, line {number}: {place} is named twice; remove one of the lines")
        seen.add(place)
        folder = place.partition("/")[0]
        if people.setdefault(folder, record.person) != record.person:
            raise DataError(
                f"{file}, line {number}: the pictures of folder {folder} are person {people[folder]} and person "
                f"{record.person}; put the published list back"
            )
        if place in side.places:
            records.append(record)
        else:
            missing.append(place)
    if missing:
        raise DataError(
            f"{side.top / missing[0]}: {file.name} names it, and it is not there, one of {len(missing)} such; unpack "
            "the published archive again"
        )
    if needed and not records:
        raise DataError(f"{file}: names no picture; put the published list back")
    return tuple(sorted(records))


def _entry(file: Path, number: int, line: str, top: Path) -> tuple[str, Record]:
    """The place that a line names, and its record."""
    place, _, label = line.rpartition(" ")
    place = safe(file, place or label, number)
    match = _PLACE.fullmatch(place)
    if match is None or not (label.isascii() and label.isdigit()) or not 1 <= int(match[2]) <= _CAMERAS:
        raise DataError(
            f"{file}, line {number}: {line!r} does not read as 0000/0000_000_01_0303morning_0015_0.jpg 0 with a "
            f"camera from 01 to {_CAMERAS}; put the published list back"
        )
    return place, Record(top / place, int(label), int(match[2]))


def _check_once(one: tuple[Record, ...], other: tuple[Record, ...], what: str) -> None:
    """Raise DataError when a picture is in two lists of one side."""
    both = sorted({record.path for record in one} & {record.path for record in other})
    if both:
        raise DataError(f"{both[0]}: {what}, one of {len(both)} such; put the published lists back")


def _check_sides(folder: Path, sides: list[_Side], train: Sequence[Record], test: Sequence[Record]) -> None:
    """Raise DataError when the same pictures are trained and tested on. The numbers of people cannot tell, for both
    sides have their own; a picture of the same name and content on both sides can."""
    ours, theirs = sides
    places = {record.path.relative_to(ours.top) for record in train}
    shared = [
        place
        for place in sorted(record.path.relative_to(theirs.top) for record in test)
        if place in places and filecmp.cmp(ours.top / place, theirs.top / place, shallow=False)
    ]
    if shared:
        raise DataError(
            f"{folder}: {len(shared)} {plural(len(shared), 'picture')} in train and in test "
            f"({first(map(str, shared))}): scores would be too good; unpack the published archive again"
        )


def draw(folder: Path, variant: str, size: tuple[int, int], seed: int) -> Counts:
    """A miniature: 3 training people with a picture each for validation, 3 test people."""
    top = dict(zip(("train", "test"), VERSIONS[variant], strict=True))
    lists: dict[str, list[str]] = {}
    for side, first_list, second_list in (("train", "train", "val"), ("test", "query", "gallery")):
        for person in range(3):
            for number, (camera, view) in enumerate(((1, 0), (1, 1), (4, 0), (4, 1))):
                place = f"{person:04d}/{person:04d}_{number:03d}_{camera:02d}_0303morning_{number:04d}_{view}.jpg"
                drawn = person + (10 if side == "test" else 0)
                put(folder / top[side] / place, drawn, camera, view, size, seed)
                # Of training people the last picture is for validation; of test people one a camera is a query.
                second = number == 3 if side == "train" else view == 1
                lists.setdefault(second_list if second else first_list, []).append(f"{place} {person}")
    for part, (name, _) in (LISTS | TEST_LISTS).items():
        (folder / name).write_text("\n".join(lists[part]) + "\n", encoding="utf-8")
    test = {"query": Tally(6, 3, 2), "gallery": Tally(6, 3, 2)}
    return Counts({"train and val": Tally(12, 3, 2), **test}, "drawn")


_LAYOUT = """\
MSMT17_V1/ or MSMT17_V2/
  train/ or mask_train_v2/   0000/0000_000_01_0303morning_0015_0.jpg   person 0, camera 1
  test/ or mask_test_v2/     0000/0000_000_05_0303morning_0020_0.jpg   people are numbered from 0 again
  list_train.txt             a picture's place and its person in each line
  list_val.txt               further pictures of the training people
  list_query.txt
  list_gallery.txt
"""
MSMT17 = SetInfo(
    name="msmt17",
    title="MSMT17",
    layout=_LAYOUT,
    where="its authors give it away for research, on a signed agreement; unpack it anywhere and give the folder",
    read=read,
    draw=draw,
    variants=tuple(VERSIONS),
    published=dict.fromkeys(VERSIONS, _PUBLISHED),
    choose=choose,
)
MSMT17_TRAINVAL = dataclasses.replace(
    MSMT17,
    name="msmt17-trainval",
    title="MSMT17, trained on list_val.txt too",
    read=functools.partial(read, with_val=True),
)
