"""Crops with their region maps, one by one and in batches, for training and evaluation.

A picture that cannot be read does not end a run of hours: it becomes a :class:`BadPicture` that travels with the
batch to the main process, where :class:`Problems` reports it once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from mgran_fast import layouts
from mgran_fast.data.cache import PRESENT, Masks, RegionCache, Regions
from mgran_fast.data.pictures import read_picture_and_shape
from mgran_fast.data.records import Record
from mgran_fast.errors import DataError
from mgran_fast.layouts import Layout

_log = logging.getLogger(__name__)

#: What an augmentation is: (crop u8 [H, W, 3], region map u8 [H, W]) -> the same, changed.
Augmentation = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Sample:
    """One crop.

    Attributes:
        crop: uint8 [H, W, 3], RGB.
        region_map: uint8 [H, W]: 0 background, i for region i of the layout.
        label: the class for training, or -1.
        person, camera: as the data set numbers them.
        index: the place of the crop in the data set.
        empty_mask: the map has no foreground, or there is no mask file: the whole crop counts as global input and
            no region is visible.
        no_keypoints: no keypoint reaches the threshold: the regions are bands of the mask's box.
        no_person: whoever made the mask gives the crop a presence below 0.5: it likely shows nobody. It is used like
            any other; that it is one of these is counted.
    """

    crop: torch.Tensor
    region_map: torch.Tensor
    label: int
    person: int
    camera: int
    index: int
    empty_mask: bool
    no_keypoints: bool
    no_person: bool = False


@dataclass(frozen=True)
class BadPicture:
    """A crop that could not be read: its place in the data set, why, and the (height, width) it would have had."""

    index: int
    message: str
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Batch:
    """N crops on one device; N is 0 when none could be read.

    A dataclass, not a tuple, because a pinned tuple would come back with ``bad`` turned into a list; DataLoader
    and Lightning call :meth:`pin_memory` and :meth:`to` by themselves.

    Attributes:
        crops: uint8 [N, H, W, 3], RGB.
        region_maps: uint8 [N, H, W].
        labels, persons, cameras, indices: int64 [N]; see :class:`Sample`.
        empty_masks, no_keypoints, no_person: bool [N].
        bad: the crops that are missing from the batch.
    """

    crops: torch.Tensor
    region_maps: torch.Tensor
    labels: torch.Tensor
    persons: torch.Tensor
    cameras: torch.Tensor
    indices: torch.Tensor
    empty_masks: torch.Tensor
    no_keypoints: torch.Tensor
    no_person: torch.Tensor
    bad: tuple[BadPicture, ...] = ()

    def __len__(self) -> int:
        return len(self.crops)

    def __reduce__(self) -> tuple[Any, ...]:
        # On its way out of a worker each tensor takes a file descriptor and a message of its own, which for a few
        # numbers costs more than they do.
        small = {name: getattr(self, name) for name in _SMALL}
        if self.crops.device.type == "cpu":
            small = {name: column.numpy() for name, column in small.items()}
        return _unpacked, (self.crops, self.region_maps, small, self.bad)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self, device: str | None = None) -> Batch:
        """The same batch in page-locked memory. ``device`` is there for older loaders, and ignored."""
        return self._each(lambda tensor: tensor.pin_memory())

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        changed: dict[str, Any] = {k: change(v) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **changed)


_SMALL = ("labels", "persons", "cameras", "indices", "empty_masks", "no_keypoints", "no_person")


def _unpacked(
    crops: torch.Tensor, region_maps: torch.Tensor, small: Mapping[str, Any], bad: tuple[BadPicture, ...]
) -> Batch:
    columns: dict[str, Any] = {name: torch.as_tensor(column) for name, column in small.items()}
    return Batch(crops=crops, region_maps=region_maps, bad=bad, **columns)


class CropDataset(Dataset["Sample | BadPicture"]):
    """Reads crops, and their region maps from a cache or from masks and keypoints on disk.

    Args:
        records: the crops.
        masks: where their masks and keypoints are, or their region maps that were computed before; may be None for a
            layout that looks at none ("none").
        size: (height, width) in pixels that every crop is resized to.
        layout: the body layout of the region maps, by name or itself.
        labels: the class of each person, for training; None gives -1.
        augment: changes crop and map, see :class:`mgran_fast.data.augment.Augment`; None leaves them.
        threshold: a pixel is foreground where its mask is at least this, in [0, 1].
        keypoint_threshold: a keypoint with a lower score is not used, in [0, 1].

    Raises:
        ValueError: masks are needed and missing, a person has no label, or a number is out of its range.
        DataError: the region cache was made with another ``threshold``.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        masks: Masks | None,
        size: tuple[int, int] = (256, 128),
        layout: str | Layout = "region",
        labels: Mapping[int, int] | None = None,
        augment: Augmentation | None = None,
        threshold: float = 0.5,
        keypoint_threshold: float = 0.3,
    ) -> None:
        self.layout = layouts.get(layout)
        height, width = size
        if height < 1 or width < 1:
            raise ValueError(f"size must be (height, width) in pixels, 1 or more, not {size!r}")
        if masks is None and not self.layout.whole:
            raise ValueError(f"layout {self.layout.name!r} needs masks: pass masks=MaskFiles(root), or layout='none'")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be between 0 and 1, not {threshold!r}")
        if not 0 <= keypoint_threshold <= 1:
            raise ValueError(f"keypoint_threshold must be between 0 and 1, not {keypoint_threshold!r}")
        if isinstance(masks, RegionCache) and not self.layout.whole:
            masks.check_threshold(threshold)
        if labels is not None:
            unknown = sorted({record.person for record in records} - set(labels))
            if unknown:
                raise ValueError(
                    f"labels has no entry for {len(unknown)} people, the first is {unknown[0]}; "
                    "pass labels=None for people that are not trained on"
                )
        self.records = records
        self.masks = masks
        self.size = (height, width)
        self.labels = labels
        self.augment = augment
        self.threshold = threshold
        self.keypoint_threshold = keypoint_threshold

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample | BadPicture:
        """The crop at this place, or a :class:`BadPicture` when its picture, mask or keypoints are unusable."""
        record = self.records[index]
        try:
            image, shape = read_picture_and_shape(record.path, self.size)
            found = self._regions(record, shape)
        except DataError as error:
            return BadPicture(index, str(error), self.size)
        crop, region_map = torch.from_numpy(image), found.region_map
        if self.augment is not None:
            crop, region_map = self.augment(crop, region_map)
        return Sample(
            crop=crop,
            region_map=region_map,
            label=-1 if self.labels is None else self.labels[record.person],
            person=record.person,
            camera=record.camera,
            index=index,
            empty_mask=found.empty_mask,
            no_keypoints=found.no_keypoints,
            no_person=found.no_person,
        )

    def _regions(self, record: Record, shape: tuple[int, int]) -> Regions:
        if self.layout.whole or self.masks is None:
            return Regions(torch.ones(self.size, dtype=torch.uint8), False, False, False)
        if isinstance(self.masks, RegionCache):
            return self.masks.regions(record.path, self.size, self.layout, keypoint_threshold=self.keypoint_threshold)
        source = self.masks.find(record.path, shape)
        nothing = torch.zeros(self.size, dtype=torch.uint8)
        if source is None:
            return Regions(nothing, True, True, False)
        no_keypoints = not bool((source.keypoints[:, 2] >= self.keypoint_threshold).any())
        no_person = source.presence < PRESENT
        if not source.has_mask:
            return Regions(nothing, True, no_keypoints, no_person)
        # Imported here: reading data must not need the compiled ops, nor the ops this module's importers.
        from mgran_fast import ops

        height, width = self.size
        scale = np.array([width / shape[1], height / shape[0], 1], np.float32)
        region_map: torch.Tensor = ops.regions(
            torch.from_numpy(source.mask)[None],
            torch.from_numpy(source.keypoints * scale)[None],
            size=self.size,
            layout=self.layout,
            threshold=self.threshold,
            keypoint_threshold=self.keypoint_threshold,
        )[0]
        return Regions(region_map, not bool(region_map.any()), no_keypoints, no_person)


