"""The MATLAB files of CUHK03: ``cuhk-03.mat`` (version 7.3, that is HDF5) and the files of the new protocol.

``cuhk-03.mat`` holds, for "detected" and for "labeled", five pairs of cameras; of each a table of people x 10 pictures
(the first five by one camera, the others by the other), some of them empty; and 20 test sets of 100 people, each a
pair and a person in it. MATLAB stores arrays in the order of columns, so every one comes out transposed.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mgran_fast.data.sets.checks import safe
from mgran_fast.data.sets.reading import Progress, pictures_in
from mgran_fast.data.words import first
from mgran_fast.errors import DataError, MGRANError

#: 1_001_1_01.png: pair of cameras, person in it, view (the camera), picture.
NAME = re.compile(r"(\d)_(\d{3})_([12])_(\d{2})\.png")
#: Written beside the pictures when all of them are out.
DONE = "extracted.json"

_VIEW = 5  # pictures of the first camera
_PNG_END = b"IEND\xaeB`\x82"
_REMEDY = "copy the published file again"


class Cell(NamedTuple):
    """One picture in the file: its name outside, and where it is."""

    name: str
    reference: Any


class Person(NamedTuple):
    """A pair of cameras, and the number of a person in it, both from 1."""

    pair: int
    number: int


def person_of(name: str) -> tuple[Person, int] | None:
    """Person and view of a picture's name, or None when it is none."""
    match = NAME.fullmatch(name)
    return None if match is None else (Person(int(match[1]), int(match[2])), int(match[3]))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """A damaged file as one line."""
    try:
        yield
    except (DataError, MGRANError):
        raise
    except Exception as error:  # h5py and scipy raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as a MATLAB file ({reason}); {_REMEDY}") from error


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """``cuhk-03.mat``, opened with h5py. Raises DataError, or MGRANError without h5py."""
    h5py = imported("h5py")
    if not path.is_file():
        raise DataError(f"{path}: no such file; put the published cuhk-03.mat there")
    with _told(path):
        file = h5py.File(path, "r")
    try:
        lacking = [key for key in ("detected", "labeled", "testsets") if key not in file]
        if lacking:
            raise DataError(f"{path}: holds no {', no '.join(lacking)}: not CUHK03's file; {_REMEDY}")
        yield file
    finally:
        file.close()


def imported(module: str) -> Any:
    """h5py, or scipy's part for MATLAB files. Raises MGRANError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MGRANError(
            f"CUHK03's .mat files take {package}, which is not installed: pip install 'mgran_fast[datasets]'"
        ) from error


def test_sets(path: Path) -> list[list[Person]]:
    """The 20 test sets of the classic protocol."""
    with opened(path) as file, _told(path):
        tables = [file[reference][:] for reference in file["testsets"][0]]
        return [[Person(int(pair), int(number)) for pair, number in table.T] for table in tables]


def _cells(file: Any, variant: str) -> list[Cell]:
    """All pictures of a variant that are not empty."""
    return [
        Cell(f"{pair}_{person:03d}_{1 if number <= _VIEW else 2}_{number:02d}.png", reference)
        for pair, people in enumerate(file[variant][0], 1)
        for person, references in enumerate(file[people][:].T, 1)
        for number, reference in enumerate(references, 1)
        # MATLAB stores the size of an empty array in its place.
        if file[reference].ndim == 3
    ]


def extract(path: Path, variant: str, folder: Path, progress: Progress | None = None) -> int:
    """Write the pictures of a variant into a folder, as PNG, and tell how many there are.

    Each file appears whole or not at all, and those that are there already are kept: a call that was interrupted is
    finished by the next one.

    Raises:
        DataError: the file cannot be read, or the folder cannot be written.
    """
    with opened(path) as file:
        with _told(path):
            cells = _cells(file, variant)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for done, cell in enumerate(cells, 1):
            target = folder / cell.name
            if not _whole(target):
                with _told(path):
                    pixels = _pixels(file, cell)
                with _writing(folder):
                    _write(target, pixels)
            if progress is not None:
                progress(done, len(cells))
    with _writing(folder):
        _put(folder / DONE, json.dumps({"pictures": len(cells)}).encode())
    return len(cells)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A folder that cannot be written as one line."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder}: the pictures cannot be written ({error.strerror or error}); make room there, or write them "
            "elsewhere with: mgran-fast datasets extract"
        ) from error


def _pixels(file: Any, cell: Cell) -> NDArray[np.uint8]:
    pixels = np.ascontiguousarray(file[cell.reference][:].T)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"{cell.name}: {pixels.dtype} {pixels.shape}, not a colour picture")
    return pixels


def extracted(folder: Path) -> bool:
    """Whether all pictures are in a folder."""
    try:
        told = json.loads((folder / DONE).read_text(encoding="utf-8"))["pictures"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(told == len(pictures_in(folder)))


def _whole(path: Path) -> bool:
    """Whether a PNG file is there to its end."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


