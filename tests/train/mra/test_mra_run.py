"""Runs that train an estimator: what they leave, that they are repeatable, resumed, stopped, and refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

from mgran_fast.data import DataSet
from mgran_fast.data.folder import list_pictures, read_folder
from mgran_fast.data.labels import LabelledPicture, crops
from mgran_fast.errors import CheckpointError, DataError
from mgran_fast.mra.maskrcnn import MaskRCNN
from mgran_fast.mra.regionnet import RegionNet
from mgran_fast.train import logs
from mgran_fast.train.lightning import CHECKPOINT, SETTINGS, STATE, AtomicFiles
from mgran_fast.train.mra.config import MRAConfig
from mgran_fast.train.mra.run import (
    BACKGROUNDS,
    LabelledData,
    MRAResult,
    ShuffledBatches,
    build,
    check,
    read_backgrounds,
    train,
)
from mgran_fast.weights import files


def settings(**changes: Any) -> MRAConfig:
    values: dict[str, Any] = {
        "size": (64, 32), "working_size": (64, 32), "channels": 8, "epochs": 3, "batch_size": 6, "batches": 2,
        "workers": 0, "evaluate_every": 0, "precision": "float32",
    }  # fmt: skip
    return MRAConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def pictures(tiny: DataSet) -> Sequence[LabelledPicture]:
    return read_folder(tiny.root, part="train").pictures


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    timed = ("seconds", "persons_per_second", "waiting")
    return [{name: value for name, value in line.items() if name not in timed} for line in history]


@pytest.fixture(scope="module")
def whole(pictures: Sequence[LabelledPicture], tmp_path_factory: pytest.TempPathFactory) -> MRAResult:
    """A run of three epochs from start to end."""
    return train(pictures, settings(), tmp_path_factory.mktemp("whole") / "run")


# --- what a run leaves ------------------------------------------------------------------------------------------


def test_a_run_leaves_an_estimator_and_a_state(whole: MRAResult) -> None:
    folder = whole.checkpoint.parent
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    boards = {file for file in files if file.startswith(f"{logs.TENSORBOARD}/")}
    assert len(boards) == 1
    assert files - boards == {CHECKPOINT, SETTINGS, STATE, logs.HISTORY, logs.CURVES}
    assert yaml.safe_load((folder / SETTINGS).read_text())["model"] == "regionnet"
    again = RegionNet.from_file(whole.checkpoint)
    assert isinstance(whole.estimator, RegionNet)
    assert not whole.estimator.training
    probe = torch.randint(0, 256, (2, 64, 32, 3), dtype=torch.uint8)
    assert torch.equal(again(probe).mask, whole.estimator(probe).mask)
    assert not same_weights(again, build(settings()))


def test_the_history(whole: MRAResult) -> None:
    assert [line["epoch"] for line in whole.history] == [1, 2, 3]
    for line in whole.history:
        parts = line["mask loss"] + line["keypoint loss"] + line["presence loss"]
        assert line["loss"] == pytest.approx(parts, rel=1e-4)
        assert line["seconds"] > 0
    assert whole.problems == []


def test_batch_norm_learns_from_the_first_step(pictures: Sequence[LabelledPicture], tmp_path: Path) -> None:
    """Estimators are made in eval mode, where batch norm would not."""
    model = build(settings())
    train(pictures, settings(epochs=1, batches=1), tmp_path / "run", model=model)
    means = {name: value for name, value in model.state_dict().items() if name.endswith("running_mean")}
    assert means
    assert all(bool(mean.any()) for mean in means.values())


def test_a_few_steps_learn(pictures: Sequence[LabelledPicture], tmp_path: Path) -> None:
    result = train(pictures, settings(epochs=2, batches=12, learning_rate=5e-3), tmp_path / "run")
    assert result.history[-1]["loss"] < result.history[0]["loss"] - 0.1


def test_measured_between_epochs(pictures: Sequence[LabelledPicture], tiny: DataSet, tmp_path: Path) -> None:
    tests = {name: crops(read_folder(tiny.root, part=name).pictures, (64, 32)) for name in ("test", "train")}
    told: list[dict[str, float]] = []
    config = settings(epochs=2, batches=1, evaluate_every=1)
    result = train(pictures, config, tmp_path / "run", tests=tests, on_epoch=told.append)
    assert told == result.history
    assert {"iou test", "keypoints test", "iou train", "keypoints train"} <= told[0].keys()
    assert 0 <= told[0]["iou test"] <= 1
    assert "iou test" not in told[1], "the last epoch is measured by whoever runs the training"
    plain = train(pictures, settings(epochs=2, batches=1), tmp_path / "plain")
    assert same_weights(result.estimator, plain.estimator), "measuring changes nothing"


def test_crops_of_backgrounds(pictures: Sequence[LabelledPicture], tiny: DataSet, tmp_path: Path) -> None:
    config = settings(epochs=1)
    behind = list_pictures(tiny.root, "test")
    result = train(pictures, config, tmp_path / "a", backgrounds=behind)
    assert not same_weights(result.estimator, train(pictures, config, tmp_path / "b").estimator)
    assert read_backgrounds(behind * BACKGROUNDS, (8, 4)).shape == (BACKGROUNDS, 8, 4, 3)


# --- repeatable, resumed ------------------------------------------------------------------------------------------


class StopError(Exception):
    pass


@pytest.mark.parametrize(("after", "workers"), [(1, 0), (2, 1)])
def test_a_resumed_run_ends_as_a_whole_one(
    after: int, workers: int, whole: MRAResult, pictures: Sequence[LabelledPicture], tmp_path: Path
) -> None:
    def interrupt(line: dict[str, float]) -> None:
        if line["epoch"] == after:
            raise StopError

    config = settings(workers=workers)
    torch.manual_seed(after)  # the caller's random numbers do not count
    with pytest.raises(StopError):
        train(pictures, config, tmp_path / "run", on_epoch=interrupt)
    assert not (tmp_path / "run" / CHECKPOINT).exists()
    result = train(pictures, config, tmp_path / "run", resume=True)
    assert without_seconds(result.history) == without_seconds(whole.history)
    assert same_weights(result.estimator, whole.estimator)


def test_resuming_with_other_settings_or_data(
    whole: MRAResult, pictures: Sequence[LabelledPicture], tiny: DataSet
) -> None:
    folder = whole.checkpoint.parent
    with pytest.raises(CheckpointError, match="holds a run already; continue it with --resume"):
        train(pictures, settings(), folder)
    with pytest.raises(CheckpointError, match=r"the run has learning_rate=0\.001"):
        train(pictures, settings(learning_rate=0.1), folder, resume=True)
    with pytest.raises(CheckpointError, match="the run was made with other training pictures"):
        train(pictures[1:], settings(), folder, resume=True)
    with pytest.raises(CheckpointError, match="the run was made with other training pictures"):
        check(pictures, settings(), folder, resume=True, backgrounds=list_pictures(tiny.root))
    check(pictures, settings(workers=3), folder, resume=True)


def test_the_seed_decides(pictures: Sequence[LabelledPicture], tmp_path: Path, whole: MRAResult) -> None:
    state = torch.get_rng_state()
    assert same_weights(build(settings()), build(settings()))
    assert not same_weights(build(settings()), build(settings(seed=1)))
    assert torch.equal(torch.get_rng_state(), state)
    other = train(pictures, settings(seed=1), tmp_path / "run", model=build(settings()))
    assert not same_weights(other.estimator, whole.estimator)


def test_shuffled_batches() -> None:
    batches = ShuffledBatches(10, 3, None, seed=5)
    epochs = []
    for epoch in (0, 1, 0):
        batches.set_epoch(epoch)
        epochs.append(list(batches))
    assert epochs[0] == epochs[2] != epochs[1]
    assert [len(batch) for batch in epochs[0]] == [3, 3, 3] == [3] * len(batches)
    places = [place for batch in epochs[0] for place, _ in batch]
    assert len(set(places)) == 9
    many = list(ShuffledBatches(4, 3, 5, seed=0))
    assert len(many) == 5
    counts = np.bincount([place for batch in many for place, _ in batch], minlength=4)
    assert counts.sum() == 15
    assert counts.min() >= 3
    assert [len(batch) for batch in ShuffledBatches(2, 64, None, seed=0)] == [2]


# --- the joint Mask R-CNN -----------------------------------------------------------------------------------------


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> MaskRCNN:
    """With small heads, and no state is written: the half gigabyte of a real one is no news to the test."""
    monkeypatch.setattr(AtomicFiles, "save_checkpoint", lambda *_, **__: None)
    torch.manual_seed(0)
    model = MaskRCNN(backbone="resnet18", num_classes=2)
    heads: Any = model.roi_heads
    heads.box_head, heads.box_predictor = TwoMLPHead(256 * 7 * 7, 16), FastRCNNPredictor(16, 2)
    heads.keypoint_head, heads.keypoint_predictor = KeypointRCNNHeads(256, (16,)), KeypointRCNNPredictor(16, 17)
    return model


@pytest.mark.parametrize("whole_pictures", [False, True])
def test_mask_rcnn_is_trained_too(
    whole_pictures: bool, pictures: Sequence[LabelledPicture], detector: MaskRCNN, tmp_path: Path
) -> None:
    config = settings(
        model="maskrcnn", backbone="resnet18", epochs=1, batches=2, batch_size=2, whole_pictures=whole_pictures
    )
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    test = {"test": crops(pictures[:2], (64, 32))}
    result = train(pictures, config, tmp_path / "run", model=detector, tests=test)
    assert result.estimator is detector
    assert not detector.training
    assert result.checkpoint.is_file()
    assert {"classifier loss", "box reg loss", "mask loss", "keypoint loss", "loss"} <= result.history[0].keys()
    after = detector.state_dict()
    for part in ("backbone.body.conv1", "roi_heads.mask_head", "roi_heads.keypoint_head", "roi_heads.box_predictor"):
        weights = [name for name in after if name.startswith(part) and name.endswith("weight")]
        assert any(not torch.equal(after[name], before[name]) for name in weights), part


# --- bad pictures, and what is refused ----------------------------------------------------------------------------


def test_bad_pictures_are_told_once(tiny: DataSet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copied = Path(shutil.copytree(tiny.root, tmp_path / "copied"))
    found = read_folder(copied, part="train").pictures
    found[2].path.write_bytes(b"")
    result = train(found, settings(epochs=2, batches=None), tmp_path / "run")
    assert len(result.problems) == 1
    assert found[2].path.name in result.problems[0]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warned == result.problems
    for one in found:
        one.path.write_bytes(b"")
    with pytest.raises(DataError, match="not one training picture could be used"):
        train(found, settings(), tmp_path / "none")
    assert not (tmp_path / "none" / CHECKPOINT).exists()


def test_bad_test_pictures_are_told_once(
    pictures: Sequence[LabelledPicture], tiny: DataSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copied = Path(shutil.copytree(tiny.root, tmp_path / "copied"))
    found = read_folder(copied, part="test").pictures[:2]
    found[0].path.write_bytes(b"")
    config = settings(epochs=3, batches=1, evaluate_every=1)
    train(pictures, config, tmp_path / "run", tests={"test": crops(found, (64, 32))})
    assert len([record for record in caplog.records if found[0].path.name in record.getMessage()]) == 1


def test_a_folder_that_cannot_be_written(
    pictures: Sequence[LabelledPicture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "put", full)
    with pytest.raises(DataError, match=r"run: cannot be written to \(No space left on device\); choose another"):
        train(pictures, settings(), tmp_path / "run")


def test_people_without_masks_or_keypoints(tiny: DataSet, detector: MaskRCNN, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(tiny.root, tmp_path / "copied"))
    table = json.loads((copied / "keypoints.json").read_text())
    for number, path in enumerate(list_pictures(copied, "train")):
        place = path.relative_to(copied)
        if number % 2:
            del table[place.as_posix()]
        else:
            (copied / "masks" / place.with_suffix(".png")).unlink()
    (copied / "keypoints.json").write_text(json.dumps(table))
    found = read_folder(copied, part="train").pictures
    assert {(bool(one.has_mask[0]), bool(one.has_keypoints[0])) for one in found} == {(True, False), (False, True)}
    for part in (found[:1], found[1:2], found):
        result = train(part, settings(batches=1, epochs=1), tmp_path / f"{part[0].path.stem}-{len(part)}")
        assert all(np.isfinite(value) for value in result.history[0].values())
    config = settings(model="maskrcnn", backbone="resnet18", epochs=1, batches=2, batch_size=1)
    for part in (found[:1], found[1:2]):
        line = train(part, config, tmp_path / f"detector-{part[0].path.stem}", model=detector).history[0]
        known, unknown = ("mask", "keypoint") if part[0].has_mask[0] else ("keypoint", "mask")
        assert line[f"{known} loss"] > 0
        assert line[f"{unknown} loss"] == 0


def test_a_run_that_diverges_stops(pictures: Sequence[LabelledPicture], tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        train(pictures, settings(learning_rate=1e30, warmup=0.0), tmp_path / "run")
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_what_is_refused(pictures: Sequence[LabelledPicture], detector: MaskRCNN, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(DataError, match="nobody is labelled in the training pictures"):
        train([], settings(), output)
    with pytest.raises(CheckpointError, match="those of a RegionNet; train it with --model regionnet"):
        train(pictures, settings(model="maskrcnn"), output, model=build(settings()))
    detect = settings(model="maskrcnn", mode="detect")
    with pytest.raises(CheckpointError, match="those of mode 'box'; train it with --mode box"):
        train(pictures, detect, output, model=detector)
    with pytest.raises(DataError, match="--epochs 0"):
        train(pictures, settings(epochs=0), output)
    flat = [dataclasses.replace(one, boxes=one.boxes / 4) for one in pictures]
    with pytest.raises(DataError, match="nobody in the training pictures is 32 pixels high or more"):
        LabelledData(flat, settings())
    assert not output.exists()
