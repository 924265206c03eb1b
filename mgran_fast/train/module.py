"""The training step as a Lightning module."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from mgran_fast import ranks
from mgran_fast.data import Batch, Problems
from mgran_fast.ma import MAOutput
from mgran_fast.model import MGRAN
from mgran_fast.train import losses, optim
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.data import shared_out
from mgran_fast.train.watch import Step, Watch, scale_of

_log = logging.getLogger(__name__)


class TrainingModule(pl.LightningModule):
    """MA's training step. The estimator takes no part: region maps come with the batch.

    Every rank brings its share of the batch; the losses are those of the whole batch, the same on each.

    Args:
        model: in train mode it returns what the losses need.
        config: the settings.
        steps: of the optimizer in the whole run, for the schedule of the learning rate.
        pictures: the training set's, by place, for what an error tells.
    """

    def __init__(self, model: MGRAN, config: TrainConfig, steps: int, pictures: Sequence[Path] = ()) -> None:
        super().__init__()
        self.model, self.config, self.steps = model, config, steps
        ma = model.ma
        self.loss = losses.build(config, model.num_classes, len(model.layout.inputs), ma.trunk.dim)
        if config.identity_loss == "oim" and ma.classifiers is not None:
            # The table of the loss stands in for them; nothing may wait for gradients that never come.
            ma.classifiers.requires_grad_(False)
        self.problems = Problems()
        self.watch = Watch(pictures)
        #: How many pictures the epoch has shown so far on this rank.
        self.shown = 0
        #: Pictures of the first epoch without a mask or keypoints, see :class:`TrainResult`; None until it is over.
        self.counts: dict[str, int] | None = None
        self._flags: list[torch.Tensor] = []
        self._sums: dict[str, torch.Tensor] = {}
        self._rows = 0
        self._idle = True

    def on_train_epoch_start(self) -> None:
        self.shown = 0
        self._sums, self._rows = {}, 0

    def on_train_epoch_end(self) -> None:
        if self.counts is not None:
            return
        found = self._odd()
        self._flags.clear()
        # An epoch may show a picture twice.
        flags = ranks.gather(found).cpu().unique(dim=0)
        if not len(flags):
            return
        total, (no_mask, no_keypoints, no_person) = len(flags), flags[:, 1:].sum(0).tolist()
        self.counts = {"training pictures without a mask": no_mask, "training pictures without keypoints": no_keypoints}
        if no_person:
            self.counts["training pictures with a presence below 0.5"] = no_person
        if 2 * no_mask > total and ranks.rank() == 0:
            _log.warning(
                "%d of %d training pictures have no mask, or an empty one (%d no keypoints): they show no region and"
                " count as a whole; check the masks",
                no_mask,
                total,
                no_keypoints,
            )

    def means(self) -> dict[str, float]:
        """The losses of this epoch so far, each a mean over its pictures, in float64; also after a resumption."""
        return {name: float(total) / self._rows for name, total in self._sums.items()}

    def check(self) -> None:
        """Raise DivergedError if a loss until now was no number; waits for the device."""
        self.watch.check()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        flags = ranks.gather(self._odd()) if self.counts is None else self._nobody()
        checkpoint["counts"] = self.counts
        checkpoint["epoch_so_far"] = {"sums": dict(self._sums), "rows": self._rows, "flags": flags.cpu()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.counts = checkpoint.get("counts")
        before = checkpoint.get("epoch_so_far")
        if before is not None:
            self._sums, self._rows = dict(before["sums"]), before["rows"]
            # Those of all ranks, which need one only.
            self._flags = [before["flags"]] if ranks.rank() == 0 else []

    def _nobody(self) -> torch.Tensor:
        return torch.zeros((0, 4), dtype=torch.int64, device=self.device)

    def _odd(self) -> torch.Tensor:
        """int64 [n, 4]: place, no mask, no keypoints, nobody, of the pictures that this rank has shown."""
        return torch.cat([self._nobody(), *(flags.to(self.device) for flags in self._flags)])

    def training_step(self, batch: Batch, batch_index: int) -> torch.Tensor:
        self.problems.add(batch.bad)
        self.shown += len(batch)
        if self.counts is None:
            # Summed up at the end of the epoch: a look at them now would wait for the GPU.
            odd = (batch.empty_masks.long(), batch.no_keypoints.long(), batch.no_person.long())
            self._flags.append(torch.stack([batch.indices, *odd], 1))
        sizes = ranks.counts(len(batch))
        # All ranks decide alike: none may wait for one that skips.
        if sum(sizes) < max(2, len(sizes)):
            return self._nothing()
        if min(sizes) == 0:
            batch, sizes = shared_out(batch, sizes)
        self._idle = False
        output = self.model(batch.crops, region_map=batch.region_maps)
        assert isinstance(output, MAOutput)
        labels, indices = ranks.gather(torch.stack([batch.labels, batch.indices], 1), sizes).unbind(1)
        found = self.loss(self._gathered(output, sizes), labels)
        loss: torch.Tensor = self.config.identity_weight * found.identity + self.config.metric_weight * found.metric
        parts = {"loss": loss, "identity loss": found.identity, "metric loss": found.metric}
        self._add({**parts, "accuracy": found.accuracy}, sum(sizes))
        rate = float(self.trainer.optimizers[0].param_groups[0]["lr"]) if self._trainer is not None else 0.0
        scale = scale_of(self.trainer) if self._trainer is not None else None
        self.watch.add(Step(self.global_step, parts, indices, rate, scale))
        return loss

    def _gathered(self, output: MAOutput, sizes: list[int]) -> MAOutput:
        """The output of all ranks; what the losses do not look at is not sent."""
        if len(sizes) == 1:
            return output
        oim = self.config.identity_loss == "oim"
        return MAOutput(
            ranks.gather(output.features, sizes),
            ranks.gather(output.embeddings, sizes) if oim else output.embeddings,
            None if oim or output.logits is None else ranks.gather(output.logits, sizes),
            ranks.gather(output.visible, sizes),
        )

    def _add(self, values: dict[str, torch.Tensor], rows: int) -> None:
        for name, value in values.items():
            # Not by Lightning's own sums, which no state holds: an epoch that was interrupted would forget its start.
            term = value.detach().double() * rows
            self._sums[name] = self._sums[name].to(term.device) + term if name in self._sums else term
            self.log(name, value, prog_bar=name in ("loss", "accuracy"), on_step=False, on_epoch=True, batch_size=rows)
        self._rows += rows

    def _nothing(self) -> torch.Tensor:
        """A loss of 0 to which every parameter belongs: all ranks go on together, and nothing is learnt."""
        terms = [(p * 0).sum() for p in self.parameters() if p.requires_grad]
        return torch.stack(terms).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._idle:
            # A step without pictures is none: a gradient of 0 would still move what has momentum.
            for parameter in self.parameters():
                parameter.grad = None
        self._idle = True

    def configure_optimizers(self) -> Any:
        optimizer, schedule = optim.build(self.model, self.loss, self.config, self.steps)
        # Not Lightning's estimate: asking for it starts the workers before a resumed run knows its epoch.
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
