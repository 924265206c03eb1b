"""Training of RegionNet: its losses, and the loop's module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from mgran_fast.data.dataset import Problems
from mgran_fast.data.labels import LabelledBatch
from mgran_fast.mra.regionnet import Maps, RegionNet
from mgran_fast.train.mra.augment import AugmentSettings, BatchAugment
from mgran_fast.train.mra.config import MRAConfig
from mgran_fast.train.optim import WarmupCosine

#: Deviation, in cells, of the Gaussian around a keypoint that its heatmap is to show.
SIGMA = 1.2
#: A keypoint with a score under this teaches no place.
LEAST_SCORE = 0.02
#: The average of the weights looks back over about this many steps.
AVERAGED_STEPS = 500
#: The trunk, which may come from ImageNet, learns this much slower than what is new.
TRUNK_RATE = 0.5


def losses(maps: Maps, batch: LabelledBatch) -> dict[str, torch.Tensor]:
    """The three losses of a batch, each a scalar; what has no label adds nothing.

    - mask: binary cross-entropy against the soft mask, plus one minus the soft intersection over union (Rahman and
      Wang 2016) of each crop, which counts small and large people alike;
    - keypoints: cross-entropy between the softmax over a heatmap's cells and a Gaussian around the place, weighted by
      the label's score, for keypoints inside of the crop; plus binary cross-entropy of the visibility against the
      score;
    - presence: binary cross-entropy.

    Args:
        maps: logits for crops of the working size (h, w).
        batch: the labels at the same size.
    """
    return {
        "mask": _mask_loss(maps.mask[:, 0], batch),
        "keypoint": _keypoint_loss(maps, batch),
        "presence": functional.binary_cross_entropy_with_logits(maps.presence, batch.presence.to(maps.presence)),
    }


def _mask_loss(logits: torch.Tensor, batch: LabelledBatch) -> torch.Tensor:
    h, w = logits.shape[1:]
    # [N, h, w]: the label at the logits' resolution.
    target = functional.adaptive_avg_pool2d(batch.masks[:, None].to(logits) / 255, (h, w))[:, 0]
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2))
    found = logits.sigmoid()
    both = (found * target).sum((1, 2))
    # One cell in numerator and denominator: nobody found where nobody is, is right.
    overlap = (both + 1) / ((found + target).sum((1, 2)) - both + 1)
    return _mean(2 * entropy + 1 - overlap, batch.has_mask.to(logits))


def _keypoint_loss(maps: Maps, batch: LabelledBatch) -> torch.Tensor:
    n, joints, h, w = maps.heatmaps.shape
    height, width = batch.masks.shape[1:]
    x = batch.keypoints[..., 0] * (w / width)
    y = batch.keypoints[..., 1] * (h / height)
    score = batch.keypoints[..., 2]
    columns = torch.arange(w, device=x.device) + 0.5
    rows = torch.arange(h, device=x.device) + 0.5
    across = torch.exp(-0.5 * ((columns - x[..., None]) / SIGMA) ** 2)  # [N, 17, w]
    down = torch.exp(-0.5 * ((rows - y[..., None]) / SIGMA) ** 2)  # [N, 17, h]
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    target = (down[..., :, None] * across[..., None, :]).flatten(2)
    target = target / target.sum(2, keepdim=True).clamp(min=1e-6)
    entropy = -(target * maps.heatmaps.flatten(2).log_softmax(2)).sum(2)
    known = batch.has_keypoints[:, None].to(entropy)
    place = _mean(entropy, known * inside * (score >= LEAST_SCORE) * (0.1 + 0.9 * score))
    seen = functional.binary_cross_entropy_with_logits(maps.visibility, score.clamp(0, 1), reduction="none")
    return place + _mean(seen, known.expand(n, joints))


def _mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean; 0, with a gradient of 0, when no weight is above 0."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-3)


def _average(steps: float) -> Callable[..., None]:
    """An exponential average that looks back over ``steps`` steps, and over fewer at the start.

    The start matters: new heads answer at random, and an average that remembers them finds nobody for a long time.
    """

    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor | int) -> None:
        weight = max(1 / steps, 9 / (10 + int(count)))
        for old, new in zip(averaged, current, strict=True):
            old.lerp_(new, weight) if old.is_floating_point() else old.copy_(new)

    return update


class RegionNetModule(pl.LightningModule):
    """One run: augmentation on the device, losses, AdamW with a cosine, and an average of the weights.

    Args:
        model: what is trained.
        config: the settings.
        steps: of the whole run.
        backgrounds: uint8 [M, h, w, 3], pictures without people, for :class:`BatchAugment`.
        augment: its settings.
    """

    def __init__(
        self,
        model: RegionNet,
        config: MRAConfig,
        steps: int,
        backgrounds: torch.Tensor | None = None,
        augment: AugmentSettings | None = None,
    ) -> None:
        super().__init__()
        self.model, self.config, self.steps = model, config, steps
        self.average = AveragedModel(
            model.network, multi_avg_fn=_average(min(AVERAGED_STEPS, max(2, steps / 10))), use_buffers=True
        )
        self.augment = BatchAugment(model.size, backgrounds, augment)
        self.problems = Problems()
        self.shown = 0

    def estimator(self) -> RegionNet:
        """A copy of the model with the averaged weights, on the CPU, in eval mode."""
        average = self.average
        if self.global_step > int(average.n_averaged):
            # The last step is averaged when the next one begins; a copy, for that will come in a run that goes on.
            average = copy.deepcopy(average)
            average.update_parameters(self.model.network)
        model = RegionNet.from_arguments(self.model.arguments)
        model.network.load_state_dict(average.module.state_dict())
        return model.cpu().eval()

    def training_step(self, batch: LabelledBatch, index: int) -> torch.Tensor | None:
        self.problems.add(batch.bad)
        if len(batch) == 0:
            return None
        self.shown += len(batch)
        # By the step, so that a resumed run draws what the whole one would have.
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.global_step)
        changed = self.augment(batch, generator)
        parts = losses(self.model.logits(changed.crops), changed)
        c = self.config
        total = (
            c.mask_weight * parts["mask"]
            + c.keypoint_weight * parts["keypoint"]
            + c.presence_weight * parts["presence"]
        )
        for name, value in parts.items():
            self.log(f"{name} loss", value, on_step=False, on_epoch=True, batch_size=len(batch))
        self.log("loss", total, on_step=False, on_epoch=True, batch_size=len(batch))
        return total

    def on_before_zero_grad(self, optimizer: Any) -> None:
        # Called once a step; before the first step there is nothing to average.
        if self.global_step:
            self.average.update_parameters(self.model.network)

    def configure_optimizers(self) -> Any:
        trunk = {id(p) for p in self.model.network.trunk.parameters()}
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
        for parameter in self.model.network.parameters():
            groups.setdefault((id(parameter) in trunk, parameter.dim() > 1), []).append(parameter)
        rate, c = self.config.learning_rate, self.config
        optimizer = torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "lr": rate * (TRUNK_RATE if in_trunk else 1),
                    "weight_decay": c.weight_decay if decays else 0.0,
                }
                for (in_trunk, decays), parameters in groups.items()
            ]
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, WarmupCosine(self.steps, c.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
