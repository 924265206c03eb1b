"""What explains a match: how near two pictures are in each part, and what each part adds to their distance.

An embedding is P parts of D numbers, one after the other; a part that a picture does not show is 0. With a the query,
b the match, and n(x) = x / |x|, the parts add up to the distance of the whole:

    Euclidean       d^2 = sum_p |a_p - b_p|^2
    cosine          d   = sum_p |a_p - b_p|^2 / 2             a and b brought to unit length
    common parts    d   = sum_p |n(a_p) - n(b_p)|^2 / V       over the V parts that both show; half of it for cosine

The last is :func:`mgran_fast.metrics.visible`. In the first two a part that only one of the two pictures shows has
nothing to be compared with, and adds its squared length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast.layouts import Layout

if TYPE_CHECKING:
    from mgran_fast.metrics.embedding import Embedded
    from mgran_fast.metrics.evaluation import Evaluation
    from mgran_fast.search.found import Found
    from mgran_fast.search.gallery import Gallery

#: Sums of squares below it are rounding, of which nobody wants to know the shares.
ROUNDING = 1e-9
#: What the page calls the input of all regions together.
WHOLE = "whole person"


@dataclass(frozen=True)
class Part:
    """A query and a match in one part of the layout.

    Attributes:
        name: :data:`WHOLE`, or the region.
        in_query, in_match: whether each of the two pictures shows it.
        distance: of this part alone, by the metric of the whole: 0 for the same direction, at most 2, or 4 for
            Euclidean distances of common parts, which are squared; None unless both pictures show it.
        share: of the distance of the whole, from 0 to 1; None where the part does not count, or nothing is apart.
    """

    name: str
    in_query: bool
    in_match: bool
    distance: float | None
    share: float | None


@dataclass(frozen=True)
class Comparison:
    """A query and a match in every part, the whole person first.

    Attributes:
        parts: one for each input of the layout.
        distance: of the whole, that the shares are of; 4 or 2, and no shares, where common parts are compared and there
            are none.
        reranked: whether the match has its place by another distance, which parts do not add up to.
    """

    parts: tuple[Part, ...]
    distance: float
    reranked: bool = False


def compare(
    query: torch.Tensor,
    gallery: torch.Tensor,
    query_visible: torch.Tensor,
    gallery_visible: torch.Tensor,
    layout: Layout,
    *,
    metric: str = "euclidean",
    visible: bool = False,
    reranked: bool = False,
) -> list[Comparison | None]:
    """A query and each of K matches, part by part.

    Args:
        query, gallery: floating point [P * D] and [K, P * D].
        query_visible, gallery_visible: bool [P] and [K, P].
        layout: what the P parts are called.
        metric: "euclidean" or "cosine".
        visible: whether common parts alone are compared.
        reranked: what the comparisons are to say.

    Returns:
        K comparisons; None throughout for a layout of one part, which explains nothing.

    Raises:
        ValueError: the embeddings do not have the parts of the layout.
    """
    names = (WHOLE, *layout.groups)
    count = len(names)
    if query_visible.shape != (count,) or gallery_visible.shape != (len(gallery), count) or len(query) % count:
        raise ValueError(
            f"layout {layout.name!r} has {count} parts; not those of {len(query)} numbers with visible "
            f"{list(query_visible.shape)} and {list(gallery_visible.shape)}: take the layout of the model"
        )
    if count == 1:
        return [None] * len(gallery)
    width = len(query) // count
    a, b = query.double().cpu().view(1, count, width), gallery.double().cpu().view(len(gallery), count, width)
    seen, shown = query_visible.bool().cpu(), gallery_visible.bool().cpu()
    both = seen & shown
    counts = both if visible else seen | shown
    own, adds = _apart(a, b, both, metric, visible)
    whole = adds.sum(1)
    shares = torch.where(whole > ROUNDING, 1 / whole, math.nan)[:, None] * adds
    if visible:
        # Without a common part, as far as can be.
        whole = whole.masked_fill(~both.any(1), 4.0 if metric == "euclidean" else 2.0)
    elif metric == "euclidean":
        whole = whole.sqrt()
    own, shares = own.masked_fill(~both, math.nan), shares.masked_fill(~counts, math.nan)

    def parts(k: int) -> tuple[Part, ...]:
        columns = zip(names, seen.tolist(), shown[k].tolist(), own[k].tolist(), shares[k].tolist(), strict=True)
        return tuple(Part(name, mine, theirs, _known(far), _known(share)) for name, mine, theirs, far, share in columns)

    return [Comparison(parts(k), float(whole[k]), reranked) for k in range(len(b))]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _apart(
    a: torch.Tensor, b: torch.Tensor, both: torch.Tensor, metric: str, visible: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of parts [1, P, D] and [K, P, D] each part's own distance, and what it adds to the whole, both [K, P]."""
    cosine = (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1)
    far = (1 - cosine).clamp(0, 2)
    if visible:
        own = far if metric == "cosine" else 2 * far
        return own, torch.where(both, own, 0) / both.sum(1, keepdim=True).clamp(min=1)
    if metric == "euclidean":
        return (2 * far).sqrt(), (a - b).square().sum(-1)
    a, b = (F.normalize(side.flatten(1), dim=1).view(side.shape) for side in (a, b))
    adds = (a - b).square().sum(-1) / 2
    for side in (a, b):
        # A zero vector is at distance 1 of everything; its parts are alike.
        adds = torch.where(side.flatten(1).any(1)[:, None], adds, adds + 0.5 / side.shape[1])
    return far, adds


def of_evaluation(evaluation: Evaluation, query: int, place: int, layout: Layout) -> Comparison | None:
    """A query of an evaluation and a picture of its gallery, by their places."""
    asked, held, rule, at = evaluation.query, evaluation.gallery, evaluation.rule, slice(place, place + 1)
    (found,) = compare(
        asked.vectors[query], held.vectors[at], asked.visible[query], held.visible[at], layout,
        metric=rule.metric, visible=rule.visible, reranked=rule.reranked,
    )  # fmt: skip
    return found


def of_search(
    gallery: Gallery, queries: Embedded, found: Found, layout: Layout, *, visible: bool = False
) -> list[list[Comparison | None]]:
    """For each query of a search what explains its entries, in their order.

    ``visible``: whether the search compared common parts. Without knowledge of what the gallery's pictures show, None
    throughout.
    """
    if gallery.visible is None:
        return [[None] * len(entries) for entries in found.entries]
    lists = []
    for query, seen, places in zip(queries.vectors, queries.visible, found.index, strict=True):
        at = torch.from_numpy(places[places >= 0])
        held = gallery.embeddings[at.to(gallery.device)], gallery.visible[at.to(gallery.device)]
        lists.append(compare(query, held[0], seen, held[1], layout, metric=gallery.metric, visible=visible))
    return lists
