"""Read a data set that is laid out like Market-1501.

A root folder holds ``bounding_box_train``, ``query`` and ``bounding_box_test`` (the gallery). A file name starts
with the person and the camera: ``0002_c1s1_000451_03.jpg`` is person 2, seen by camera 1. Person -1 is junk (a
detection that shows no one in particular) and is left out; person 0 is a distractor of the gallery and stays.
DukeMTMC-reID, CUHK03-NP in its folder form and many private sets use the same layout.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from mgran_fast.data.records import DataSet, Record
from mgran_fast.data.words import first, plural
from mgran_fast.errors import DataError

#: The folder of each part of a data set.
FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
#: The file name extensions of pictures, in lower case.
EXTENSIONS = (".jpg", ".jpeg", ".png")

#: How a name begins: person and camera.
NAME = re.compile(r"([-\d]+)_c(\d+)")
_JUNK = -1
_DISTRACTOR = 0
# Archives wrap the set in a folder of their own, sometimes twice.
_NESTING = 3


def read_market(
    root: str | os.PathLike[str],
    *,
    name: str | None = None,
    need: Collection[str] = ("train", "query", "gallery"),
) -> DataSet:
    """List the pictures of a Market-1501 style folder. No picture is opened.

    Args:
        root: the folder that holds ``bounding_box_train``, ``query`` and ``bounding_box_test``, or a folder
            around it.
        name: what reports call the set; by default the name of the folder that holds the parts.
        need: the parts that must be there and hold at least one picture: any of "train", "query", "gallery".
            The other parts are read when they are there, and are empty when they are not.

    Returns:
        The data set, its records sorted by path. ``root`` is the folder that really holds the parts. ``notes``
        tells what was left out and what looks odd, one line each.

    Raises:
        DataError: ``root`` or a needed folder is missing, or a needed folder holds no usable picture.
        ValueError: ``need`` names an unknown part.
    """
    unknown = sorted(set(need) - set(FOLDERS))
    if unknown:
        raise ValueError(f"need must name parts among {', '.join(FOLDERS)}, not {', '.join(map(repr, unknown))}")
    folder = _locate(Path(root), need)
    notes: list[str] = []
    parts: dict[str, tuple[Record, ...]] = {}
    for part, sub in FOLDERS.items():
        if (folder / sub).is_dir():
            parts[part] = _read_folder(folder / sub, notes)
            if part in need and not parts[part]:
                raise DataError(_empty(folder / sub))
        else:
            parts[part] = ()
    shared = {r.person for r in parts["train"]} & {r.person for r in parts["query"]}
    if shared:
        notes.append(f"{len(shared)} people are in {FOLDERS['train']} and in query: scores will be too good")
    return DataSet(
        name=name or folder.absolute().name,
        root=folder,
        train=parts["train"],
        query=parts["query"],
        gallery=parts["gallery"],
        notes=tuple(notes),
    )


def _locate(root: Path, need: Collection[str]) -> Path:
    """The folder at or below ``root`` that holds the parts."""
    if not root.exists():
        raise DataError(f"{root}: no such folder; give the folder that holds {first(FOLDERS.values(), 8)}")
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; give the folder that holds {first(FOLDERS.values(), 8)}")
    folder = root
    for _ in range(_NESTING):
        if _parts_in(folder):
            break
        inner = _folders_in(folder)
        sets = [child for child in inner if _parts_in(child)]
        if len(sets) > 1:
            raise DataError(
                f"{root}: holds more than one data set ({first((s.name for s in sets), 8)}); give one of them"
            )
        if sets:
            folder = sets[0]
        elif len(inner) == 1:
            folder = inner[0]
        else:
            break
    missing = [FOLDERS[part] for part in FOLDERS if part in need and not (folder / FOLDERS[part]).is_dir()]
    if not missing and _parts_in(folder):
        return folder
    if not _parts_in(folder):
        folder = root
        missing = missing or list(FOLDERS.values())
    if folder.name in FOLDERS.values() and _parts_in(folder.absolute().parent):
        raise DataError(f"{folder}: this is one part of a data set; give the folder above it")
    try:
        there = sorted(child.name for child in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    raise DataError(
        f"{folder}: no folder {first(missing, 8)}; a data set holds {first(FOLDERS.values(), 8)}, "
        f"here is {first(there, 8) if there else 'nothing'}"
    )


def _parts_in(folder: Path) -> bool:
    return any((folder / sub).is_dir() for sub in FOLDERS.values())


def _folders_in(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error


def _read_folder(folder: Path, notes: list[str]) -> tuple[Record, ...]:
    """The records of one folder, sorted by path. Adds to ``notes``."""
    records: list[Record] = []
    odd: list[str] = []
    others: list[str] = []
    junk = 0
    try:
        with os.scandir(folder) as entries:
            names = sorted((entry.name, entry.is_file()) for entry in entries)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    for name, is_file in names:
        # Hidden files and Thumbs.db (which Market-1501 itself ships) are the operating system's.
        if name.startswith(".") or name.lower() == "thumbs.db":
            continue
        if not is_file or not name.lower().endswith(EXTENSIONS):
            others.append(name)
            continue
        parsed = _parse(name)
        if parsed is None:
            odd.append(name)
        elif parsed[0] == _JUNK:
            junk += 1
        else:
            records.append(Record(folder / name, *parsed))
    if junk:
        notes.append(f"{folder.name}: {junk} junk {plural(junk, 'picture')} (person -1) left out")
    if odd:
        notes.append(
            f"{folder.name}: {len(odd)} {plural(len(odd), 'picture')} left out, the name does not start with "
            f"PERSON_cCAMERA: {first(odd)}"
        )
    if others:
        notes.append(f"{folder.name}: {len(others)} left out, no jpg, jpeg or png file: {first(others)}")
    stems = Counter(record.path.stem for record in records)
    twice = [stem for stem, count in stems.items() if count > 1]
    if twice:
        notes.append(
            f"{folder.name}: {len(twice)} {plural(len(twice), 'name')} with more than one extension, all kept, "
            f"their mask is shared: {first(twice)}"
        )
    return tuple(records)


def _parse(name: str) -> tuple[int, int] | None:
    """Person and camera of a file name, or None when it does not tell them."""
    match = NAME.match(name)
    if match is None:
        return None
    try:
        person = int(match[1])
    except ValueError:  # "--1", "1-2"
        return None
    return (person, int(match[2])) if person in (_JUNK, _DISTRACTOR) or person > 0 else None


def _empty(folder: Path) -> str:
    return (
        f"{folder}: no usable picture; expected {', '.join(EXTENSIONS)} files whose names start with "
        f"PERSON_cCAMERA, for example 0002_c1s1_000451_03.jpg"
    )
