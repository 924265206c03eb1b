"""How fast a training run goes and how long it waits for data, and the bar that tells it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from pytorch_lightning.profilers import PassThroughProfiler

#: Steps that the bar's figures look back on.
WINDOW = 50
#: Seconds between two pictures of the bar: drawing it each step would take time from fast steps.
REFRESH = 0.2

Clock = Callable[[], float]


class Mark(NamedTuple):
    """A moment of a run.

    Attributes:
        time: in seconds, of any clock.
        shown: the pictures that all processes have trained on until then.
        waited: the seconds that this process has waited for data until then.
    """

    time: float
    shown: int
    waited: float


class Pace(NamedTuple):
    """What happened between two moments.

    Attributes:
        seconds: between them.
        persons_per_second: pictures trained on in a second, by all processes together.
        waiting: the share of the time, in [0, 1], in which the loader was asked and had no batch yet.
    """

    seconds: float
    persons_per_second: float
    waiting: float

    @staticmethod
    def between(earlier: Mark, later: Mark) -> Pace:
        """All 0 when no time has passed."""
        seconds = later.time - earlier.time
        if not seconds > 0:
            return Pace(0.0, 0.0, 0.0)
        waiting = min((later.waited - earlier.waited) / seconds, 1.0)
        return Pace(seconds, (later.shown - earlier.shown) / seconds, waiting)


class LoaderClock(PassThroughProfiler):
    """Sums up the seconds in which the training loop waits for its loader.

    Where the loop asks for a batch it tells a profiler; nothing else between two steps counts, so neither moving the
    batch to a device nor what processes tell each other is taken for waiting.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        super().__init__()
        self.clock = clock
        self.waited = 0.0
        self._since: float | None = None

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self._since = self.clock()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next") and self._since is not None:
            self.waited += self.clock() - self._since
            self._since = None


class Meter(Callback):
    """Measures the pace of training and collects the losses, without waiting for a device.

    At the end of an epoch ``persons_per_second`` and ``waiting`` are among the trainer's callback metrics, the first
    summed up and the second averaged over all processes. Callbacks that look for them come after this one.

    Args:
        clock: gives seconds; another one for tests.

    Attributes:
        loss: the last one that is known on this side, or None. On a GPU that is the mean of :meth:`take_loss`.
        learning_rate: of the optimizer's first group, as the last step used it.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self.loss: float | None = None
        self.learning_rate: Any = 0.0
        self._loader = LoaderClock(clock)
        self._shown = 0
        self._seen = 0
        self._sum: torch.Tensor | None = None
        self._count = 0
        self._epoch = Mark(0.0, 0, 0.0)
        self._recent: deque[Mark] = deque(maxlen=WINDOW + 1)

    def mark(self) -> Mark:
        """Now."""
        return Mark(self.clock(), self._shown, self._loader.waited)

    def window(self) -> Pace:
        """The pace of the last 50 steps of this epoch."""
        return Pace.between(self._recent[0], self._recent[-1]) if self._recent else Pace(0.0, 0.0, 0.0)

    def take_loss(self) -> float | None:
        """The mean loss since this was asked the last time, or None; waits for the device."""
        if self._sum is None:
            return None
        self.loss = float(self._sum) / self._count
        self._sum, self._count = None, 0
        return self.loss

    def state_dict(self) -> dict[str, Any]:
        # A state within an epoch belongs to a step whose losses no line has told yet.
        return {"loss": None if self._sum is None else float(self._sum), "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        loss, self._count = state_dict["loss"], state_dict["count"]
        self._sum = None if loss is None else torch.tensor(loss)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.profiler = self._loader  # type: ignore[attr-defined]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # An epoch that is gone on with in its middle has no start.
        self._begin()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Now, for after the step the schedule has set that of the next.
        self.learning_rate = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        new = pl_module.shown - self._seen
        self._seen = pl_module.shown
        # What the others have shown is not asked for: that would make every step wait for the slowest.
        self._shown += new * trainer.world_size
        self._recent.append(self.mark())
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, torch.Tensor):
            loss = loss.detach() * trainer.accumulate_grad_batches
            self._sum = loss if self._sum is None else self._sum + loss
            self._count += 1
            if loss.device.type == "cpu":
                self.loss = float(loss)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pace = Pace.between(self._epoch, self.mark())
        figures = torch.tensor([pace.persons_per_second, pace.waiting], device=pl_module.device)
        if trainer.world_size > 1:
            # Each had counted the others as itself.
            figures = trainer.strategy.reduce(figures, reduce_op="sum") / trainer.world_size
        speed, waiting = figures.tolist()
        trainer.callback_metrics["persons_per_second"] = torch.tensor(speed)
        trainer.callback_metrics["waiting"] = torch.tensor(waiting)

    def _begin(self) -> None:
        self._seen = 0
        self._epoch = self.mark()
        self._recent.clear()
        self._recent.append(self._epoch)


class Bar(TQDMProgressBar):
    """A progress bar with the loss, persons/s and the share of waiting for data, of the last 50 steps."""

    def __init__(self, meter: Meter) -> None:
        super().__init__(leave=False)
        self.meter = meter
        self._drawn = -REFRESH

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = self.meter.clock()
        if now - self._drawn >= REFRESH or batch_idx + 1 == self.total_train_batches:
            self._drawn = now
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar. Not the trainer's own metrics: looking at them waits for the device."""
        pace = self.meter.window()
        loss = {} if self.meter.loss is None else {"loss": f"{self.meter.loss:.3f}"}
        return {
            **loss,
            "persons/s": f"{pace.persons_per_second:{'.1f' if pace.persons_per_second < 10 else '.0f'}}",
            "waiting": f"{100 * pace.waiting:.0f} %",
        }
