"""Averaged weights: what is evaluated and saved is a running mean of the weights of all steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EMAWeightAveraging


class Averaging(EMAWeightAveraging):
    """Lightning's exponential moving average of weights and buffers, one update a step.

    Args:
        decay: what stays of the average at each step, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay)
        self._applied = False

    @contextmanager
    def averaged(self, trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
        """``module`` has the averaged weights inside."""
        self.on_validation_epoch_start(trainer, module)
        try:
            yield
        finally:
            self.on_validation_epoch_end(trainer, module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.apply(trainer, pl_module)

    def apply(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Give ``module`` the averaged weights for good; a finished run that is resumed trains nothing and needs it."""
        if not self._applied:
            super().on_train_end(trainer, module)
            self._applied = True
