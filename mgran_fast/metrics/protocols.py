"""Ways to ask a gallery and to score the answer, and how each is told.

The rules of ranking are in `mgran_fast.metrics.ranking` (Market-1501) and `mgran_fast.metrics.shots` (single gallery
shot). Here is what comes before them, the vector of a multiple query, and the words for all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast.data.records import MARKET, SINGLE_GALLERY_SHOT, Record
from mgran_fast.metrics.distances import METRICS
from mgran_fast.metrics.hits import AP, TIES
from mgran_fast.metrics.rerank import K1, K2, WEIGHT

__all__ = ["AP_TEXT", "PROTOCOLS", "QUERIES", "Rule", "further", "merge"]

#: How a test set can be scored.
PROTOCOLS = (MARKET, SINGLE_GALLERY_SHOT)
#: What asks: a picture, or all pictures of a person by one camera.
QUERIES = ("single", "multiple")
#: The definitions of average precision in words.
AP_TEXT = dict(
    zip(
        AP,
        (
            "the mean precision at hits",
            "the area under the precision-recall curve in trapezoids, as the code of Market-1501 has it",
        ),
        strict=True,
    )
)


#: Distances and ties in words.
METRIC_TEXT = dict(zip(METRICS, ("Euclidean distance", "cosine distance"), strict=True))
TIES_TEXT = dict(
    zip(
        TIES,
        ("at one distance the earlier entry first", "at one distance wrong first", "at one distance right first"),
        strict=True,
    )
)


@dataclass(frozen=True)
class Rule:
    """How a test set is scored; all of it is told with the result.

    Attributes:
        protocol: one of :data:`PROTOCOLS`, as :class:`mgran_fast.data.DataSet` has it.
        queries: one of :data:`QUERIES`.
        ap, ties: the definition of average precision, and what comes first of entries at one distance, see
            :func:`mgran_fast.rank`. A single gallery shot has neither.
        metric: "euclidean" or "cosine".
        visible: compare part by part, those that both pictures show; see :func:`mgran_fast.metrics.visible`.
        flip: embed each picture and its mirror image, see :func:`mgran_fast.metrics.embedding.with_mirror`.
        reranked: by k-reciprocal neighbours, see :func:`mgran_fast.metrics.rerank`, with its own settings.
        cameras: leave out the pictures of the query's person by the query's camera. False for pictures of which
            nobody knows the camera.
        draws: of the single gallery shot; None takes the exact expectation.
        seed: of the draws.

    Raises:
        ValueError: an attribute is out of its range, or does not go with another.
    """

    protocol: str = MARKET
    queries: str = "single"
    ap: str = "hits"
    ties: str = "index"
    metric: str = "euclidean"
    visible: bool = False
    flip: bool = False
    reranked: bool = False
    cameras: bool = True
    draws: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        known = {"protocol": PROTOCOLS, "queries": QUERIES, "ap": AP, "ties": TIES, "metric": METRICS}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}, not {getattr(self, name)!r}")
        shot = self.protocol == SINGLE_GALLERY_SHOT
        if self.draws is not None and not (shot and self.draws >= 1):
            raise ValueError(
                f"draws must be at least 1, and only {SINGLE_GALLERY_SHOT} draws; not {self.draws} for {self.protocol}"
            )
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, not {self.seed}")
        if shot and self.ties != "index":
            raise ValueError(f"ties must be index for {SINGLE_GALLERY_SHOT}, not {self.ties}")
        if self.reranked and self.visible:
            raise ValueError("reranked and visible: re-ranking compares whole vectors; take one of the two")

    @property
    def has_ap(self) -> bool:
        """Whether the protocol has average precision: a single gallery shot has a list with one right picture."""
        return self.protocol != SINGLE_GALLERY_SHOT

    @property
    def text(self) -> str:
        """All of it in one line."""
        asks = (
            "each query ranks"
            if self.queries == "single"
            else "the mean vector of all pictures of a query's person by the query's camera ranks"
        )
        if self.flip:
            asks = f"vectors are means of a picture and its mirror image; {asks}"
        # The usual rule for ties goes without saying; the details have it.
        notes = [self._distance, *([TIES_TEXT[self.ties]] if self.ties != "index" else [])]
        less = "less the pictures of the same person by the same camera" if self.cameras else "whatever the camera"
        told = "; ".join([less, *notes])
        if not self.has_ap:
            how = "exact expectation over all draws" if self.draws is None else f"mean of {self.draws} draws"
            return (
                f"single gallery shot, {self.queries} query: {asks} one random picture of each gallery person, {told};"
                f" {how}; this protocol has no mAP"
            )
        return f"Market-1501 {self.queries} query: {asks} the whole gallery, {told}; AP is {AP_TEXT[self.ap]}"

    @property
    def _distance(self) -> str:
        text = METRIC_TEXT[self.metric]
        if self.visible:
            text += " of the parts that both pictures show"
        if self.reranked:
            text += f", re-ranked by k-reciprocal neighbours (k1 {K1}, k2 {K2}, weight of the distance {WEIGHT})"
        return text

    @property
    def details(self) -> dict[str, Any]:
        """The attributes for a program, None where the protocol has no such thing, and "rule", the text."""
        found = dataclasses.asdict(self)
        missing = ("draws", "seed") if self.has_ap else ("ap", "ties")
        found.update(dict.fromkeys(missing))
        if self.draws is None:
            found["seed"] = None
        return {**found, "rule": self.text}


def further(query: Sequence[Record], pictures: Sequence[Record]) -> list[Record]:
    """Those of ``pictures`` that show a query's person by the query's camera, in their order."""
    asked = {(record.person, record.camera) for record in query}
    return [record for record in pictures if (record.person, record.camera) in asked]


def merge(
    vectors: torch.Tensor, keys: torch.Tensor, pictures: torch.Tensor, picture_keys: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The vectors of multiple queries: the mean of the L2-normalised vectors of a query's pictures, normalised again.

    That is the rule of Market-1501's authors (Zheng et al., "Scalable Person Re-identification: A Benchmark", 2015).
    It holds for embeddings of parts in which the parts that a picture does not show are 0, with nothing added: gallery
    pictures have unit length, so that they are ranked by their mean dot product with the query's pictures, and in each
    of these products a part that either side does not show adds nothing, just as for a single query. A part thus
    weighs as much as the pictures are many that show it; to give a part that one picture of ten shows the weight of
    one that all show would trust it most where it was seen least.

    Args:
        vectors: float [Q, D], the queries' own.
        keys: int64 [Q, 2], person and camera of each query.
        pictures: float [N, D], of further pictures.
        picture_keys: int64 [N, 2], their persons and cameras.

    Returns:
        The vectors, float32 [Q, D]; of unit length or, where the mean is 0, 0. A query without pictures keeps its own.
        A picture whose vector is 0 adds nothing.
        How many pictures each query has, int64 [Q].
    """
    known, place = torch.unique(torch.cat([keys, picture_keys]), dim=0, return_inverse=True)
    of_query, of_picture = place[: len(keys)], place[len(keys) :]
    sums = torch.zeros(len(known), vectors.shape[1], dtype=torch.float64)
    sums.index_add_(0, of_picture, F.normalize(pictures.double(), dim=1))
    counts = torch.bincount(of_picture, minlength=len(known))
    means = F.normalize(sums / counts.clamp(min=1)[:, None], dim=1).float()
    asked = counts[of_query]
    return torch.where((asked > 0)[:, None], means[of_query], vectors.float()), asked
