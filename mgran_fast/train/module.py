"""The training step as a Lightning module."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytorch_lightning as pl
import torch

from mgran_fast.data import Batch, Problems
from mgran_fast.ma import MAOutput
from mgran_fast.model import MGRAN
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.losses import RegionLoss

_log = logging.getLogger(__name__)


class TrainingModule(pl.LightningModule):
    """MA's training step. The estimator takes no part: region maps come with the batch.

    Args:
        model: in train mode it returns what the losses need.
        config: the settings.
        steps: of the whole run, for the schedule of the learning rate.
    """

    def __init__(self, model: MGRAN, config: TrainConfig, steps: int) -> None:
        super().__init__()
        self.model, self.config, self.steps = model, config, steps
        self.loss = RegionLoss(config.label_smoothing, config.margin)
        self.problems = Problems()
        #: How many pictures the epoch has shown so far.
        self.shown = 0
        #: Pictures of the first epoch without a mask or keypoints, see :class:`TrainResult`; None until it is over.
        self.counts: dict[str, int] | None = None
        self._flags: list[torch.Tensor] = []

    def on_train_epoch_start(self) -> None:
        self.shown = 0

    def on_train_epoch_end(self) -> None:
        if self.counts is not None or not self._flags:
            return
        # An epoch may show a picture twice.
        flags = torch.cat(self._flags, 1).cpu().unique(dim=1)
        self._flags.clear()
        total, (no_mask, no_keypoints, no_person) = flags.shape[1], flags[1:].sum(1).tolist()
        self.counts = {"training pictures without a mask": no_mask, "training pictures without keypoints": no_keypoints}
        if no_person:
            self.counts["training pictures with a presence below 0.5"] = no_person
        if 2 * no_mask > total:
            _log.warning(
                "%d of %d training pictures have no mask, or an empty one (%d no keypoints): they show no region and"
                " count as a whole; check the masks",
                no_mask,
                total,
                no_keypoints,
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["counts"] = self.counts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.counts = checkpoint.get("counts")

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor | None:
        self.problems.add(batch.bad)
        self.shown += len(batch)
        if self.counts is None and len(batch):
            # Summed up at the end of the epoch: a look at them now would wait for the GPU.
            odd = (batch.empty_masks.long(), batch.no_keypoints.long(), batch.no_person.long())
            self._flags.append(torch.stack([batch.indices, *odd]))
        if len(batch) < 2:
            # Nothing to learn from; Lightning goes on with the next batch.
            return None
        output = self.model(batch.crops, region_map=batch.region_maps)
        assert isinstance(output, MAOutput)
        losses = self.loss(output, batch.labels)
        loss: torch.Tensor = losses.identity + self.config.triplet * losses.triplet
        size = len(batch)
        # A run that no longer learns anything should stop at once, not after hours.
        if self.global_step % 50 == 0 and not bool(loss.isfinite()):
            value = float(loss.detach())
            raise FloatingPointError(f"the loss is {value} at step {self.global_step}: lower the learning rate")
        self.log("loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=size)
        self.log("identity loss", losses.identity, on_step=False, on_epoch=True, batch_size=size)
        self.log("triplet loss", losses.triplet, on_step=False, on_epoch=True, batch_size=size)
        self.log("accuracy", losses.accuracy, prog_bar=True, on_step=False, on_epoch=True, batch_size=size)
        return loss

    def configure_optimizers(self) -> Any:
        parameters = list(self.model.ma.named_parameters())
        # Biases and norms are vectors; decaying them only shrinks what batch norm scales back.
        decayed = [p for name, p in parameters if p.ndim > 1 and not name.startswith("neck.")]
        others = [p for name, p in parameters if p.ndim <= 1 or name.startswith("neck.")]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(
            groups,
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        # Not Lightning's estimate: asking for it starts the workers before a resumed run knows its epoch.
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, WarmupCosine(self.steps, self.config.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class WarmupCosine:
    """The share of the learning rate at a step: rising linearly, then a half cosine down to 0.

    Args:
        steps: of the whole run, 1 or more.
        warmup: the share of them that rises, in [0, 1).
    """

    def __init__(self, steps: int, warmup: float) -> None:
        self.steps, self.rise = steps, math.ceil(warmup * steps)

    def __call__(self, step: int) -> float:
        if step < self.rise:
            return (step + 1) / self.rise
        progress = (step - self.rise) / max(1, self.steps - self.rise)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
