"""One contestant of test_training.py, in a process of its own: python training_worker.py KIND THREADS MEMORY.

For each line "step" of its input it takes a training step and answers with the loss; for "peak" with the most memory
that the process ever had, and for "base" with what it had before the first step, in kB.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from mgran_fast import MGRAN, ops
from mgran_fast.ma import MAOutput
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.losses import build
from mgran_fast.train.memory import keep

OURS, WHOLE, EAGER, COMPILED, FOUR = (
    "ours", "ours, whole images", "eager bf16", "torch.compile bf16", "four eager float32 passes",
)  # fmt: skip
CLASSES, PEOPLE, SIZE = 751, 8, (256, 128)


class PlainTrunk(nn.Module):
    """The same modules, called one by one as torchvision does."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.dim = trunk, trunk.dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        t = self.trunk
        x = t.maxpool(t.relu(t.bn1(t.conv1(images))))
        return t.layer4(t.layer3(t.layer2(t.layer1(x))))


class FourPasses(nn.Module):
    """As published, to the letter: each of the four inputs goes through the shared network by itself."""

    def __init__(self, trunk: nn.Module, inputs: int) -> None:
        super().__init__()
        self.trunk, self.inputs, self.dim = PlainTrunk(trunk), inputs, trunk.dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        groups = images.unflatten(0, (-1, self.inputs)).unbind(1)
        return torch.stack([self.trunk(group.contiguous()) for group in groups], 1).flatten(0, 1)


def model_of(kind: str) -> MGRAN:
    torch.manual_seed(0)
    model = MGRAN(CLASSES, size=SIZE).train()
    trunk = model.ma.trunk
    if kind.startswith(OURS):
        trunk.recompute, trunk.distinct = True, kind == OURS
    elif kind == FOUR:
        model.ma.trunk = FourPasses(trunk.to(memory_format=torch.contiguous_format), 4)
    else:
        model.ma.trunk = PlainTrunk(trunk)
        if kind == COMPILED:
            model.ma.trunk.compile()
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four pictures of each of two people: crops, region maps, labels. Real ones with MGRAN_DATA, else synthetic."""
    labels = torch.arange(PEOPLE) // 4
    root = os.environ.get("MGRAN_DATA")
    if root:
        from mgran_fast.data import CropDataset, read_market
        from mgran_fast.data.masks import MaskFiles

        folder = Path(root) / "cuhk03"
        records = read_market(folder).train
        first = [i for i, record in enumerate(records) if record.person != records[i - 1].person]
        some = [records[first[person] + k] for person in (0, 1) for k in range(4)]
        samples = [CropDataset(some, masks=MaskFiles(folder), size=SIZE)[i] for i in range(PEOPLE)]
        return torch.stack([s.crop for s in samples]), torch.stack([s.region_map for s in samples]), labels
    from mgran_fast.data.synthetic import render

    views = [render(person, 0, view, size=SIZE) for person in range(PEOPLE // 4) for view in range(4)]
    crops, masks, keypoints = (
        torch.stack([torch.from_numpy(getattr(view, name)) for view in views]) for name in ("crop", "mask", "keypoints")
    )
    return crops, ops.regions(masks, keypoints, SIZE), labels


def step_of(kind: str) -> Callable[[], float]:
    """What takes one step, and tells the loss before it."""
    model = model_of(kind)
    loss = build(TrainConfig(), CLASSES, 4, 2048)
    # So slow that contestants stay comparable for many steps.
    optimizer = torch.optim.AdamW(model.ma.parameters(), lr=1e-6, fused=True)
    crops, region_maps, labels = batch()

    def step() -> float:
        with nullcontext() if kind == FOUR else torch.autocast("cpu", torch.bfloat16):
            output = model(crops, region_map=region_maps)
        assert isinstance(output, MAOutput)
        losses = loss(output, labels)
        total = losses.identity + losses.metric
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        return total.item()

    return step


def memory(name: str) -> str:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(row.split()[1] for row in status.splitlines() if row.startswith(name))


def main(kind: str, threads: int, memory_kind: str) -> None:
    if memory_kind == "kept memory" and not keep():
        sys.exit("this C library has no mallopt")
    torch.set_num_threads(threads)
    step = step_of(kind)
    base = memory("VmRSS")
    for line in sys.stdin:
        asked = line.strip()
        answer = repr(step()) if asked == "step" else memory("VmHWM") if asked == "peak" else base
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