def collate(samples: Sequence[Sample | BadPicture]) -> Batch:
    """Put samples together into one batch; the bad ones are told apart in ``Batch.bad``."""
    good = [sample for sample in samples if isinstance(sample, Sample)]
    bad = tuple(sample for sample in samples if isinstance(sample, BadPicture))
    if good:
        # Stacks; in a worker straight into memory that it shares with the main process.
        crops = default_collate([sample.crop for sample in good])
        region_maps = default_collate([sample.region_map for sample in good])
    else:
        height, width = bad[0].size if bad else (0, 0)
        crops = torch.zeros((0, height, width, 3), dtype=torch.uint8)
        region_maps = torch.zeros((0, height, width), dtype=torch.uint8)

    def column(values: list[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype)

    return Batch(
        crops=crops,
        region_maps=region_maps,
        labels=column([sample.label for sample in good]),
        persons=column([sample.person for sample in good]),
        cameras=column([sample.camera for sample in good]),
        indices=column([sample.index for sample in good]),
        empty_masks=column([sample.empty_mask for sample in good], torch.bool),
        no_keypoints=column([sample.no_keypoints for sample in good], torch.bool),
        no_person=column([sample.no_person for sample in good], torch.bool),
        bad=bad,
    )


class Problems:
    """The bad pictures of a run, each reported once, however often an epoch meets it. For the main process."""

    def __init__(self) -> None:
        self._messages: dict[str, None] = {}  # a set that keeps the order

    def __repr__(self) -> str:
        return f"Problems(count={self.count})"

    def add(self, bad: Iterable[BadPicture]) -> None:
        """Take up the bad pictures of a batch; log those that are new, at WARNING."""
        for picture in bad:
            # By message, which names the file: the same index means another picture in another data set.
            if picture.message not in self._messages:
                self._messages[picture.message] = None
                _log.warning("%s", picture.message)

    @property
    def count(self) -> int:
        """How many different pictures were bad."""
        return len(self._messages)

    def lines(self, limit: int | None = None) -> list[str]:
        """The messages in order of appearance; beyond ``limit`` one last line tells how many more there are."""
        messages = list(self._messages)
        if limit is None or len(messages) <= limit:
            return messages
        return [*messages[:limit], f"and {len(messages) - limit} more"]
