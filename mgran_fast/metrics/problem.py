"""What a ranking is asked: distances or embeddings, and who is on each picture; checked once, for all protocols."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from mgran_fast.metrics.distances import Numbers, Pairs, as_tensor, pairwise, rows_per_chunk


class Unsaid(enum.Enum):
    """The default of cameras, which must be given, be it as None."""

    UNSAID = "unsaid"


UNSAID = Unsaid.UNSAID
_BOTH_CAMERAS = (
    "give both cameras, by which pictures of the query's person by its own camera are left out, or None for both, to "
    "rank without that rule"
)
#: Cameras, None to rank without them; UNSAID is an error.
Cameras: TypeAlias = Numbers | Unsaid | None


@dataclass(frozen=True)
class Problem:
    """Checked inputs. Identities and cameras are int64 tensors on the CPU."""

    pairs: Pairs
    query_ids: torch.Tensor
    gallery_ids: torch.Tensor
    query_cameras: torch.Tensor | None
    gallery_cameras: torch.Tensor | None

    @classmethod
    def of(
        cls,
        query: Numbers | None = None,
        gallery: Numbers | None = None,
        *,
        distances: Numbers | None = None,
        query_ids: Numbers,
        gallery_ids: Numbers,
        query_cameras: Cameras,
        gallery_cameras: Cameras,
        metric: str = "euclidean",
        query_visibility: Numbers | None = None,
        gallery_visibility: Numbers | None = None,
    ) -> Problem:
        """Check the arguments of :func:`mgran_fast.rank`."""
        if distances is not None:
            sides = {"query": query, "gallery": gallery}
            sides.update(query_visibility=query_visibility, gallery_visibility=gallery_visibility)
            given = next((name for name, values in sides.items() if values is not None), None)
            if given is not None:
                raise ValueError(f"give either distances or query and gallery: {given} is given with distances")
            pairs = _given(distances)
        elif query is None or gallery is None:
            missing = "query" if query is None else "gallery"
            raise ValueError(f"{missing} is missing: give query and gallery embeddings, or distances")
        else:
            pairs = pairwise(query, gallery, metric, query_visibility, gallery_visibility, names=("query", "gallery"))
        q, g = pairs.shape
        if q == 0 or g == 0:
            raise ValueError(f"there are {q} queries and {g} gallery entries: nothing to rank")
        if isinstance(query_cameras, Unsaid) or isinstance(gallery_cameras, Unsaid):
            missing = "query_cameras" if query_cameras is UNSAID else "gallery_cameras"
            raise ValueError(f"{missing} is missing: {_BOTH_CAMERAS}")
        if (query_cameras is None) != (gallery_cameras is None):
            missing = "query_cameras" if query_cameras is None else "gallery_cameras"
            raise ValueError(f"{missing} is missing: {_BOTH_CAMERAS}")
        return cls(
            pairs,
            _labels(query_ids, "query_ids", q),
            _labels(gallery_ids, "gallery_ids", g),
            None if query_cameras is None else _labels(query_cameras, "query_cameras", q),
            None if gallery_cameras is None else _labels(gallery_cameras, "gallery_cameras", g),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Q, G."""
        return self.pairs.shape

    def spans(self, chunk: int | None, least: int = 1) -> Iterator[tuple[int, int]]:
        """Where the chunks of queries begin and end; their size is that of ``rows_per_chunk``."""
        q, g = self.shape
        step = rows_per_chunk(chunk, g, least)
        return ((start, min(start + step, q)) for start in range(0, q, step))

    def chunks(self, chunk: int | None) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """For each chunk of n queries: distances float [n, G] to write to, right matches and junk bool [n, G]."""
        for start, stop in self.spans(chunk):
            distance = self.pairs.rows(start, stop)
            bad = distance.isnan()
            if bool(bad.any()):
                row, column = bad.nonzero()[0].tolist()
                raise ValueError(nan_between(start + row, column))
            device = distance.device
            person = self.gallery_ids.to(device)
            right = self.query_ids[start:stop, None].to(device) == person
            nobody = person == -1
            if self.query_cameras is None or self.gallery_cameras is None:
                junk = nobody.expand_as(right).clone()
            else:
                junk = self.query_cameras[start:stop, None].to(device) == self.gallery_cameras.to(device)
                junk.logical_and_(right).logical_or_(nobody)
            yield distance, right.logical_and_(~junk), junk

    def why_unmatched(self) -> str:
        """Why no query at all may have a right match."""
        people = self.gallery_ids[self.gallery_ids != -1]
        common = torch.isin(self.query_ids, people)
        if not bool(common.any()):
            q, g = (", ".join(map(str, ids[:3].tolist())) for ids in (self.query_ids, self.gallery_ids))
            return (
                f"no query has a right match: query_ids ({q}, ...) and gallery_ids ({g}, ...) have no identity in "
                "common; check that both are numbered alike"
            )
        cameras = "each person's gallery entries are all from the camera of the query"
        if self.query_cameras is not None and self.gallery_cameras is not None:
            together = set(self.query_cameras.tolist()) | set(self.gallery_cameras.tolist())
            if len(together) == 1:
                cameras = f"query_cameras and gallery_cameras are {together.pop()} everywhere"
        return (
            f"no query has a right match: {cameras}, and same-camera matches are left out; where nobody knows the "
            "cameras leave that rule out: query_cameras=None, gallery_cameras=None, or mgran-fast evaluate --no-cameras"
        )


def nan_between(query: int, entry: int) -> str:
    """What is wrong with a distance that is no number, and what helps."""
    return (
        f"distances: NaN between query {query} and gallery entry {entry}; a NaN has no place in a list: look at the "
        "embeddings that it comes from"
    )


def _given(distances: Numbers) -> Pairs:
    """Rows of a matrix that exists; a memory-mapped one is read chunk by chunk."""
    is_array = isinstance(distances, (torch.Tensor, np.ndarray))
    matrix: Any = distances if is_array else as_tensor(distances, "distances")
    if matrix.ndim != 2:
        raise ValueError(f"distances must be [Q, G], not {list(matrix.shape)}")
    kind = as_tensor(matrix[:0], "distances")
    if not kind.is_floating_point():
        raise TypeError(f"distances must be floating point, not {kind.dtype}")
    dtype = torch.promote_types(kind.dtype, torch.float32)

    def values(start: int, stop: int) -> torch.Tensor:
        return as_tensor(matrix[start:stop], "distances").to(dtype).contiguous()

    return Pairs((matrix.shape[0], matrix.shape[1]), "distances", values, None, None, kind.device)


def _labels(values: Numbers, name: str, length: int) -> torch.Tensor:
    labels = as_tensor(values, name)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, not {labels.dtype}")
    if tuple(labels.shape) != (length,):
        side = "queries" if name.startswith("query") else "gallery entries"
        raise ValueError(f"{name} must be [{length}], one for each of the {side}, not {list(labels.shape)}")
    return labels.to("cpu", torch.int64)
