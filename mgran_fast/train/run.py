"""One training run: from a data set to a checkpoint, resumable."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from mgran_fast import layouts
from mgran_fast.data import DataSet, Masks
from mgran_fast.errors import CheckpointError, DataError
from mgran_fast.metrics.evaluation import evaluate
from mgran_fast.metrics.protocols import Rule
from mgran_fast.model import MGRAN
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.data import TrainingData
from mgran_fast.train.lightning import CHECKPOINT, SETTINGS, STATE, begin, check_output, fit
from mgran_fast.train.machines import Machines, is_first
from mgran_fast.train.module import TrainingModule
from mgran_fast.train.precision import lightning_precision
from mgran_fast.train.recorder import Recorder
from mgran_fast.weights import files

__all__ = ["CHECKPOINT", "SETTINGS", "STATE", "TrainResult", "build", "check", "digest", "train"]


@dataclass
class TrainResult:
    """What a run gave.

    Attributes:
        model: in eval mode, on the CPU, with the weights of the last epoch.
        checkpoint: where they lie.
        history: one mapping an epoch: epoch, loss, accuracy, seconds, and where it was evaluated rank1, and map if the
            data set's protocol has it.
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
    dataset: DataSet,
    config: TrainConfig,
    output: Path,
    *,
    resume: bool = False,
    masks: Masks | None = None,
    machines: Machines | None = None,
) -> None:
    """Raise DataError or CheckpointError when :func:`train` would refuse to start; touches nothing.

    With ``masks``, and a layout that looks at them, at least one training picture must have its mask file.
    """
    if not dataset.train:
        raise DataError(f"{dataset.root}: no training pictures")
    people = len(dataset.people())
    if people < config.people:
        raise DataError(f"{dataset.root}: {people} training people, but --people {config.people}; ask for fewer")
    machines = machines or Machines()
    machines.check(config.people)
    lightning_precision(config.precision, machines.device)
    if machines.strategy == "fsdp" and (config.ema or config.clip):
        raise DataError(f"strategy fsdp knows no {'ema' if config.ema else 'clip'}: set it to 0, or take ddp")
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
    machines: Machines | None = None,
) -> TrainResult:
    """Train MA on ``dataset`` and write the model and the state to go on from into the folder ``output``.

    Of several processes all return; the first one has written the files, and knows the history and all problems.

    Args:
        masks: the masks and keypoints of the training pictures; None for layout "none".
        model: a model to start from, with as many classes as there are training people; None builds one.
        resume: go on from the last state in ``output``, if there is one.
        progress: show a progress bar.
        on_epoch: called after each epoch with its line of the history, by the first process.
        machines: where; None for all GPUs of this machine, or one process on the CPU.

    Raises:
        DataError: no training pictures, too few people, not one mask, not one picture that could be read, or a disk
            that is full.
        CheckpointError: the state in ``output`` is of another run, or broken.
        FloatingPointError: the loss is no number any more; ``output`` keeps the last state in which it was.
        KeyboardInterrupt: as it came, or :class:`mgran_fast.train.signals.Interrupted` with a state of that step; the
            run goes on with ``resume``.
        MGRANError: a process was killed, or the last state could not be written; the run goes on with ``resume``.
    """
    machines = machines or Machines()
    check(dataset, config, output, resume=resume, masks=masks, machines=machines)
    people = len(dataset.people())
    model = build(config, people) if model is None else model
    if model.num_classes != people:
        raise CheckpointError(
            f"the model has {model.num_classes} classes and {dataset.root} has {people} training people;"
            " train a new model or take the data set that it was made for"
        )
    sharded = machines.strategy == "fsdp"
    whole = copy.deepcopy(model) if sharded else model
    data = TrainingData(dataset, masks, config)
    # The last batches of an epoch make a step, however few they are.
    steps = config.epochs * math.ceil(len(data.batches) / config.accumulate)
    module = TrainingModule(model, config, steps, [record.path for record in dataset.train])
    begin(output, config, digest(dataset), module, resume=resume)

    def measure(now: TrainingModule) -> dict[str, float]:
        rule = Rule(dataset.protocol)
        found = evaluate(now.model, dataset.query, dataset.gallery, masks, rule, workers=config.workers).figures()
        return {name: found[name] for name in ("rank1", "map") if name in found}

    # No process has a whole model to measure where the weights are shared out.
    wanted = measure if dataset.query and not sharded else None
    recorder = Recorder(dataset.root, config.epochs, config.evaluate_every, wanted, on_epoch)
    with _prepared(model, config):
        fit(
            module,
            data,
            [recorder],
            output,
            epochs=config.epochs,
            precision=config.precision,
            progress=progress,
            machines=machines,
            accumulate=config.accumulate,
            clip=config.clip,
            ema=config.ema,
            minutes=config.checkpoint_minutes,
            seed=config.seed,
        )
    if sharded:
        saved = torch.load(output / STATE, "cpu", weights_only=True, mmap=True)["state_dict"]
        weights = {name.removeprefix("model."): value for name, value in saved.items() if name.startswith("model.")}
        whole.load_state_dict(weights)
    whole = whole.cpu().eval()
    checkpoint = output / CHECKPOINT
    if is_first():
        _save(whole, checkpoint, notes={"dataset": dataset.name, "epochs": str(config.epochs)})
    problems = list(dict.fromkeys([*recorder.problems, *module.problems.lines()]))
    return TrainResult(whole, checkpoint, recorder.history, problems, recorder.seconds, module.counts or {})


@contextmanager
def _prepared(model: MGRAN, config: TrainConfig) -> Iterator[None]:
    """What the settings do to a model while it trains, and only then."""
    trunk: Any = model.ma.trunk
    kept, trunk.recompute = getattr(trunk, "recompute", False), config.recompute
    if config.compile:
        # In place: the names of the weights stay.
        trunk.compile()
    try:
        yield
    finally:
        trunk.recompute = kept
        if config.compile:
            trunk._compiled_call_impl = None


def _save(model: MGRAN, path: Path, notes: dict[str, str]) -> None:
    try:
        model.save(path, notes=notes)
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in model.ma.state_dict().values())
        # safetensors tells the disk's errors in words alone.
        full = "os error 28" in str(error) and not isinstance(error, OSError)
        failed = error if isinstance(error, OSError) else OSError(errno.ENOSPC if full else 0, str(error))
        raise DataError(f"{files.reason(failed, path, size)}; the state is whole, go on with --resume") from None
