"""Runs that are broken off anywhere go on bit for bit, and what breaks a run is told in one line."""

from __future__ import annotations

import errno
import io
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mgran_fast.data import Batch, CropDataset, DataSet, MaskFiles
from mgran_fast.errors import DataError, MGRANError
from mgran_fast.train import logs
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.lightning import CHECKPOINT, STATE
from mgran_fast.train.module import TrainingModule
from mgran_fast.train.recorder import Recorder
from mgran_fast.train.run import TrainResult, train
from mgran_fast.train.signals import Interrupted, Signals, Skipped
from mgran_fast.train.watch import DivergedError, Step, Watch

Settings = Callable[..., TrainConfig]
TIMED = ("seconds", "persons_per_second", "waiting")


def run(dataset: DataSet, config: TrainConfig, output: Path, **options: Any) -> TrainResult:
    return train(dataset, MaskFiles(dataset.root), config, output, **options)


def untimed(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in line.items() if name not in TIMED} for line in history]


def at_step(monkeypatch: pytest.MonkeyPatch, number: int, action: Callable[[], object]) -> None:
    """Do something at the start of the batch with this number, counted over the whole run, once."""
    step, seen = TrainingModule.training_step, [0]

    def spy(self: TrainingModule, batch: Batch, index: int) -> Any:
        seen[0] += 1
        if seen[0] == number:
            action()
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", spy)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


class StopError(Exception):
    pass


def stop() -> None:
    raise StopError


# --- from the middle of an epoch ----------------------------------------------------------------------------------

