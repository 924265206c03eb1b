"""The logs of a run: pace and waiting, lines that a killed or resumed run keeps, curves, TensorBoard."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from mgran_fast.errors import DataError
from mgran_fast.train import curves, logs, progress
from mgran_fast.train.lightning import quiet
from mgran_fast.train.progress import LoaderClock, Mark, Meter, Pace
from mgran_fast.train.recorder import Recorder

#: Seconds of the injected clock.
LOADING, STEP, MEASURING = 1.0, 3.0, 100.0
PICTURES = 8


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Slow(Dataset[torch.Tensor]):
    """Batches that take a second each."""

    def __init__(self, clock: Clock, steps: int) -> None:
        self.clock, self.steps = clock, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> torch.Tensor:
        self.clock.now += LOADING
        return torch.full((PICTURES, 1), float(index))


class Line(pl.LightningModule):
    """A step takes three seconds; its loss is the number of the batch and hardly depends on the weight."""

    def __init__(self, clock: Clock, stop_at: int = -1) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.clock, self.stop_at, self.shown = clock, stop_at, 0
        self.problems = type("None", (), {"lines": staticmethod(lambda: ["nothing"])})

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        if self.global_step == self.stop_at:
            raise RuntimeError("killed")
        self.clock.now += STEP
        self.shown += len(batch)
        loss = torch.tensor(float(index)) + 0 * self.weight.sum()
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch))
        self.log("identity loss", loss / 2, on_step=False, on_epoch=True, batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all of such a run; the tests that look at pictures ask for ``draws``."""
    if "draws" not in request.fixturenames:
        monkeypatch.setattr(curves, "draw", lambda rows, path: path.write_bytes(repr(rows).encode()))


@pytest.fixture
def draws() -> None:
    """Asked for by tests that look at pictures."""


def run(
    output: Path,
    *,
    epochs: int = 2,
    steps: int = 4,
    stop_at: int = -1,
    every: int = 1,
    saved: int = 0,
    resume: bool = False,
) -> tuple[logs.History, list[dict[str, float]]]:
    """Train as mgran_fast.train.lightning.fit does, without a device or a picture."""
    clock, told = Clock(), []
    module = Line(clock, stop_at)

    def measure(now: object) -> dict[str, float]:
        clock.now += MEASURING
        return {"rank1": 0.5, "map": 0.25}

    recorder = Recorder(output, epochs, every, measure, told.append)
    meter, history, *_ = logs.callbacks(output, epochs=epochs, progress=False, clock=clock)
    assert isinstance(history, logs.History)
    states = ModelCheckpoint(output, filename="last", enable_version_counter=False, every_n_train_steps=saved or None)
    with quiet():
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[meter, recorder, history, states],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = DataLoader(Slow(clock, steps), batch_size=None)
        trainer.fit(module, loader, ckpt_path=output / "last.ckpt" if resume else None, weights_only=True)
    return history, told


def rows(output: Path) -> list[dict[str, float]]:
    return logs.read(output / logs.HISTORY)


# --- pace -----------------------------------------------------------------------------------------------------


def test_pace() -> None:
    assert Pace.between(Mark(10, 100, 1), Mark(14, 132, 3)) == Pace(4, 8.0, 0.5)
    assert Pace.between(Mark(10, 100, 1), Mark(10, 100, 1)) == Pace(0, 0, 0)
    assert Pace.between(Mark(0, 0, 0), Mark(2, 0, 3)).waiting == 1.0, "a share never leaves [0, 1]"


def test_the_loaders_clock_counts_the_loop_alone() -> None:
    clock = Clock()
    watch = LoaderClock(clock)
    name = "[_TrainingEpochLoop].train_dataloader_next"
    for action, seconds in ((name, 2.0), ("[Strategy].batch_to_device", 7.0), (name, 0.5)):
        with watch.profile(action):
            clock.now += seconds
    watch.stop(name)  # without a start
    assert watch.waited == 2.5


def test_epochs_tell_their_pace(tmp_path: Path) -> None:
    _, told = run(tmp_path)
    for line in told:
        # 4 steps of 1 + 3 seconds with 8 pictures each; the measurement between epochs does not count.
        assert line["persons_per_second"] == pytest.approx(PICTURES / (LOADING + STEP))
        assert line["waiting"] == pytest.approx(LOADING / (LOADING + STEP))
    assert "rank1" in told[0]


