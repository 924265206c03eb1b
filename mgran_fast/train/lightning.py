"""What every kind of training run does with Lightning: what it leaves in its folder, resuming, and how it ends."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback

from mgran_fast import ranks
from mgran_fast.errors import CheckpointError, DataError, MGRANError
from mgran_fast.train import logs
from mgran_fast.train.averaging import Averaging
from mgran_fast.train.machines import Machines, is_first
from mgran_fast.train.precision import lightning_precision
from mgran_fast.train.settings import Settings
from mgran_fast.train.signals import Interrupted, Signals, StopRun, told
from mgran_fast.train.states import AtomicFiles, States
from mgran_fast.train.watch import DivergedError
from mgran_fast.weights import files

_log = logging.getLogger(__name__)

#: What a run leaves in its folder.
CHECKPOINT = "model.safetensors"
SETTINGS = "settings.yaml"
STATE = "checkpoints/last.ckpt"
#: The pictures of the step whose loss was no number.
DIVERGED = "diverged.txt"


def check_output(output: Path, config: Settings, data: str, *, resume: bool) -> None:
    """Raise DataError or CheckpointError when a run with these settings and data cannot write to ``output``."""
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: a file, not a folder; choose another --output")
    if (output / STATE).is_file():
        if not resume:
            raise CheckpointError(
                f"{output}: holds a run already; continue it with --resume or choose another --output"
            )
        config.check_resume(output / SETTINGS, data)


def begin(output: Path, config: Settings, data: str, module: pl.LightningModule, *, resume: bool) -> None:
    """Make the folder of a run and write its settings; a state that is there must be whole and fit ``module``.

    Of several processes the first one writes.
    """
    if (output / STATE).is_file():
        _check_state(output / STATE, module)
    elif resume:
        _log.info("%s: nothing to resume from, starting anew", output)
    if not is_first():
        return
    step = "made"
    try:
        output.mkdir(parents=True, exist_ok=True)
        step = "written to"
        for folder in (output, (output / STATE).parent):
            files.sweep(folder)
        config.save(output / SETTINGS, data)
    except OSError as error:
        raise DataError(f"{output}: cannot be {step} ({error.strerror}); choose another --output") from None


def _check_state(path: Path, module: pl.LightningModule) -> None:
    """Raise CheckpointError unless the state at ``path`` is whole and fits the model."""
    try:
        saved = torch.load(path, "cpu", weights_only=True, mmap=True)["state_dict"]
        shapes = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    except Exception as error:  # a broken pickle raises nearly anything
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise CheckpointError(
            f"{path}: cannot resume, the state of the run cannot be read ({reason}); delete it to start anew"
        ) from None
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    other = sorted(name for name in {*shapes, *own} if shapes.get(name) != own.get(name))
    if other:
        raise CheckpointError(f"{path}: cannot resume, the state is of another model ({other[0]} differs)")


def fit(
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    callbacks: list[Callback],
    output: Path,
    *,
    epochs: int,
    precision: str,
    progress: bool,
    machines: Machines | None = None,
    accumulate: int = 1,
    clip: float = 0.0,
    ema: float = 0.0,
    minutes: float = 0.0,
    seed: int = 0,
) -> None:
    """Train, or go on from the state in ``output``; ``module`` then has the weights of the end, the averaged ones if
    there are any. (Under the strategy fsdp they are in the state alone.)

    Args:
        machines: where; one process without it.
        accumulate: batches whose gradients make one step.
        clip: the largest norm of the gradient; 0 for no limit.
        ema: decay of averaged weights; 0 for none.
        minutes: between states within an epoch; 0 for states after epochs only.
        seed: of what the module draws from torch's random numbers. The caller's stay as they are.

    Raises:
        Interrupted: a signal came; the state of that step is written.
        KeyboardInterrupt: as it came, without a new state.
        FloatingPointError: the loss is no number any more; the state before stays.
        MGRANError: a process was killed, or the last state could not be written.
        SystemExit: on other processes than the first, when all of them end so.
    """
    machines = Machines(devices=1) if machines is None else machines
    state, atomic, signals = output / STATE, AtomicFiles(), Signals()
    average = Averaging(ema) if ema else None
    meter, *writers = logs.callbacks(output, epochs=epochs, progress=progress)
    used = [meter, *callbacks, *writers, States(state, atomic, minutes, signals)]
    if average is not None:
        used.insert(0, average)
    chosen = machines.options()
    grouped = ranks.world() > 1
    with quiet(), signals, _seeded(seed):
        trainer = pl.Trainer(
            **chosen,
            max_epochs=epochs,
            precision=lightning_precision(precision, machines.device),
            callbacks=used,
            logger=False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            log_every_n_steps=1,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=clip or None,
            use_distributed_sampler=False,
            plugins=[atomic, *machines.plugins()],
        )
        # Asks the first process at every step whether a signal came, and waits for the GPU; ours is asked for already.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        with _endings(trainer, signals, output):
            # weights_only: a state from a stranger cannot run code.
            trainer.fit(module, datamodule=data, ckpt_path=state if state.is_file() else None, weights_only=True)
    if average is not None:
        average.apply(trainer, module)
    if ranks.world() > 1 and not grouped:
        dist.destroy_process_group()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def _endings(trainer: pl.Trainer, signals: Signals, output: Path) -> Iterator[None]:
    """Turn the ways in which a run breaks off into one line each, told by the first process if all end alike."""
    handler = signal.getsignal(signal.SIGINT)
    go_on = "the run goes on with --resume"
    try:
        yield
        if trainer.interrupted:
            raise KeyboardInterrupt
    except StopRun:
        signum = signals.received or signal.SIGTERM
        stopped = Interrupted(f"ended by {told(signum)} after step {trainer.global_step}; {go_on}", signum)
        _quietly(stopped.code)
        raise stopped from None
    except SystemExit:
        # Lightning turns Ctrl+C into an exit without a word, and ignores the signal from then on.
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
    except (FloatingPointError, MGRANError) as error:
        _quietly(1)
        if isinstance(error, DivergedError):
            _list(error, output / DIVERGED)
        raise
    except (RuntimeError, ConnectionError, EOFError) as error:
        if signals.received is not None and (_of_a_reader(error) or ranks.world() > 1):
            # What was sent to all processes of a run has reached the others first.
            raise Interrupted(
                f"ended by {told(signals.received)}, with the state before; {go_on}", signals.received
            ) from None
        reason = _cause(error)
        if reason is None:
            raise
        raise MGRANError(f"{reason}; {go_on}") from None


def _of_a_reader(error: Exception) -> bool:
    """Whether a process that reads pictures is gone; a broken connection: while it handed over a batch."""
    return isinstance(error, ConnectionError | EOFError) or "DataLoader worker" in _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _cause(error: Exception) -> str | None:
    """Why a run died that is not at fault itself; None for all other errors."""
    text = _first_line(error)
    if _of_a_reader(error):
        how = "was killed" if "killed by signal" in text or not isinstance(error, RuntimeError) else "ended"
        return f"a process that reads pictures {how}, mostly for want of memory (dmesg tells): lower --workers"
    if isinstance(error, torch.OutOfMemoryError):
        return "the GPU's memory is full: lower --people, raise accumulate, or set recompute"
    if ranks.world() > 1 and (isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text):
        return (
            f"process {ranks.rank()} of {ranks.world()} has lost another one, which told its own error or was killed,"
            " mostly for want of memory (dmesg tells)"
        )
    return None


def _quietly(code: int) -> None:
    """End all processes but the first without a word."""
    if ranks.rank():
        raise SystemExit(code) from None


def _list(error: DivergedError, path: Path) -> None:
    try:
        files.write(path, "".join(f"{picture}\n" for picture in error.pictures).encode())
    except OSError:
        _log.info("%s: cannot be written", path)


class quiet:  # noqa: N801 (a context manager, used as a verb)
    """Lightning's advice on hardware, workers and tips is for people who write loops, not for those who run one."""

    def __enter__(self) -> None:
        loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
        loggers += [logging.getLogger(f"{logger.name}.utilities.rank_zero") for logger in loggers]
        self._levels = [(logger, logger.level) for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        for text in (".*does not have many workers.*", ".*Checkpoint directory.*", ".*no `configure_optimizers`.*"):
            warnings.filterwarnings("ignore", text)
        # Lightning still calls these of torch's, with its own deprecation in mind.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", ".*training_step` returned `None`.*")
        # What is logged is of all processes already.
        warnings.filterwarnings("ignore", ".*sync_dist=True.*")
        # The sampler begins where the state was written.
        warnings.filterwarnings("ignore", ".*ended before the epoch ended and your dataloader is not resumable.*")
        # A run goes on with other callbacks as well.
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")

    def __exit__(self, *error: object) -> None:
        self._warnings.__exit__(None, None, None)
        for logger, level in self._levels:
            logger.setLevel(level)
