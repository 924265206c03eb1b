"""One training run: from a data set to a checkpoint, resumable."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar

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
    """

    model: MGRAN
    checkpoint: Path
    history: list[dict[str, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def build(config: TrainConfig, num_classes: int) -> MGRAN:
    """The untrained model of these settings; the same seed gives the same weights."""
    # fork_rng: building a model is no reason to disturb the caller's random numbers.
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
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
        DataError: no training pictures, or too few people.
        CheckpointError: the state in ``output`` is of another run.
    """
    if not dataset.train:
        raise DataError(f"{dataset.root}: no training pictures")
    people = len(dataset.people())
    if people < config.people:
        raise DataError(f"{dataset.root}: {people} training people, but --people {config.people}; ask for fewer")
    output.mkdir(parents=True, exist_ok=True)
    state = output / STATE
    if resume and state.is_file():
        config.check_resume(output / SETTINGS)
    elif state.is_file():
        raise CheckpointError(f"{output}: holds a run already; continue it with --resume or choose another --output")
    elif resume:
        _log.info("%s: nothing to resume from, starting anew", output)
    config.save(output / SETTINGS)

    model = build(config, people) if model is None else model
    if model.num_classes != people:
        raise CheckpointError(
            f"the model has {model.num_classes} classes and {dataset.root} has {people} training people;"
            " train a new model or take the data set that it was made for"
        )
    pl.seed_everything(config.seed, workers=True, verbose=False)
    module = TrainingModule(model, config)
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
        )
        data = TrainingData(dataset, masks, config)
        # weights_only: a state from a stranger cannot run code.
        trainer.fit(module, datamodule=data, ckpt_path=state if resume and state.is_file() else None, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    model = model.cpu().eval()
    checkpoint = output / CHECKPOINT
    model.save(checkpoint, notes={"dataset": dataset.name, "epochs": str(config.epochs)})
    return TrainResult(model, checkpoint, recorder.history, module.problems.lines(), recorder.seconds)


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
        self.seconds = 0.0
        self._start = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, TrainingModule)
        seconds = time.perf_counter() - self._start
        self.seconds += seconds
        epoch = trainer.current_epoch + 1
        line = {"epoch": float(epoch), "seconds": seconds}
        for name in ("loss", "identity loss", "triplet loss", "accuracy"):
            if name in trainer.callback_metrics:
                line[name] = float(trainer.callback_metrics[name])
        every = self.config.evaluate_every
        if every and epoch % every == 0 and epoch < self.config.epochs and self.dataset.query:
            found = self._evaluate(pl_module)
            line["rank1"], line["map"] = found.ranking.at(1), found.ranking.map
        self.history.append(line)
        if self.on_epoch is not None:
            self.on_epoch(line)

    def _evaluate(self, module: TrainingModule) -> Evaluation:
        return evaluate(module.model, self.dataset.query, self.dataset.gallery, self.masks, workers=self.config.workers)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self.seconds = state_dict["history"], state_dict["seconds"]


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

    def __exit__(self, *error: object) -> None:
        self._warnings.__exit__(None, None, None)
        self._logger.setLevel(self._level)
