"""Embedding the pictures of a list of records: what comes before any ranking or search."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.data import DataLoader

from mgran_fast.alignment import Alignment
from mgran_fast.data import Batch, CropDataset, Masks, Problems, Record, Sample, collate
from mgran_fast.data.cache import PRESENT
from mgran_fast.errors import DataError
from mgran_fast.layouts import Layout
from mgran_fast.model import MGRAN, Encoding

Progress = Callable[[int, int], None]
#: (crops, region_map=...) -> an encoding.
Encode = Callable[..., Encoding]


class Network(Protocol):
    """What embeds: an :class:`mgran_fast.MGRAN`, or an :class:`mgran_fast.Engine` made from one."""

    @property
    def alignment(self) -> Alignment: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def encode(self) -> Encode: ...


#: An estimator looks at crops of this size at least, (height, width), however small the trunk's are.
ESTIMATED_SIZE = (256, 128)


class NothingReadError(DataError):
    """Not one picture could be read.

    Attributes:
        problems: the pictures.
    """

    def __init__(self, message: str, problems: Problems) -> None:
        super().__init__(message)
        self.problems = problems


@dataclass(frozen=True)
class Embedded:
    """N pictures of a list of records that could be read.

    Attributes:
        vectors: float32 [N, P * D], unit norm.
        visible: bool [N, P].
        persons, cameras, indices: int64 [N]; indices are places in the list of records.
        empty_masks, no_keypoints: how many pictures had no mask, and no usable keypoint.
        problems: the pictures that could not be read.
        seconds: the time that reading and embedding took.
        without_person: int64 [K], the places of pictures that show nobody: an empty mask, or a presence below 0.5.
            They are embedded all the same; with an empty mask, as whole crops without a visible region.
    """

    vectors: torch.Tensor
    visible: torch.Tensor
    persons: torch.Tensor
    cameras: torch.Tensor
    indices: torch.Tensor
    empty_masks: int
    no_keypoints: int
    problems: Problems
    seconds: float
    without_person: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.vectors)


@torch.inference_mode()
def embed(
    network: Network,
    records: Sequence[Record],
    masks: Masks | None,
    *,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
    flip: bool = False,
) -> Embedded:
    """Embed the pictures of ``records`` on the device where the network is, a model in eval mode.

    Args:
        masks: where their masks or region maps lie; None runs the network's own estimator (or no mask at all for layout
            none).
        batch_size, workers: pictures at once, and processes that read them.
        progress: called with (pictures done, pictures in all).
        flip: embed each picture and its mirror image, and take the mean of the two; see :func:`with_mirror`.

    Raises:
        NothingReadError: not one picture could be read.
    """
    alignment, device = network.alignment, network.device
    encode = with_mirror(network.encode, alignment.layout) if flip else network.encode
    start = time.perf_counter()
    dataset, estimated = crops_for(network, records, masks)
    loader: Iterable[Batch] = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=collate)
    was_training = isinstance(network, MGRAN) and network.training
    if isinstance(network, MGRAN):
        network.eval()
    problems, done, empty, unposed = Problems(), 0, 0, 0
    vectors, visible, persons, cameras, indices, absent = [], [], [], [], [], []
    try:
        for batch in loader:
            problems.add(batch.bad)
            done += len(batch) + len(batch.bad)
            if len(batch):
                moved = batch.to(device)
                maps, empty_masks = moved.region_maps, batch.empty_masks
                nobody = empty_masks | batch.no_person
                if estimated:
                    estimate = alignment.mra(moved.crops)
                    maps = alignment.regions(*alignment.found(moved.crops, estimate.mask, estimate.keypoints))
                    empty_masks = (maps == 0).flatten(1).all(1).cpu()
                    nobody = empty_masks | (estimate.presence < PRESENT).cpu()
                    unposed += int((estimate.keypoints[..., 2] < alignment.keypoint_threshold).all(1).sum())
                encoding = encode(moved.crops, region_map=maps)
                vectors.append(encoding.vector.cpu())
                visible.append(encoding.visible.cpu())
                persons.append(batch.persons)
                cameras.append(batch.cameras)
                indices.append(batch.indices)
                absent.append(batch.indices[nobody])
                empty += int(empty_masks.sum())
                # False throughout when an estimator looks, and counted above.
                unposed += int(batch.no_keypoints.sum())
            if progress is not None:
                progress(done, len(records))
    finally:
        if isinstance(network, MGRAN):
            network.train(was_training)
    if not vectors:
        first = problems.lines(1)
        raise NothingReadError(
            f"none of {len(records)} pictures could be read" + (f"; {first[0]}" if first else ""), problems
        )
    return Embedded(
        torch.cat(vectors),
        torch.cat(visible),
        torch.cat(persons),
        torch.cat(cameras),
        torch.cat(indices),
        empty,
        unposed,
        problems,
        time.perf_counter() - start,
        torch.cat(absent),
    )


def read_size(alignment: Alignment, masks: Masks | None = None) -> tuple[int, int]:
    """The (height, width) in which pictures are read: the network's own, and where the estimator is to look at them
    :data:`ESTIMATED_SIZE` if that is larger.
    """
    height, width = alignment.size
    if masks is not None or alignment.layout.whole:
        return height, width
    return max(height, ESTIMATED_SIZE[0]), max(width, ESTIMATED_SIZE[1])


def crops_for(network: Network, records: Sequence[Record], masks: Masks | None) -> tuple[CropDataset, bool]:
    """The pictures as a network wants them read, and whether its own estimator shall look at them.

    It shall where there are no mask files and the layout wants masks. The crops then come alone, and are of
    :func:`read_size`.
    """
    alignment = network.alignment
    estimated = masks is None and not alignment.layout.whole
    dataset = CropDataset(
        records,
        masks=masks,
        size=read_size(alignment, masks),
        layout="none" if estimated else alignment.layout,
        threshold=alignment.threshold,
        keypoint_threshold=alignment.keypoint_threshold,
    )
    return dataset, estimated


def some_crops(
    network: Network, records: Sequence[Record], masks: Masks | None, count: int = 64
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """``count`` pictures at most, spread evenly over ``records``, to calibrate on: crops uint8 [N, H, W, 3] and their
    region map, None where the network's estimator is to look. What cannot be read is left out.
    """
    some = min(count, len(records))
    chosen = [records[i * len(records) // some] for i in range(some)]
    crops, estimated = crops_for(network, chosen, masks)
    read = (crops[i] for i in range(len(crops)))
    batch = collate([sample for sample in read if isinstance(sample, Sample)])
    return batch.crops, None if estimated else batch.region_maps


def with_mirror(encode: Encode, layout: Layout) -> Encode:
    """The flip test: what embeds crops and their mirror images, and takes the mean of both for each part.

    The two count alike, each L2-normalised; of a part that only one of them shows, that one counts. Left and right
    parts change places in the mirror, as they do in training. Crops are uint8 [N, H, W, 3] and come with region maps.
    """
    # Whole crops have a map of ones and no regions.
    places = torch.arange(256, dtype=torch.uint8)
    places[: len(layout.flip)] = torch.tensor(layout.flip, dtype=torch.uint8)

    def both(crops: torch.Tensor, *, region_map: torch.Tensor) -> Encoding:
        mirrored = places.to(region_map.device)[region_map.flip(2).long()]
        found = [encode(crops, region_map=region_map), encode(crops.flip(2), region_map=mirrored)]
        sums = sum(F.normalize(one.embeddings.float(), dim=-1) * one.visible[..., None] for one in found)
        assert isinstance(sums, torch.Tensor)
        return Encoding(sums / 2, found[0].visible | found[1].visible)

    return both