#: Every part of a state: averaged weights, a table in the loss, gradients of several batches.
FULL: dict[str, Any] = {
    "epochs": 2, "batches": 5, "accumulate": 2, "ema": 0.5, "identity_loss": "oim", "clip": 1.0, "sampler": "balanced",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_channels(narrow: None, fast_files: None) -> None:
    """Most of the time goes into files otherwise."""


@pytest.fixture(scope="module")
def whole(tiny: DataSet, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return run(tiny, settings(**FULL), tmp_path_factory.mktemp("whole") / "run")


def same(result: TrainResult, whole: TrainResult) -> None:
    assert result.checkpoint.read_bytes() == whole.checkpoint.read_bytes()
    assert untimed(result.history) == untimed(whole.history)
    assert result.counts == whole.counts


@pytest.mark.parametrize(
    ("signum", "batch", "workers", "words"),
    [
        (signal.SIGTERM, 1, 0, "ended by SIGTERM after step 1; the run goes on with --resume"),
        (signal.SIGINT, 8, 1, r"ended by Ctrl\+C after step 5;"),
        # Within the last batch of an epoch, and of the run.
        (signal.SIGTERM, 5, 0, "ended by SIGTERM after step 3;"),
    ],
    ids=["first batch", "second epoch", "end of an epoch"],
)
def test_a_signal_ends_a_run_with_a_state(
    signum: int, batch: int, workers: int, words: str, whole: TrainResult, tiny: DataSet, settings: Settings,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    handlers = [signal.getsignal(kind) for kind in Signals.kinds]
    with monkeypatch.context() as patch:
        at_step(patch, batch, lambda: send(signum))
        with pytest.raises(Interrupted, match=words) as caught:
            run(tiny, settings(**FULL, workers=workers), tmp_path / "run")
    assert caught.value.code == 128 + signum
    assert [signal.getsignal(kind) for kind in Signals.kinds] == handlers
    assert not (tmp_path / "run" / CHECKPOINT).exists()
    same(run(tiny, settings(**FULL, workers=workers), tmp_path / "run", resume=True), whole)


def test_a_signal_in_the_last_batch_changes_nothing(
    whole: TrainResult, tiny: DataSet, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 10, lambda: send(signal.SIGTERM))
    same(run(tiny, settings(**FULL), tmp_path / "run"), whole)


def test_states_within_an_epoch(
    whole: TrainResult, tiny: DataSet, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(**FULL, checkpoint_minutes=1e-9)
    for _ in range(2):
        with monkeypatch.context() as patch:
            at_step(patch, 4, stop)
            with pytest.raises(StopError):
                run(tiny, config, tmp_path / "run", resume=True)
    seen = [0]
    at_step(monkeypatch, 1, lambda: seen.append(torch.load(tmp_path / "run" / STATE)["global_step"]))
    same(run(tiny, config, tmp_path / "run", resume=True), whole)
    # Batches 1 and 2, 3 and 4, and 5 are the steps of an epoch; batch 4 after the first step is the next epoch's first.
    assert seen == [0, 3]


def test_resuming_a_finished_run_with_averaged_weights(whole: TrainResult, tiny: DataSet, settings: Settings) -> None:
    before = whole.checkpoint.read_bytes()
    result = run(tiny, settings(**FULL), whole.checkpoint.parent, resume=True)
    assert result.checkpoint.read_bytes() == before
    assert result.history == whole.history


def test_averaged_weights_are_evaluated_and_saved(
    tiny: DataSet, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[torch.Tensor] = []

    def look(now: Any) -> dict[str, float]:
        measured.append(now.model.ma.neck.weight.detach().clone())
        return {}

    def weight(self: Recorder, trainer: Any, module: Any, line: dict[str, float]) -> None:
        self.measure = look
        measure(self, trainer, module, line)
        measured.append(module.model.ma.neck.weight.detach().clone())

    measure = Recorder._measure
    monkeypatch.setattr(Recorder, "_measure", weight)
    config = settings(epochs=2, ema=0.5, evaluate_every=1, warmup=0.0)
    result = run(tiny, config, tmp_path / "run")
    averaged, current = measured
    state = torch.load(tmp_path / "run" / STATE, weights_only=True)
    assert not torch.equal(averaged, current)
    assert torch.equal(result.model.ma.neck.weight, state["state_dict"]["model.ma.neck.weight"])
    assert not torch.equal(result.model.ma.neck.weight, state["current_model_state"]["model.ma.neck.weight"])


# --- measurements -------------------------------------------------------------------------------------------------


def test_a_signal_while_measuring_leaves_that_for_later(
    tiny: DataSet, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(epochs=2, batches=1, evaluate_every=1)
    undisturbed = run(tiny, config, tmp_path / "whole")

    def interrupted(*_: object, **__: object) -> None:
        send(signal.SIGTERM)
        time.sleep(60)

    told: list[dict[str, float]] = []
    with monkeypatch.context() as patch:
        patch.setattr("mgran_fast.train.run.evaluate", interrupted)
        with pytest.raises(Interrupted, match="after step 1"):
            run(tiny, config, tmp_path / "run", on_epoch=told.append)
    assert told == []
    result = run(tiny, config, tmp_path / "run", resume=True, on_epoch=told.append)
    assert untimed(told) == untimed(result.history) == untimed(undisturbed.history)
    assert result.checkpoint.read_bytes() == undisturbed.checkpoint.read_bytes()


def test_signals() -> None:
    with Signals() as signals:
        send(signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        with pytest.raises(Skipped), signals.skippable():
            raise AssertionError("a signal has come before")

    def wait() -> None:
        with signals.skippable():
            send(signal.SIGTERM)
            time.sleep(60)

    with Signals() as signals:
        with pytest.raises(Skipped):
            wait()
        send(signal.SIGTERM)
        assert signals.received == signal.SIGTERM


# --- a full disk --------------------------------------------------------------------------------------------------


class FullDisk:
    """Lets so many bytes of a file through for so many files of a name, and then no more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, good: int, bad: int) -> None:
        self.name, self.good, self.bad, self._open = name, good, bad, Path.open
        monkeypatch.setattr(Path, "open", self._opened())

    def _opened(disk) -> Callable[..., Any]:  # noqa: N805
        def opened(path: Path, mode: str = "r", **options: Any) -> Any:
            if mode != "wb" or disk.name not in path.name:
                return disk._open(path, mode, **options)
            disk.good -= 1
            if disk.good >= 0 or disk.good < -disk.bad:
                return disk._open(path, mode, **options)
            disk._open(path, mode, **options).close()
            return _Full()

        return opened


class _Full(io.BytesIO):
    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_keeps_the_old_state_and_the_run(
    tiny: DataSet, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = run(tiny, settings(), tmp_path / "whole")
    FullDisk(monkeypatch, Path(STATE).name, good=1, bad=1)
    result = run(tiny, settings(), tmp_path / "run")
    assert result.checkpoint.read_bytes() == undisturbed.checkpoint.read_bytes()
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1
    assert "last.ckpt: cannot be written, the disk is full: more space is needed for its" in warned[0]
    assert "the state before stays" in warned[0]


def test_the_last_state_must_be_written(
    tiny: DataSet, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = run(tiny, settings(epochs=2), tmp_path / "whole")
    with monkeypatch.context() as patch:
        FullDisk(patch, Path(STATE).name, good=1, bad=9)
        with pytest.raises(MGRANError, match=r"last\.ckpt: .* the state before stays: make room") as caught:
            run(tiny, settings(epochs=2), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert torch.load(tmp_path / "run" / STATE, weights_only=True)["epoch"] == 0
    result = run(tiny, settings(epochs=2), tmp_path / "run", resume=True)
    assert result.checkpoint.read_bytes() == undisturbed.checkpoint.read_bytes()


def test_a_model_that_cannot_be_written(
    tiny: DataSet, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(epochs=1, batches=1)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("mgran_fast.weights.checkpoint._serialized", full)
        with pytest.raises(DataError, match=r"model\.safetensors: .* the state is whole, go on with --resume"):
            run(tiny, config, tmp_path / "run")
    assert run(tiny, config, tmp_path / "run", resume=True).checkpoint.is_file()


def test_what_a_killed_process_left_is_swept(tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(tiny, settings(epochs=1, batches=1), output)
    left = [output / f".{CHECKPOINT}.123.partial", output / "checkpoints" / ".last.ckpt.partial"]
    for path in left:
        path.write_bytes(b"half")
    run(tiny, settings(epochs=1, batches=1), output, resume=True)
    assert not any(path.exists() for path in left)
    assert not [path for path in output.rglob("*.partial") if logs.TENSORBOARD not in path.parts]


# --- dead processes and losses that are no numbers ----------------------------------------------------------------


# torch tells of it from a signal handler, wherever its loader is by then: opening a file, which nobody then closes.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dead_reader_is_told_in_one_line(
    whole: TrainResult, tiny: DataSet, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, parent = CropDataset.__getitem__, os.getpid()

    def killed(self: CropDataset, index: int) -> Any:
        # As the system does that is out of memory.
        if os.getpid() != parent and (tmp_path / "run" / STATE).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return get(self, index)

    config = settings(**FULL, workers=1, checkpoint_minutes=1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(CropDataset, "__getitem__", killed)
        with pytest.raises(MGRANError, match=r"that reads pictures .*lower --workers; .*--resume") as caught:
            run(tiny, config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    same(run(tiny, config, tmp_path / "run", resume=True), whole)


def test_a_broken_weight_is_no_state(
    tiny: DataSet, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of an epoch are numbers, and its last step breaks the weights."""
    config = settings(epochs=2, batches=2)
    step = TrainingModule.on_before_optimizer_step

    def broken(self: TrainingModule, optimizer: torch.optim.Optimizer) -> None:
        step(self, optimizer)
        if self.global_step == 3:
            self.model.ma.neck.weight.grad = torch.full_like(self.model.ma.neck.weight, torch.nan)

    monkeypatch.setattr(TrainingModule, "on_before_optimizer_step", broken)
    with pytest.raises(FloatingPointError, match=r"neck\.weight is no number after step 4: lower the learning rate"):
        run(tiny, config, tmp_path / "run")
    assert torch.load(tmp_path / "run" / STATE, weights_only=True)["global_step"] == 2


def test_the_step_with_the_broken_loss_is_found_later() -> None:
    paths = [Path(f"{i:04}.jpg") for i in range(8)]
    watch = Watch(paths, every=4)

    def step(number: int, metric: float) -> Step:
        losses = {"loss": torch.tensor(1.0 + metric), "metric loss": torch.tensor(metric)}
        return Step(number, losses, torch.tensor([number, number + 1, number, 7, 6]), 0.01, torch.tensor(512.0))

    for number, metric in enumerate([1.0, float("inf"), float("nan")]):
        watch.add(step(number, metric))
    with pytest.raises(DivergedError) as caught:
        watch.add(step(3, 1.0))
    assert str(caught.value) == (
        "the loss is no number at step 1 (loss inf, metric loss inf; learning rate 0.01, scale 512; pictures 0001.jpg,"
        " 0002.jpg, 0006.jpg and 1 more): lower the learning rate, or set clip"
    )
    assert caught.value.pictures == tuple(paths[i] for i in (1, 2, 6, 7))
    watch.check()
    watch.add(step(4, float("nan")))
    with pytest.raises(DivergedError, match="at step 4"):
        watch.check()
