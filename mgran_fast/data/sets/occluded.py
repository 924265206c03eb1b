"""Occluded-ReID: 200 people, each 5 times behind something and 5 times whole. It is for tests alone.

The pictures behind something are the queries, the whole ones are the gallery. They come from mobile cameras, and no
file tells which: as is usual for this set, all queries count as camera 1 and the gallery as camera 2, so that no
gallery picture is left out.
"""

from __future__ import annotations

import re
from pathlib import Path

from mgran_fast.data.market import EXTENSIONS
from mgran_fast.data.records import DataSet, Record
from mgran_fast.data.sets.checks import Counts, Tally, check_spelling, count, whole
from mgran_fast.data.sets.draw import put_boxes
from mgran_fast.data.sets.info import SetInfo
from mgran_fast.data.sets.reading import Reading, Request, below, check_folder, pictures_in, subfolders
from mgran_fast.data.words import first, plural
from mgran_fast.errors import DataError

#: The folder and the camera of each part.
PLACES = {"query": ("occluded_body_images", 1), "gallery": ("whole_body_images", 2)}

_NAME = re.compile(r"(\d+)_\d+\.\w+")
_EXTENSIONS = (*EXTENSIONS, ".tif", ".tiff")
_PUBLISHED = Counts({"query": Tally(1_000, 200), "gallery": Tally(1_000, 200)})


def recognise(root: Path) -> bool:
    """Whether a folder looks like this set."""
    return all((root / folder).is_dir() for folder, _ in PLACES.values())


def read(root: Path, request: Request) -> Reading:
    """Read Occluded-ReID."""
    names = [folder for folder, _ in PLACES.values()]
    folder = below(root, names, " and ".join(names))
    query, gallery = (_part(folder / name, camera) for name, camera in PLACES.values())
    dataset = DataSet("Occluded-ReID", folder, (), query, gallery, ("cameras are not told: no picture is left out",))
    return Reading(dataset, count(dataset), _PUBLISHED)


def _part(folder: Path, camera: int) -> tuple[Record, ...]:
    check_folder(folder, "a folder for each person")
    people = subfolders(folder)
    check_spelling(folder, [one.name for one in people])
    records, wrong = [], []
    for one in people:
        for name in pictures_in(one, _EXTENSIONS):
            match = _NAME.fullmatch(name)
            person = whole(one.name)
            if match is None or person is None:
                wrong.append(one / name)
            elif int(match[1]) != person:
                raise DataError(
                    f"{one / name}: the folder says person {one.name}, the name says {match[1]}; "
                    "a picture shows one person: put it where it belongs"
                )
            else:
                records.append(Record(one / name, person, camera))
    wrong += [folder / name for name in pictures_in(folder, _EXTENSIONS)]
    if wrong:
        raise DataError(
            f"{wrong[0]}: {len(wrong)} {plural(len(wrong), 'picture')} in {folder.name} not named as 001/001_01.tif is "
            f"({first(path.name for path in wrong)}); put the published files back"
        )
    if not records:
        raise DataError(f"{folder}: no picture; expected files such as 001/001_01.tif")
    return tuple(sorted(records))


def draw(folder: Path, variant: str, size: tuple[int, int], seed: int) -> Counts:
    """A miniature: 4 people, twice behind something and twice whole."""
    for name, camera in PLACES.values():
        for person in range(1, 5):
            names = [(f"{person:03d}_{view:02d}.tif", person, camera, view) for view in (1, 2)]
            put_boxes(folder / name / f"{person:03d}", names, size, seed)
    return Counts({"query": Tally(8, 4, 1), "gallery": Tally(8, 4, 1)}, "drawn")


OCCLUDED_REID = SetInfo(
    name="occluded-reid",
    title="Occluded-ReID",
    layout="""\
Occluded_REID/
  occluded_body_images/001/001_01.tif   the queries: a folder for each person
  whole_body_images/001/001_01.tif      the gallery
""",
    where="its authors give it away for research; unpack it anywhere and give the folder",
    read=read,
    draw=draw,
    published={"": _PUBLISHED},
    warning="for evaluation alone: it has no training part",
    without=("train",),
)
