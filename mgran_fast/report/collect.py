"""From an evaluation to what its report shows."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import mgran_fast
from mgran_fast import ops
from mgran_fast.data import DataSet, Masks, Record, Sample
from mgran_fast.data.pictures import read_picture_and_shape
from mgran_fast.metrics.embedding import Embedded, crops_for
from mgran_fast.metrics.evaluation import Evaluation
from mgran_fast.metrics.protocols import further
from mgran_fast.metrics.ranking import Ranking
from mgran_fast.model import MGRAN
from mgran_fast.ops import backend
from mgran_fast.report import parts
from mgran_fast.report.page import CameraRow, RankedList, Scores
from mgran_fast.report.pictures import CropView, Match, Query
from mgran_fast.report.search import Shown


def protocol(evaluation: Evaluation) -> str:
    """What was measured and how, and what the ranked lists show that was not."""
    notes = []
    if evaluation.rule.queries == "multiple":
        notes.append("a ranked list shows one picture of its query")
    if not evaluation.rule.has_ap:
        notes.append("the ranked lists show all gallery pictures, none are drawn")
    return "; ".join([evaluation.rule.text, *notes])


def scores(name: str, evaluation: Evaluation) -> Scores:
    """The figures of one evaluation."""
    ranking = evaluation.ranking
    sure = {name: (one.low, one.high) for name, one in evaluation.intervals.items()}
    return Scores(
        name, {k: ranking.at(k) for k in (1, 5, 10)}, ranking.map, ranking.cmc.tolist(), sure, roc_points(evaluation)
    )


def roc_points(evaluation: Evaluation) -> list[tuple[float, float]]:
    """The ROC curve at ten shares a decade, from one pair of two people, or a hundred thousandth of them, to all."""
    found = evaluation.roc
    if found is None:
        return []
    decades = max(1, min(5, math.floor(math.log10(found.negatives))))
    return [(share, found.at(share)) for share in np.logspace(-decades, 0, 10 * decades + 1).tolist()]


def cameras(dataset: DataSet, evaluation: Evaluation) -> list[CameraRow]:
    """The figures by camera, where there are several cameras, by the names that the data set has for them."""
    found = evaluation.camera_pairs
    return [
        CameraRow(
            dataset.camera_names.get(pair.query, str(pair.query)),
            dataset.camera_names.get(pair.gallery, str(pair.gallery)),
            pair.queries, pair.rank1, pair.map,
        )
        for pair in found
        if len(found) > 1
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """Versions and machine, for the foot of a report."""
    module = backend.extension()
    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    return {
        "mgran_fast": mgran_fast.__version__,
        "kernels": "reference only" if module is None else f"built with {module.compiler}",
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "device": device,
    }


class Pictures:
    """Reads pictures as a model sees them.

    Args:
        model: gives the size and layout, and the estimator where there are no mask files.
        masks: where the masks lie, or None.
    """

    def __init__(self, model: MGRAN, masks: Masks | None) -> None:
        self.model, self.masks = model, masks

    def sample(self, record: Record) -> Sample | None:
        """The crop with its region map; None when it cannot be read."""
        found = self._look(record)
        return None if found is None else found[0]

    def view(self, record: Record) -> CropView | None:
        """The crop with its mask, keypoints and regions; None when it cannot be read."""
        found = self._look(record)
        if found is None:
            return None
        sample, mask, keypoints = found
        if self.masks is not None:
            _, shape = read_picture_and_shape(record.path)
            source = self.masks.find(record.path, shape)
            if source is not None:
                stretch = np.array([self.model.size[1] / shape[1], self.model.size[0] / shape[0], 1.0], np.float32)
                keypoints = source.keypoints * stretch
                mask = source.mask.astype(np.float32) / 255.0 if source.has_mask else None
        return CropView(
            f"{record.path.parent.name}/{record.path.name}",
            sample.crop.numpy(),
            mask,
            keypoints,
            sample.region_map.numpy(),
            self.model.layout.name,
            None,
        )

    def shown(
        self,
        path: Path,
        name: str,
        person: str | None = None,
        camera: str | None = None,
        time: str | None = None,
        distance: float = 0.0,
        compared: parts.Comparison | None = None,
    ) -> Shown:
        """A picture of a search with what is known of it, and how near it is to the query part by part
        (:func:`mgran_fast.report.parts.of_search`); without a crop when it cannot be read."""
        known = (("person", person), ("camera", camera), ("", time))
        told = [f"{text} {value}".strip() for text, value in known if value is not None]
        sample = self.sample(Record(path, -1, 0))
        if sample is None:
            return Shown(name, told, distance=distance, parts=compared)
        return Shown(name, told, sample.crop.numpy(), sample.region_map.numpy(), distance, compared)

    def _look(self, record: Record) -> tuple[Sample, NDArray[np.float32] | None, NDArray[np.float32] | None] | None:
        """A crop with its region map, and the mask and keypoints that the model's estimator found, if it looked."""
        model = self.model
        dataset, estimated = crops_for(model, [record], self.masks)
        sample = dataset[0]
        if not isinstance(sample, Sample):
            return None
        if not estimated:
            return sample, None, None
        estimate = model.estimate(sample.crop[None].to(next(model.parameters()).device))
        map_ = ops.regions(
            estimate.mask,
            estimate.keypoints,
            dataset.size,
            model.layout,
            model.threshold,
            keypoint_threshold=model.keypoint_threshold,
        )
        sample = dataclasses.replace(sample, region_map=map_[0].cpu())
        return sample, estimate.mask[0].cpu().numpy(), estimate.keypoints[0].cpu().numpy()


