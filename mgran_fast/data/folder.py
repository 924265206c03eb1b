"""A folder of crops, with masks and keypoints beside them, as labelled pictures.

Each picture shows one person and is that person's box. What is known of it lies in ``masks/`` and ``keypoints.json``
in the layout of :mod:`mgran_fast.data.masks`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mgran_fast.data.labels import LabelledPicture, LabelledSet
from mgran_fast.data.market import EXTENSIONS, FOLDERS
from mgran_fast.data.masks import MaskFiles
from mgran_fast.errors import DataError
from mgran_fast.layouts import KEYPOINTS

#: The parts of a Market-1501 style folder that are for training, and those that are held out.
PARTS = {"all": tuple(FOLDERS.values()), "train": (FOLDERS["train"],), "test": (FOLDERS["query"], FOLDERS["gallery"])}
# Folders beside the pictures that hold no crops.
_OTHERS = ("masks", "regions")
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that exchange height and width


def list_pictures(root: str | os.PathLike[str], part: str = "all") -> list[Path]:
    """The pictures below a folder, sorted; none is opened.

    Args:
        root: a Market-1501 style folder, or any other: then all pictures in it and in its sub-folders, except
            ``masks`` and ``regions`` at the top and hidden ones.
        part: of a Market-1501 style folder: "train", "test" (query and gallery) or "all". Any other folder has no
            parts and is always listed as a whole.

    Raises:
        DataError: there is no such folder, or no picture in it. ValueError: an unknown part.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, not {part!r}")
    root = Path(root)
    if not root.is_dir():
        what = "a file, not a folder; a COCO file ends in .json" if root.exists() else "no such folder"
        raise DataError(f"{root}: {what}; give a folder of crops, or a COCO file")
    parts = [root / name for name in PARTS["all"] if (root / name).is_dir()]
    tops = [folder for folder in parts if folder.name in PARTS[part]] if parts else [root]
    pictures = sorted(path for top in tops for path in _walk(top, _OTHERS if top == root else ()))
    if not pictures:
        wanted = " or ".join(PARTS[part]) if parts else ", ".join(EXTENSIONS) + " files"
        raise DataError(f"{root}: no pictures; expected {wanted} in it")
    return pictures


def _walk(top: Path, skipped: Sequence[str]) -> Iterator[Path]:
    def complain(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from error

    for folder, folders, names in os.walk(top, onerror=complain):
        if Path(folder) == top:
            folders[:] = [name for name in folders if name not in skipped]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield Path(folder, name)


def read_folder(
    root: str | os.PathLike[str],
    *,
    labels: Sequence[str | os.PathLike[str]] | None = None,
    part: str = "all",
    unlabelled: bool = False,
) -> LabelledSet:
    """List the labelled crops of a folder. Of each picture and mask no more than the header is read.

    Args:
        root: see :func:`list_pictures`.
        labels: folders with ``masks/`` and, maybe, ``keypoints.json``; the first one that knows a picture counts. By
            default ``root`` itself. A picture is looked up by its place below ``root``, or by its folder's and its own
            name.
        part: see :func:`list_pictures`.
        unlabelled: keep pictures of which nothing is known: people with neither mask nor keypoints.

    Returns:
        The set. A picture whose header cannot be read is in it with the shape (0, 0): reading it tells why.

    Raises:
        DataError: no pictures, no masks, a broken keypoint file, or nothing known of any picture.
    """
    root = Path(root)
    pictures = list_pictures(root, part)
    known = [MaskFiles(folder) for folder in ([root] if labels is None else labels)]
    found: list[LabelledPicture] = []
    without = 0
    for path in pictures:
        place = path.relative_to(root)
        one = next((one for files in known if (one := _labelled(path, files, files.root / place)) is not None), None)
        if one is None:
            without += 1
            if not unlabelled:
                continue
            one = _person(path, _shape(path))
        found.append(one)
    if not found:
        where = ", ".join(str(files.root) for files in known)
        raise DataError(f"{root}: {where} has neither a mask nor keypoints for any of its {len(pictures)} pictures")
    note = f"{without} of {len(pictures)} pictures have neither a mask nor keypoints"
    notes = (f"{root}: {note}{'' if unlabelled else ', left out'}",) if without else ()
    return LabelledSet(root.absolute().name, root, tuple(found), notes)


@dataclass(frozen=True)
class _MaskFile:
    """The mask of one crop."""

    files: MaskFiles
    place: Path
    shape: tuple[int, int]

    def mask(self, person: int) -> NDArray[np.uint8]:
        source = self.files.find(self.place, self.shape)
        if source is None or not source.has_mask:
            raise DataError(f"{self.files.mask_path(self.place)}: the mask has gone since it was listed")
        return source.mask


def _labelled(path: Path, files: MaskFiles, place: Path) -> LabelledPicture | None:
    """A picture with what ``files`` know of ``place``, or None when they know nothing."""
    has_mask, joints = files.mask_path(place).is_file(), files.joints(place)
    if joints is None and not has_mask:
        return None
    keypoints, presence = joints if joints is not None else (None, float("nan"))
    shape = _shape(path)
    return _person(path, shape, keypoints, presence, _MaskFile(files, place, shape) if has_mask else None)


def _person(
    path: Path,
    shape: tuple[int, int],
    keypoints: NDArray[np.float32] | None = None,
    presence: float = float("nan"),
    source: _MaskFile | None = None,
) -> LabelledPicture:
    return LabelledPicture(
        path=path,
        shape=shape,
        boxes=np.array([[0, 0, shape[1], shape[0]]], np.float32),
        keypoints=np.zeros((1, len(KEYPOINTS), 3), np.float32) if keypoints is None else keypoints[None],
        has_keypoints=np.array([keypoints is not None]),
        presence=np.array([presence], np.float32),
        has_mask=np.array([source is not None]),
        source=source,
    )


def _shape(path: Path) -> tuple[int, int]:
    """(height, width) as displayed, from the header; (0, 0) when there is none that can be read."""
    try:
        try:
            return _header(path)
        except Warning:
            # Of what spoils no pixel, such as broken EXIF data; the reader goes on as well.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _header(path)
    except Exception:  # nearly anything; the message is for whoever reads the picture
        return 0, 0


def _header(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        width, height = picture.size
        return (width, height) if _turned(picture) else (height, width)


def _turned(picture: Image.Image) -> bool:
    """Whether the EXIF data exchange height and width; broken ones say nothing, as for the reader."""
    try:
        return "exif" in picture.info and picture.getexif().get(_ORIENTATION, 1) in _TURNED
    except Warning:
        raise
    except Exception:  # nearly anything
        return False
