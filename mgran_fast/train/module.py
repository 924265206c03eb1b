"""The training step as a Lightning module."""

from __future__ import annotations

import logging
from typing import Any

import pytorch_lightning as pl
import torch

from mgran_fast.data import Batch, Problems
from mgran_fast.ma import MAOutput
from mgran_fast.model import MGRAN
from mgran_fast.train import losses, optim
from mgran_fast.train.config import TrainConfig

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
        ma = model.ma
        self.loss = losses.build(config, model.num_classes, len(model.layout.inputs), ma.trunk.dim)
        if config.identity_loss == "oim" and ma.classifiers is not None:
            # The table of the loss stands in for them; nothing may wait for gradients that never come.
            ma.classifiers.requires_grad_(False)
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
        found = self.loss(output, batch.labels)
        loss: torch.Tensor = self.config.identity_weight * found.identity + self.config.metric_weight * found.metric
        size = len(batch)
        # A run that no longer learns anything should stop at once, not after hours.
        if self.global_step % 50 == 0 and not bool(loss.isfinite()):
            value = float(loss.detach())
            raise FloatingPointError(f"the loss is {value} at step {self.global_step}: lower the learning rate")
        self.log("loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=size)
        self.log("identity loss", found.identity, on_step=False, on_epoch=True, batch_size=size)
        self.log("metric loss", found.metric, on_step=False, on_epoch=True, batch_size=size)
        self.log("accuracy", found.accuracy, prog_bar=True, on_step=False, on_epoch=True, batch_size=size)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer, schedule = optim.build(self.model, self.loss, self.config, self.steps)
        # Not Lightning's estimate: asking for it starts the workers before a resumed run knows its epoch.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
