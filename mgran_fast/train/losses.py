"""The losses of MA, each taken over the people whose input is visible, then averaged over the inputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import nn

from mgran_fast.ma import MAOutput


class Losses(NamedTuple):
    """Scalars: identity cross-entropy, batch-hard triplet, and the share of right identities in [0, 1]."""

    identity: torch.Tensor
    triplet: torch.Tensor
    accuracy: torch.Tensor


class RegionLoss(nn.Module):
    """Identity cross-entropy with label smoothing, and the batch-hard triplet loss (Hermans et al. 2017).

    Args:
        label_smoothing: in [0, 1).
        margin: of the triplet loss, on Euclidean distances of L2-normalised features (which are what is ranked).
    """

    def __init__(self, label_smoothing: float = 0.1, margin: float = 0.3) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        distance = LpDistance(normalize_embeddings=True, p=2)
        self.miner = BatchHardMiner(distance=distance)
        self.triplet = TripletMarginLoss(margin=margin, distance=distance)

    def forward(self, output: MAOutput, labels: torch.Tensor) -> Losses:
        """output of the model in train mode, labels int64 [N]."""
        if output.logits is None:
            raise ValueError("the model has no classifiers: build it with num_classes")
        identity, triplet, right = [], [], []
        for p in range(output.features.shape[1]):
            seen = output.visible[:, p]
            chosen = labels[seen]
            # A region that nobody in the batch shows, or one person alone, teaches nothing.
            if len(chosen) < 2:
                continue
            logits, features = output.logits[seen, p].float(), output.features[seen, p].float()
            identity.append(F.cross_entropy(logits, chosen, label_smoothing=self.label_smoothing))
            triplet.append(self.triplet(features, chosen, self.miner(features, chosen)))
            right.append((logits.argmax(1) == chosen).float().mean())
        if not identity:
            zero = output.logits.sum() * 0.0
            return Losses(zero, zero, zero.detach())
        return Losses(torch.stack(identity).mean(), torch.stack(triplet).mean(), torch.stack(right).mean())
