"""What a training run tells while it goes: a bar, ``history.csv``, ``curves.png``, and TensorBoard's files.

``history.csv`` has a line after each 50 steps of an epoch, which tells of those, and one at its end, which tells of the
whole epoch and of what was measured after it, such as Rank-1 and mAP. The column "epoch" tells them apart: at the end
of an epoch it is a whole number. The lines travel with the checkpoint, so that a resumed run has each step once.
"""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from mgran_fast.errors import DataError
from mgran_fast.train import curves
from mgran_fast.train.progress import Bar, Clock, Mark, Meter, Pace
from mgran_fast.weights import files

_log = logging.getLogger(__name__)

#: What is written into a run's folder.
HISTORY = "history.csv"
CURVES = "curves.png"
TENSORBOARD = "tensorboard"
#: Steps between two lines within an epoch. Each line waits for the device once, to read the loss.
GROUP = 50
#: Seconds between two drawings of the curves; after the last epoch they are always drawn.
REDRAW = 5.0
_FIRST = ("epoch", "step", "seconds", "learning_rate", "persons_per_second", "waiting", "loss")


def callbacks(output: Path, *, epochs: int, progress: bool, clock: Clock = time.perf_counter) -> list[Callback]:
    """The callbacks that measure and log a run into the folder ``output``.

    Args:
        epochs: of the whole run.
        progress: show a bar.
        clock: gives seconds; another one for tests.

    Returns:
        The meter, which belongs before all callbacks that look at an epoch's figures, and those that write, which
        belong after all that measure.
    """
    meter = Meter(clock)
    return [meter, History(output, meter, epochs), *([Bar(meter)] if progress else [])]


class History(Callback):
    """Writes the lines of a run, its curves, and TensorBoard's files. Under several processes the first one does.

    A folder that cannot be written to, and a missing matplotlib or tensorboard, are told once and end no run.

    Attributes:
        rows: one mapping a line: epoch, step, seconds, learning_rate, persons_per_second (of all processes), waiting
            (in [0, 1]), loss; at the end of an epoch whatever else its line of the recorder's history holds.
    """

    def __init__(self, output: Path, meter: Meter, epochs: int) -> None:
        self.output, self.meter, self.epochs = output, meter, epochs
        self.rows: list[dict[str, float]] = []
        self._since = Mark(0.0, 0, 0.0)
        self._board: Any = None
        self._told: set[str] = set()
        self._undrawn = False
        self._drawn = -REDRAW

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()
        if not trainer.is_global_zero:
            return
        if self.rows:
            self._take_over(trainer)
            self._write()
        else:
            for name in (HISTORY, CURVES):
                (self.output / name).unlink(missing_ok=True)
        self._board = self._open_board(trainer.global_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # By its place in the epoch: a run that goes on within one has its lines at the same steps.
        if (batch_idx + 1) % GROUP or trainer.is_last_batch or not trainer.is_global_zero:
            return
        done = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
        loss = self.meter.take_loss()
        self._add("steps", done, trainer.global_step, {} if loss is None else {"loss": loss})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.meter.take_loss()
        line = {name: float(value) for name, value in trainer.callback_metrics.items()}
        line.update(_lines(trainer).get(trainer.current_epoch + 1, {}))
        self._add("epochs", trainer.current_epoch + 1, trainer.global_step, line)
        now = self.meter.clock()
        if trainer.current_epoch + 1 >= self.epochs or now - self._drawn >= REDRAW:
            self._draw()
            self._drawn = self.meter.clock()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._finish()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._undrawn:
            self._draw()
        if self._board is not None:
            board, self._board = self._board, None
            self._attempt(lambda: board.finalize(""))

    def _take_over(self, trainer: pl.Trainer) -> None:
        """Add what was measured, or measured anew, after the state was written."""
        lines = _lines(trainer)
        for row in self.rows:
            row.update(lines.get(row["epoch"], {}))

    def _begin(self) -> None:
        self._since = self.meter.mark()

    def _add(self, kind: str, epoch: float, step: int, figures: Mapping[str, float]) -> None:
        pace = Pace.between(self._since, self.meter.mark())
        rate = float(self.meter.learning_rate)
        row = {**pace._asdict(), **figures, "epoch": float(epoch), "step": float(step), "learning_rate": rate}
        self.rows.append(row)
        self._begin()
        self._write()
        self._undrawn = True
        if self._board is not None:
            self._attempt(lambda: self._log({f"{kind}/{name}": value for name, value in row.items()}, step))

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        self._board.log_metrics(figures, step)
        self._board.experiment.flush()

    def _write(self) -> None:
        self._attempt(lambda: write(self.output / HISTORY, self.rows))

    def _draw(self) -> None:
        if not curves.available():
            self._tell(f"{CURVES} is not drawn: matplotlib is not installed; pip install mgran_fast[train]")
            return
        self._attempt(lambda: curves.draw(self.rows, self.output / CURVES))
        self._undrawn = False

    def _open_board(self, step: int) -> Any:
        from pytorch_lightning.loggers import TensorBoardLogger

        try:
            # What a killed run wrote after the state that it goes on from is done again.
            logger = TensorBoardLogger(self.output, name="", version=TENSORBOARD, purge_step=step + 1)
        except ImportError:
            self._tell("nothing is written for TensorBoard: it is not installed; pip install mgran_fast[train]")
            return None
        return logger

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            self._tell(f"{self.output}: the logs of the run cannot be written ({error.strerror or error})")

    def _tell(self, note: str) -> None:
        if note not in self._told:
            self._told.add(note)
            _log.warning("%s", note)


def _lines(trainer: pl.Trainer) -> dict[float, Mapping[str, float]]:
    """The lines of the callbacks that keep a history, by epoch: they have measured more than the trainer knows."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return {line["epoch"]: line for callback in callbacks for line in getattr(callback, "history", ())}


def write(path: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write a history as CSV, whole or not at all. Raises OSError."""
    known = {name for row in rows for name in row}
    columns = [name for name in _FIRST if name in known]
    columns += dict.fromkeys(name for row in rows for name in row if name not in _FIRST)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows([_number(row[name]) if name in row else "" for name in columns] for row in rows)
    with files.replaced(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")


def read(path: Path) -> list[dict[str, float]]:
    """The lines of a history that :func:`write` wrote. Raises DataError."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(f"{path}: no readable history of a run ({error}); name the folder of a run") from None


def amend(output: Path, figures: Mapping[str, float]) -> None:
    """Add what was measured after the run, such as "rank1" and "map", to the last line, and draw the curves anew.

    Does nothing where the run in the folder ``output`` left no lines. Raises DataError for a broken file.
    """
    path = output / HISTORY
    rows = read(path) if path.is_file() else []
    if not rows:
        return
    rows[-1].update((name, float(value)) for name, value in figures.items())
    try:
        write(path, rows)
        if curves.available():
            curves.draw(rows, output / CURVES)
    except OSError as error:
        raise DataError(f"{output}: the logs of the run cannot be written ({error.strerror or error})") from None


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"
