"""A folder of one's own: pictures named like those of Market-1501, or a folder for each person.

    train/0002_c1_a.jpg     person 2, camera 1: PERSON_cCAMERA, and anything after it
    train/alice/x_c2.jpg    person alice, camera 2: c2, cam2 or camera2 anywhere in the name
    train/bob/door/x.jpg    person bob, camera door

``train``, ``query`` and ``gallery`` (or the names of the Market-1501 layout) hold such pictures. Without them all
pictures are one lot, of which a split is drawn. People and cameras may be numbers or any text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mgran_fast.data.market import FOLDERS
from mgran_fast.data.records import DataSet, Record
from mgran_fast.data.sets.checks import JUNK, Counts, Tally, check_overlap, check_spelling, count, numbered, whole
from mgran_fast.data.sets.divide import UNTOLD, UNTOLD_NOTE, Parts, divide, undivided, untold
from mgran_fast.data.sets.draw import put
from mgran_fast.data.sets.info import SetInfo
from mgran_fast.data.sets.reading import PARTS, Reading, Request, check_folder, walk
from mgran_fast.data.words import first, plural
from mgran_fast.errors import DataError

#: The folders of each part; one of them is to be there.
PLACES = {part: tuple(dict.fromkeys((part, FOLDERS[part]))) for part in PARTS}
#: The largest seed of a drawn split.
LAST_SEED = 2**31 - 1

_NAME = re.compile(r"(-?[^_]+)_c(\d+)")
_CAMERA = re.compile(r"(?:^|[_\-. ])c(?:am(?:era)?)?[_\- ]?(\d+)", re.IGNORECASE)


class _Found(NamedTuple):
    path: Path
    person: str
    camera: str | None


def recognise(root: Path) -> bool:
    """Whether a folder has parts of these names, and none of the Market-1501 layout's own."""
    own = [FOLDERS["train"], FOLDERS["gallery"]]
    return all((root / part).is_dir() for part in ("query", "gallery")) and not any((root / o).is_dir() for o in own)


def read(root: Path, request: Request) -> Reading:
    """Read a folder of one's own. Pictures whose name does not tell the person are left out, with a note."""
    check_folder(root, f"{', '.join(PARTS)}, or a folder for each person")
    places = {part: _place(root, part) for part in PARTS}
    notes: list[str] = []
    if any(places.values()):
        missing = [part for part in PARTS if places[part] is None and part in request.need]
        if missing:
            raise DataError(f"{root}: no folder {', '.join(missing)}; a data set holds {', '.join(PARTS)}")
        if request.split is not None:
            raise DataError(f"{root}: is split already; leave --split out")
        found = {part: _list(top, notes) if top is not None else [] for part, top in places.items()}
    else:
        if request.split is None:
            raise undivided(root)
        found = {"all": _list(root, notes)}
    for part, pictures in found.items():
        if not pictures and (part == "all" or part in request.need):
            raise DataError(
                f"{root if part == 'all' else places[part]}: no usable picture; expected PERSON_cCAMERA names such as "
                "0002_c1_a.jpg, or a folder for each person"
            )
    people = [one.person for pictures in found.values() for one in pictures]
    check_spelling(root, people)
    parts, person_names, camera_names = _records(root, _with_cameras(found, notes), request.split)
    check_overlap(root, parts["train"], (*parts["query"], *parts["gallery"]))
    dataset = DataSet(
        name=root.absolute().name,
        root=root,
        train=parts["train"],
        query=parts["query"],
        gallery=parts["gallery"],
        notes=tuple(notes),
        person_names=person_names,
        camera_names=camera_names,
    )
    return Reading(dataset, count(dataset))


def _place(root: Path, part: str) -> Path | None:
    there = [root / name for name in PLACES[part] if (root / name).is_dir()]
    if len(there) > 1:
        raise DataError(f"{root}: {' and '.join(top.name for top in there)} are the same part; keep one of them")
    return there[0] if there else None


