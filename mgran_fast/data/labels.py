"""Pictures of people with masks and keypoints, for training and measuring estimators (MRA).

Whatever the labels come from, a folder of crops (:func:`mgran_fast.data.folder.read_folder`) or a COCO file
(:func:`mgran_fast.data.coco.read_coco`), they become :class:`LabelledPicture` objects. A detector learns from whole
pictures (:class:`PictureDataset`); a network that takes crops learns from one crop a person (:func:`crops`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mgran_fast.data.boxes import cut, grown, jittered, somewhere
from mgran_fast.data.cache import PRESENT
from mgran_fast.data.dataset import BadPicture
from mgran_fast.data.pictures import read_picture
from mgran_fast.errors import DataError
from mgran_fast.layouts import KEYPOINTS


class MaskSource(Protocol):
    """Where the masks of one picture come from; can be pickled."""

    def mask(self, person: int) -> NDArray[np.uint8]:
        """The mask of one person, uint8 [h, w], that spans the picture at any resolution. Raises DataError."""
        ...


@dataclass(frozen=True, eq=False)
class LabelledPicture:
    """One picture and the K people that are labelled in it; K is 0 where nobody is.

    Attributes:
        path: the file.
        shape: (height, width) in pixels as it is displayed; (0, 0) for a file that could not be opened.
        boxes: float32 [K, 4], x1, y1, x2, y2 in pixels. The box of a crop is the whole picture.
        keypoints: float32 [K, 17, 3], COCO order: x, y in pixels (the centre of the pixel in column j is at j + 0.5),
            and a score in [0, 1]; 0 without keypoints.
        has_keypoints: bool [K].
        presence: float32 [K], the probability in [0, 1] that a person is there; NaN where the labels do not tell,
            see :func:`crops`.
        has_mask: bool [K].
        source: where the masks come from; None when nobody has one.
    """

    path: Path
    shape: tuple[int, int]
    boxes: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    has_keypoints: NDArray[np.bool_]
    presence: NDArray[np.float32]
    has_mask: NDArray[np.bool_]
    source: MaskSource | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def read(self) -> NDArray[np.uint8]:
        """The picture, uint8 [H, W, 3], RGB. Raises DataError when it cannot be read or has another shape."""
        picture = read_picture(self.path)
        if picture.shape[:2] != self.shape:
            (h, w), (height, width) = picture.shape[:2], self.shape
            raise DataError(
                f"{self.path}: the picture is {h}x{w} (height x width), its labels are for {height}x{width};"
                " the labels belong to another picture"
            )
        return picture

    def masks(self) -> NDArray[np.uint8]:
        """Masks of all people, uint8 [K, H, W]: value / 255 is the probability that a pixel shows the person.

        All 0 for people without a mask. Raises DataError when one cannot be read.
        """
        height, width = self.shape
        masks = np.zeros((len(self), height, width), np.uint8)
        for person in np.flatnonzero(self.has_mask).tolist():
            masks[person] = self.mask(person, (0, 0, width, height), (height, width))
        return masks

    def mask(self, person: int, box: Sequence[float], size: tuple[int, int]) -> NDArray[np.uint8]:
        """The part of a person's mask inside ``box``, pixels of the picture, resized to ``size``: uint8 [h, w]."""
        if self.source is None or not self.has_mask[person]:
            return np.zeros(size, np.uint8)
        mask = self.source.mask(person)
        scale = (mask.shape[1] / self.shape[1], mask.shape[0] / self.shape[0])
        return cut(mask, [value * scale[i % 2] for i, value in enumerate(box)], size)


@dataclass(frozen=True)
class LabelledSet:
    """Labelled pictures of one source.

    Attributes:
        name: what tables call it.
        root: the folder or file that was read.
        pictures: sorted by path.
        notes: what the reader noticed (things left out), one line each.
    """

    name: str
    root: Path
    pictures: Sequence[LabelledPicture]
    notes: Sequence[str] = field(default=())

    def people(self) -> int:
        """How many people are labelled."""
        return sum(len(picture) for picture in self.pictures)


