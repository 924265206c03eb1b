"""The state of a run: written whole, at the end of epochs, within them, and when a signal asks the run to end."""

from __future__ import annotations

import io
import logging
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from mgran_fast import ranks
from mgran_fast.errors import MGRANError
from mgran_fast.train.signals import Signals, StopRun
from mgran_fast.weights import files

_log = logging.getLogger(__name__)


class AtomicFiles(TorchCheckpointIO):
    """Writes a state whole or not at all; what went wrong with the disk is told, and for others to judge.

    Attributes:
        problem: why the last state could not be written, in one line; None where it was.
    """

    problem: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        data = content.getbuffer()
        # Not raised: only the first process writes, and the others would wait for it for ever.
        try:
            files.write(Path(path), data)
            self.problem = None
        except OSError as error:
            self.problem = files.reason(error, Path(path), data.nbytes)


class States(Checkpoint):
    """Writes the state of a run, last of all callbacks.

    A state is written after each epoch, every ``minutes`` within one, and when a signal came; then the run ends. Where
    it cannot be written the one before stays, and the run goes on until the next is due; only the last one of a run
    must succeed. Also keeps torch's random numbers.

    Args:
        path: of the state.
        atomic: the plugin that writes it.
        minutes: between states within an epoch; 0 for none.
        signals: what asks the run to end.
    """

    def __init__(self, path: Path, atomic: AtomicFiles, minutes: float, signals: Signals) -> None:
        self.path, self.atomic, self.minutes, self.signals = path, atomic, minutes, signals
        self._last = time.monotonic()
        self._random: dict[str, torch.Tensor] = {}
        self._told: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._random = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Again: Lightning has taken SIGTERM in the meantime.
        self.signals.take()
        self._last = time.monotonic()
        if "cpu" in self._random:
            torch.set_rng_state(self._random["cpu"])
        if "cuda" in self._random and torch.cuda.is_available():
            torch.cuda.set_rng_state(self._random["cuda"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Gradients of half a step are in no state, and the end of an epoch has a state of its own.
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        due = self.minutes > 0 and time.monotonic() - self._last >= 60 * self.minutes
        asked = ranks.exchange([self.signals.received or 0, int(due)])
        signum = max(one[0] for one in asked)
        # The first process's clock is that of all.
        if signum or asked[0][1]:
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            self._check(pl_module, loss)
            self._save(trainer, last=bool(signum))
        if signum:
            self._stop(signum)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check(pl_module, None)
        last = trainer.current_epoch + 1 == trainer.max_epochs
        signum = max(one[0] for one in ranks.exchange([self.signals.received or 0]))
        self._save(trainer, last=last or bool(signum))
        if signum and not last:
            self._stop(signum)

    def _stop(self, signum: int) -> None:
        self.signals.received = signum
        raise StopRun

    def _check(self, module: pl.LightningModule, loss: Any) -> None:
        """Raise FloatingPointError before a model that is broken replaces one that is not."""
        check = getattr(module, "check", None)
        if check is not None:
            check()
        looked = {name: p.detach() for name, p in module.named_parameters()}
        if isinstance(loss, torch.Tensor):
            looked["the loss"] = loss
        # One look at the device for all of them.
        whole = torch.stack([tensor.isfinite().all() for tensor in looked.values()]).tolist()
        broken = [name for name, good in zip(looked, whole, strict=True) if not good]
        # Each may hold a part of the weights alone.
        if any(one[0] for one in ranks.exchange([len(broken)])):
            broken = broken or ["a weight of another process"]
            raise FloatingPointError(
                f"{broken[-1]} is no number after step {module.global_step}: lower the learning rate, or set clip"
            )

    def _save(self, trainer: pl.Trainer, *, last: bool) -> None:
        trainer.save_checkpoint(self.path)
        self._last = time.monotonic()
        problem = ranks.gather_objects(self.atomic.problem)[0]
        if problem is None:
            return
        kept = "the state before stays" if self.path.exists() else "there is no state yet"
        if last:
            raise MGRANError(f"{problem}; {kept}: make room and go on with --resume")
        if trainer.is_global_zero and problem not in self._told:
            self._told.add(problem)
            _log.warning("%s; %s, and the next is tried in time", problem, kept)
