"""The trunk: one ResNet whose weights all aligned inputs share, run over all of them in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import nn

from mgran_fast.errors import CheckpointError

#: Trunks by name; each is torchvision's network of that name without its classifier, with the same keys.
TRUNKS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
STATISTICS = ("joint", "per_input")


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over a batch that holds P inputs of each person, person after person: [N * P, C, h, w].

    With ``statistics="joint"`` the whole batch gives one mean and variance. With ``"per_input"`` each input
    has those of its own N rows, and the running averages are updated P times, input after input: exactly what
    P calls of one shared network do. In eval mode both are the same.
    """

    inputs: int = 1
    statistics: str = "joint"

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.statistics == "joint" or self.inputs == 1 or not self.training:
            return super().forward(input)
        groups = input.unflatten(0, (-1, self.inputs)).unbind(1)
        # Each input is copied together first: batch norm's fast kernels want a dense batch.
        normed = [super(SharedBatchNorm2d, self).forward(_dense(group, input)) for group in groups]
        if normed[0].is_contiguous(memory_format=torch.channels_last):
            # torch.stack answers in the standard layout; stacked with the channels innermost, they stay there.
            rows = torch.stack([group.permute(0, 2, 3, 1) for group in normed], 1)
            return rows.flatten(0, 1).permute(0, 3, 1, 2)
        return torch.stack(normed, 1).flatten(0, 1)


def _dense(group: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    channels_last = like.is_contiguous(memory_format=torch.channels_last)
    return group.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class Trunk(nn.Module):
    """torchvision's ResNet up to its last feature map, with the same parameter names.

    Args:
        name: one of :data:`TRUNKS`.
        last_stride: stride of the last stage: 1 (the default, as ReID uses it: a feature map twice as fine)
            or 2 (torchvision's).
        inputs: P, the number of inputs of a person in a batch, for ``per_input`` statistics.
        statistics: joint or per_input (:class:`SharedBatchNorm2d`).
    """

    def __init__(
        self, name: str = "resnet50", *, last_stride: int = 1, inputs: int = 1, statistics: str = "joint"
    ) -> None:
        super().__init__()
        if name not in TRUNKS:
            raise ValueError(f"trunk must be one of {', '.join(TRUNKS)}, not {name!r}")
        if last_stride not in (1, 2):
            raise ValueError(f"last_stride must be 1 or 2, not {last_stride!r}")
        if statistics not in STATISTICS:
            raise ValueError(f"statistics must be one of {', '.join(STATISTICS)}, not {statistics!r}")
        resnet = getattr(torchvision.models, name)(weights=None, norm_layer=SharedBatchNorm2d, zero_init_residual=True)
        #: D, the number of channels of the last feature map.
        self.dim: int = resnet.fc.in_features
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (getattr(resnet, f"layer{i}") for i in (1, 2, 3, 4))
        if last_stride == 1:
            block = resnet.layer4[0]
            block.downsample[0].stride = (1, 1)
            # A bottleneck strides in its 3x3 convolution, a basic block in its first.
            (block.conv2 if hasattr(block, "conv3") else block.conv1).stride = (1, 1)
        for module in self.modules():
            if isinstance(module, SharedBatchNorm2d):
                module.inputs, module.statistics = inputs, statistics
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images [B, 3, H, W] -> features [B, D, H/16, W/16] (H/32 with last_stride 2)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        features: torch.Tensor = x
        return features

    def load_torchvision(self, state: Mapping[str, Any]) -> None:
        """Load a torchvision ResNet state dict; its classifier (``fc.*``) is left out.

        Raises CheckpointError when a key is missing, unknown or of another shape.
        """
        own = self.state_dict()
        for key, value in state.items():
            if not isinstance(key, str) or not isinstance(value, torch.Tensor):
                raise CheckpointError(f"not a state dict: {key!r} is a {type(value).__name__}, not a named tensor")
        given = {key: value for key, value in state.items() if not key.startswith("fc.")}
        # Checkpoints from before torch 0.4.1 lack these counters, and nothing depends on them.
        missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
        unknown = [key for key in given if key not in own]
        other = [key for key in given if key in own and own[key].shape != given[key].shape]
        for problem, keys in (("lacks", missing), ("has the unknown key", unknown), ("has another shape in", other)):
            if keys:
                raise CheckpointError(f"not weights of this trunk: the checkpoint {problem} {keys[0]} ({len(keys)} so)")
        self.load_state_dict(given, strict=False)