def _write(path: Path, pixels: NDArray[np.uint8]) -> None:
    draft = _draft(path)
    Image.fromarray(pixels).save(draft, "PNG")
    os.replace(draft, path)


def _put(path: Path, content: bytes) -> None:
    draft = _draft(path)
    draft.write_bytes(content)
    os.replace(draft, path)


def _draft(path: Path) -> Path:
    # Several processes, maybe on several machines, may be at it at once.
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def put_test_sets(path: Path, sets: list[list[Person]]) -> None:
    """Keep the test sets in a file of their own, so that ``cuhk-03.mat`` is no longer needed."""
    _put(path, json.dumps([[list(person) for person in people] for people in sets]).encode())


def read_test_sets(path: Path) -> list[list[Person]]:
    """What :func:`put_test_sets` wrote. Raises DataError."""
    try:
        return [
            [Person(int(pair), int(number)) for pair, number in people]
            for people in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: no test sets ({error}); delete it, they are in cuhk-03.mat") from error


class Config(NamedTuple):
    """The new protocol: pictures and people by place, and the places of each part, from 0."""

    names: list[str]
    people: list[int]
    train: list[int]
    query: list[int]
    gallery: list[int]


def read_config(path: Path) -> Config:
    """Read ``cuhk03_new_protocol_config_<variant>.mat``, and check that it contradicts itself nowhere.

    Raises:
        DataError: it is missing or unreadable, lacks a field, an index is out of range or used twice, a picture has an
            odd name or is named twice, or a person's number is used twice. MGRANError without scipy.
    """
    scipy_io = imported("scipy.io")
    if not path.is_file():
        raise DataError(f"{path}: no such file; the new protocol's files come apart from CUHK03: put this one there")
    fields = ("train_idx", "query_idx", "gallery_idx", "labels", "filelist")
    with _told(path):
        found = scipy_io.loadmat(str(path))
        lacking = [key for key in fields if key not in found]
        if lacking:
            raise DataError(f"{path}: holds no {', no '.join(lacking)}: not a file of the new protocol; {_REMEDY}")
        names = [safe(path, str(np.asarray(one).ravel()[0])) for one in np.asarray(found["filelist"]).ravel()]
        people, *parts = (_whole_numbers(path, key, found[key]) for key in ("labels", *fields[:3]))
        config = Config(names, people, *([place - 1 for place in part] for part in parts))
    _check_config(path, config)
    return config


def _whole_numbers(path: Path, key: str, values: Any) -> list[int]:
    numbers = np.asarray(values).ravel()
    if not np.issubdtype(numbers.dtype, np.number) or not np.array_equal(numbers, numbers.astype(np.int64)):
        raise DataError(f"{path}: {key} must be whole numbers; {_REMEDY}")
    return [int(number) for number in numbers]


def _check_config(path: Path, config: Config) -> None:
    if len(config.names) != len(config.people):
        raise DataError(f"{path}: {len(config.names)} pictures and {len(config.people)} labels; {_REMEDY}")
    odd = [name for name in config.names if person_of(name) is None]
    if odd:
        raise DataError(f"{path}: names that do not read as 1_001_1_01.png: {first(odd)}; {_REMEDY}")
    twice = len(config.names) - len(set(config.names))
    if twice:
        raise DataError(f"{path}: {twice} pictures are named twice; {_REMEDY}")
    used: set[int] = set()
    for part in ("train", "query", "gallery"):
        for place in getattr(config, part):
            if not 0 <= place < len(config.names):
                raise DataError(f"{path}: {part} has the picture {place + 1} of {len(config.names)}; {_REMEDY}")
            if place in used:
                raise DataError(f"{path}: the picture {place + 1} ({config.names[place]}) is used twice; {_REMEDY}")
            used.add(place)
    labels: dict[Person, int] = {}
    owners: dict[int, Person] = {}
    for name, label in zip(config.names, config.people, strict=True):
        found = person_of(name)
        assert found is not None
        person = found[0]
        if labels.setdefault(person, label) != label or owners.setdefault(label, person) != person:
            raise DataError(
                f"{path}: person {label} and {person.pair}_{person.number:03d} ({name}) are not one and the same all "
                f"through: a person is there twice; {_REMEDY}"
            )
