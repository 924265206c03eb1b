"""Evaluating a model: embed query and gallery, rank by a protocol, count what was odd."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader

from mgran_fast.data import Batch, CropDataset, Masks, Problems, Record, collate
from mgran_fast.data.cache import PRESENT
from mgran_fast.data.records import MARKET, SINGLE_GALLERY_SHOT
from mgran_fast.errors import DataError
from mgran_fast.metrics import protocols
from mgran_fast.metrics.ranking import Ranking, Top, rank, top
from mgran_fast.metrics.rerank import rerank
from mgran_fast.metrics.shots import ShotRanking, rank_shots
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
    """What :func:`evaluate` found.

    Attributes:
        ranking: by the protocol; a :class:`ShotRanking` has no mAP, its ``map`` is None.
        query: the queries; of multiple ones the vectors are the means that were ranked, and a part is visible where
            one of the pictures shows it.
        gallery: all of it, whatever the protocol draws.
        protocol: one of :data:`mgran_fast.metrics.protocols.PROTOCOLS`.
        ap: the definition of average precision, see :func:`mgran_fast.rank`; of no meaning where there is none.
        pictures: what the multiple queries were made of, see :func:`mgran_fast.metrics.protocols.further`; None for
            single queries.
        alone: int64, the places in ``query`` of multiple queries that have no picture but their own.
        distances: float32 [Q, G], of re-ranking; None where the Euclidean ones of the vectors count.
    """

    ranking: Ranking | ShotRanking
    query: Embedded
    gallery: Embedded
    protocol: str = MARKET
    ap: str = "hits"
    pictures: Embedded | None = None
    alone: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    distances: torch.Tensor | None = None

    @property
    def queries(self) -> str:
        """ "single" or "multiple"."""
        return "single" if self.pictures is None else "multiple"

    @property
    def embedded(self) -> tuple[Embedded, ...]:
        """All that was embedded: the queries, their further pictures if there are any, the gallery."""
        return (self.query, *([] if self.pictures is None else [self.pictures]), self.gallery)

    @property
    def rule(self) -> str:
        """What was measured and how, in one line."""
        draws = self.ranking.draws or None if isinstance(self.ranking, ShotRanking) else None
        return protocols.describe(self.protocol, self.queries, self.ap, draws, self.distances is not None)

    @property
    def details(self) -> dict[str, Any]:
        """The same for a program: "protocol", "queries", "reranked", "ap" (None where the protocol has no mAP), "draws"
        (None for the exact expectation) and "standard_error" of the drawn ranks, and "rule"."""
        found: dict[str, Any] = {"protocol": self.protocol, "queries": self.queries, "ap": self.ap}
        found["reranked"] = self.distances is not None
        if isinstance(self.ranking, ShotRanking):
            draws = self.ranking.draws or None
            found.update(ap=None, draws=draws)
            if draws is not None and draws > 1:
                error = self.ranking.error
                found["standard_error"] = {f"rank{k}": float(error[k - 1]) for k in (1, 5, 10)}
        return {**found, "rule": self.rule}

    @property
    def counts(self) -> dict[str, int]:
        """How many pictures were embedded and how many of them were odd; those without a person, and what multiple
        queries were made of, where there are any."""
        absent = sum(len(one.without_person) for one in self.embedded)
        return {
            "queries": len(self.query),
            **({} if self.pictures is None else {"pictures of queries": len(self.pictures)}),
            "gallery": len(self.gallery),
            "empty masks": sum(one.empty_masks for one in self.embedded),
            "no keypoints": sum(one.no_keypoints for one in self.embedded),
            "unreadable pictures": sum(one.problems.count for one in self.embedded),
            "queries without a match": len(self.ranking.unmatched),
            **({} if self.pictures is None else {"queries without further pictures": len(self.alone)}),
            **({"crops without a person": absent} if absent else {}),
        }

    def figures(self, ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
        """ "rank1" and so on, and "map" and "minp" where the protocol has them, as fractions."""
        found = {f"rank{k}": self.ranking.at(k) for k in ranks}
        if isinstance(self.ranking, Ranking):
            found.update(map=self.ranking.map, minp=self.ranking.minp)
        return found

    def problems(self) -> list[str]:
        """One line for each picture that could not be read."""
        return [line for one in self.embedded for line in one.problems.lines()]

    def top(self, k: int = 10) -> Top:
        """The first k gallery pictures of each query; indices count in ``gallery``."""
        return top(**_asked(self.query, self.gallery, self.distances), k=k)


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
    protocol: str = MARKET,
    multi_query: Sequence[Record] | None = None,
    ap: str = "hits",
    draws: int | None = None,
    seed: int = 0,
    reranked: bool = False,
) -> Evaluation:
    """Rank ``gallery`` for each of ``query`` by the Euclidean distance of embeddings.

    Args:
        model, masks, batch_size, workers, encode: see :func:`embed`.
        progress: called with (pictures done, pictures in all).
        protocol: ``MARKET`` or ``SINGLE_GALLERY_SHOT``, as :class:`mgran_fast.data.DataSet` has it.
        multi_query: further pictures for multiple queries, see :func:`mgran_fast.metrics.protocols.merge`: those of a
            query's person and camera take its place. None for single queries.
        ap: the definition of average precision, see :func:`mgran_fast.rank`.
        draws, seed: of the single gallery shot, see :func:`mgran_fast.metrics.shots.rank_shots`; ``draws`` None takes
            the exact expectation.
        reranked: by the distances of :func:`mgran_fast.metrics.rerank`, with its own settings.

    Raises:
        DataError: no query at all has a match in the gallery, or no further picture is of a query.
        ValueError: an argument is out of its range.
    """
    if protocol not in protocols.PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(protocols.PROTOCOLS)}, not {protocol!r}")
    if ap not in protocols.AP_TEXT:
        raise ValueError(f"ap must be one of {', '.join(protocols.AP_TEXT)}, not {ap!r}")
    if draws is not None and (protocol != SINGLE_GALLERY_SHOT or draws < 1):
        raise ValueError(f"draws must be at least 1, and only {SINGLE_GALLERY_SHOT} draws; not {draws} for {protocol}")
    if multi_query is not None:
        multi_query = protocols.further(query, multi_query)
        if not multi_query:
            raise DataError("no picture for multiple queries is of a query's person and camera; take single queries")
    lists = [query, *([] if multi_query is None else [multi_query]), gallery]
    total, parts, before = sum(map(len, lists)), [], 0
    for records in lists:

        def step(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        parts.append(embed(model, records, masks, batch_size=batch_size, workers=workers, encode=encode, progress=step))
        before += len(records)
    queries, entries = parts[0], parts[-1]
    pictures, alone = None, torch.zeros(0, dtype=torch.int64)
    if multi_query is not None:
        pictures = parts[1]
        queries, alone = merge_embedded(queries, pictures)
    distances = rerank(queries.vectors, entries.vectors) if reranked else None
    asked = _asked(queries, entries, distances)
    ranking: Ranking | ShotRanking
    try:
        if protocol == SINGLE_GALLERY_SHOT:
            ranking = rank_shots(**asked, draws=draws, seed=seed)
        else:
            ranking = rank(**asked, ap=ap)
    except ValueError as error:
        raise DataError(str(error)) from None
    return Evaluation(ranking, queries, entries, protocol, ap, pictures, alone, distances)


def merge_embedded(query: Embedded, pictures: Embedded) -> tuple[Embedded, torch.Tensor]:
    """``query`` as multiple queries of ``pictures``, and the places of those that have none, int64."""
    keys, others = (torch.stack([one.persons, one.cameras], dim=1) for one in (query, pictures))
    vectors, counts = protocols.merge(query.vectors, keys, pictures.vectors, others)
    shown, _ = protocols.merge(query.visible.float(), keys, pictures.visible.float(), others)
    return dataclasses.replace(query, vectors=vectors, visible=shown > 0), (counts == 0).nonzero()[:, 0]


def _asked(query: Embedded, gallery: Embedded, distances: torch.Tensor | None = None) -> dict[str, Any]:
    """What is ranked: the vectors, or distances in their place, and who is on the pictures."""
    return {
        **({"query": query.vectors, "gallery": gallery.vectors} if distances is None else {"distances": distances}),
        "query_ids": query.persons.numpy(),
        "gallery_ids": gallery.persons.numpy(),
        "query_cameras": query.cameras.numpy(),
        "gallery_cameras": gallery.cameras.numpy(),
    }
