"""A ResNet-18 with few channels: what a run writes and reads does not depend on how many there are."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

WIDTHS = (8, 8, 16, 24, 32)


class Narrow(nn.Module):
    """torchvision's ResNet-18 by the names of its parts."""

    def __init__(self, norm_layer: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 7, 2, 3, bias=False)
        self.bn1 = norm_layer(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for i, (before, width) in enumerate(itertools.pairwise(WIDTHS), 1):
            stride = 1 if i == 1 else 2
            shortcut = None
            if stride > 1:
                shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), norm_layer(width))
            first = BasicBlock(before, width, stride, shortcut, norm_layer=norm_layer)
            second = BasicBlock(width, width, norm_layer=norm_layer)
            setattr(self, f"layer{i}", nn.Sequential(first, second))
        self.fc = nn.Linear(WIDTHS[-1], 1)


def narrow(weights: None = None, norm_layer: Any = nn.BatchNorm2d, zero_init_residual: bool = True) -> Narrow:
    """In place of ``torchvision.models.resnet18``."""
    network = Narrow(norm_layer)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif zero_init_residual and isinstance(module, BasicBlock):
            assert isinstance(module.bn2.weight, torch.Tensor)
            nn.init.zeros_(module.bn2.weight)
    return network
