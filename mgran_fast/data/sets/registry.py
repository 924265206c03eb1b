"""All data sets that can be read, by name; what a folder is; and miniatures."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path

from mgran_fast.data.market import read_market
from mgran_fast.data.records import DataSet
from mgran_fast.data.sets import cuhk03, duke, market, msmt17, occluded, people, table
from mgran_fast.data.sets.checks import Counts, count
from mgran_fast.data.sets.draw import empty
from mgran_fast.data.sets.info import SetInfo
from mgran_fast.data.sets.reading import PARTS, Progress, Reading, Request, subfolders
from mgran_fast.errors import DataError

#: What is taken where no data set is named: see :func:`detect`.
AUTO = "auto"


def _read_plain(root: Path, request: Request) -> Reading:
    dataset = read_market(root, need=request.need)
    return Reading(dataset, count(dataset))


#: Any folder in the Market-1501 layout, as it is: what is odd is noted, not refused.
PLAIN = SetInfo(
    name="market",
    title="a folder in the Market-1501 layout",
    layout="""\
FOLDER/
  bounding_box_train/   0002_c1.jpg   person 2, camera 1; what follows in the name is free
  bounding_box_test/    0003_c2.jpg   the gallery; person 0 is a distractor, -1 is junk and left out
  query/                0003_c1.jpg
