"""What training is fed with: batches of P people with K augmented pictures each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mgran_fast import ranks
from mgran_fast.data import (
    Augment,
    BadPicture,
    Batch,
    CropDataset,
    DataSet,
    Masks,
    PKBatchSampler,
    Sample,
    collate,
    samplers,
)
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.signals import keep_reading


class SeededBatches(Sampler[list[tuple[int, int]]]):
    """The batches of a PK sampler, each picture with a seed of its own for its augmentation.

    The seeds depend on the run's seed, the epoch and the place in it alone: neither the number of workers and ranks nor
    an interruption changes what a run sees.
    """

    def __init__(self, batches: PKBatchSampler) -> None:
        self.batches = batches

    @property
    def sampler(self) -> SeededBatches:
        """This object, where trainers look for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, 0 or more, that the next iteration shows."""
        self.batches.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng((self.batches.seed, self.batches.epoch, 1))
        start, mine = self.batches.start, self.batches.mine
        for place, batch in enumerate(self.batches.whole()):
            seeds = rng.integers(0, 2**63, len(batch)).tolist()
            if place >= start:
                yield list(zip(batch[mine], seeds[mine], strict=True))


class SeededCrops(Dataset["Sample | BadPicture"]):
    """Crops by (place, seed); the seed is that of the augmentation. Leaves torch's own random numbers alone."""

    def __init__(self, crops: CropDataset) -> None:
        self.crops = crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, item: tuple[int, int]) -> Sample | BadPicture:
        index, seed = item
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)
            return self.crops[index]


class TrainingData(pl.LightningDataModule):
    """Batches of P people with K augmented pictures each."""

    def __init__(self, dataset: DataSet, masks: Masks | None, config: TrainConfig) -> None:
        super().__init__()
        self.dataset, self.masks, self.config = dataset, masks, config
        self.labels = {person: label for label, person in enumerate(dataset.people())}
        self.batches = SeededBatches(
            samplers.build(
                config.sampler,
                [record.person for record in dataset.train],
                [record.camera for record in dataset.train],
                config.people,
                config.pictures,
                seed=config.seed,
                batches=config.batches,
            )
        )

    def train_dataloader(self) -> DataLoader[Any]:
        config = self.config
        crops = CropDataset(
            self.dataset.train,
            masks=self.masks,
            size=config.size,
            layout=config.layout,
            labels=self.labels,
            augment=Augment(
                config.layout,
                flip=config.flip,
                pad=config.pad,
                erase=config.erase,
                brightness=config.jitter,
                contrast=config.jitter,
                colour=config.jitter,
            ),
        )
        self.batches.batches.share(ranks.rank(), ranks.world())
        go_on(self, self.batches.batches)
        return DataLoader(
            SeededCrops(crops),
            batch_sampler=self.batches,
            collate_fn=collate,
            **reading(config.workers),
        )


def go_on(data: pl.LightningDataModule, sampler: Any) -> None:
    """Tell a sampler, by ``set_epoch`` and ``skip``, where the run that ``data`` belongs to goes on.

    Workers take up the first batches at once, before Lightning tells the sampler of a resumed epoch.
    """
    if data.trainer is None:
        return
    # (current_epoch still counts from the start then.)
    loop: Any = data.trainer.fit_loop
    sampler.set_epoch(loop.epoch_progress.current.processed)
    done = loop.epoch_loop.batch_progress.current.ready
    # Of an epoch that is over all batches are done, and the next begins at its start.
    sampler.skip(done if done < len(sampler) else 0)


def reading(workers: int) -> dict[str, Any]:
    """Arguments for a DataLoader of a training run with so many processes that read."""
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": keep_reading,
        # Of its own: what a loader draws must not depend on how often a run was resumed.
        "generator": torch.Generator(),
    }


def shared_out(batch: Batch, sizes: Sequence[int]) -> tuple[Batch, list[int]]:
    """The pictures of all ranks, shared out anew in their order: for batches of which a rank could read nothing.

    Args:
        batch: of this rank.
        sizes: the pictures of each rank, as many as ranks or more together.

    Returns:
        The batch of this rank, and the new sizes, which differ by 1 at most.
    """
    world, total = len(sizes), sum(sizes)
    bounds = [total * r // world for r in range(world + 1)]
    mine = slice(bounds[ranks.rank()], bounds[ranks.rank() + 1])
    columns: dict[str, Any] = {
        field.name: ranks.gather(value, sizes)[mine]
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), torch.Tensor)
    }
    return Batch(**columns), [b - a for a, b in itertools.pairwise(bounds)]
