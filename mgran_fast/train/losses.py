"""The losses of MA, each taken over the people whose input is visible, then averaged over the inputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from mgran_fast.ma import MAOutput
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.metric_losses import MetricLoss, circle, triplet
from mgran_fast.train.oim import OIMLoss

__all__ = ["CrossEntropy", "Losses", "MetricLoss", "OIMLoss", "RegionLoss", "build", "circle", "triplet"]


class Losses(NamedTuple):
    """Scalars, not weighted: identity loss, metric loss, and the share of right identities in [0, 1]."""

    identity: torch.Tensor
    metric: torch.Tensor
    accuracy: torch.Tensor


def build(config: TrainConfig, classes: int, inputs: int, dim: int) -> RegionLoss:
    """The losses that the settings name, for K classes, P inputs and D numbers an embedding."""
    identity = (
        OIMLoss(classes, inputs, dim, temperature=config.oim_temperature, momentum=config.oim_momentum)
        if config.identity_loss == "oim"
        else CrossEntropy(config.label_smoothing)
    )
    metric: MetricLoss | None = None
    if config.metric_loss == "triplet":
        metric = triplet(config.margin)
    elif config.metric_loss == "soft_triplet":
        metric = triplet(0.0, soft=True)
    elif config.metric_loss == "circle":
        metric = circle(config.circle_margin, config.circle_scale)
    return RegionLoss(identity, metric)


class CrossEntropy(nn.Module):
    """Cross-entropy of each input's logits, with label smoothing (Szegedy et al. 2016), in [0, 1)."""

    def __init__(self, label_smoothing: float = 0.1) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, output: MAOutput, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss and the scores of the classes: [N, P] and [N, P, K]."""
        if output.logits is None:
            raise ValueError("the model has no classifiers: build it with num_classes")
        scores = output.logits.float()
        losses = F.cross_entropy(
            scores.flatten(0, 1),
            labels[:, None].expand(scores.shape[:2]).flatten(),
            label_smoothing=self.label_smoothing,
            reduction="none",
        )
        return losses.view(scores.shape[:2]), scores


class RegionLoss(nn.Module):
    """An identity loss and a metric loss over the people of a batch, on all ranks.

    An input that fewer than two people of the batch show takes no part. Nothing here waits for the device.

    Args:
        identity: :class:`CrossEntropy` or :class:`OIMLoss`.
        metric: on the features before the BNNeck; None for none.
    """

    def __init__(self, identity: CrossEntropy | OIMLoss, metric: MetricLoss | None) -> None:
        super().__init__()
        self.identity, self.metric = identity, metric

    def forward(self, output: MAOutput, labels: torch.Tensor) -> Losses:
        """output of the model in train mode for N people, labels int64 [N] in [0, K)."""
        seen = output.visible
        # Autocast would put the products of the distances into 16 bits.
        with torch.autocast(seen.device.type, enabled=False):
            count = seen.sum(0)
            shown = (count > 1).float()
            losses, scores = self.identity(output, labels)
            identity = _mean((_masked(losses, seen).sum(0) / count.clamp(min=1)), shown)
            right = (scores.argmax(-1) == labels[:, None]) & seen
            accuracy = _mean(right.sum(0) / count.clamp(min=1), shown)
            metric = identity.new_zeros(())
            if self.metric is not None:
                features = _masked(output.features.float(), seen[..., None])
                of_input = [self.metric(features[:, p], labels, seen[:, p]) for p in range(seen.shape[1])]
                metric = _mean(torch.stack(of_input), shown)
        return Losses(identity, metric, accuracy)


def _masked(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """0, and no gradient, where it is False, whatever stood there."""
    return torch.where(where, values, values.new_zeros(()))


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return _masked(values, weights > 0).sum() / weights.sum().clamp(min=1)
