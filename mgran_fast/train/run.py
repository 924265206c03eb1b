"""One training run: from a data set to a checkpoint, resumable."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.plugins.io import TorchCheckpointIO

from mgran_fast import layouts
from mgran_fast.data import DataSet, MaskFiles
from mgran_fast.errors import CheckpointError, DataError
from mgran_fast.metrics.evaluation import Evaluation, evaluate
from mgran_fast.model import MGRAN
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.module import TrainingData, TrainingModule
from mgran_fast.train.precision import lightning_precision

_log = logging.getLogger(__name__)

#: What a run leaves in its folder.
CHECKPOINT = "model.safetensors"
SETTINGS = "settings.json"
STATE = "checkpoints/last.ckpt"


@dataclass
class TrainResult:
    """What a run gave.

    Attributes:
        model: in eval mode, on the CPU, with the weights of the last epoch.
        checkpoint: where they lie.
        history: one mapping an epoch: epoch, loss, accuracy, seconds, and rank1 and map where it was evaluated.
        problems: pictures that could not be read, one line each.
        seconds: the time that training took, evaluations left out.
        counts: of the first epoch: "training pictures without a mask" (or with an empty one) and "training pictures
            without keypoints".
    """

    model: MGRAN
    checkpoint: Path
    history: list[dict[str, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)


def build(config: TrainConfig, num_classes: int) -> MGRAN:
    """The untrained model of these settings; the same seed gives the same weights."""
    # fork_rng: building a model is no reason to disturb the caller's random numbers.
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(config.seed)
        return MGRAN(
            num_classes,
            config.layout,
            size=config.size,
            trunk=config.trunk,
            last_stride=config.last_stride,
            statistics=config.statistics,
            pooling=config.pooling,
            scale=config.scale,
            mean=config.mean,
            std=config.std,
        )


def digest(dataset: DataSet) -> str:
    """SHA-256, in hex, of the training pictures' places below the data set's folder, their order, and their labels."""
    labels = {person: label for label, person in enumerate(dataset.people())}
    text = hashlib.sha256()
    for record in dataset.train:
        inside = record.path.is_relative_to(dataset.root)
        place = record.path.relative_to(dataset.root) if inside else record.path
        # JSON: no name can look like the end of a line.
        text.update(json.dumps([place.as_posix(), labels[record.person]]).encode())
    return text.hexdigest()


def check(
    dataset: DataSet, config: TrainConfig, output: Path, *, resume: bool = False, masks: MaskFiles | None = None
) -> None:
    """Raise DataError or CheckpointError when :func:`train` would refuse to start; touches nothing.

    With ``masks``, and a layout that looks at them, at least one training picture must have its mask file.
    """
    if not dataset.train:
        raise DataError(f"{dataset.root}: no training pictures")
    people = len(dataset.people())
    if people < config.people:
        raise DataError(f"{dataset.root}: {people} training people, but --people {config.people}; ask for fewer")
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: a file, not a folder; choose another --output")
    if masks is not None and not layouts.get(config.layout).whole:
        masks.check(dataset.train, "training")
    if (output / STATE).is_file():
        if not resume:
            raise CheckpointError(
                f"{output}: holds a run already; continue it with --resume or choose another --output"
            )
        config.check_resume(output / SETTINGS, digest(dataset))


def train(
    dataset: DataSet,
    masks: MaskFiles | None,
    config: TrainConfig,
    output: Path,
    *,
    model: MGRAN | None = None,
    resume: bool = False,
    progress: bool = False,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> TrainResult:
    """Train MA on ``dataset`` and write the model and the state to go on from into the folder ``output``.

    Args:
        masks: the masks and keypoints of the training pictures; None for layout "none".
        model: a model to start from, with as many classes as there are training people; None builds one.
        resume: go on from the last finished epoch in ``output``, if there is one.
        progress: show a progress bar.
        on_epoch: called after each epoch with its line of the history.

    Raises:
        DataError: no training pictures, too few people, not one mask, or not one picture that could be read.
        CheckpointError: the state in ``output`` is of another run, or broken.
        FloatingPointError: the loss is no number any more; ``output`` keeps the last epoch in which it was.
        KeyboardInterrupt: as it came; the run goes on with ``resume``.
    """
    check(dataset, config, output, resume=resume, masks=masks)
    people = len(dataset.people())
    model = build(config, people) if model is None else model
    if model.num_classes != people:
        raise CheckpointError(
            f"the model has {model.num_classes} classes and {dataset.root} has {people} training people;"
            " train a new model or take the data set that it was made for"
        )
    data = TrainingData(dataset, masks, config)
    module = TrainingModule(model, config, config.epochs * len(data.batches))
    state = output / STATE
    if state.is_file():
        _check_state(state, module)
    elif resume:
        _log.info("%s: nothing to resume from, starting anew", output)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{output}: cannot be made ({error.strerror}); choose another --output") from None
    config.save(output / SETTINGS, digest(dataset))
    recorder = _Recorder(dataset, masks, config, on_epoch)
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    callbacks: list[Callback] = [
        recorder,
        # Every epoch, and replaced as a whole: a killed run loses one epoch at most.
        ModelCheckpoint(output / "checkpoints", filename="last", save_top_k=1, enable_version_counter=False),
    ]
    if progress:
        callbacks.append(TQDMProgressBar(leave=False))
    with _quiet():
        trainer = pl.Trainer(
            max_epochs=config.epochs,
            accelerator=accelerator,
            devices=1,
            precision=lightning_precision(config.precision, accelerator),
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            log_every_n_steps=1,
            plugins=[_AtomicFiles()],
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
    model = model.cpu().eval()
    checkpoint = output / CHECKPOINT
    model.save(checkpoint, notes={"dataset": dataset.name, "epochs": str(config.epochs)})
    problems = list(dict.fromkeys([*recorder.problems, *module.problems.lines()]))
    return TrainResult(model, checkpoint, recorder.history, problems, recorder.seconds, module.counts or {})


def _check_state(path: Path, module: TrainingModule) -> None:
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


class _AtomicFiles(TorchCheckpointIO):
    """Writes a state beside its place and renames it: a run killed in the middle keeps the state before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        super().save_checkpoint(checkpoint, partial, storage_options)
        os.replace(partial, path)


