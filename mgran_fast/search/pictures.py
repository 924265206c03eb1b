"""Pictures to search in, or to search with, and what is known of them without looking at who they show."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from PIL import Image

from mgran_fast.data import MaskFiles, Masks, Record
from mgran_fast.data.market import EXTENSIONS, NAME
from mgran_fast.data.masks import MASKS
from mgran_fast.data.tables import SUFFIXES, read_rows
from mgran_fast.errors import DataError
from mgran_fast.metrics.embedding import Embedded, Network, Progress, embed
from mgran_fast.search.columns import moment
from mgran_fast.search.gallery import Gallery

#: The columns of a table of pictures; the first must be there.
COLUMNS = ("path", "person", "camera", "time")
# EXIF: the block, the moment of the picture, and its distance from Greenwich.
_EXIF, _TAKEN, _OFFSET = 0x8769, 0x9003, 0x9011


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        path: where it is.
        name: its path below the folder that was searched, with slashes.
        person, camera, time: as told by a table or, of a folder, by a name such as ``0002_c1_a.jpg`` and by the camera
            itself (EXIF); None where nothing tells.
    """

    path: Path
    name: str
    person: str | None
    camera: str | None
    time: str | None


def find_pictures(where: Path, *, timed: bool = True) -> tuple[Path, list[Picture]]:
    """The pictures of a folder and all below it, of a table, or one picture: the folder, and they, sorted by path.

    Args:
        timed: False opens no file of a folder: what only the camera tells is left out, see :func:`taken`.

    Raises:
        DataError: there is nothing, or no picture, or a row of the table is wrong.
        MGRANError: a Parquet table, and pyarrow is not installed.
    """
    if where.is_dir():
        # The masks beside pictures are none of people.
        masked = MaskFiles.available(where)
        found = []
        for folder, below, names in os.walk(where):
            if masked and Path(folder) == where:
                below.remove(MASKS)
            found += [Path(folder, name) for name in names if name.lower().endswith(EXTENSIONS) and name[0] != "."]
        found.sort()
        if not found:
            raise DataError(f"{where}: no picture, {', '.join(EXTENSIONS)}, in this folder or below it")
        return where, [_named(where, path, timed) for path in found]
    if where.suffix.lower() in SUFFIXES:
        return where.parent, _listed(where)
    if not where.is_file():
        raise DataError(f"{where}: no such file; give a picture, a folder of pictures, or a table of them")
    return where.parent, [_named(where.parent, where, timed)]


def embed_pictures(
    network: Network,
    pictures: Sequence[Picture],
    masks: Masks | None,
    *,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> Embedded:
    """Embed pictures; ``indices`` of what comes back are places among them. See :func:`embed` for the arguments."""
    records = [Record(picture.path, -1, 0) for picture in pictures]
    return embed(network, records, masks, batch_size=batch_size, workers=workers, progress=progress)


def gallery_of(pictures: Sequence[Picture], embedded: Embedded, *, model: str = "", root: str | Path = "") -> Gallery:
    """A gallery of what :func:`embed_pictures` made of pictures; entries have the pictures' names.

    ``model`` and ``root`` are those of :class:`Gallery`; the root is kept as a whole path.
    """
    gallery = Gallery(model=model, root=Path(root).absolute() if root else "")
    chosen = [pictures[i] for i in embedded.indices.tolist()]
    gallery.take(
        embedded.vectors,
        [picture.name for picture in chosen],
        [picture.person for picture in chosen],
        [picture.camera for picture in chosen],
        [picture.time for picture in chosen],
        embedded.visible,
    )
    return gallery


def _named(root: Path, path: Path, timed: bool) -> Picture:
    told = NAME.match(path.name)
    person, camera = told.groups() if told else (None, None)
    return Picture(
        path,
        path.relative_to(root).as_posix(),
        None if person == "-1" else person,
        camera,
        taken(path) if timed else None,
    )


def _listed(file: Path) -> list[Picture]:
    pictures: dict[str, Picture] = {}
    for line, row in read_rows(file, COLUMNS, COLUMNS[:1], f"a table of pictures has {', '.join(COLUMNS)}"):
        name = Path(row["path"]).as_posix()
        path = file.parent / name
        if not path.is_file():
            raise DataError(f"{file}, line {line}: {name}: no such file; paths are relative to the table's folder")
        if name in pictures:
            raise DataError(f"{file}, line {line}: {name} is named twice; remove one of the rows")
        person, camera, time = (row.get(name) or None for name in COLUMNS[1:])
        try:
            moment(time)
        except ValueError as error:
            raise DataError(f"{file}, line {line}: {error}") from None
        pictures[name] = Picture(path, name, person, camera, time)
    if not pictures:
        raise DataError(f"{file}: no rows; each names a picture")
    return list(pictures.values())


def taken(path: Path) -> str | None:
    """When the camera says that it took a picture, ISO 8601; None where it does not say, or nobody can read it."""
    try:
        with Image.open(path) as picture:
            told = picture.getexif().get_ifd(_EXIF)
        taken = datetime.strptime(str(told[_TAKEN]).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat()
        found = taken + str(told.get(_OFFSET, "")).strip("\0 ")
        moment(found)
        return found
    except Exception:  # whatever is wrong with a picture is told when it is read
        return None
