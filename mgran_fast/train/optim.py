"""Optimizers, which parameters decay, and the schedule of the learning rate."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mgran_fast.ma.head import BNNeck, Classifiers
from mgran_fast.model import MGRAN
from mgran_fast.train.config import TrainConfig

#: Where torch has one kernel for a whole step.
FUSED = ("cpu", "cuda")


def build(
    model: MGRAN, loss: nn.Module, config: TrainConfig, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    """The optimizer of the parameters that are trained, and the schedule of its rates.

    Args:
        model: on the device that it is trained on. The estimator takes no part.
        loss: its parameters, if it has any, count as those of the head.
        steps: of the optimizer in the whole run, 1 or more.
    """
    optimizer = _optimizer(groups(model, loss, config), config, next(model.ma.parameters()).device.type)
    share: WarmupCosine | WarmupSteps
    if config.schedule == "steps":
        share = WarmupSteps(steps, config.warmup, [m / config.epochs for m in config.milestones], config.gamma)
    else:
        share = WarmupCosine(steps, config.warmup, config.floor)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def groups(model: MGRAN, loss: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Trunk and head, each with what decays and what does not; a group without parameters is left out.

    The weights of convolutions and of linear layers decay. Biases and norms do not: decaying them only shrinks what
    batch norm scales back.
    """
    found: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter, head, decays in _sorted(model, loss):
        found.setdefault((head, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.learning_rate * (config.head_rate if head else 1.0),
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (head, decays), parameters in sorted(found.items(), key=lambda item: item[0])
    ]


def _sorted(model: MGRAN, loss: nn.Module) -> Iterator[tuple[nn.Parameter, bool, bool]]:
    """Each parameter that is trained: whether it is of the head, and whether it decays."""
    seen: set[int] = set()
    for part in (model.ma, loss):
        # By layer, not by shape: a strategy that shards parameters makes vectors of all of them.
        for module in part.modules():
            layer = isinstance(module, (nn.Conv2d, nn.Linear, Classifiers))
            head = part is loss or isinstance(module, (BNNeck, Classifiers))
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter, head, layer and name.endswith("weight")


def _optimizer(parameters: list[dict[str, Any]], config: TrainConfig, device: str) -> torch.optim.Optimizer:
    # A fused step undoes the scaling of float16's gradients itself, so nobody can clip them before.
    fused = device in FUSED and not (config.precision == "f16" and config.clip)
    if config.optimizer == "sgd":
        momentum = config.momentum
        return torch.optim.SGD(
            parameters, lr=config.learning_rate, momentum=momentum, nesterov=momentum > 0, fused=fused
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=config.learning_rate, fused=fused)


class _Warmup:
    """The share of the learning rate at a step: rising linearly at first."""

    def __init__(self, steps: int, warmup: float) -> None:
        self.steps, self.rise = steps, math.ceil(warmup * steps)

    def __call__(self, step: int) -> float:
        after = self.after(step)
        return after * (step + 1) / self.rise if step < self.rise else after

    def after(self, step: int) -> float:
        """The share without the warm-up."""
        raise NotImplementedError


class WarmupCosine(_Warmup):
    """Rising linearly, then a half cosine down to a floor.

    Args:
        steps: of the whole run, 1 or more.
        warmup: the share of them that rises, in [0, 1).
        floor: what is left at the end, in [0, 1].
    """

    def __init__(self, steps: int, warmup: float, floor: float = 0.0) -> None:
        super().__init__(steps, warmup)
        self.floor = floor

    def after(self, step: int) -> float:
        progress = max(0, step - self.rise) / max(1, self.steps - self.rise)
        return self.floor + (1 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


class WarmupSteps(_Warmup):
    """Rising linearly, and multiplied by ``gamma`` at each milestone.

    Args:
        steps: of the whole run, 1 or more.
        warmup: the share of them that rises, in [0, 1).
        milestones: shares of the run, rising.
        gamma: positive.
    """

    def __init__(self, steps: int, warmup: float, milestones: list[float], gamma: float = 0.1) -> None:
        super().__init__(steps, warmup)
        self.places, self.gamma = [round(share * steps) for share in milestones], gamma

    def after(self, step: int) -> float:
        return float(self.gamma ** bisect.bisect_right(self.places, step))