def _list(top: Path, notes: list[str]) -> list[_Found]:
    found, odd = [], []
    junk = 0
    for path in walk(top):
        one = _parse(path, path.relative_to(top).parts)
        number = None if one is None else whole(one.person)
        if number == JUNK:
            junk += 1
        elif one is None or (number is not None and number < 0):
            odd.append(path.relative_to(top).as_posix())
        else:
            found.append(one)
    if junk:
        notes.append(f"{top.name}: {junk} junk {plural(junk, 'picture')} (person -1) left out")
    if odd:
        notes.append(
            f"{top.name}: {len(odd)} {plural(len(odd), 'picture')} left out, neither PERSON_cCAMERA nor in a folder of "
            f"a person: {first(odd)}"
        )
    return found


def _parse(path: Path, parts: Sequence[str]) -> _Found | None:
    """Person and camera by name and place below the part, or None when they do not tell the person."""
    if len(parts) == 1:
        match = _NAME.match(parts[0])
        return None if match is None else _Found(path, match[1], match[2])
    if len(parts) == 2:
        camera = _CAMERA.search(path.stem)
        return _Found(path, parts[0], None if camera is None else camera[1])
    return _Found(path, parts[0], parts[1]) if len(parts) == 3 else None


def _with_cameras(found: dict[str, list[_Found]], notes: list[str]) -> dict[str, list[_Found]]:
    """All pictures with a camera. Where some tell theirs, those that do not are left out."""
    everything = [one for pictures in found.values() for one in pictures]
    without = [one.path.name for one in everything if one.camera is None]
    if not without:
        return found
    if len(without) < len(everything):
        notes.append(
            f"{len(without)} {plural(len(without), 'picture')} left out, neither the name nor a folder tells the "
            f"camera: {first(without)}"
        )
        return {part: [one for one in pictures if one.camera is not None] for part, pictures in found.items()}
    notes.append(UNTOLD_NOTE)
    if "all" not in found:
        return {part: [one._replace(camera=UNTOLD[part]) for one in pictures] for part, pictures in found.items()}
    everything.sort()
    cameras = untold(one.person for one in everything)
    return {"all": [one._replace(camera=camera) for one, camera in zip(everything, cameras, strict=True)]}


def _records(
    root: Path, found: dict[str, list[_Found]], seed: int | None
) -> tuple[Parts, dict[int, str], dict[int, str]]:
    people, person_names = numbered(one.person for pictures in found.values() for one in pictures)
    cameras, camera_names = numbered(str(one.camera) for pictures in found.values() for one in pictures)
    parts = {
        part: tuple(sorted(Record(one.path, people[one.person], cameras[str(one.camera)]) for one in pictures))
        for part, pictures in found.items()
    }
    if seed is not None:
        parts = divide(root, parts["all"], seed, person_names)
    return parts, person_names, camera_names


def draw(folder: Path, variant: str, size: tuple[int, int], seed: int) -> Counts:
    """A miniature with all three ways to tell people and cameras: 3 training people, 2 others."""
    for view, camera in ((0, 1), (1, 1), (0, 2), (1, 2)):
        part = folder / ("query" if view == 0 else "gallery")
        put(folder / "train" / f"alice_c{camera}_{view}.jpg", 1, camera, view, size, seed)
        put(folder / "train" / "bob" / f"{view}_cam{camera}.jpg", 2, camera, view, size, seed)
        put(folder / "train" / "carol" / str(camera) / f"{view}.jpg", 3, camera, view, size, seed)
        put(part / "dave" / f"{view}_cam{camera}.jpg", 4, camera, view, size, seed)
        put(part / "erin" / str(camera) / f"{view}.jpg", 5, camera, view, size, seed)
    return Counts({"train": Tally(12, 3, 2), "query": Tally(4, 2, 2), "gallery": Tally(4, 2, 2)}, "drawn")


PEOPLE = SetInfo(
    name="people",
    title="a folder of your own",
    layout="""\
FOLDER/
  train/    0002_c1_a.jpg, or alice/x_c2.jpg, or alice/door/x.jpg: person, camera, or folders of them
  query/    the same
  gallery/  the same; without these three folders --split SEED draws who is trained and who is tested on
""",
    where="anywhere",
    read=read,
    draw=draw,
    splits=(0, LAST_SEED),
    drawn=True,
)
