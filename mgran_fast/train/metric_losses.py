"""pytorch-metric-learning's losses over triplets and pairs, for batches in which some people do not show an input.

The library gathers triplets and pairs by boolean masks, and each of these waits for the device. Here all people stay in
the batch, and those who count are told apart at the end: by the library's own places for that, a tuple of indices and a
reducer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import CircleLoss, TripletMarginLoss
from pytorch_metric_learning.reducers import BaseReducer
from torch import nn


def triplet(margin: float = 0.3, *, soft: bool = False) -> MetricLoss:
    """The batch-hard triplet loss (Hermans et al., arXiv:1703.07737) on Euclidean distances of unit vectors.

    For each person with a positive and a negative in the batch ``max(0, margin + furthest positive - nearest
    negative)``, or with ``soft`` ``log(1 + exp(...))`` of it; averaged over those where it is not 0.
    """
    distance = LpDistance(normalize_embeddings=True, p=2)
    return MetricLoss(
        TripletMarginLoss(margin=margin, smooth_loss=soft, distance=distance, reducer=_NonZero()), hardest=True
    )


def circle(margin: float = 0.25, scale: float = 128.0) -> MetricLoss:
    """The circle loss (Sun et al., CVPR 2020, equation 6) on cosine similarities, averaged over people.

    Args:
        margin: m; how far from 1 and 0 the similarities of the same and of other people may stay.
        scale: gamma.
    """
    return MetricLoss(_Circle(m=margin, gamma=scale, reducer=_NonZero()), hardest=False)


class MetricLoss(nn.Module):
    """A loss of pytorch-metric-learning over those people of a batch who are seen.

    Args:
        loss: takes a tuple of indices: (anchors, positives, negatives) of triplets if ``hardest``, else two masks.
    """

    def __init__(self, loss: TripletMarginLoss | _Circle, *, hardest: bool) -> None:
        super().__init__()
        self.loss, self.hardest = loss, hardest

    def forward(self, features: torch.Tensor, labels: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """features float32 [N, D] before normalisation, labels int64 [N], seen bool [N] -> scalar."""
        same = labels[:, None] == labels
        both = seen[:, None] & seen
        others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        positive, negative = same & both & others, ~same & both
        chosen: Any = (positive, negative)
        if self.hardest:
            with torch.no_grad():
                chosen = _hardest(self.loss.distance(features), positive, negative)
        value: torch.Tensor = self.loss(features, labels, chosen)
        return value


def _hardest(
    distances: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each row with its furthest positive and its nearest negative; one who has none of these is its own."""
    rows = torch.arange(len(distances), device=distances.device)
    furthest = distances.masked_fill(~positive, -torch.inf).argmax(1)
    nearest = distances.masked_fill(~negative, torch.inf).argmin(1)
    return (
        rows,
        torch.where(positive.any(1), furthest, rows),
        torch.where(negative.any(1), nearest, rows),
    )


class _Circle(CircleLoss):  # type: ignore[misc]
    """The library's circle loss over masks of pairs [N, N] rather than over indices of pairs."""

    def compute_loss(
        self,
        embeddings: torch.Tensor,
        labels: torch.Tensor,
        indices_tuple: tuple[torch.Tensor, torch.Tensor],
        ref_emb: torch.Tensor,
        ref_labels: torch.Tensor,
    ) -> dict[str, Any]:
        positive, negative = indices_tuple
        similarity = self.distance(embeddings, ref_emb)
        weight = torch.relu(self.op - similarity.detach())
        attract = _logsumexp(-self.gamma * weight * (similarity - self.delta_p), positive)
        weight = torch.relu(similarity.detach() - self.on)
        repel = _logsumexp(self.gamma * weight * (similarity - self.delta_n), negative)
        both = positive.any(1) & negative.any(1)
        losses = torch.where(both, F.softplus(attract + repel), 0.0)
        rows = torch.arange(len(losses), device=losses.device)
        return {"loss": {"losses": losses, "indices": rows, "reduction_type": "element"}}


def _logsumexp(values: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Over the chosen of each row; a finite number for a row without any, so that its gradient is none."""
    return values.masked_fill(~chosen, torch.finfo(values.dtype).min / 4).logsumexp(1)


class _NonZero(BaseReducer):  # type: ignore[misc]
    """The mean of the losses above 0, as the library's default, by a mask; 0 where there is none."""

    def element_reduction(
        self, losses: torch.Tensor, loss_indices: Any, embeddings: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        kept = losses > 0
        return torch.where(kept, losses, 0.0).sum() / kept.sum().clamp(min=1)

    def triplet_reduction(
        self, losses: torch.Tensor, loss_indices: Any, embeddings: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        anchor, positive, negative = loss_indices
        whole = (anchor != positive) & (anchor != negative)
        return self.element_reduction(torch.where(whole, losses, 0.0), loss_indices, embeddings, labels)
