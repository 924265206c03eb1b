"""People in a COCO file: boxes, masks and keypoints of whole pictures.

The format is that of https://cocodataset.org/#format-data: ``images``, ``annotations`` and ``categories``, with
segmentations as polygons or run lengths (plain or compressed) and, in person_keypoints files, 17 keypoints.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgran_fast.data.labels import LabelledPicture, LabelledSet
from mgran_fast.errors import DataError, MGRANError
from mgran_fast.layouts import KEYPOINTS

#: Score of a keypoint by COCO's flag: 0 not labelled, 1 labelled but hidden, 2 visible. A hidden one is good enough
#: for body regions (0.3 and more), and does not count where visible ones are compared (0.5 and more).
SCORES = (0.0, 0.4, 1.0)
_PERSON = "person"
# Polygons, or the run lengths column by column, beginning with the background.
_Segmentation = list[NDArray[np.float64]] | NDArray[np.int64]


def read_coco(
    path: str | os.PathLike[str], pictures: str | os.PathLike[str] | None = None, *, background: bool = True
) -> LabelledSet:
    """List the people of a COCO file. No picture is opened.

    Keypoints are moved by half a pixel: COCO counts pixels, this library measures from the picture's corner. A person
    whose keypoints are all "not labelled" has none. Crowds (``iscrowd``) are left out, and so is a picture in which
    there is a crowd and nobody else: it is not a picture without people.

    Args:
        path: the .json file: instances, person_keypoints, or any other file of that format.
        pictures: the folder that ``file_name`` starts from. By default the first of these that holds the first
            picture: the file's own folder; one named like the last word of the file (train2017 for
            instances_train2017.json) beside the file; the same beside the file's folder.
        background: keep pictures without any annotated person, as pictures in which nobody is.

    Returns:
        The set, its pictures sorted by path.

    Raises:
        DataError: the file is not readable or not of that format, or the pictures are not found.
        MGRANError: a mask is asked for and pycocotools is not installed.
    """
    path = Path(path)
    content = _load(path)
    person = _person_category(path, content)
    images: dict[Any, dict[str, Any]] = {}
    for number, image in enumerate(_rows(path, content, "images")):
        where = f"{path}: images[{number}]"
        images[_image_id(where, image)] = _image(where, image)
    if not images:
        raise DataError(f"{path}: no images in it")
    folder = _folder(path, None if pictures is None else Path(pictures), next(iter(images.values()))["file_name"])
    people: dict[Any, list[_Person]] = {key: [] for key in images}
    crowded: set[Any] = set()
    counts: Counter[str] = Counter()
    for number, row in enumerate(_rows(path, content, "annotations")):
        if row.get("category_id") != person:
            continue
        where = f"{path}: annotations[{number}]"
        key = row.get("image_id")
        if not isinstance(key, (int, str)) or key not in images:
            raise DataError(f"{where}: image_id {key!r} is not among the images")
        one = None if row.get("iscrowd") else _person(where, row, images[key])
        if one is None:
            counts["crowds" if row.get("iscrowd") else "people with an empty box"] += 1
            crowded.add(key)
        else:
            people[key].append(one)
    found = []
    for key, image in images.items():
        if people[key] or (background and key not in crowded):
            found.append(_picture(folder, image, people[key]))
    if not any(people.values()):
        raise DataError(f"{path}: nobody is annotated in it; is this a file of people?")
    notes = [f"{path.name}: {count} {what} left out" for what, count in counts.items()]
    return LabelledSet(path.stem, path, tuple(sorted(found, key=lambda one: one.path)), tuple(notes))


@dataclass(frozen=True)
class _Person:
    box: tuple[float, float, float, float]
    keypoints: NDArray[np.float32] | None
    segmentation: _Segmentation | None


@dataclass(frozen=True)
class _Segmentations:
    """The masks of one picture, drawn when they are asked for."""

    height: int
    width: int
    people: tuple[_Segmentation | None, ...]

    def mask(self, person: int) -> NDArray[np.uint8]:
        segmentation = self.people[person]
        if segmentation is None:
            return np.zeros((self.height, self.width), np.uint8)
        runs = segmentation if isinstance(segmentation, np.ndarray) else self._drawn(segmentation)
        values = (np.arange(len(runs)) % 2 * 255).astype(np.uint8)
        columns: NDArray[np.uint8] = np.repeat(values, runs).reshape(self.width, self.height)
        return np.ascontiguousarray(columns.T)

    def _drawn(self, polygons: list[NDArray[np.float64]]) -> NDArray[np.int64]:
        """Polygons as run lengths, by COCO's own rule of which pixels are inside."""
        try:
            from pycocotools import mask as coco
        except ImportError as error:
            raise MGRANError(
                f"polygons of COCO files want a package that is not installed ({error.name}):"
                " pip install 'mgran_fast[train]'"
            ) from error
        drawn = coco.merge(coco.frPyObjects([polygon.tolist() for polygon in polygons], self.height, self.width))
        return np.array(_decompressed("pycocotools", drawn["counts"].decode()), np.int64)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a COCO file or a folder of crops") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except (ValueError, RecursionError) as error:  # broken JSON, or not UTF-8
        raise DataError(f"{path}: not valid JSON ({error}); get the file again") from error
    if not isinstance(content, Mapping) or "images" not in content or "annotations" not in content:
        raise DataError(f'{path}: not a COCO file; it must be an object with "images" and "annotations"')
    return content


