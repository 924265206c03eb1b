"""Multi-feature Alignment (MA): aligned inputs -> one shared trunk -> each input pooled under its own region."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from mgran_fast import ops
from mgran_fast.layouts import Layout
from mgran_fast.ma.cuts import Cut
from mgran_fast.ma.head import BNNeck, Classifiers
from mgran_fast.ma.trunk import Trunk

#: How a person's inputs are made, see :class:`mgran_fast.MGRAN`.
SHAPES = ("full", "crop", "single")


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
        shape: full, crop or single. Joint statistics are those of one call of the trunk: of all inputs in the shape
            full, of each input for itself in crop, whose inputs have different sizes.
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
        shape: str = "full",
    ) -> None:
        super().__init__()
        if shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, not {shape!r}")
        if pooling not in ops.POOLING_MODES:
            raise ValueError(f"pooling must be one of {', '.join(ops.POOLING_MODES)}, not {pooling!r}")
        self.layout, self.pooling, self.shape = layout, pooling, shape
        inputs = len(layout.inputs)
        together = inputs if shape == "full" else 1
        self.trunk = Trunk(trunk, last_stride=last_stride, inputs=together, statistics=statistics)
        self.neck = BNNeck(inputs, self.trunk.dim)
        self.classifiers = Classifiers(inputs, self.trunk.dim, num_classes) if num_classes else None
        self.register_buffer("region", torch.arange(inputs), persistent=False)

    def forward(self, inputs: torch.Tensor, region_map: torch.Tensor, cuts: Sequence[Cut] = ()) -> MAOutput:
        """Embed N people.

        Args:
            inputs: of :func:`mgran_fast.ops.inputs`: [N, P, 3, H, W] for the shape full, [N, 1, 3, H, W], the whole
                person alone, for crop and single.
            region_map: uint8 [N, H, W].
            cuts: for the shape crop, of region 1, 2, ... (:meth:`mgran_fast.MGRAN.cuts`).
        """
        visible = ops.visibility(region_map, self.layout)
        if cuts:
            # A region of a few pixels may vanish where it is cut out and made smaller.
            left = torch.stack([(part.region_map > 0).flatten(1).any(1) for part in cuts], 1)
            visible = torch.cat((visible[:, :1], visible[:, 1:] & left), 1)
        # Sizes, not len(): torch.export leaves the number of people open.
        if inputs.shape[0] == 0:
            # No convolution takes an empty batch on every backend.
            features = inputs.new_zeros((0, len(self.region), self.trunk.dim))
        elif self.shape == "full":
            features = self._pooled(inputs.flatten(0, 1), region_map, self.region)
        elif self.shape == "single":
            maps = self.trunk(inputs.flatten(0, 1))
            features = torch.stack(
                [ops.pooling(maps, region_map, region.repeat(maps.shape[0]), self.pooling) for region in self.region], 1
            )
        else:
            whole = self._pooled(inputs.flatten(0, 1), region_map, self.region[:1])
            parts = [
                self._pooled(part.inputs, part.region_map, self.region[i : i + 1]) for i, part in enumerate(cuts, 1)
            ]
            features = torch.cat([whole, *parts], 1)
        embeddings = self.neck(features, visible)
        logits = None if self.classifiers is None else self.classifiers(embeddings)
        return MAOutput(features, embeddings, logits, visible)

    def _pooled(self, images: torch.Tensor, region_map: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """images [N * r, 3, h, w], each pooled under its own of r regions -> [N, r, D]."""
        people = region_map.shape[0]
        pooled = ops.pooling(self.trunk(images), region_map, regions.repeat(people), self.pooling)
        return pooled.view(people, len(regions), -1)