def crop_views(pictures: Pictures, records: Sequence[Record], count: int) -> list[CropView]:
    """``count`` crops spread evenly over ``records``."""
    chosen = _spread(len(records), count)
    views = [pictures.view(records[i]) for i in chosen]
    return [view for view in views if view is not None]


def ranked_lists(
    pictures: Pictures, dataset: DataSet, evaluation: Evaluation, *, queries: int = 12, k: int = 10
) -> list[RankedList]:
    """The first k matches of some queries, spread evenly over all."""
    chosen = _spread(len(evaluation.query), queries)
    return [one for one, _ in _lists(pictures, dataset, evaluation, chosen, k)]


def mistakes(
    pictures: Pictures, dataset: DataSet, evaluation: Evaluation, *, queries: int = 8, k: int = 9
) -> list[RankedList]:
    """The queries that went worst: of those whose first match is wrong the ones with the lowest average precision.

    Without average precision those whose first right match has the highest rank. Each list ends with that match.
    """
    ranking = evaluation.ranking
    wrong = np.flatnonzero(ranking.first > 1)
    badness = ranking.ap[wrong] if isinstance(ranking, Ranking) else -ranking.first[wrong]
    chosen = wrong[np.lexsort((wrong, badness))][:queries].tolist()
    if not chosen:
        return []
    places, away = evaluation.nearest_right(chosen)
    where = dict(zip(chosen, zip(places, away, strict=True), strict=True))
    lists = []
    for one, q in _lists(pictures, dataset, evaluation, chosen, k):
        place, distance = where[q]
        first = int(ranking.first[q])
        last = None if first <= k else _match(pictures, dataset, evaluation, q, place, distance, True, first)
        lists.append(one if last is None else dataclasses.replace(one, matches=[*one.matches, last]))
    return lists


def _lists(
    pictures: Pictures, dataset: DataSet, evaluation: Evaluation, chosen: Sequence[int], k: int
) -> Iterator[tuple[RankedList, int]]:
    """The first k matches of some queries, and which they are; those that cannot be read any more are left out."""
    best = evaluation.top(k)
    for q in chosen:
        asked = pictures.sample(dataset.query[int(evaluation.query.indices[q])])
        if asked is None:
            continue
        found = zip(best.index[q].tolist(), best.distance[q].tolist(), best.right[q].tolist(), strict=True)
        matches = [
            _match(pictures, dataset, evaluation, q, place, distance, right, rank)
            for rank, (place, distance, right) in enumerate(found, 1)
            if place >= 0
        ]
        query = Query(asked.crop.numpy(), asked.person, asked.camera, asked.region_map.numpy())
        first = int(evaluation.ranking.first[q])
        yield RankedList(query, [match for match in matches if match is not None], first or None), q


def _match(
    pictures: Pictures,
    dataset: DataSet,
    evaluation: Evaluation,
    query: int,
    place: int,
    distance: float,
    right: bool,
    rank: int,
) -> Match | None:
    """A gallery picture by its place, as a match of a query; None when it cannot be read any more."""
    found = pictures.sample(dataset.gallery[int(evaluation.gallery.indices[place])])
    if found is None:
        return None
    crop, map_ = found.crop.numpy(), found.region_map.numpy()
    compared = parts.of_evaluation(evaluation, query, place, pictures.model.layout)
    return Match(crop, found.person, found.camera, distance, right, map_, rank, compared)


def unmatched(dataset: DataSet, evaluation: Evaluation) -> list[str]:
    """One line for each query that has no right match in the gallery."""
    records = [dataset.query[int(evaluation.query.indices[q])] for q in evaluation.ranking.unmatched]
    return [
        f"{record.path.name}: person {record.person} has no gallery picture by another camera than {record.camera}"
        for record in records
    ]


def without_person(dataset: DataSet, evaluation: Evaluation) -> list[str]:
    """One line for each picture in which nobody was found."""
    sides: list[tuple[Sequence[Record], Embedded]] = [(dataset.query, evaluation.query)]
    if evaluation.pictures is not None:
        sides.append((further(dataset.query, dataset.multi_query), evaluation.pictures))
    sides.append((dataset.gallery, evaluation.gallery))
    return [
        f"{records[place].path.name}: nobody found; the whole crop counts, or what the mask has"
        for records, embedded in sides
        for place in embedded.without_person.tolist()
    ]


def _spread(total: int, count: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total))}) if total else []