def test_a_window_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    meter = Meter(clock)
    monkeypatch.setattr(meter, "mark", lambda: Mark(clock.now, int(clock.now) * 2, 0.0))
    trainer = type("Trainer", (), {"world_size": 1, "accumulate_grad_batches": 2})()
    module = type("Module", (), {"shown": 0})()
    meter.on_train_epoch_start(trainer, module)
    assert meter.window() == Pace(0, 0, 0)
    for _ in range(3 * progress.WINDOW):
        clock.now += 1
        meter.on_train_batch_end(trainer, module, {"loss": torch.tensor(1.5)}, None, 0)
    assert meter.window() == Pace(progress.WINDOW, 2.0, 0.0)
    assert meter.loss == 3.0, "what Lightning divides by the accumulated batches is multiplied again"
    assert meter.take_loss() == 3.0
    assert meter.take_loss() is None


def test_other_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    meter = Meter(clock)
    module = type("Module", (), {"shown": 0, "device": torch.device("cpu")})()

    class Strategy:
        """Two more processes, one a third as fast, which waited all the time."""

        @staticmethod
        def reduce(tensor: torch.Tensor, reduce_op: str) -> torch.Tensor:
            assert reduce_op == "sum"
            return tensor + torch.tensor([30.0, 0.0]) + torch.tensor([10.0, 1.0])

    metrics: dict[str, torch.Tensor] = {}
    trainer = type(
        "Trainer",
        (),
        {"world_size": 3, "accumulate_grad_batches": 1, "strategy": Strategy, "callback_metrics": metrics},
    )()
    meter.on_train_epoch_start(trainer, module)
    module.shown, clock.now = 20, clock.now + 2
    meter.on_train_batch_end(trainer, module, None, None, 0)
    assert meter.window().persons_per_second == 30, "others are taken to be as fast while an epoch goes on"
    meter.on_train_epoch_end(trainer, module)
    assert float(metrics["persons_per_second"]) == pytest.approx((30 + 30 + 10) / 3)
    assert float(metrics["waiting"]) == pytest.approx(1 / 3)


def test_the_bar_tells_loss_pace_and_waiting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with quiet():
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=logs.callbacks(tmp_path, epochs=1, progress=True, clock=clock),
            logger=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Line(clock), DataLoader(Slow(clock, 4), batch_size=None))
    shown = capsys.readouterr()
    assert "persons/s=2.0, waiting=25 %" in shown.out + shown.err
    assert "loss=3.000" in shown.out + shown.err


# --- the history ----------------------------------------------------------------------------------------------


def test_a_line_an_epoch(tmp_path: Path) -> None:
    history, told = run(tmp_path, epochs=3)
    lines = rows(tmp_path)
    assert lines == [pytest.approx(row, rel=1e-5) for row in history.rows]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert [line["learning_rate"] for line in lines] == pytest.approx([1 / 4, 1 / 8, 1 / 12], rel=1e-5)
    assert [line["loss"] for line in lines] == [1.5] * 3
    assert [line["identity loss"] for line in lines] == [0.75] * 3
    assert [line.get("rank1") for line in lines] == [0.5, 0.5, None], "the last epoch is measured later"
    assert [line["seconds"] for line in lines] == pytest.approx([line["seconds"] for line in told], rel=1e-5)
    head = (tmp_path / logs.HISTORY).read_text().splitlines()[0]
    assert head.startswith("epoch,step,seconds,learning_rate,persons_per_second,waiting,loss,")


