"""A trunk as a list of steps, batch norm folded: what every executor of the engine runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mgran_fast.ma.trunk import Trunk
from mgran_fast.mra.folding import fold
from mgran_fast.ops.conv import Tap


@dataclass(frozen=True)
class Source:
    """What a convolution reads: a layer, the geometry, and float32 weights [D, C, k, k]."""

    layer: int
    tap: Tap
    weight: torch.Tensor


@dataclass(frozen=True)
class Convolution:
    """relu(sum of the sources' convolutions + bias + residual).

    Attributes:
        sources: one, or two where a block ends in the sum of its last convolution and that of its shortcut.
        bias: float32 [D].
        residual: the layer that is added, or None.
    """

    sources: tuple[Source, ...]
    bias: torch.Tensor
    residual: int | None = None

    @property
    def channels(self) -> int:
        return len(self.bias)


@dataclass(frozen=True)
class MaxPool:
    """The maximum over the cells of a kernel; layers are never negative, so zeros around them change nothing."""

    layer: int
    tap: Tap


Step = Convolution | MaxPool


@dataclass(frozen=True)
class Program:
    """Steps in the order of their execution. Layer 0 is the input [B, 3, H, W]; step i makes layer i + 1.

    Every layer but the input follows a ReLU. The last layer holds the features.
    """

    steps: tuple[Step, ...]

    def layers(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(h, w, channels) of every layer for inputs of (H, W) pixels."""
        shapes = [(*size, 3)]
        for step in self.steps:
            if isinstance(step, MaxPool):
                h, w, channels = shapes[step.layer]
                shapes.append((*step.tap.grid((h, w)), channels))
            else:
                first = step.sources[0]
                h, w, _ = shapes[first.layer]
                shapes.append((*first.tap.grid((h, w)), step.channels))
        return shapes

    def multiply_adds(self, size: tuple[int, int]) -> int:
        """Of one dense image of (H, W) pixels."""
        shapes = self.layers(size)
        return sum(
            shapes[i + 1][0] * shapes[i + 1][1] * source.weight.numel()
            for i, step in enumerate(self.steps)
            if isinstance(step, Convolution)
            for source in step.sources
        )


def program(trunk: Trunk) -> Program:
    """The steps of a trunk in eval mode, which is not changed; weights are copies.

    A block's last convolution takes the shortcut in: as a residual, or as its second source where the shortcut is a
    convolution itself.
    """
    stem, bias = _source(0, trunk.conv1, trunk.bn1)
    steps: list[Step] = [Convolution((stem,), bias)]
    pool = trunk.maxpool
    steps.append(MaxPool(1, Tap(pool.kernel_size, pool.stride, pool.padding)))
    for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
        for block in stage:
            entry = len(steps)
            convolutions = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
            if hasattr(block, "conv3"):
                convolutions.append((block.conv3, block.bn3))
            for convolution, norm in convolutions[:-1]:
                source, bias = _source(len(steps), convolution, norm)
                steps.append(Convolution((source,), bias))
            source, bias = _source(len(steps), *convolutions[-1])
            if block.downsample is None:
                steps.append(Convolution((source,), bias, entry))
            else:
                shortcut, more = _source(entry, *block.downsample)
                steps.append(Convolution((source, shortcut), bias + more))
    return Program(tuple(steps))


def _source(layer: int, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Source, torch.Tensor]:
    weight, bias = fold(convolution, norm)
    tap = Tap(convolution.kernel_size[0], convolution.stride[0], int(convolution.padding[0]))
    return Source(layer, tap, weight.float().cpu()), bias.float().cpu()