def digest(pictures: Iterable[LabelledPicture]) -> str:
    """SHA-256, in hex, of the pictures' names, their order, and their boxes and keypoints; masks are not read."""
    text = hashlib.sha256()
    for picture in pictures:
        text.update(json.dumps([picture.path.parent.name, picture.path.name, *picture.shape]).encode())
        for part in (picture.boxes, picture.keypoints, picture.presence, picture.has_keypoints, picture.has_mask):
            text.update(np.ascontiguousarray(part).tobytes())
    return text.hexdigest()


# --- one crop a person -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelledCrop:
    """One person; the fields are those of :class:`LabelledBatch` without the first dimension."""

    crop: torch.Tensor
    mask: torch.Tensor
    keypoints: torch.Tensor
    has_mask: bool
    has_keypoints: bool
    presence: float
    index: int


_M = TypeVar("_M", bound="Movable")


@dataclass(frozen=True)
class Movable:
    """A dataclass of tensors, in lists and mappings as well, that moves as a whole.

    DataLoader and Lightning call these methods by themselves.
    """

    def to(self: _M, device: torch.device | str, non_blocking: bool = False) -> _M:
        """The same on another device."""
        return replace(self, **_each(vars(self), lambda tensor: tensor.to(device, non_blocking=non_blocking)))

    def pin_memory(self: _M, device: str | None = None) -> _M:
        """The same in page-locked memory. ``device`` is there for older loaders, and ignored."""
        return replace(self, **_each(vars(self), lambda tensor: tensor.pin_memory()))


