"""Ways to ask a gallery and to score the answer, and how each is told.

The rules of ranking are in `mgran_fast.metrics.ranking` (Market-1501) and `mgran_fast.metrics.shots` (single gallery
shot). Here is what comes before them, the vector of a multiple query, and the words for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast.data.records import MARKET, SINGLE_GALLERY_SHOT, Record
from mgran_fast.metrics.hits import AP
from mgran_fast.metrics.rerank import K1, K2, WEIGHT

__all__ = ["AP_TEXT", "PROTOCOLS", "QUERIES", "describe", "further", "merge"]

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


def describe(
    protocol: str, queries: str = "single", ap: str = "hits", draws: int | None = None, reranked: bool = False
) -> str:
    """One line that says what was measured and how.

    Args:
        protocol: one of :data:`PROTOCOLS`.
        queries: one of :data:`QUERIES`.
        ap: the definition of average precision, a key of :data:`AP_TEXT`.
        draws: of the single gallery shot; None for the exact expectation.
        reranked: whether :func:`mgran_fast.metrics.rerank` had a say in the distances, with its own settings.
    """
    asks = (
        "each query ranks"
        if queries == "single"
        else "the mean vector of all pictures of a query's person by the query's camera ranks"
    )
    less = "less the pictures of the same person by the same camera; Euclidean distance"
    if reranked:
        less += f", re-ranked by k-reciprocal neighbours (k1 {K1}, k2 {K2}, weight of the distance {WEIGHT})"
    if protocol == SINGLE_GALLERY_SHOT:
        how = "exact expectation over all draws" if draws is None else f"mean of {draws} draws"
        return (
            f"single gallery shot, {queries} query: {asks} one random picture of each gallery person, {less}; {how};"
            " this protocol has no mAP"
        )
    return f"Market-1501 {queries} query: {asks} the whole gallery, {less}; AP is {AP_TEXT[ap]}"
