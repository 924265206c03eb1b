"""Whole runs: what they leave, that they are repeatable, go on after an interruption, and survive bad files."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pickle
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from mgran_fast.data import Batch, DataSet, MaskFiles, PKBatchSampler, read_market
from mgran_fast.errors import CheckpointError, DataError
from mgran_fast.model import MGRAN
from mgran_fast.train import logs
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.lightning import DIVERGED
from mgran_fast.train.module import TrainingModule
from mgran_fast.train.run import CHECKPOINT, SETTINGS, STATE, TrainResult, build, check, digest, train
from mgran_fast.train.states import AtomicFiles

Settings = Callable[..., TrainConfig]


def run(dataset: DataSet, config: TrainConfig, output: Path, **options: Any) -> TrainResult:
    return train(dataset, MaskFiles(dataset.root), config, output, **options)


def same_weights(a: MGRAN, b: MGRAN) -> bool:
    left, right = a.ma.state_dict(), b.ma.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def without_seconds(history: list[dict[str, float]]) -> list[dict[str, float]]:
    timed = ("seconds", "persons_per_second", "waiting")
    return [{name: value for name, value in line.items() if name not in timed} for line in history]


def contents(folder: Path) -> dict[str, tuple[int, int, int]]:
    """The files of a folder with what changes when one is written: a state is too large to be read often."""
    stats = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path.relative_to(folder).as_posix(): (s.st_ino, s.st_size, s.st_mtime_ns) for path, s in stats.items()}


@pytest.fixture(scope="module", autouse=True)
def few_channels(narrow: None) -> None:
    """Most of the time goes into files otherwise."""


@pytest.fixture(scope="module")
def whole(tiny: DataSet, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run of three epochs from start to end. Tests that write take a copy of its folder."""
    return run(tiny, settings(), tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def finished(whole: TrainResult, tmp_path: Path) -> Path:
    """The folder of a finished run, its files linked: unlink one before writing to it."""
    return Path(shutil.copytree(whole.checkpoint.parent, tmp_path / "finished", copy_function=os.link))


@pytest.fixture
def copied(tiny: DataSet, tmp_path: Path) -> Path:
    """A copy of the data set's folder."""
    return Path(shutil.copytree(tiny.root, tmp_path / "copied"))


def spoil(paths: list[Path]) -> None:
    """Cut the first picture in half, and empty the others."""
    for i, path in enumerate(paths):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if i == 0 else b"")


# --- what a run leaves ----------------------------------------------------------------------------------------


def test_a_run_writes_model_settings_and_state(whole: TrainResult, settings: Settings) -> None:
    folder = whole.checkpoint.parent
    left = [name for name in contents(folder) if not name.startswith(f"{logs.TENSORBOARD}/")]
    assert sorted(left) == sorted([CHECKPOINT, SETTINGS, STATE, logs.HISTORY, logs.CURVES])
    assert yaml.safe_load((folder / SETTINGS).read_text())["epochs"] == 3
    assert same_weights(MGRAN.from_file(whole.checkpoint, num_classes=6), whole.model)
    assert not whole.model.training
    assert not same_weights(whole.model, build(settings(), 6)), "training changed the weights"


def test_the_history_of_a_run(whole: TrainResult) -> None:
    assert [line["epoch"] for line in whole.history] == [1, 2, 3]
    for line in whole.history:
        assert line["loss"] == pytest.approx(line["identity loss"] + line["metric loss"], rel=1e-5)
        assert 0 < line["loss"] < 20
        assert 0 <= line["accuracy"] <= 1
        assert line["seconds"] > 0
        assert line["persons_per_second"] > 0
        assert 0 < line["waiting"] < 1
    lines = logs.read(whole.checkpoint.parent / logs.HISTORY)
    told = [{name: value for name, value in line.items() if name not in ("step", "learning_rate")} for line in lines]
    assert told == [pytest.approx(line, rel=1e-5) for line in whole.history]
    assert whole.seconds == pytest.approx(sum(line["seconds"] for line in whole.history))
    assert whole.problems == []
    assert whole.counts == {"training pictures without a mask": 0, "training pictures without keypoints": 0}