def test_lines_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "GROUP", 4)
    run(tmp_path, steps=10, every=0)
    lines = rows(tmp_path)
    assert [line["epoch"] for line in lines] == pytest.approx([0.4, 0.8, 1, 1.4, 1.8, 2])
    assert [line["step"] for line in lines] == [4, 8, 10, 14, 18, 20]
    assert [line["loss"] for line in lines[:3]] == [1.5, 5.5, 4.5], "means of 4, of 4, and of all 10 steps"
    assert [line["seconds"] for line in lines[:2]] == [4 * (LOADING + STEP)] * 2
    assert all(line["waiting"] == 0.25 and line["persons_per_second"] == 2 for line in lines)
    assert "identity loss" not in lines[0]
    # A group that ends with the epoch has one line.
    run(tmp_path / "even", steps=8, every=0)
    assert [line["step"] for line in rows(tmp_path / "even")] == [4, 8, 12, 16]


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ended in its second epoch after a line within it."""
    monkeypatch.setattr(logs, "GROUP", 3)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "run", epochs=3, steps=5, stop_at=9)
    assert [line["step"] for line in rows(tmp_path / "run")] == [3, 5, 8]
    return tmp_path / "run"


def without_time(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    # An epoch's seconds are the computer's.
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_a_resumed_run_has_each_line_once(killed: Path, tmp_path: Path) -> None:
    run(killed, epochs=3, steps=5, resume=True)
    run(tmp_path / "whole", epochs=3, steps=5)
    assert [line["step"] for line in rows(killed)] == [3, 5, 8, 10, 13, 15]
    assert without_time(rows(killed)) == without_time(rows(tmp_path / "whole"))


@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch ended")
def test_going_on_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "GROUP", 4)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "run", steps=10, stop_at=9, every=0, saved=6)
    assert [line["step"] for line in rows(tmp_path / "run")] == [4, 8]
    run(tmp_path / "run", steps=10, every=0, saved=6, resume=True)
    run(tmp_path / "whole", steps=10, every=0, saved=6)
    lines = rows(tmp_path / "run")
    assert [line["step"] for line in lines] == [4, 8, 10, 14, 18, 20]
    within = [line for line in lines if not line["epoch"].is_integer()]
    assert [line["loss"] for line in within] == [1.5, 5.5, 1.5, 5.5], "the two steps before the state count"
    assert without_time(within) == without_time(
        [line for line in rows(tmp_path / "whole") if not line["epoch"].is_integer()]
    )


def test_what_was_measured_after_the_state(tmp_path: Path) -> None:
    """A recorder whose measurement a signal broke off measures again when the run goes on."""
    history, _ = run(tmp_path)
    assert "rank1" in history.rows[0]
    del history.rows[0]["rank1"]
    recorder = type("Keeper", (), {"history": [{"epoch": 1.0, "rank1": 0.125}, {"epoch": 9.0, "rank1": 1.0}]})()
    trainer = type("Trainer", (), {"is_global_zero": True, "callbacks": [recorder, history], "global_step": 8})()
    history.on_train_start(trainer, None)  # type: ignore[arg-type]
    assert [line["rank1"] for line in rows(tmp_path) if "rank1" in line] == [0.125]


def test_what_was_done_after_the_state_is_gone_at_once(killed: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        run(killed, epochs=3, steps=5, stop_at=6, resume=True)
    assert [line["step"] for line in rows(killed)] == [3, 5]


def test_a_lost_file_comes_back(killed: Path) -> None:
    (killed / logs.HISTORY).unlink()
    run(killed, epochs=3, steps=5, resume=True)
    assert [line["step"] for line in rows(killed)] == [3, 5, 8, 10, 13, 15]


def test_a_new_run_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, stop_at=0)
    assert not (tmp_path / logs.HISTORY).exists()
    assert not (tmp_path / logs.CURVES).exists()


def test_resuming_a_finished_run_leaves_its_files(tmp_path: Path) -> None:
    run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / logs.HISTORY, tmp_path / logs.CURVES)}
    run(tmp_path, resume=True)
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_full_disk_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace, failing = os.replace, [True]

    def full(source: Any, target: Any) -> None:
        if failing and Path(target).name == logs.HISTORY:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        history, told = run(tmp_path, epochs=3)
    assert len(told) == len(history.rows) == 3
    assert [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()] == [
        f"{tmp_path}: the logs of the run cannot be written (No space left on device)"
    ]
    assert not (tmp_path / logs.HISTORY).exists()
    failing.clear()
    run(tmp_path, epochs=4, resume=True)
    assert [line["epoch"] for line in rows(tmp_path)] == [1, 2, 3, 4], "no line is lost"


def test_what_is_measured_after_the_run(tmp_path: Path) -> None:
    run(tmp_path)
    before = (tmp_path / logs.CURVES).read_bytes()
    logs.amend(tmp_path, {"rank1": 0.75, "map": 0.5, "rank5": 1})
    assert [(line.get("rank1"), line.get("rank5")) for line in rows(tmp_path)] == [(0.5, None), (0.75, 1.0)]
    assert (tmp_path / logs.CURVES).read_bytes() != before
    logs.amend(tmp_path / "nowhere", {"rank1": 0.75})
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("text", ["epoch,step\n1,two\n", "epoch,step\n1,2,3\n", "epoch\n\x00\n"])
def test_a_broken_history(tmp_path: Path, text: str) -> None:
    (tmp_path / logs.HISTORY).write_text(text)
    with pytest.raises(DataError, match="no readable history of a run") as caught:
        logs.amend(tmp_path, {"rank1": 0.5})
    assert str(caught.value).startswith(f"{tmp_path / logs.HISTORY}: ")


def test_numbers_survive_the_file(tmp_path: Path) -> None:
    written = [{"epoch": 0.5, "step": 12345678.0, "loss": float("nan")}, {"epoch": 1.0, "step": 2e7, "a b": 1 / 3}]
    logs.write(tmp_path / "h.csv", written)
    first, second = logs.read(tmp_path / "h.csv")
    assert (first["epoch"], first["step"]) == (0.5, 12345678)
    assert first["loss"] != first["loss"]
    assert second == {"epoch": 1.0, "step": 2e7, "a b": pytest.approx(1 / 3, rel=1e-5)}


# --- curves and TensorBoard -----------------------------------------------------------------------------------


def test_curves_are_a_picture(draws: None, tmp_path: Path) -> None:
    from matplotlib import pyplot

    run(tmp_path)
    with Image.open(tmp_path / logs.CURVES) as picture:
        picture.load()
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50
    assert not list(tmp_path.glob(".*partial"))
    assert pyplot.get_fignums() == [], "pyplot's figures belong to the whole process"


def test_what_is_drawn_together() -> None:
    lines = [
        {"epoch": 0.5, "step": 1, "loss": 1.0, "learning_rate": 0.1, "waiting": 0.0, "persons_per_second": 3.0},
        {"epoch": 1.0, "step": 2, "seconds": 1, "loss": 1.0, "triplet loss": 0.5, "accuracy": 0.1, "rank1": 0.5},
    ]
    assert curves.panels(lines) == {
        "loss": ["loss", "triplet loss"],
        "learning rate": ["learning_rate"],
        "persons/s": ["persons_per_second", "waiting"],
        "share": ["accuracy", "rank1"],
    }
    assert curves.panels([{"epoch": 1.0, "loss": 1.0}]) == {"loss": ["loss"]}
    assert curves.panels([]) == {}


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [{"epoch": 1.0, "loss": float("nan")}],
        [{"epoch": 1.0, "iou x": 0.5}],
        [{"epoch": 0.5, "persons_per_second": 0.0, "waiting": 1.0}],
    ],
)
def test_odd_histories_are_drawn(draws: None, tmp_path: Path, lines: list[dict[str, float]]) -> None:
    curves.draw(lines, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_curves_are_not_drawn_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(curves, "draw", lambda rows, path: drawn.append(len(rows)))
    monkeypatch.setattr(logs, "REDRAW", 2.5 * 4 * (LOADING + STEP))
    run(tmp_path, epochs=6, every=0)
    assert drawn == [1, 4, 6]


def test_an_interrupted_run_has_its_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(curves, "draw", lambda rows, path: drawn.append(len(rows)))
    monkeypatch.setattr(logs, "REDRAW", 1e9)
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path, epochs=9, stop_at=13, every=0)
    assert drawn == [1, 3]


def test_tensorboard(killed: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(killed, epochs=3, steps=5, resume=True)
    board = EventAccumulator(str(killed / logs.TENSORBOARD))
    board.Reload()
    assert {"epochs/loss", "epochs/rank1", "epochs/learning_rate", "steps/waiting"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("epochs/loss")] == [5, 10, 15]
    assert [event.step for event in board.Scalars("steps/loss")] == [3, 8, 13], "step 8 of the killed run is hidden"
    assert [event.value for event in board.Scalars("epochs/loss")] == [2.0] * 3


@pytest.mark.parametrize(
    ("missing", "note", "left"),
    [
        ("matplotlib.figure", "curves.png is not drawn: matplotlib is not installed", logs.CURVES),
        ("tensorboard", "nothing is written for TensorBoard: it is not installed", logs.TENSORBOARD),
    ],
)
def test_optional_packages(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    missing: str,
    note: str,
    left: str,
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("lightning_fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", missing != "tensorboard")
    with caplog.at_level(logging.WARNING):
        run(tmp_path, epochs=3)
    assert [record.getMessage()[: len(note)] for record in caplog.records if record.name == logs.__name__] == [note]
    assert len(rows(tmp_path)) == 3
    assert not (tmp_path / left).exists()


# --- processes ------------------------------------------------------------------------------------------------


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Trainer, "is_global_zero", property(lambda self: False))
    history, told = run(tmp_path)
    assert told == history.rows == []
    assert not list(tmp_path.glob("*.csv")) + list(tmp_path.glob("*.png")) + list(tmp_path.glob("tensorboard"))


def test_a_gpu_is_waited_for_once_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at a loss waits for the device that computes it."""
    looks: list[int] = []
    take = Meter.take_loss

    def look(self: Meter) -> float | None:
        looks.append(1)
        return take(self)

    monkeypatch.setattr(Meter, "take_loss", look)
    monkeypatch.setattr(logs, "GROUP", 5)
    meter = Meter(Clock())
    trainer = type("Trainer", (), {"world_size": 1, "accumulate_grad_batches": 1})()
    loss = torch.tensor(1.0, device="meta")  # has no value: to look at it is an error
    for _ in range(7):
        meter.on_train_batch_end(trainer, type("Module", (), {"shown": 1})(), {"loss": loss}, None, 0)
    assert meter.loss is None
    run(tmp_path, steps=20, every=0)
    assert len(looks) == len(rows(tmp_path)) == 8
