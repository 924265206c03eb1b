"""One training run: from a data set to a checkpoint, resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mgran_fast import layouts
from mgran_fast.data import DataSet, Masks
from mgran_fast.errors import CheckpointError, DataError
from mgran_fast.metrics.evaluation import evaluate
from mgran_fast.model import MGRAN
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.data import TrainingData
from mgran_fast.train.lightning import CHECKPOINT, SETTINGS, STATE, Recorder, begin, check_output, fit
from mgran_fast.train.module import TrainingModule

__all__ = ["CHECKPOINT", "SETTINGS", "STATE", "TrainResult", "build", "check", "digest", "train"]


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
            config.shape,
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
    dataset: DataSet, config: TrainConfig, output: Path, *, resume: bool = False, masks: Masks | None = None
) -> None:
    """Raise DataError or CheckpointError when :func:`train` would refuse to start; touches nothing.

    With ``masks``, and a layout that looks at them, at least one training picture must have its mask file.
    """
    if not dataset.train:
        raise DataError(f"{dataset.root}: no training pictures")
    people = len(dataset.people())
    if people < config.people:
        raise DataError(f"{dataset.root}: {people} training people, but --people {config.people}; ask for fewer")
    if masks is not None and not layouts.get(config.layout).whole:
        masks.check(dataset.train, "training")
    check_output(output, config, digest(dataset), resume=resume)


def train(
    dataset: DataSet,
    masks: Masks | None,
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
    begin(output, config, digest(dataset), module, resume=resume)

    def measure(now: TrainingModule) -> dict[str, float]:
        ranking = evaluate(now.model, dataset.query, dataset.gallery, masks, workers=config.workers).ranking
        return {"rank1": ranking.at(1), "map": ranking.map}

    wanted = measure if dataset.query else None
    recorder = Recorder(dataset.root, config.epochs, config.evaluate_every, wanted, on_epoch)
    fit(module, data, [recorder], output, epochs=config.epochs, precision=config.precision, progress=progress)
    model = model.cpu().eval()
    checkpoint = output / CHECKPOINT
    model.save(checkpoint, notes={"dataset": dataset.name, "epochs": str(config.epochs)})
    problems = list(dict.fromkeys([*recorder.problems, *module.problems.lines()]))
    return TrainResult(model, checkpoint, recorder.history, problems, recorder.seconds, module.counts or {})
