"""Evaluating a model: embed query and gallery, rank, count what was odd."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader

from mgran_fast.data import Batch, CropDataset, Masks, Problems, Record, collate
from mgran_fast.data.cache import PRESENT
from mgran_fast.errors import DataError
from mgran_fast.metrics.ranking import Ranking, Top, rank, top
from mgran_fast.model import MGRAN, Encoding

Progress = Callable[[int, int], None]
#: (crops, region_map=...) -> an encoding.
Encode = Callable[..., Encoding]
#: An estimator looks at crops of this size at least, (height, width), however small the trunk's are.
ESTIMATED_SIZE = (256, 128)


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


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found."""

    ranking: Ranking
    query: Embedded
    gallery: Embedded

    @property
    def counts(self) -> dict[str, int]:
        """How many pictures were embedded and how many of them were odd; those without a person where there are any."""
        absent = len(self.query.without_person) + len(self.gallery.without_person)
        return {
            "queries": len(self.query),
            "gallery": len(self.gallery),
            "empty masks": self.query.empty_masks + self.gallery.empty_masks,
            "no keypoints": self.query.no_keypoints + self.gallery.no_keypoints,
            "unreadable pictures": self.query.problems.count + self.gallery.problems.count,
            "queries without a match": len(self.ranking.unmatched),
            **({"crops without a person": absent} if absent else {}),
        }

    def top(self, k: int = 10) -> Top:
        """The first k gallery pictures of each query; indices count in ``gallery``."""
        return top(self.query.vectors, self.gallery.vectors, k=k, **_labels(self.query, self.gallery))


@torch.inference_mode()
def embed(
    model: MGRAN,
    records: Sequence[Record],
    masks: Masks | None,
    *,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
    encode: Encode | None = None,
) -> Embedded:
    """Embed the pictures of ``records`` in eval mode, on the device where the model is.

    Args:
        masks: where their masks or region maps lie; None runs the model's own estimator (or no mask at all for layout
            none).
        batch_size, workers: pictures at once, and processes that read them.
        progress: called with (pictures done, pictures in all).
        encode: what embeds in place of the model's own method: that of an engine made from it.
    """
    encode = model.encode if encode is None else encode
    start = time.perf_counter()
    dataset, estimated = crops_for(model, records, masks)
    loader: Iterable[Batch] = DataLoader(dataset, batch_size, num_workers=workers, collate_fn=collate)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
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
                    estimate = model.estimate(moved.crops)
                    maps = model.regions(moved.crops, estimate.mask, estimate.keypoints)
                    empty_masks = (maps == 0).flatten(1).all(1).cpu()
                    nobody = empty_masks | (estimate.presence < PRESENT).cpu()
                    unposed += int((estimate.keypoints[..., 2] < model.keypoint_threshold).all(1).sum())
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
        model.train(was_training)
    if not vectors:
        first = problems.lines(1)
        raise DataError(f"none of {len(records)} pictures could be read" + (f"; {first[0]}" if first else ""))
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


def crops_for(model: MGRAN, records: Sequence[Record], masks: Masks | None) -> tuple[CropDataset, bool]:
    """The pictures as a model wants them read, and whether its own estimator shall look at them.

    It shall where there are no mask files and the layout wants masks. The crops then come alone, at the model's size
    or :data:`ESTIMATED_SIZE`, whichever is more.
    """
    estimated = masks is None and not model.layout.whole
    height, width = model.size
    if estimated:
        height, width = max(height, ESTIMATED_SIZE[0]), max(width, ESTIMATED_SIZE[1])
    dataset = CropDataset(
        records,
        masks=masks,
        size=(height, width),
        layout="none" if estimated else model.layout,
        threshold=model.threshold,
        keypoint_threshold=model.keypoint_threshold,
    )
    return dataset, estimated


def evaluate(
    model: MGRAN,
    query: Sequence[Record],
    gallery: Sequence[Record],
    masks: Masks | None,
    *,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
    encode: Encode | None = None,
) -> Evaluation:
    """Rank ``gallery`` for each of ``query`` by the Euclidean distance of embeddings, Market-1501 rule.

    Raises DataError when no query at all has a match in the gallery.
    """
    total = len(query) + len(gallery)
    shift = len(query)
    queries = embed(
        model, query, masks, batch_size=batch_size, workers=workers, encode=encode,
        progress=None if progress is None else lambda done, _: progress(done, total),
    )  # fmt: skip
    entries = embed(
        model, gallery, masks, batch_size=batch_size, workers=workers, encode=encode,
        progress=None if progress is None else lambda done, _: progress(shift + done, total),
    )  # fmt: skip
    return Evaluation(rank_embedded(queries, entries), queries, entries)


def rank_embedded(query: Embedded, gallery: Embedded) -> Ranking:
    """:func:`mgran_fast.rank` of embedded pictures; DataError when no query has a match."""
    try:
        return rank(query.vectors, gallery.vectors, **_labels(query, gallery))
    except ValueError as error:
        raise DataError(str(error)) from None


def _labels(query: Embedded, gallery: Embedded) -> dict[str, Any]:
    return {
        "query_ids": query.persons.numpy(),
        "gallery_ids": gallery.persons.numpy(),
        "query_cameras": query.cameras.numpy(),
        "gallery_cameras": gallery.cameras.numpy(),
    }