class _Recorder(Callback):
    """Keeps the history, evaluates between epochs, and travels with the checkpoint."""

    def __init__(
        self,
        dataset: DataSet,
        masks: MaskFiles | None,
        config: TrainConfig,
        on_epoch: Callable[[dict[str, float]], None] | None,
    ) -> None:
        self.dataset, self.masks, self.config, self.on_epoch = dataset, masks, config, on_epoch
        self.history: list[dict[str, float]] = []
        self.problems: list[str] = []
        self.seconds = 0.0
        self._start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        found = pl_module.problems.lines()
        if not pl_module.shown:
            raise DataError(f"{self.dataset.root}: not one training picture could be used; the first: {found[0]}")
        self.problems = list(dict.fromkeys([*self.problems, *found]))
        seconds = time.perf_counter() - self._start
        self.seconds += seconds
        epoch = trainer.current_epoch + 1
        line = {"epoch": float(epoch), "seconds": seconds}
        for name in ("loss", "identity loss", "triplet loss", "accuracy"):
            if name in trainer.callback_metrics:
                line[name] = float(trainer.callback_metrics[name])
        if not math.isfinite(line.get("loss", 0.0)):
            raise FloatingPointError(f"the loss is {line['loss']} after epoch {epoch}: lower the learning rate")
        every = self.config.evaluate_every
        if every and epoch % every == 0 and epoch < self.config.epochs and self.dataset.query:
            ranking = self._evaluate(pl_module).ranking
            line["rank1"], line["map"] = ranking.at(1), ranking.map
        self.history.append(line)
        if self.on_epoch is not None:
            self.on_epoch(line)

    def _evaluate(self, module: TrainingModule) -> Evaluation:
        return evaluate(module.model, self.dataset.query, self.dataset.gallery, self.masks, workers=self.config.workers)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "seconds": self.seconds, "problems": self.problems}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.seconds = state_dict["history"], state_dict["seconds"]
        self.problems = list(state_dict.get("problems", ()))


class _quiet:  # noqa: N801 (a context manager, used as a verb)
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
