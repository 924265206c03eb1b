"""One run that trains an estimator of masks and keypoints: from labelled pictures to a checkpoint, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader, Sampler

from mgran_fast.data.dataset import Problems
from mgran_fast.data.labels import (
    LabelledPicture,
    PersonCrops,
    PictureDataset,
    collate_crops,
    collate_pictures,
    crops,
    digest,
)
from mgran_fast.data.pictures import read_picture
from mgran_fast.errors import CheckpointError, DataError
from mgran_fast.metrics.agreement import Agreement, measure
from mgran_fast.mra.maskrcnn import MaskRCNN
from mgran_fast.mra.regionnet import RegionNet
from mgran_fast.train.data import go_on, reading
from mgran_fast.train.lightning import CHECKPOINT, begin, check_output, fit
from mgran_fast.train.mra.config import MRAConfig
from mgran_fast.train.mra.maskrcnn import MaskRCNNModule
from mgran_fast.train.mra.regionnet import RegionNetModule
from mgran_fast.train.recorder import Recorder

#: More pictures without people than this teach nothing more, and have to stay in memory.
BACKGROUNDS = 1000
#: People less high than this, in pixels, are left out: what a crop of them shows is mostly made up.
SMALLEST = 32.0


@dataclass
class MRAResult:
    """What a run gave.

    Attributes:
        estimator: in eval mode, on the CPU.
        checkpoint: where its weights lie.
        history: one mapping an epoch: epoch, seconds, the losses, and ``iou TEST`` and ``keypoints TEST`` for each test
            set where it was measured.
        problems: pictures that could not be read, one line each.
        seconds: the time that training took, measurements left out.
    """

    estimator: RegionNet | MaskRCNN
    checkpoint: Path
    history: list[dict[str, float]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def build(config: MRAConfig) -> RegionNet | MaskRCNN:
    """The untrained estimator of these settings; the same seed gives the same weights."""
    # fork_rng: building a model is no reason to disturb the caller's random numbers.
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(config.seed)
        if config.model == "regionnet":
            return RegionNet(size=config.working_size, channels=config.channels, context=config.context)
        return MaskRCNN(mode=config.mode, backbone=config.backbone)


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (place, seed), in another order each epoch.

    Order and seeds depend on the run's seed and the epoch alone: neither the number of workers nor an interruption
    changes what a run sees. What does not fill a batch at the end of an epoch waits for another one.

    Args:
        count: the items, 1 or more.
        size: of a batch; a batch has all items where there are fewer.
        batches: of an epoch; None for as many as the items fill. More than they fill show items again.
    """

    def __init__(self, count: int, size: int, batches: int | None, seed: int) -> None:
        self.count, self.size, self.seed, self.epoch, self.start = count, min(size, count), seed, 0, 0
        self.batches = count // self.size if batches is None else batches

    @property
    def sampler(self) -> ShuffledBatches:
        """This object, where trainers look for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, 0 or more, that the next iteration shows, from its start if it is another one."""
        if epoch != self.epoch:
            self.start = 0
        self.epoch = epoch

    def skip(self, batches: int) -> None:
        """Leave out so many batches at the start of this epoch; the others are what they are without that."""
        self.start = batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        wanted = self.batches * self.size
        passes = -(-wanted // self.count)
        order = np.concatenate([rng.permutation(self.count) for _ in range(passes)])[:wanted]
        seeds = rng.integers(0, 2**63, wanted)
        for start in range(self.start * self.size, wanted, self.size):
            end = start + self.size
            yield list(zip(order[start:end].tolist(), seeds[start:end].tolist(), strict=True))


class LabelledData(pl.LightningDataModule):
    """Shuffled batches of labelled crops, or of whole pictures."""

    def __init__(self, pictures: Sequence[LabelledPicture], config: MRAConfig) -> None:
        super().__init__()
        self.config = config
        self.dataset: PersonCrops | PictureDataset = (
            crops(
                pictures,
                config.size,
                config.margin,
                jitter=config.jitter,
                smallest=SMALLEST,
                background=True,
            )
            if config.crops
            else PictureDataset(pictures)
        )
        if not len(self.dataset):
            raise DataError(
                f"nobody in the training pictures is {SMALLEST:g} pixels high or more; take larger pictures"
            )
        self.batches = ShuffledBatches(len(self.dataset), config.batch_size, config.batches, config.seed)

    def train_dataloader(self) -> DataLoader[Any]:
        go_on(self, self.batches)
        return DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            collate_fn=collate_crops if self.config.crops else collate_pictures,
            **reading(self.config.workers),
        )


