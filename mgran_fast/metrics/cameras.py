"""Accuracy by camera: a query of one camera, and a gallery of another alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mgran_fast.metrics.distances import Numbers, as_tensor
from mgran_fast.metrics.hits import score
from mgran_fast.metrics.problem import Problem


@dataclass(frozen=True)
class CameraPair:
    """How well the queries of one camera find their people among the pictures of another.

    Attributes:
        query, gallery: the cameras.
        queries: how many queries have a right match there; the others are in no mean.
        rank1, map: means over those, as fractions.
    """

    query: int
    gallery: int
    queries: int
    rank1: float
    map: float


@torch.no_grad()
def camera_pairs(
    query: Numbers | None = None,
    gallery: Numbers | None = None,
    *,
    distances: Numbers | None = None,
    query_ids: Numbers,
    gallery_ids: Numbers,
    query_cameras: Numbers,
    gallery_cameras: Numbers,
    metric: str = "euclidean",
    query_visibility: Numbers | None = None,
    gallery_visibility: Numbers | None = None,
    ap: str = "hits",
    ties: str = "index",
    chunk: int | None = None,
) -> list[CameraPair]:
    """Each pair of cameras by itself: the gallery holds the pictures of one camera, of all people.

    A hard pair stands out that a mean over all hides; a gallery of one camera is smaller, though, so that the figures
    are better than those of the whole. By the rule for junk a camera has no match in itself. Arguments and errors are
    those of :func:`mgran_fast.rank`, and the cameras must be known.

    Returns:
        The pairs that have a query with a match, by query camera, then gallery camera.
    """
    whole = Problem.of(
        query, gallery, distances=distances, query_ids=query_ids, gallery_ids=gallery_ids, query_cameras=query_cameras,
        gallery_cameras=gallery_cameras, metric=metric, query_visibility=query_visibility,
        gallery_visibility=gallery_visibility,
    )  # fmt: skip
    if whole.query_cameras is None or whole.gallery_cameras is None:
        raise ValueError("query_cameras and gallery_cameras must be given: these are figures by camera")
    of_query = whole.query_cameras.numpy()
    sides = (None if values is None else as_tensor(values, "gallery") for values in (gallery, gallery_visibility))
    entries, visibility = sides
    found = []
    for camera in whole.gallery_cameras.unique().tolist():
        places = (whole.gallery_cameras == camera).nonzero()[:, 0]
        mine = None if entries is None else entries[places.to(entries.device)]
        seen = None if visibility is None else visibility[places.to(visibility.device)]
        # A matrix on disk is read a column here and there: as an array, not as a tensor.
        columns = None if distances is None else _columns(distances, places)
        part = Problem.of(
            query, mine, distances=columns, query_ids=query_ids, gallery_ids=whole.gallery_ids[places],
            query_cameras=query_cameras, gallery_cameras=whole.gallery_cameras[places], metric=metric,
            query_visibility=query_visibility, gallery_visibility=seen,
        )  # fmt: skip
        average, _, first = (values.numpy() for values in score(part, ap, ties, chunk))
        for asked in np.unique(of_query):
            counted = (of_query == asked) & (first > 0)
            if counted.any():
                rank1, mean = float((first[counted] == 1).mean()), float(average[counted].mean())
                found.append(CameraPair(int(asked), int(camera), int(counted.sum()), rank1, mean))
    return sorted(found, key=lambda pair: (pair.query, pair.gallery))


def _columns(distances: Numbers, places: torch.Tensor) -> Numbers:
    if isinstance(distances, torch.Tensor):
        return distances[:, places.to(distances.device)]
    return np.asarray(distances)[:, places.numpy()]
