"""What a reader of a data set is asked, what it answers, and how folders are listed on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from mgran_fast.data.market import EXTENSIONS
from mgran_fast.data.records import DataSet
from mgran_fast.data.sets.checks import Counts
from mgran_fast.errors import DataError

Progress = Callable[[int, int], None]
#: The parts of a data set.
PARTS = ("train", "query", "gallery")
#: Folders beside the pictures that hold none: masks, and region maps computed before.
BESIDE = ("masks", "regions")


@dataclass(frozen=True)
class Request:
    """What is wanted of a reader.

    Attributes:
        variant: one of the set's variants; empty where it has none.
        split: which of the set's splits, or the seed of a drawn one.
        need: parts that must be there; others are read when they are there.
        progress: called with (pictures done, pictures in all) by readers that have long work to do.
    """

    variant: str = ""
    split: int | None = None
    need: Collection[str] = PARTS
    progress: Progress | None = None


@dataclass(frozen=True)
class Reading:
    """What a reader found.

    Attributes:
        dataset: the records.
        counts: of its parts and of what was left out, to compare with the published ones.
        published: those; None for sets that nobody published.
    """

    dataset: DataSet
    counts: Counts
    published: Counts | None = None


def below(root: Path, marks: Collection[str], what: str) -> Path:
    """The folder at ``root``, or wrapped in one or two others below it, that holds one of ``marks``.

    Raises DataError, which says ``what`` should be there.
    """
    check_folder(root, what)
    folder = root
    for _ in range(3):
        if any((folder / mark).exists() for mark in marks):
            return folder
        inner = subfolders(folder)
        found = [child for child in inner if any((child / mark).exists() for mark in marks)]
        if len(found) > 1:
            names = ", ".join(child.name for child in found)
            raise DataError(f"{root}: holds more than one data set ({names}); give one of them")
        if found:
            return found[0]
        if len(inner) != 1:
            break
        folder = inner[0]
    raise DataError(f"{root}: no {what} here; give the folder that holds it")


def check_folder(root: Path, what: str) -> None:
    """Raise DataError unless ``root`` is a folder."""
    if not root.exists():
        raise DataError(f"{root}: no such folder; give the folder that holds {what}")
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; give the folder that holds {what}")


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones and those for masks and region maps."""
    return sorted(
        Path(entry.path)
        for entry in scan(folder)
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in BESIDE
    )


def scan(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder, sorted by name. Raises DataError when it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check the path and its permissions") from error


def pictures_in(folder: Path, extensions: Collection[str] = EXTENSIONS) -> list[str]:
    """The names of the pictures in a folder, sorted; hidden files and those of other kinds are not looked at."""
    return [
        entry.name
        for entry in scan(folder)
        if not entry.name.startswith(".") and entry.name.lower().endswith(tuple(extensions)) and entry.is_file()
    ]


def walk(top: Path, extensions: Collection[str] = EXTENSIONS) -> Iterator[Path]:
    """The pictures in a folder and below it, sorted by path in each folder."""
    yield from (top / name for name in pictures_in(top, extensions))
    for folder in subfolders(top):
        yield from walk(folder, extensions)
