"""What training is fed with: batches of P people with K augmented pictures each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from mgran_fast.data import Augment, BadPicture, CropDataset, DataSet, Masks, PKBatchSampler, Sample, collate
from mgran_fast.train.config import TrainConfig


class SeededBatches(Sampler[list[tuple[int, int]]]):
    """The batches of a PK sampler, each picture with a seed of its own for its augmentation.

    The seeds depend on the run's seed and the epoch alone: neither the number of workers nor an interruption
    changes what a run sees.
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
        for batch in self.batches:
            yield list(zip(batch, rng.integers(0, 2**63, len(batch)).tolist(), strict=True))


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
            PKBatchSampler(
                [record.person for record in dataset.train],
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
        if self.trainer is not None:
            # Workers take up the first batches at once, before Lightning tells the sampler where a run resumes.
            # (current_epoch still counts from the start then.)
            done = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
            self.batches.set_epoch(done)
        return DataLoader(
            SeededCrops(crops),
            batch_sampler=self.batches,
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
        )