def read_backgrounds(paths: Sequence[Path], size: tuple[int, int]) -> torch.Tensor:
    """Pictures without people as uint8 [M, h, w, 3]: at most 1000, evenly chosen. Raises DataError for a bad one."""
    chosen = [paths[i * len(paths) // BACKGROUNDS] for i in range(BACKGROUNDS)] if len(paths) > BACKGROUNDS else paths
    pixels = [torch.from_numpy(read_picture(path, size)) for path in chosen]
    return torch.stack(pixels) if pixels else torch.zeros((0, *size, 3), dtype=torch.uint8)


def check(
    pictures: Sequence[LabelledPicture],
    config: MRAConfig,
    output: Path,
    *,
    resume: bool = False,
    backgrounds: Sequence[Path] = (),
) -> None:
    """Raise DataError or CheckpointError when :func:`train` would refuse to start; touches nothing."""
    if not any(len(picture) for picture in pictures):
        raise DataError("nobody is labelled in the training pictures; name other --data")
    if config.epochs < 1:
        raise DataError(f"--epochs {config.epochs}: training wants one or more")
    check_output(output, config, _digest(pictures, backgrounds), resume=resume)


def train(
    pictures: Sequence[LabelledPicture],
    config: MRAConfig,
    output: Path,
    *,
    model: RegionNet | MaskRCNN | None = None,
    tests: Mapping[str, PersonCrops] | None = None,
    backgrounds: Sequence[Path] = (),
    resume: bool = False,
    progress: bool = False,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> MRAResult:
    """Train an estimator on labelled pictures; write it and the state to go on from into the folder ``output``.

    Args:
        model: an estimator to start from, of the kind that ``config.model`` names; None builds one. It is changed.
        tests: what is measured every ``config.evaluate_every`` epochs, by name. Not after the last one: that is for
            whoever runs the training.
        backgrounds: pictures without people, which RegionNet's augmentation puts behind people.
        resume: go on from the last finished epoch in ``output``, if there is one.
        progress: show a progress bar.
        on_epoch: called after each epoch with its line of the history.

    Raises:
        DataError: nobody is labelled, or not one picture could be read.
        CheckpointError: the state in ``output`` is of another run, or broken.
        FloatingPointError: the loss is no number any more; ``output`` keeps the last epoch in which it was.
        KeyboardInterrupt: as it came; the run goes on with ``resume``.
    """
    check(pictures, config, output, resume=resume, backgrounds=backgrounds)
    data = LabelledData(pictures, config)
    module = _module(config, model, config.epochs * len(data.batches), backgrounds)
    begin(output, config, _digest(pictures, backgrounds), module, resume=resume)

    # One for all measurements, so that a bad test picture is told once.
    problems = Problems()

    def measured(now: RegionNetModule | MaskRCNNModule) -> dict[str, float]:
        estimator = now.estimator().to(now.device)
        line: dict[str, float] = {}
        for name, test in (tests or {}).items():
            found = measure(
                estimator, test, batch_size=config.batch_size, workers=config.workers, device=now.device,
                problems=problems,
            )  # fmt: skip
            line.update({f"{key} {name}": value for key, value in figures(found).items()})
        now.train()
        return line

    wanted = measured if tests else None
    recorder = Recorder(pictures[0].path.parent, config.epochs, config.evaluate_every, wanted, on_epoch)
    callbacks: list[Callback] = [recorder]
    # Estimators are made in eval mode, and Lightning leaves the mode as it is.
    module.train()
    fit(
        module, data, callbacks, output, epochs=config.epochs, precision=config.precision, progress=progress,
        seed=config.seed,
    )  # fmt: skip
    estimator = module.cpu().estimator()
    estimator.save(output / CHECKPOINT)
    lines = list(dict.fromkeys([*recorder.problems, *module.problems.lines()]))
    return MRAResult(estimator, output / CHECKPOINT, recorder.history, lines, recorder.seconds)


def figures(found: Agreement) -> dict[str, float]:
    """Mean mask IoU and the share of visible keypoints within 0.2 torso lengths, both as fractions."""
    return {"iou": found.mean_iou, "keypoints": found.within()}


def _module(
    config: MRAConfig, model: RegionNet | MaskRCNN | None, steps: int, backgrounds: Sequence[Path]
) -> RegionNetModule | MaskRCNNModule:
    start = build(config) if model is None else model
    kind = "regionnet" if isinstance(start, RegionNet) else "maskrcnn"
    if kind != config.model:
        raise CheckpointError(f"the weights are those of a {type(start).__name__}; train it with --model {kind}")
    if isinstance(start, RegionNet):
        return RegionNetModule(start, config, steps, read_backgrounds(backgrounds, start.size))
    if start.mode != config.mode:
        raise CheckpointError(f"the weights are those of mode {start.mode!r}; train it with --mode {start.mode}")
    return MaskRCNNModule(start, config, steps, calibrate=model is None)


def _digest(pictures: Sequence[LabelledPicture], backgrounds: Sequence[Path]) -> str:
    names = "\n".join(path.name for path in backgrounds)
    return hashlib.sha256(f"{digest(pictures)}\n{names}".encode()).hexdigest()