def _rows(path: Path, content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    rows = content.get(name)
    if not isinstance(rows, list):
        raise DataError(f'{path}: "{name}" must be a list of objects')
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path}: {name}[{number}] must be an object")
    return rows


def _person_category(path: Path, content: Mapping[str, Any]) -> Any:
    """The id of the category "person"; 1, as in COCO itself, where the file names no categories."""
    categories = _rows(path, content, "categories") if content.get("categories") else []
    named = [row.get("id") for row in categories if row.get("name") == _PERSON]
    if categories and not named:
        names = ", ".join(str(row.get("name")) for row in categories[:8])
        raise DataError(f'{path}: no category is named "person"; the file has {names}')
    return named[0] if named else 1


def _image_id(where: str, image: Mapping[str, Any]) -> int | str:
    key = image.get("id")
    if not isinstance(key, (int, str)):
        raise DataError(f"{where}: its id must be a number, not {key!r}")
    return key


def _image(where: str, image: dict[str, Any]) -> dict[str, Any]:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: has no file_name")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(f"{where}: file_name {name!r} leads out of the folder of pictures")
    for side in ("width", "height"):
        value = image.get(side)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"{where}: {side} must be a whole number of pixels, not {value!r}")
    return image


def _folder(path: Path, pictures: Path | None, first: str) -> Path:
    word = path.stem.rpartition("_")[2]
    places = [path.parent, path.parent / word, path.parent.parent / word] if pictures is None else [pictures]
    for place in places:
        if (place / first).is_file():
            return place
    tried = ", ".join(map(str, places))
    raise DataError(f"{path}: its first picture {first} is not in {tried}; name the folder with --pictures")


def _person(where: str, row: Mapping[str, Any], image: Mapping[str, Any]) -> _Person | None:
    """One annotated person, or None when the box is empty inside the picture."""
    x, y, w, h = _numbers(where, "bbox", row.get("bbox"), 4).tolist()
    x1, y1 = max(0.0, x), max(0.0, y)
    x2, y2 = min(float(image["width"]), x + w), min(float(image["height"]), y + h)
    # Less than a pixel: nobody can be seen there.
    if not (x2 - x1 >= 1 and y2 - y1 >= 1):
        return None
    segmentation = row.get("segmentation")
    drawn = None if not segmentation else _segmentation(where, segmentation, image)
    keypoints = row.get("keypoints")
    joints = None if keypoints is None else _joints(where, keypoints)
    return _Person((x1, y1, x2, y2), joints, drawn)


