"""Masks and keypoints that were computed before, read from files.

<root>/masks/<folder>/<stem>.png   grey 8-bit: value / 255 is the probability that a pixel shows the person;
                                   any size with the aspect ratio of the crop
<root>/keypoints.json              "<folder>/<name>" -> {"presence": p, "keypoints": 17 x [x, y, score]},
                                   COCO order, x and y in pixels of the crop as it is displayed, that is with the
                                   EXIF rotation applied
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgran_fast.aspect import same_aspect
from mgran_fast.data.pictures import read_mask
from mgran_fast.data.records import Record
from mgran_fast.errors import DataError
from mgran_fast.layouts import KEYPOINTS

#: The folder of masks, beside those of the pictures.
MASKS = "masks"
_KEYPOINTS = "keypoints.json"
# A probability that was rounded on its way through a file may leave [0, 1] by this much.
_SLACK = 1e-3


@dataclass(frozen=True)
class RegionSource:
    """What the region map of one crop is made from.

    Attributes:
        mask: uint8 [h, w], value / 255 is the probability that a pixel shows the person; any size of the crop's
            aspect ratio. All 0 when there is no mask file.
        keypoints: float32 [17, 3], x and y in pixels of the crop as it is displayed (EXIF rotation applied), score in
            [0, 1]; all 0 when none are known.
        presence: the probability in [0, 1] that the crop shows a person; where the file does not tell, the highest
            probability of the mask, without one the highest score of the keypoints.
        has_mask: whether there is a mask file.
    """

    mask: NDArray[np.uint8]
    keypoints: NDArray[np.float32]
    presence: float
    has_mask: bool = True


class MaskFiles:
    """The masks and keypoints below one folder.

    The keypoint file is read and checked once, at construction; masks are read when they are asked for. An object
    can be pickled and shared by the workers of a DataLoader.

    Args:
        root: the folder that holds ``masks`` and, maybe, ``keypoints.json``; usually the data set's own.

    Raises:
        DataError: there is no folder ``masks``, or the keypoint file is broken.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if not self.available(self.root):
            raise DataError(
                f"{self.root / MASKS}: no such folder; write one grey PNG a picture there, "
                "name another folder, or use layout 'none'"
            )
        self._rows, self._keypoints, self._presence, self._told = _read_keypoints(self.root / _KEYPOINTS)

    def __repr__(self) -> str:
        return f"MaskFiles({str(self.root)!r})"

    @staticmethod
    def available(root: str | os.PathLike[str]) -> bool:
        """Whether the folder ``root`` holds a folder of masks."""
        return (Path(root) / MASKS).is_dir()

    def mask_path(self, path: str | os.PathLike[str]) -> Path:
        """Where the mask of the crop ``path`` is, or would be."""
        return self._file(self._relative(Path(path)))

    def check(self, records: Sequence[Record], part: str) -> None:
        """Raise DataError when there are records, but not one mask file for them; the first one found ends the search.

        Args:
            records: the crops.
            part: what the error calls them, such as "training".
        """
        if records and not any(self.mask_path(record.path).is_file() for record in records):
            raise DataError(
                f"{self.mask_path(records[0].path)}: no such mask, nor one for any other of the {len(records)} {part} "
                "pictures; put the masks there, name another folder, or use layout 'none'"
            )

    def find(self, path: str | os.PathLike[str], shape: tuple[int, int]) -> RegionSource | None:
        """Look up one crop.

        Args:
            path: the crop; its place below ``root`` counts. Elsewhere, and where nothing is known of that place, its
                folder's name and its own do.
            shape: (height, width) of the crop as it is displayed, in pixels.

        Returns:
            What is known of it, or None when there is neither a mask nor keypoints.

        Raises:
            DataError: the mask cannot be read, or its aspect ratio is not the crop's.
        """
        path = Path(path)
        relative = self._relative(path)
        row = self._rows.get(relative.as_posix())
        file = self._file(relative)
        has_mask = file.is_file()
        if row is None and not has_mask:
            return None
        if has_mask:
            mask = read_mask(file)
            _check_aspect(file, (mask.shape[0], mask.shape[1]), path, shape)
        else:
            mask = np.zeros(shape, np.uint8)
        presence = math.nan if row is None else float(self._presence[row])
        keypoints = np.zeros((len(KEYPOINTS), 3), np.float32) if row is None else self._keypoints[row].copy()
        if math.isnan(presence):
            presence = float(mask.max()) / 255 if has_mask else float(keypoints[:, 2].max())
        return RegionSource(
            mask=mask,
            keypoints=keypoints,
            presence=presence,
            has_mask=has_mask,
        )

    def joints(self, path: str | os.PathLike[str]) -> tuple[NDArray[np.float32] | None, float] | None:
        """What ``keypoints.json`` tells of one crop, or None; no mask is read.

        Returns:
            Keypoints float32 [17, 3], None where the file gives a presence alone; and the presence, NaN where it is
            not told.
        """
        row = self._rows.get(self._relative(Path(path)).as_posix())
        if row is None:
            return None
        return self._keypoints[row].copy() if self._told[row] else None, float(self._presence[row])

    def _relative(self, path: Path) -> Path:
        near = Path(path.parent.name, path.name)
        try:
            below = path.relative_to(self.root)
        except ValueError:
            return near
        # The pictures may lie deeper than the masks: root/Market-1501/query/x.jpg and root/masks/query/x.png.
        return near if below != near and not self._known(below) and self._known(near) else below

    def _known(self, relative: Path) -> bool:
        return relative.as_posix() in self._rows or self._file(relative).is_file()

    def _file(self, relative: Path) -> Path:
        return self.root / MASKS / relative.with_suffix(".png")


