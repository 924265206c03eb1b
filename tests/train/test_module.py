"""The training step, and the order of the batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mgran_fast.data import BadPicture, CropDataset, DataSet, MaskFiles, PKBatchSampler, Sample, collate
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.data import SeededBatches, SeededCrops, TrainingData
from mgran_fast.train.module import TrainingModule
from mgran_fast.train.precision import lightning_precision
from mgran_fast.train.run import build

Settings = Callable[..., TrainConfig]


def test_a_batch_of_bad_pictures_is_skipped(settings: Settings) -> None:
    module = TrainingModule(build(settings(), 6), settings(), steps=6)
    bad = BadPicture(3, "a.jpg: broken", (32, 16))
    loss = module.training_step(collate([bad, bad]), 0)
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters()), "all ranks go on together"
    optimizer = module.configure_optimizers()["optimizer"]
    module.on_before_optimizer_step(optimizer)
    assert all(p.grad is None for p in module.parameters()), "a step without pictures moves nothing"
    module.training_step(collate([bad]), 1)
    assert module.problems.lines() == ["a.jpg: broken"]
    assert module.shown == 0


def test_seeded_batches_are_the_samplers_with_seeds() -> None:
    labels = [person for person in range(5) for _ in range(3)]

    def batches(seed: int, epoch: int) -> list[list[tuple[int, int]]]:
        sampler = SeededBatches(PKBatchSampler(labels, 2, 2, seed=seed))
        sampler.sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
        return list(sampler)

    plain = PKBatchSampler(labels, 2, 2, seed=4)
    plain.set_epoch(2)
    assert [[index for index, _ in batch] for batch in batches(4, 2)] == list(plain)
    assert batches(4, 2) == batches(4, 2)

    def seeds(seed: int, epoch: int) -> set[int]:
        return {value for batch in batches(seed, epoch) for _, value in batch}

    assert len(seeds(4, 2)) == 16, "two pictures of an epoch never get the same changes"
    assert not seeds(4, 2) & seeds(4, 3)
    assert not seeds(4, 2) & seeds(5, 2)


def test_a_crop_depends_on_its_seed_alone(tiny: DataSet, settings: Settings) -> None:
    crops = TrainingData(tiny, MaskFiles(tiny.root), settings()).train_dataloader().dataset
    assert isinstance(crops, SeededCrops)
    assert len(crops) == len(tiny.train)

    def crop(index: int, seed: int) -> torch.Tensor:
        sample = crops[index, seed]
        assert isinstance(sample, Sample)
        assert sample.index == index
        return sample.crop

    torch.manual_seed(1)
    first = crop(0, 7)
    torch.manual_seed(2)
    after = torch.rand(3)
    torch.manual_seed(2)
    assert torch.equal(crop(0, 7), first)
    assert torch.equal(torch.rand(3), after), "the caller's random numbers stay as they were"
    assert not all(torch.equal(crop(0, seed), first) for seed in range(5))


def test_loader_gives_pk_batches_with_labels(tiny: DataSet, settings: Settings) -> None:
    data = TrainingData(tiny, MaskFiles(tiny.root), settings(batches=None))
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.batches) == 4
    for batch in batches:
        people, counts = batch.persons.unique(return_counts=True)
        assert (len(people), counts.tolist()) == (3, [2, 2, 2])
        assert batch.labels.tolist() == [tiny.people().index(person) for person in batch.persons.tolist()]
        assert batch.crops.shape == (6, 32, 16, 3)
    plain = CropDataset(tiny.train, masks=MaskFiles(tiny.root), size=(32, 16))
    same = [torch.equal(c, plain[int(i)].crop) for b in batches for c, i in zip(b.crops, b.indices, strict=True)]
    assert not all(same), "training pictures are augmented"


@pytest.mark.parametrize(("precision", "name"), [("bf16", "bf16-mixed"), ("float32", "32-true")])
def test_precision(precision: str, name: str) -> None:
    assert lightning_precision(precision, "cpu") == name


@pytest.mark.parametrize(("has", "name"), [(True, "bf16-mixed"), (False, "32-true")])
def test_automatic_precision(has: bool, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgran_fast.train.precision.computes_bf16", lambda device: has)
    assert lightning_precision("auto", "cpu") == name


def test_shown_pictures_are_counted(tiny: DataSet, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    module = TrainingModule(build(settings(), 6), settings(), steps=6)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    batch = next(iter(TrainingData(tiny, MaskFiles(tiny.root), settings()).train_dataloader()))
    loss = module.training_step(batch, 0)
    assert loss is not None
    assert loss.requires_grad
    assert float(loss.detach()) == pytest.approx(float((logged["identity loss"] + logged["metric loss"]).detach()))
    assert module.shown == 6
    module.on_train_epoch_start()
    assert module.shown == 0