def _each(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(one, change) for key, one in value.items()}
    return [_each(one, change) for one in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class LabelledBatch(Movable):
    """N labelled crops on one device; N is 0 when none could be read.

    Attributes:
        crops: uint8 [N, H, W, 3], RGB.
        masks: uint8 [N, H, W], value / 255 is the probability that a pixel shows the person; 0 without a mask.
        keypoints: float32 [N, 17, 3], COCO order: x, y in pixels of the crop (the centre of the pixel in column j is
            at j + 0.5; places outside of the crop are possible), and a score in [0, 1]; 0 without keypoints.
        has_mask, has_keypoints: bool [N], whether they are known. What is not known is not learnt from.
        presence: float32 [N], the probability in [0, 1] that the crop shows a person at all.
        indices: int64 [N], the place of each crop in its data set.
        bad: the crops that are missing from the batch.
    """

    crops: torch.Tensor
    masks: torch.Tensor
    keypoints: torch.Tensor
    has_mask: torch.Tensor
    has_keypoints: torch.Tensor
    presence: torch.Tensor
    indices: torch.Tensor
    bad: tuple[BadPicture, ...] = ()

    def __len__(self) -> int:
        return len(self.crops)


class PersonCrops(Dataset["LabelledCrop | BadPicture"]):
    """One crop for each labelled person; made by :func:`crops`.

    An item is asked for by its place, or by (place, seed): the seed is that of the jitter. Without one nothing is
    random but for crops of pictures in which nobody is, whose boxes depend on their place.
    """

    def __init__(
        self,
        pictures: Sequence[LabelledPicture],
        size: tuple[int, int],
        margin: float,
        jitter: float,
        smallest: float,
        background: bool,
    ) -> None:
        height, width = size
        if height < 1 or width < 1:
            raise ValueError(f"size must be (height, width) in pixels, 1 or more, not {size!r}")
        for name, value, limit in (("margin", margin, 10.0), ("jitter", jitter, 0.5)):
            if not 0 <= value < limit:
                raise ValueError(f"{name} must be at least 0 and below {limit:g}, not {value!r}")
        self.pictures, self.size, self.margin, self.jitter = pictures, (height, width), margin, jitter
        places: list[tuple[int, int]] = []
        for i, picture in enumerate(pictures):
            if not len(picture) and background:
                places.append((i, -1))
            tall = picture.boxes[:, 3] - picture.boxes[:, 1] >= smallest
            # A file that could not be opened has no height: it stays, to be reported.
            places += [(i, person) for person in range(len(picture)) if tall[person] or picture.shape == (0, 0)]
        self._places = np.array(places, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, item: int | tuple[int, int]) -> LabelledCrop | BadPicture:
        """The crop at this place, or a :class:`BadPicture` when its picture or mask is unusable."""
        index, seed = item if isinstance(item, tuple) else (item, None)
        place, person = self._places[index].tolist()
        picture = self.pictures[place]
        try:
            return self._crop(picture, person, index, seed)
        except DataError as error:
            return BadPicture(index, str(error), self.size)

    def _crop(self, picture: LabelledPicture, person: int, index: int, seed: int | None) -> LabelledCrop:
        pixels = picture.read()
        if person < 0:
            box = somewhere(picture.shape, np.random.default_rng(index if seed is None else seed))
            none = np.zeros((len(KEYPOINTS), 3), np.float32)
            return self._sample(pixels, box, np.zeros(self.size, np.uint8), none, (True, False), 0.0, index)
        box = grown(picture.boxes[person], self.margin, picture.shape)
        if seed is not None and self.jitter:
            box = jittered(box, self.jitter, picture.shape, np.random.default_rng(seed))
        mask = picture.mask(person, box, self.size)
        keypoints = picture.keypoints[person]
        known = bool(picture.has_mask[person]), bool(picture.has_keypoints[person])
        presence = _presence(picture, person, mask)
        return self._sample(pixels, box, mask, keypoints, known, presence, index)

    def _sample(
        self,
        pixels: NDArray[np.uint8],
        box: Sequence[float],
        mask: NDArray[np.uint8],
        keypoints: NDArray[np.float32],
        known: tuple[bool, bool],
        presence: float,
        index: int,
    ) -> LabelledCrop:
        (height, width), (x1, y1, x2, y2) = self.size, box
        moved = keypoints.copy()
        if known[1]:
            moved[:, 0] = (keypoints[:, 0] - x1) * (width / (x2 - x1))
            moved[:, 1] = (keypoints[:, 1] - y1) * (height / (y2 - y1))
        return LabelledCrop(
            crop=torch.from_numpy(cut(pixels, box, self.size)),
            mask=torch.from_numpy(mask),
            keypoints=torch.from_numpy(moved),
            has_mask=known[0],
            has_keypoints=known[1],
            presence=presence,
            index=index,
        )


def _presence(picture: LabelledPicture, person: int, mask: NDArray[np.uint8]) -> float:
    """The probability that a person is there: as labelled, else by ``mask``, without one by the keypoints."""
    presence = float(picture.presence[person])
    if not np.isnan(presence):
        return presence
    return float(mask.max()) / 255 if picture.has_mask[person] else float(picture.keypoints[person, :, 2].max())


def crops(
    pictures: Sequence[LabelledPicture],
    size: tuple[int, int] = (256, 128),
    margin: float = 0.0,
    *,
    jitter: float = 0.0,
    smallest: float = 0.0,
    background: bool = False,
) -> PersonCrops:
    """The person-level view of labelled pictures: one crop a person, resized to ``size`` as data sets' crops are.

    A crop never reaches beyond its picture: a detector's boxes do not, either. So a margin changes nothing about
    pictures that are crops themselves.

    Where the labels do not tell a presence, it is the highest probability of the mask, without a mask the highest
    score of the keypoints.

    Args:
        size: (height, width) in pixels.
        margin: by how much of its height and width a box grows on each side, in [0, 10).
        jitter: by how much of the box's height and width each of its sides moves at most, in [0, 0.5); only for items
            that are asked for with a seed.
        smallest: people whose box is less high than this, in pixels, are left out.
        background: pictures in which nobody is labelled give one crop each of a random part, with an empty mask and
            presence 0.

    Raises ValueError for an argument out of its range.
    """
    return PersonCrops(pictures, size, margin, jitter, smallest, background)


def collate_crops(samples: Sequence[LabelledCrop | BadPicture]) -> LabelledBatch:
    """Put crops together into one batch; the bad ones are told apart in ``LabelledBatch.bad``."""
    good = [sample for sample in samples if isinstance(sample, LabelledCrop)]
    bad = tuple(sample for sample in samples if isinstance(sample, BadPicture))
    height, width = good[0].mask.shape if good else bad[0].size if bad else (0, 0)

    def stacked(tensors: list[torch.Tensor], *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.stack(tensors) if tensors else torch.zeros((0, *shape), dtype=dtype)

    return LabelledBatch(
        crops=stacked([one.crop for one in good], height, width, 3),
        masks=stacked([one.mask for one in good], height, width),
        keypoints=stacked([one.keypoints for one in good], len(KEYPOINTS), 3, dtype=torch.float32),
        has_mask=torch.tensor([one.has_mask for one in good], dtype=torch.bool),
        has_keypoints=torch.tensor([one.has_keypoints for one in good], dtype=torch.bool),
        presence=torch.tensor([one.presence for one in good], dtype=torch.float32),
        indices=torch.tensor([one.index for one in good], dtype=torch.int64),
        bad=bad,
    )


# --- whole pictures --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PictureBatch(Movable):
    """Whole pictures of any sizes; the list is empty when none could be read.

    Attributes:
        pictures: one uint8 [H, W, 3] each, RGB.
        targets: one mapping a picture: boxes float32 [K, 4], masks uint8 [K, H, W], keypoints float32 [K, 17, 3],
            has_mask bool [K], has_keypoints bool [K], as of :class:`LabelledPicture`.
        bad: the pictures that are missing from the batch.
    """

    pictures: list[torch.Tensor]
    targets: list[dict[str, torch.Tensor]]
    bad: tuple[BadPicture, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)


#: A whole picture and its target, see :class:`PictureBatch`.
PictureSample = tuple[torch.Tensor, dict[str, torch.Tensor]]


class PictureDataset(Dataset["PictureSample | BadPicture"]):
    """Whole pictures with the labels of all their people. An item is asked for by its place, or by (place, seed).

    Who has a presence below 0.5 (see :func:`crops` where the labels do not tell) is nobody, and left out.
    """

    def __init__(self, pictures: Sequence[LabelledPicture]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, item: int | tuple[int, int]) -> PictureSample | BadPicture:
        index = item[0] if isinstance(item, tuple) else item
        picture = self.pictures[index]
        try:
            pixels, masks = picture.read(), picture.masks()
        except DataError as error:
            return BadPicture(index, str(error))
        there = np.array([_presence(picture, i, mask) >= PRESENT for i, mask in enumerate(masks)], np.bool_)
        # Indexed by a mask, so these are copies.
        target = {
            "boxes": torch.from_numpy(picture.boxes[there]),
            "masks": torch.from_numpy(masks[there]),
            "keypoints": torch.from_numpy(picture.keypoints[there]),
            "has_mask": torch.from_numpy(picture.has_mask[there]),
            "has_keypoints": torch.from_numpy(picture.has_keypoints[there]),
        }
        return torch.from_numpy(pixels), target


def collate_pictures(samples: Sequence[PictureSample | BadPicture]) -> PictureBatch:
    """Put whole pictures together into one batch; the bad ones are told apart in ``PictureBatch.bad``."""
    good = [sample for sample in samples if not isinstance(sample, BadPicture)]
    bad = tuple(sample for sample in samples if isinstance(sample, BadPicture))
    return PictureBatch([picture for picture, _ in good], [target for _, target in good], bad)
