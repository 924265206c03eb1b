"""Small pictures of drawn people, for miniatures of data sets."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mgran_fast.data.synthetic import render
from mgran_fast.errors import DataError

_KINDS = {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF"}


@functools.lru_cache(maxsize=1024)
def crop(person: int, camera: int, view: int, size: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: a drawn person, the same for the same numbers."""
    pixels = render(person, camera, view, size=size, seed=seed).crop
    pixels.flags.writeable = False  # the next caller gets it too
    return pixels


def put(path: Path, person: int, camera: int, view: int, size: tuple[int, int], seed: int) -> None:
    """Draw a person into a file, whose extension tells the format; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(crop(person, camera, view, size, seed)).save(buffer, _KINDS[path.suffix.lower()])
    path.write_bytes(buffer.getvalue())


def put_boxes(folder: Path, names: Iterable[tuple[str, int, int, int]], size: tuple[int, int], seed: int) -> None:
    """Draw into a folder: (file name, person, camera, view) each."""
    for name, person, camera, view in names:
        put(folder / name, person, camera, view, size, seed)


def empty(folder: Path) -> Path:
    """The folder, made when missing. Raises DataError when there is anything in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: not an empty folder; name an empty or a new one for the miniature")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
