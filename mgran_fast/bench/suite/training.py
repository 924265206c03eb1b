"""A training step: ours, eager modules, torch.compile, and four float32 passes. Losses and AdamW are included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from mgran_fast import ops
from mgran_fast.bench.case import OURS, Case, Prepared, Setting, Sizes, best_precision
from mgran_fast.data.synthetic import render
from mgran_fast.model import MGRAN

WHOLE, FOUR = "ours, whole images", "four eager float32 passes"
EAGER, COMPILED = "eager, bfloat16", "torch.compile, bfloat16"
#: Where bfloat16 would be emulated, ours and its peers compute in float32.
IN_FLOAT32 = {EAGER: "eager, float32", COMPILED: "torch.compile, float32"}
CLASSES = 751
NEEDS = ("pytorch_metric_learning",)

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def cases(sizes: Sizes, *, quick: bool, device: str) -> list[Case]:
    """One race: the contestants compute the same losses, ours in bfloat16 where the device has instructions for it."""
    half = best_precision(device) == "bfloat16"
    general = [name if half else IN_FLOAT32[name] for name in ([EAGER] if quick else [EAGER, COMPILED])]
    return [
        Case("training", "training step", (OURS, *general, FOUR), _steps(half), {"people": 2 * (sizes.people // 2)},
             needs=NEEDS, rounds=(1, 1, 3) if quick else (1, 3, 5))
    ]  # fmt: skip


def _steps(half: bool) -> Callable[[Setting, Sequence[str]], Prepared]:
    kinds = {own: kind for kind, own in IN_FLOAT32.items()}

    def make(setting: Setting, names: Sequence[str]) -> Prepared:
        people, model = 2 * (setting.sizes.people // 2), setting.model
        given = batch(people, model.size, setting.device)
        about: dict[str, Any] = {"trunk": model.config["trunk"], "size": model.size, "device": setting.device}
        steps = {name: step_of(kinds.get(name, name), given, half=half, **about) for name in names}
        return Prepared(steps, lambda ours, theirs: abs(theirs / ours - 1) < 0.02, people)

    return make


class PlainTrunk(nn.Module):
    """The same modules, called one by one as torchvision does."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.dim = trunk, trunk.dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        t: Any = self.trunk
        x = t.maxpool(t.relu(t.bn1(t.conv1(images))))
        features: torch.Tensor = t.layer4(t.layer3(t.layer2(t.layer1(x))))
        return features


class FourPasses(nn.Module):
    """As published, to the letter: each of the four inputs goes through the shared network by itself."""

    def __init__(self, trunk: nn.Module, inputs: int) -> None:
        super().__init__()
        self.trunk, self.inputs, self.dim = PlainTrunk(trunk), inputs, trunk.dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        groups = images.unflatten(0, (-1, self.inputs)).unbind(1)
        return torch.stack([self.trunk(group.contiguous()) for group in groups], 1).flatten(0, 1)


def model_of(kind: str, trunk: str = "resnet50", size: tuple[int, int] = (256, 128)) -> MGRAN:
    """A model of 751 people in training mode, the same weights for each kind of step."""
    torch.manual_seed(0)
    model = MGRAN(CLASSES, size=size, trunk=trunk).train()
    ma: Any = model.ma
    body = ma.trunk
    if kind.startswith(OURS):
        body.recompute, body.distinct = True, kind == OURS
    elif kind == FOUR:
        ma.trunk = FourPasses(body.to(memory_format=torch.contiguous_format), 1 + model.layout.regions)
    else:
        ma.trunk = PlainTrunk(body)
        if kind == COMPILED:
            torch.compiler.reset()
            ma.trunk.compile()
    return model


def batch(people: int, size: tuple[int, int], device: torch.device | str = "cpu") -> Batch:
    """Crops, region maps and labels of drawn people: four pictures of each, or two where there are fewer than eight."""
    pictures = 4 if people >= 8 else 2
    views = [render(i // pictures, 0, i % pictures, size=size) for i in range(people)]
    crops, masks, keypoints = (
        torch.stack([torch.from_numpy(getattr(view, name)) for view in views]) for name in ("crop", "mask", "keypoints")
    )
    found = crops, ops.regions(masks, keypoints, size), torch.arange(people) // pictures
    return found[0].to(device), found[1].to(device), found[2].to(device)


def step_of(
    kind: str,
    given: Batch,
    *,
    trunk: str = "resnet50",
    size: tuple[int, int] = (256, 128),
    device: torch.device | str = "cpu",
    half: bool = True,
) -> Callable[[], float]:
    """What takes one step, and tells the loss before it; in bfloat16, but for four passes and without ``half``."""
    from mgran_fast.ma import MAOutput
    from mgran_fast.train.config import TrainConfig
    from mgran_fast.train.losses import build

    model = model_of(kind, trunk, size).to(device)
    loss = build(TrainConfig(), CLASSES, 1 + model.layout.regions, model.ma.trunk.dim).to(device)
    # So slow that contestants stay comparable for many steps.
    optimizer = torch.optim.AdamW(model.ma.parameters(), lr=1e-6, fused=True)
    crops, region_maps, labels = given

    def step() -> float:
        whole = kind == FOUR or not half
        with nullcontext() if whole else torch.autocast(torch.device(device).type, torch.bfloat16):
            output = model(crops, region_map=region_maps)
        assert isinstance(output, MAOutput)
        losses = loss(output, labels)
        total = losses.identity + losses.metric
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(total.detach())

    return step
