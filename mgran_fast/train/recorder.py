"""The history of a run: a line after each epoch, and what is measured between epochs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from mgran_fast import ranks
from mgran_fast.data import Problems
from mgran_fast.errors import DataError
from mgran_fast.train.averaging import Averaging
from mgran_fast.train.signals import Skipped
from mgran_fast.train.states import States


class Reports(Protocol):
    """What a recorder asks of a Lightning module."""

    #: The bad pictures so far.
    problems: Problems
    #: How many pictures or crops the epoch has shown so far on this rank; set to 0 by the recorder when one starts.
    shown: int


class Recorder(Callback):
    """Keeps the history, measures between epochs, and travels with the checkpoint.

    Of several processes the first one measures while the others wait.

    Args:
        source: the data that an error names when not one picture could be used.
        epochs: of the whole run.
        every: epochs between measurements; 0 for none. The last epoch is measured by whoever runs the training.
        measure: what is measured of a module, by name; None for nothing.
        on_epoch: called after each epoch with its line of the history, by the first process.

    Attributes:
        history: one mapping an epoch: epoch, seconds, what the module logged, and what was measured.
        problems: pictures that could not be read, one line each.
        seconds: the time that training took, measurements left out.
    """

    def __init__(
        self,
        source: Path,
        epochs: int,
        every: int,
        measure: Callable[[Any], dict[str, float]] | None,
        on_epoch: Callable[[dict[str, float]], None] | None,
    ) -> None:
        self.source, self.epochs, self.every, self.measure, self.on_epoch = source, epochs, every, measure, on_epoch
        self.history: list[dict[str, float]] = []
        self.problems: list[str] = []
        self.seconds = 0.0
        self._start = 0.0
        self._module: Reports | None = None
        # Of an epoch that was interrupted: the seconds and pictures until then.
        self._before, self._shown = 0.0, 0
        # A signal came while the last epoch of the history was measured.
        self._unmeasured = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._module = pl_module
        if self._unmeasured:
            self._measure(trainer, pl_module, self.history[-1])
        self._start = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.shown = 0
        self._start, self._before, self._shown = time.perf_counter(), 0.0, 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        reports: Reports = pl_module
        found = [line for lines in ranks.gather_objects(reports.problems.lines()) for line in lines]
        if not sum(one[0] for one in ranks.exchange([self._shown + reports.shown])):
            raise DataError(f"{self.source}: not one training picture could be used; the first: {found[0]}")
        self.problems = list(dict.fromkeys([*self.problems, *found]))
        seconds = self._before + time.perf_counter() - self._start
        self.seconds += seconds
        reports.shown, self._shown, self._before = 0, 0, 0.0
        self._start = time.perf_counter()
        epoch = trainer.current_epoch + 1
        line = {"epoch": float(epoch), "seconds": seconds}
        line.update((name, float(value)) for name, value in trainer.callback_metrics.items())
        means = getattr(pl_module, "means", None)
        if means is not None:
            line.update(means())
        # A sum of losses over an epoch hides no NaN.
        if not math.isfinite(line.get("loss", 0.0)):
            raise FloatingPointError(f"the loss is {line['loss']} after epoch {epoch}: lower the learning rate")
        self.history.append(line)
        self._unmeasured = self.measure is not None and self.every > 0 and epoch % self.every == 0
        self._unmeasured &= epoch < self.epochs
        if self._unmeasured:
            self._measure(trainer, pl_module, line)
        elif self.on_epoch is not None and trainer.is_global_zero:
            self.on_epoch(line)
        self._start = time.perf_counter()

    def _measure(self, trainer: pl.Trainer, module: Any, line: dict[str, float]) -> None:
        """Add what is measured to a line of the history; when a signal comes, that is left to whoever goes on."""
        found: dict[str, float] | None = {}
        if trainer.is_global_zero and self.measure is not None:
            found = None
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            # What a measurement draws is no business of the training.
            device = [module.device] if module.device.type == "cuda" else []
            with ExitStack() as stack, torch.random.fork_rng(devices=device):
                try:
                    for callback in callbacks:
                        if isinstance(callback, States):
                            stack.enter_context(callback.signals.skippable())
                    for callback in callbacks:
                        if isinstance(callback, Averaging):
                            stack.enter_context(callback.averaged(trainer, module))
                    found = self.measure(module)
                except Skipped:
                    module.train()
        found = ranks.gather_objects(found)[0]
        if found is None:
            return
        line.update(found)
        self._unmeasured = False
        if self.on_epoch is not None and trainer.is_global_zero:
            self.on_epoch(line)

    def state_dict(self) -> dict[str, Any]:
        problems, shown = list(self.problems), self._shown
        if self._module is not None:
            problems = list(dict.fromkeys([*problems, *self._module.problems.lines()]))
            shown += self._module.shown
        return {
            "history": self.history,
            "seconds": self.seconds,
            "problems": problems,
            "so_far": {"seconds": self._before + time.perf_counter() - self._start, "shown": shown},
            "unmeasured": self._unmeasured,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.seconds = state_dict["history"], state_dict["seconds"]
        self.problems = list(state_dict.get("problems", ()))
        so_far = state_dict.get("so_far", {})
        self._before, self._shown = so_far.get("seconds", 0.0), so_far.get("shown", 0)
        self._unmeasured = state_dict.get("unmeasured", False)