def _check_aspect(file: Path, mask: tuple[int, int], path: Path, crop: tuple[int, int]) -> None:
    if same_aspect(mask, crop):
        return
    (h, w), (height, width) = mask, crop
    raise DataError(
        f"{file}: the mask is {h}x{w} (height x width), the crop {path} is {height}x{width}: the aspect ratios "
        "differ by more than 5 %; make the mask from this crop again, without cropping or padding it"
    )


def _read_keypoints(
    file: Path,
) -> tuple[dict[str, int], NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Row of each picture, keypoints float32 [M, 17, 3], presence float32 [M] (NaN where it is not told), and whether
    keypoints are told, bool [M]."""
    count = len(KEYPOINTS)
    if not file.exists():
        return {}, np.zeros((0, count, 3), np.float32), np.zeros(0, np.float32), np.zeros(0, np.bool_)
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the file's permissions") from error
    except ValueError as error:  # broken JSON, or not UTF-8
        raise DataError(f"{file}: not valid JSON ({error}); write the file again") from error
    if not isinstance(table, Mapping):
        raise DataError(f'{file}: must be an object "folder/name" -> keypoints, not {_kind(table)}; write it again')
    keys = list(table)
    # Arrays, not a dictionary of lists: forked workers share them without copying page after page.
    keypoints = np.zeros((len(keys), count, 3), np.float32)
    presence = np.full(len(keys), np.nan, np.float32)
    told = np.zeros(len(keys), np.bool_)
    for row, key in enumerate(keys):
        entry = table[key]
        if not isinstance(entry, Mapping):
            raise DataError(f'{file}: {key}: must be an object with "presence" and "keypoints", not {_kind(entry)}')
        if entry.get("keypoints") is not None:
            keypoints[row], told[row] = _joints(file, key, entry["keypoints"]), True
        if entry.get("presence") is not None:
            presence[row] = _probability(file, key, entry["presence"])
    _check_values(file, keys, keypoints)
    keypoints[..., 2].clip(0, 1, out=keypoints[..., 2])
    return {key: row for row, key in enumerate(keys)}, keypoints, presence, told


def _joints(file: Path, key: str, value: Any) -> NDArray[np.float32]:
    count = len(KEYPOINTS)
    if not isinstance(value, list):
        raise DataError(f"{file}: {key}: keypoints must be a list of {count} x [x, y, score], not {_kind(value)}")
    if len(value) != count:
        raise DataError(f"{file}: {key}: {len(value)} keypoints, expected the {count} of COCO in their order")
    try:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is told below
            joints = np.array(value, np.float32)
    except (ValueError, TypeError, OverflowError):
        joints = np.empty(0, np.float32)
    if joints.shape != (count, 3):
        raise DataError(f"{file}: {key}: each keypoint must be three numbers [x, y, score]")
    return joints


def _check_values(file: Path, keys: list[str], keypoints: NDArray[np.float32]) -> None:
    """Check all keypoints at once, float32 [M, 17, 3]: a pass for each picture would take longer than reading."""
    finite = np.isfinite(keypoints).all(axis=(1, 2))
    if not finite.all():
        raise DataError(f"{file}: {keys[int(finite.argmin())]}: each keypoint must be three finite numbers")
    scores = keypoints[..., 2]
    fine = ((scores >= -_SLACK) & (scores <= 1 + _SLACK)).all(axis=1)
    if not fine.all():
        row = int(fine.argmin())
        raise DataError(
            f"{file}: {keys[row]}: scores must be between 0 and 1, found {scores[row].min():g} to "
            f"{scores[row].max():g}; turn logits or COCO visibilities into probabilities first"
        )


def _probability(file: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_SLACK <= value <= 1 + _SLACK:
        raise DataError(f"{file}: {key}: presence must be a number between 0 and 1, not {value!r}")
    return min(max(float(value), 0.0), 1.0)


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number")