def test_evaluations_between_epochs(tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    told: list[dict[str, float]] = []
    result = run(tiny, settings(epochs=2, batches=1, evaluate_every=1), tmp_path / "run", on_epoch=told.append)
    assert told == result.history
    assert 0 <= result.history[0]["rank1"] <= 1
    assert 0 < result.history[0]["map"] <= 1
    assert "rank1" not in result.history[1], "the last epoch is evaluated by whoever runs the training"


def test_whole_crops_train_without_masks(tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    result = train(tiny, None, settings(layout="none", epochs=1, batches=1), tmp_path / "run")
    assert result.model.layout.name == "none"
    assert result.history[0]["loss"] > 0


def test_bfloat16_on_a_cpu(tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    result = run(tiny, settings(precision="bf16", epochs=1), tmp_path / "run")
    assert 0 < result.history[0]["loss"] < 20
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in result.model.parameters())


def test_lightnings_advice_is_quiet(
    tiny: DataSet, settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tiny, settings(epochs=1, batches=1), tmp_path / "run")
    assert capfd.readouterr() == ("", "")


# --- repeatable -----------------------------------------------------------------------------------------------


def test_a_run_depends_on_its_seed_alone(whole: TrainResult, tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    torch.manual_seed(12345)  # neither the caller's random numbers nor the number of workers count
    again = run(tiny, settings(workers=1), tmp_path / "again")
    assert same_weights(again.model, whole.model)
    assert without_seconds(again.history) == without_seconds(whole.history)


def test_another_seed_gives_another_run(tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    start = build(settings(), 6).ma.state_dict()
    results = []
    for seed in (0, 1):
        model = build(settings(), 6)
        model.ma.load_state_dict(start)
        results.append(run(tiny, settings(seed=seed, epochs=1, batches=1), tmp_path / str(seed), model=model))
    assert not same_weights(results[0].model, results[1].model), "other batches and other augmentations"
    assert not same_weights(build(settings(seed=1), 6), build(settings(), 6))


def test_building_leaves_the_callers_random_numbers_alone(settings: Settings) -> None:
    torch.manual_seed(5)
    want = torch.rand(4)
    torch.manual_seed(5)
    model = build(settings(), 6)
    assert torch.equal(torch.rand(4), want)
    assert same_weights(model, build(settings(), 6))


def test_each_epoch_has_its_own_pk_batches(
    tiny: DataSet, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    step = TrainingModule.training_step

    def spy(self: TrainingModule, batch: Batch, index: int) -> Any:
        seen.append(batch.indices.tolist())
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", spy)
    run(tiny, settings(epochs=2), tmp_path / "run")
    sampler = PKBatchSampler([record.person for record in tiny.train], 3, 2, seed=0, batches=2)
    want = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        want += list(sampler)
    assert seen == want
    assert seen[:2] != seen[2:]


# --- interrupted and resumed ----------------------------------------------------------------------------------


class StopError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "after", "workers"), [(StopError, 2, 0), (KeyboardInterrupt, 2, 1), (StopError, 3, 0)], ids=str
)
def test_a_resumed_run_ends_as_a_whole_one(
    error: type[BaseException],
    after: int,
    workers: int,
    whole: TrainResult,
    tiny: DataSet,
    settings: Settings,
    tmp_path: Path,
) -> None:
    def interrupt(line: dict[str, float]) -> None:
        if line["epoch"] == after:
            raise error

    handler = signal.getsignal(signal.SIGINT)
    config, output = settings(workers=workers), tmp_path / "run"
    with pytest.raises(error):
        run(tiny, config, output, on_epoch=interrupt)
    assert signal.getsignal(signal.SIGINT) is handler, "Ctrl+C still works afterwards"
    assert not (output / CHECKPOINT).exists()
    lines: list[dict[str, float]] = []
    result = run(tiny, config, output, resume=True, on_epoch=lines.append)
    assert [line["epoch"] for line in lines] == list(range(after, 4)), "the epoch that was broken off is done again"
    assert without_seconds(result.history) == without_seconds(whole.history)
    assert same_weights(result.model, whole.model)


def test_resuming_a_finished_run_gives_its_result(
    whole: TrainResult, finished: Path, tiny: DataSet, settings: Settings
) -> None:
    result = run(tiny, settings(), finished, resume=True)
    assert result.history == whole.history
    assert same_weights(result.model, whole.model)


def test_resuming_where_nothing_is_starts_anew(tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    result = run(tiny, settings(epochs=1, batches=1), tmp_path / "new" / "run", resume=True)
    assert len(result.history) == 1
    assert result.checkpoint.is_file()


def test_a_run_is_not_overwritten(finished: Path, tiny: DataSet, settings: Settings) -> None:
    before = contents(finished)
    with pytest.raises(CheckpointError, match="finished: holds a run already; continue it with --resume"):
        run(tiny, settings(seed=3), finished)
    assert contents(finished) == before


def test_resuming_with_other_settings(finished: Path, tiny: DataSet, settings: Settings) -> None:
    before = contents(finished)
    with pytest.raises(CheckpointError, match=r"finished: cannot resume, the run has learning_rate=0\.00035"):
        run(tiny, settings(learning_rate=1e-3), finished, resume=True)
    assert contents(finished) == before


@pytest.mark.parametrize("change", ["fewer people", "fewer pictures", "other labels", "another order"])
def test_resuming_with_other_data(change: str, finished: Path, tiny: DataSet, settings: Settings) -> None:
    rows = list(tiny.train)
    if change == "fewer people":
        rows = [record for record in rows if record.person > 1]
    elif change == "fewer pictures":
        rows = rows[1:]
    elif change == "other labels":
        rows[0] = dataclasses.replace(rows[0], person=rows[-1].person)
    else:
        rows.reverse()
    before = contents(finished)
    with pytest.raises(CheckpointError, match="cannot resume, the run was made with other training pictures") as caught:
        run(dataclasses.replace(tiny, train=rows), settings(), finished, resume=True)
    assert "\n" not in str(caught.value)
    assert contents(finished) == before


def test_a_moved_data_set_is_the_same(tiny: DataSet, copied: Path) -> None:
    moved = dataclasses.replace(read_market(copied), name="elsewhere")
    assert digest(moved) == digest(tiny)
    assert re.fullmatch("[0-9a-f]{64}", digest(tiny))


def test_a_state_of_another_model_leaves_the_settings(finished: Path, tiny: DataSet, settings: Settings) -> None:
    before = contents(finished)
    with pytest.raises(CheckpointError, match="cannot resume, the state is of another model"):
        run(tiny, settings(workers=1), finished, resume=True, model=build(settings(trunk="resnet34"), 6))
    assert contents(finished) == before


class Trap:
    """Creates a file when it is unpickled by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "other", "key", "trap", "torch trap"])
def test_a_broken_state(kind: str, finished: Path, tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    state, sprung = finished / STATE, tmp_path / "sprung"
    whole_state = state.rename(tmp_path / "whole.ckpt")
    if kind == "truncated":
        state.write_bytes(whole_state.read_bytes()[: whole_state.stat().st_size // 2])
    elif kind in ("empty", "text"):
        state.write_bytes(b"" if kind == "empty" else b"not a checkpoint\n" * 100)
    elif kind == "other":
        torch.save({"weights": torch.zeros(3)}, state)
    elif kind == "key":
        saved = {"state_dict": dict(torch.load(whole_state, weights_only=True)["state_dict"])}
        del saved["state_dict"]["model.ma.neck.weight"]
        torch.save(saved, state)
    elif kind == "trap":
        state.write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save({"state_dict": {}, "callbacks": Trap(sprung)}, state)
    before = contents(finished)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: cannot resume, the state") as caught:
        run(tiny, settings(), finished, resume=True)
    assert "\n" not in str(caught.value)
    assert not sprung.exists(), "the file of a stranger must not run code"
    assert contents(finished) == before


# --- bad files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_training_pictures_are_told_once(
    workers: int, copied: Path, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = read_market(copied)
    bad = [dataset.train[i].path for i in (1, 9)]
    spoil(bad)
    result = run(dataset, settings(epochs=2, batches=None, workers=workers), tmp_path / "run")
    assert len(result.history) == 2
    assert len(result.problems) == 2
    for path in bad:
        line = [line for line in result.problems if str(path) in line]
        assert len(line) == 1
        assert "replace the file or remove it" in line[0]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(warned) == sorted(result.problems)


def test_bad_pictures_survive_an_interruption(copied: Path, settings: Settings, tmp_path: Path) -> None:
    dataset = read_market(copied)
    bad = dataset.train[4].path
    good = bad.read_bytes()
    spoil([bad])

    def repair(line: dict[str, float]) -> None:
        if line["epoch"] == 2:
            raise StopError

    config = settings(epochs=2, batches=None)
    with pytest.raises(StopError):
        run(dataset, config, tmp_path / "run", on_epoch=repair)
    bad.write_bytes(good)
    result = run(dataset, config, tmp_path / "run", resume=True)
    assert len(result.problems) == 1
    assert bad.name in result.problems[0]


def test_whole_batches_of_bad_pictures_are_skipped(copied: Path, settings: Settings, tmp_path: Path) -> None:
    dataset = read_market(copied)
    # Batches of two people, each person once in an epoch: the two good ones are in two of three batches at most.
    spoil([record.path for record in dataset.train if record.person > 2])
    result = run(dataset, settings(people=2, batches=3, epochs=2), tmp_path / "run")
    assert [line["epoch"] for line in result.history] == [1, 2]
    assert all(line["loss"] > 0 for line in result.history)
    assert len(result.problems) >= 8


def test_not_one_mask_is_told_before_anything_is_written(copied: Path, settings: Settings, tmp_path: Path) -> None:
    for path in (copied / "masks" / "bounding_box_train").iterdir():
        path.unlink()
    dataset, masks = read_market(copied), MaskFiles(copied)
    with pytest.raises(DataError, match="no such mask, nor one for any other of the 24 training pictures"):
        run(dataset, settings(), tmp_path / "run")
    with pytest.raises(DataError, match="no such mask"):
        check(dataset, settings(), tmp_path / "run", masks=masks)
    check(dataset, settings(layout="none"), tmp_path / "run", masks=masks)
    assert not (tmp_path / "run").exists()


def test_pictures_without_masks_and_keypoints_are_counted(
    copied: Path, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = read_market(copied)
    for record in dataset.train[:13]:
        MaskFiles(copied).mask_path(record.path).unlink()
    table = json.loads((copied / "keypoints.json").read_text())
    for record in dataset.train[10:15]:
        del table[record.path.relative_to(copied).as_posix()]
    (copied / "keypoints.json").write_text(json.dumps(table))
    # 8 batches of 6: an epoch shows each of the 24 pictures twice.
    result = run(dataset, settings(epochs=2, batches=8), tmp_path / "run")
    assert result.counts == {"training pictures without a mask": 13, "training pictures without keypoints": 5}
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "13 of 24 training pictures have no mask, or an empty one (5 no keypoints)" in warned[0]
    assert run(dataset, settings(epochs=2, batches=8), tmp_path / "run", resume=True).counts == result.counts


def test_nothing_but_bad_pictures_ends_the_run(copied: Path, settings: Settings, tmp_path: Path) -> None:
    for path in (copied / "masks" / "bounding_box_train").iterdir():
        Image.new("L", (64, 64), 255).save(path)
    with pytest.raises(DataError, match=r"not one training picture could be used; the first: .*aspect ratio") as caught:
        run(read_market(copied), settings(), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / STATE).exists()
    assert not (tmp_path / "run" / CHECKPOINT).exists()


# --- refused before anything is written -----------------------------------------------------------------------


def test_a_run_that_diverges_stops(tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError, match=r"the loss is no number at step 1 \(loss nan, .*pictures 0001_"
    ) as caught:
        run(tiny, settings(learning_rate=1e30, warmup=0.0), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / STATE).exists(), "a broken model is no state to go on from"
    named = (tmp_path / "run" / DIVERGED).read_text().splitlines()
    assert len(named) == 6
    assert all(Path(name).is_file() for name in named)


def test_data_that_cannot_be_trained_on(tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with pytest.raises(DataError, match="6 training people, but --people 7; ask for fewer"):
        run(tiny, settings(people=7), output)
    with pytest.raises(DataError, match="no training pictures"):
        run(dataclasses.replace(tiny, train=()), settings(), output)
    with pytest.raises(CheckpointError, match="the model has 5 classes"):
        run(tiny, settings(), output, model=build(settings(), 5))
    assert not output.exists()
    output.write_text("a file")
    with pytest.raises(DataError, match="run: a file, not a folder; choose another --output"):
        run(tiny, settings(), output)
    with pytest.raises(DataError, match=r"below: cannot be made \(Not a directory\); choose another --output"):
        run(tiny, settings(), output / "below")


def test_check_touches_nothing(tiny: DataSet, settings: Settings, finished: Path, tmp_path: Path) -> None:
    check(tiny, settings(), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    before = contents(finished)
    check(tiny, settings(), finished, resume=True)
    with pytest.raises(CheckpointError, match="holds a run already"):
        check(tiny, settings(), finished)
    assert contents(finished) == before


@pytest.mark.parametrize("moment", ["os.fsync", "os.replace"])
def test_a_state_is_replaced_as_a_whole(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed while it writes its state keeps the one before."""
    files, state = AtomicFiles(), tmp_path / "last.ckpt"
    files.save_checkpoint({"epoch": 1}, state)

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(moment, killed)
        with pytest.raises(KeyboardInterrupt):
            files.save_checkpoint({"epoch": 2}, state)
    assert torch.load(state, weights_only=True) == {"epoch": 1}
    files.save_checkpoint({"epoch": 2}, state)
    assert torch.load(state, weights_only=True) == {"epoch": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
