"""Multi-feature Alignment (MA): aligned inputs -> one shared trunk -> each input pooled under its own region."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from mgran_fast import ops
from mgran_fast.layouts import Layout
from mgran_fast.ma.head import BNNeck, Classifiers
from mgran_fast.ma.trunk import Trunk


class MAOutput(NamedTuple):
    """What MA says of N people; P = 1 + R inputs, the whole person first.

    Attributes:
        features: [N, P, D] pooled trunk features, before the BNNeck: for metric losses.
        embeddings: float32 [N, P, D], after the BNNeck: for ranking.
        logits: [N, P, K] identity logits, or None without classes.
        visible: bool [N, P]; an input that is not visible is 0 in all of the above.
    """

    features: torch.Tensor
    embeddings: torch.Tensor
    logits: torch.Tensor | None
    visible: torch.Tensor


class MA(nn.Module):
    """The trainable half of MGRAN.

    Args:
        layout: the body layout; R = layout.regions.
        num_classes: K, the number of training identities; 0 for a network without classifiers.
        trunk: the name of the trunk.
        last_stride: of the trunk.
        statistics: training statistics of the trunk's batch norm: joint or per_input.
        pooling: mean, max or gem.
    """

    region: torch.Tensor

    def __init__(
        self,
        layout: Layout,
        num_classes: int = 0,
        *,
        trunk: str = "resnet50",
        last_stride: int = 1,
        statistics: str = "joint",
        pooling: str = "mean",
    ) -> None:
        super().__init__()
        if pooling not in ops.POOLING_MODES:
            raise ValueError(f"pooling must be one of {', '.join(ops.POOLING_MODES)}, not {pooling!r}")
        self.layout, self.pooling = layout, pooling
        inputs = len(layout.inputs)
        self.trunk = Trunk(trunk, last_stride=last_stride, inputs=inputs, statistics=statistics)
        self.neck = BNNeck(inputs, self.trunk.dim)
        self.classifiers = Classifiers(inputs, self.trunk.dim, num_classes) if num_classes else None
        self.register_buffer("region", torch.arange(inputs), persistent=False)

    def forward(self, inputs: torch.Tensor, region_map: torch.Tensor) -> MAOutput:
        """inputs [N, P, 3, H, W] (:func:`mgran_fast.ops.inputs`), region_map uint8 [N, H, W]."""
        people, count = inputs.shape[:2]
        visible = ops.visibility(region_map, self.layout)
        if people == 0:
            # No convolution takes an empty batch on every backend.
            features = inputs.new_zeros((0, count, self.trunk.dim))
        else:
            maps = self.trunk(inputs.flatten(0, 1))
            pooled = ops.pooling(maps, region_map, self.region.repeat(people), self.pooling)
            features = pooled.unflatten(0, (people, count))
        embeddings = self.neck(features, visible)
        logits = None if self.classifiers is None else self.classifiers(embeddings)
        return MAOutput(features, embeddings, logits, visible)
