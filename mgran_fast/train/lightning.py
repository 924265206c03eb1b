"""What every kind of training run does with Lightning: files that appear whole, resuming, interruption, the history."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from mgran_fast.data import Problems
from mgran_fast.errors import CheckpointError, DataError
from mgran_fast.train import logs
from mgran_fast.train.precision import lightning_precision
from mgran_fast.train.settings import Settings

_log = logging.getLogger(__name__)

#: What a run leaves in its folder.
CHECKPOINT = "model.safetensors"
SETTINGS = "settings.yaml"
STATE = "checkpoints/last.ckpt"


class Reports(Protocol):
    """What a recorder asks of a Lightning module."""

    #: The bad pictures so far.
    problems: Problems
    #: How many pictures or crops the epoch has shown so far; set to 0 by the recorder when one starts.
    shown: int


def check_output(output: Path, config: Settings, data: str, *, resume: bool) -> None:
    """Raise DataError or CheckpointError when a run with these settings and data cannot write to ``output``."""
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: a file, not a folder; choose another --output")
    if (output / STATE).is_file():
        if not resume:
            raise CheckpointError(
                f"{output}: holds a run already; continue it with --resume or choose another --output"
            )
        config.check_resume(output / SETTINGS, data)


def begin(output: Path, config: Settings, data: str, module: pl.LightningModule, *, resume: bool) -> None:
    """Make the folder of a run and write its settings; a state that is there must be whole and fit ``module``."""
    if (output / STATE).is_file():
        _check_state(output / STATE, module)
    elif resume:
        _log.info("%s: nothing to resume from, starting anew", output)
    step = "made"
    try:
        output.mkdir(parents=True, exist_ok=True)
        step = "written to"
        config.save(output / SETTINGS, data)
    except OSError as error:
        raise DataError(f"{output}: cannot be {step} ({error.strerror}); choose another --output") from None


def _check_state(path: Path, module: pl.LightningModule) -> None:
    """Raise CheckpointError unless the state at ``path`` is whole and fits the model."""
    try:
        saved = torch.load(path, "cpu", weights_only=True, mmap=True)["state_dict"]
        shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    except Exception as error:  # a broken pickle raises nearly anything
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise CheckpointError(
            f"{path}: cannot resume, the state of the run cannot be read ({reason}); delete it to start anew"
        ) from None
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    other = sorted(name for name in {*shapes, *own} if shapes.get(name) != own.get(name))
    if other:
        raise CheckpointError(f"{path}: cannot resume, the state is of another model ({other[0]} differs)")


def fit(
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    callbacks: list[Callback],
    output: Path,
    *,
    epochs: int,
    precision: str,
    progress: bool,
) -> None:
    """Train, or go on from the state in ``output``. Raises KeyboardInterrupt as it came."""
    state = output / STATE
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    meter, *writers = logs.callbacks(output, epochs=epochs, progress=progress)
    used = [
        meter,
        *callbacks,
        *writers,
        # Every epoch, and replaced as a whole: a killed run loses one epoch at most.
        ModelCheckpoint(output / "checkpoints", filename="last", save_top_k=1, enable_version_counter=False),
    ]
    with quiet():
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator=accelerator,
            devices=1,
            precision=lightning_precision(precision, accelerator),
            callbacks=used,
            logger=False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            log_every_n_steps=1,
            plugins=[AtomicFiles()],
        )
        handler = signal.getsignal(signal.SIGINT)
        try:
            # weights_only: a state from a stranger cannot run code.
            trainer.fit(module, datamodule=data, ckpt_path=state if state.is_file() else None, weights_only=True)
        except SystemExit:
            # Lightning turns Ctrl+C into an exit without a word, and ignores the signal from then on.
            if not trainer.interrupted:
                raise
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
    if trainer.interrupted:
        raise KeyboardInterrupt


class AtomicFiles(TorchCheckpointIO):
    """Writes a state beside its place and renames it: a run killed in the middle keeps the state before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        super().save_checkpoint(checkpoint, partial, storage_options)
        os.replace(partial, path)


class Recorder(Callback):
    """Keeps the history, measures between epochs, and travels with the checkpoint.

    Args:
        source: the data that an error names when not one picture could be used.
        epochs: of the whole run.
        every: epochs between measurements; 0 for none. The last epoch is measured by whoever runs the training.
        measure: what is measured of a module, by name; None for nothing.
        on_epoch: called after each epoch with its line of the history.

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

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.shown = 0
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        reports: Reports = pl_module
        found = reports.problems.lines()
        if not reports.shown:
            raise DataError(f"{self.source}: not one training picture could be used; the first: {found[0]}")
        self.problems = list(dict.fromkeys([*self.problems, *found]))
        seconds = time.perf_counter() - self._start
        self.seconds += seconds
        epoch = trainer.current_epoch + 1
        line = {"epoch": float(epoch), "seconds": seconds}
        line.update((name, float(value)) for name, value in trainer.callback_metrics.items())
        # A sum of losses over an epoch hides no NaN.
        if not math.isfinite(line.get("loss", 0.0)):
            raise FloatingPointError(f"the loss is {line['loss']} after epoch {epoch}: lower the learning rate")
        if self.measure is not None and self.every and epoch % self.every == 0 and epoch < self.epochs:
            line.update(self.measure(pl_module))
        self.history.append(line)
        if self.on_epoch is not None:
            self.on_epoch(line)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "seconds": self.seconds, "problems": self.problems}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.seconds = state_dict["history"], state_dict["seconds"]
        self.problems = list(state_dict.get("problems", ()))


class quiet:  # noqa: N801 (a context manager, used as a verb)
    """Lightning's advice on hardware, workers and tips is for people who write loops, not for those who run one."""

    def __enter__(self) -> None:
        self._logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        for text in (".*does not have many workers.*", ".*Checkpoint directory.*", ".*no `configure_optimizers`.*"):
            warnings.filterwarnings("ignore", text)
        # Lightning still calls these of torch's, with its own deprecation in mind.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", ".*training_step` returned `None`.*")
        # A run goes on after its folder was moved as well.
        warnings.filterwarnings("ignore", "The dirpath has changed.*")

    def __exit__(self, *error: object) -> None:
        self._warnings.__exit__(None, None, None)
        self._logger.setLevel(self._level)