def _numbers(where: str, name: str, value: Any, count: int | None) -> NDArray[np.float64]:
    try:
        numbers = np.array(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        numbers = np.full(1, math.nan)
    if not isinstance(value, list) or numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise DataError(f"{where}: {name} must be a list of finite numbers")
    if count is not None and len(numbers) != count:
        raise DataError(f"{where}: {name} must be {count} numbers, not {len(numbers)}")
    return numbers


def _joints(where: str, value: Any) -> NDArray[np.float32] | None:
    """float32 [17, 3] with scores for COCO's flags; None when no keypoint is labelled."""
    rows = _numbers(where, "keypoints", value, 3 * len(KEYPOINTS)).reshape(-1, 3)
    if not np.isin(rows[:, 2], (0, 1, 2)).all():
        raise DataError(f"{where}: the third number of each keypoint must be 0, 1 or 2")
    labelled = rows[:, 2] > 0
    if not labelled.any():
        return None
    joints = np.zeros((len(KEYPOINTS), 3), np.float32)
    joints[labelled, :2] = rows[labelled, :2] + 0.5
    joints[:, 2] = np.array(SCORES, np.float32)[rows[:, 2].astype(np.int64)]
    return joints


def _segmentation(where: str, value: Any, image: Mapping[str, Any]) -> _Segmentation:
    height, width = image["height"], image["width"]
    if isinstance(value, list):
        polygons = [_numbers(where, "a polygon of the segmentation", polygon, None) for polygon in value]
        if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
            raise DataError(f"{where}: a polygon of the segmentation must be three or more pairs of numbers")
        # The time and memory that drawing takes grow with the length of the outline.
        longest = 2 * max(height, width)
        if any(np.abs(polygon).max() > longest for polygon in polygons):
            raise DataError(f"{where}: a polygon of the segmentation lies far outside of the picture")
        return polygons
    if not isinstance(value, dict) or not isinstance(value.get("counts"), (list, str)):
        raise DataError(f'{where}: segmentation must be polygons, or an object with "size" and "counts"')
    if value.get("size") != [height, width]:
        raise DataError(
            f"{where}: the segmentation is for {value.get('size')}, the picture is {[height, width]} (height, width)"
        )
    counts = value["counts"]
    if isinstance(counts, str):
        counts = _decompressed(where, counts)
    runs = _numbers(where, "counts of the segmentation", counts, None)
    if (runs < 0).any() or (runs % 1).any() or runs.sum() != height * width:
        raise DataError(f"{where}: the counts of the segmentation do not add up to the picture's pixels")
    return runs.astype(np.int64)


def _decompressed(where: str, text: str) -> list[int]:
    """The run lengths that COCO writes as text.

    Each is a signed number of groups of 5 bits, the lowest first, a group a character from code 48 on; bit 5 tells
    that another group follows, bit 4 of the last one is the sign. From the fourth on, a number is the difference from
    the run before the last. pycocotools reads past the end of a text that is too short.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64 or shift > 60:
            raise DataError(f"{where}: the counts of the segmentation are not COCO's run lengths")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise DataError(f"{where}: the counts of the segmentation break off")
    return runs


def _picture(folder: Path, image: Mapping[str, Any], people: list[_Person]) -> LabelledPicture:
    none = np.zeros((len(KEYPOINTS), 3), np.float32)
    has_mask = np.array([one.segmentation is not None for one in people], np.bool_)
    drawn = tuple(one.segmentation for one in people)
    return LabelledPicture(
        path=folder / image["file_name"],
        shape=(image["height"], image["width"]),
        boxes=np.array([one.box for one in people], np.float32).reshape(-1, 4),
        keypoints=np.array([none if one.keypoints is None else one.keypoints for one in people], np.float32).reshape(
            -1, len(KEYPOINTS), 3
        ),
        has_keypoints=np.array([one.keypoints is not None for one in people], np.bool_),
        presence=np.ones(len(people), np.float32),
        has_mask=has_mask,
        source=_Segmentations(image["height"], image["width"], drawn) if has_mask.any() else None,
    )