""",
    where="anywhere",
    read=_read_plain,
    draw=duke.draw,
)

#: Every set that can be read, by name.
SETS: Mapping[str, SetInfo] = {
    info.name: info
    for info in (
        market.MARKET1501,
        market.MARKET1501_500K,
        duke.DUKE,
        duke.OCCLUDED_DUKE,
        occluded.OCCLUDED_REID,
        cuhk03.CUHK03,
        cuhk03.CUHK03_CLASSIC,
        cuhk03.CUHK03_NP,
        msmt17.MSMT17,
        msmt17.MSMT17_TRAINVAL,
        PLAIN,
        people.PEOPLE,
        table.TABLE,
    )
}


def open_set(
    name: str,
    root: str | os.PathLike[str],
    *,
    variant: str | None = None,
    split: int | None = None,
    counts: str | Counts = "published",
    need: Collection[str] | None = None,
    progress: Progress | None = None,
) -> DataSet:
    """List the pictures of a data set. No picture is opened, except to take them out of CUHK03's ``cuhk-03.mat``.

    Args:
        name: one of :data:`SETS`, or "auto" for what :func:`detect` says.
        root: the data set's folder, or one around it; a file for the set "table".
        variant: one of the set's variants; None takes the first, or the one that is there.
        split: one of the set's numbered splits, None the first; for one's own pictures without a test part the seed of
            the split that is drawn.
        counts: "published" refuses a folder whose numbers are not the published ones; "any" takes it and leaves a
            note; a :class:`Counts` refuses by those numbers instead, for a set of any kind.
        need: the parts that must be there, among "train", "query", "gallery". None asks for all that a published set
            has, and for whatever there is of one's own.
        progress: called with (pictures done, pictures in all) while pictures are taken out of ``cuhk-03.mat``.

    Returns:
        The data set, its records sorted by path.

    Raises:
        DataError: ``root`` is missing or something else, numbers differ, a name does not parse, a person is there
            twice or in train and test, a file cannot be read; or an unknown name, variant, split or kind of counts.
        MGRANError: a package that the files want is not installed.
        ValueError: ``need`` names an unknown part.
    """
    return read_set(name, root, variant=variant, split=split, counts=counts, need=need, progress=progress).dataset


def read_set(
    name: str,
    root: str | os.PathLike[str],
    *,
    variant: str | None = None,
    split: int | None = None,
    counts: str | Counts = "published",
    need: Collection[str] | None = None,
    progress: Progress | None = None,
) -> Reading:
    """:func:`open_set`, and the numbers that were found."""
    root = Path(root)
    if isinstance(counts, str) and counts not in ("published", "any"):
        raise DataError(f'counts must be "published", "any" or a Counts object, not {counts!r}')
    unknown = sorted(set(need or ()) - set(PARTS))
    if unknown:
        raise ValueError(f"need must name parts among {', '.join(PARTS)}, not {', '.join(map(repr, unknown))}")
    info = find(detect(root) if name == AUTO else name)
    request = Request(
        variant=_variant(info, root, variant),
        split=_split(info, split),
        need=(_parts(info) if info.published else ()) if need is None else tuple(need),
        progress=progress,
    )
    missing = [part for part in request.need if part not in _parts(info)]
    if missing:
        raise DataError(f"{root}: {info.title} has no {' and no '.join(missing)} part; it is for evaluation alone")
    reading = info.read(root, request)
    expected = counts if isinstance(counts, Counts) else reading.published
    differences = [] if expected is None else expected.differences(reading.counts)
    if expected is None or not differences:
        return reading
    if counts != "any":
        raise DataError(
            f"{reading.dataset.root}: not the {expected.source} numbers of {reading.dataset.name}: "
            f"{'; '.join(differences)}; put the missing files back, or take the folder as it is with "
            'counts="any" (--counts any)'
        )
    notes = (*reading.dataset.notes, *(f"not the {expected.source} numbers: {one}" for one in differences))
    return dataclasses.replace(reading, dataset=dataclasses.replace(reading.dataset, notes=notes))


def find(name: str) -> SetInfo:
    """The set of that name. Raises DataError, which lists the names."""
    info = SETS.get(name.lower())
    if info is None:
        raise DataError(f"no data set is called {name!r}; there are {AUTO}, {', '.join(SETS)}: mgran-fast datasets")
    return info


def detect(root: str | os.PathLike[str]) -> str:
    """What a folder or file is, by what lies in it: the name of a set in :data:`SETS`.

    A folder in the Market-1501 layout is "market", which takes any numbers and names: published sets in that layout
    are read, with their checks, by their own names. So is whatever is nothing else.
    """
    root = Path(root)
    inner = subfolders(root) if root.is_dir() else []
    # Archives wrap a set in a folder of its own.
    for folder in (root, *inner[: len(inner) == 1]):
        for info, recognise in _RECOGNISED:
            # Of one's own folder the parts are where one says.
            if recognise(folder) and (folder is root or info.published):
                return info.name
    return PLAIN.name


_RECOGNISED = (
    (table.TABLE, table.recognise),
    (msmt17.MSMT17, msmt17.recognise),
    (cuhk03.CUHK03, cuhk03.recognise_raw),
    (cuhk03.CUHK03_NP, cuhk03.recognise_folders),
    (occluded.OCCLUDED_REID, occluded.recognise),
    (people.PEOPLE, people.recognise),
)


def miniature(
    name: str,
    folder: str | os.PathLike[str],
    *,
    variant: str | None = None,
    size: tuple[int, int] = (32, 16),
    seed: int = 0,
) -> Counts:
    """Write a miniature of a data set: a few dozen drawn people in exactly its layout.

    Args:
        name: one of :data:`SETS`.
        folder: an empty folder, or a new one.
        variant: the set's variant; None takes the first.
        size: (height, width) of the pictures in pixels.
        seed: of the world that people are drawn from.

    Returns:
        Its numbers: ``open_set(name, folder, counts=...)`` takes it by them.

    Raises:
        DataError: ``folder`` is not empty, or an unknown name or variant. MGRANError: a package is missing.
    """
    info = find(name)
    chosen = _variant(info, Path(folder), variant)
    return info.draw(empty(Path(folder)), chosen, size, seed)


def _variant(info: SetInfo, root: Path, variant: str | None) -> str:
    if variant is None:
        return info.choose(root) if info.choose is not None else info.variants[0]
    if variant.lower() not in info.variants or not variant:
        there = ", ".join(info.variants) if any(info.variants) else "none"
        raise DataError(f"{info.title} has no variant {variant!r}; there is {there}")
    return variant.lower()


def _split(info: SetInfo, split: int | None) -> int | None:
    if split is None:
        return None if info.splits is None or info.drawn else info.splits[0]
    if info.splits is None:
        raise DataError(f"{info.title} has one split; leave the split {split} out")
    low, high = info.splits
    if not low <= split <= high:
        raise DataError(f"{info.title} has the splits {low} to {high}, not {split}")
    return split


def _parts(info: SetInfo) -> tuple[str, ...]:
    return tuple(part for part in PARTS if part not in info.without)
