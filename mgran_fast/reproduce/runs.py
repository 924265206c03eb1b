"""One training in its folder: what is there already, the training, and what is measured of it.

The folder is that of any run, ``mgran-fast train`` included; what is measured goes into the last line of its history.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mgran_fast.data import DataSet, Masks
from mgran_fast.errors import CheckpointError, DataError
from mgran_fast.metrics.embedding import Progress as Step
from mgran_fast.metrics.evaluation import Evaluation, evaluate
from mgran_fast.metrics.protocols import Rule
from mgran_fast.model import MGRAN
from mgran_fast.train import logs
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.machines import Machines, is_first
from mgran_fast.train.run import CHECKPOINT, SETTINGS, STATE, build, check, digest
from mgran_fast.train.run import train as run
from mgran_fast.train.settings import DATA
from mgran_fast.weights import files
from mgran_fast.weights.trunk import load_trunk

__all__ = ["Run", "Training", "changes", "settings_digest"]

#: What a run's trunk began with, beside its settings: the name of the file, and its SHA-256.
WEIGHTS = "weights.json"


#: What is kept of an evaluation.
FIGURES = ("rank1", "rank5", "rank10", "map")
#: Given a text, what shows progress while it is entered; None for nothing.
Bar = Callable[[str], AbstractContextManager[Step | None]]


def _no_bar(text: str) -> AbstractContextManager[Step | None]:
    return nullcontext()


@dataclass(frozen=True)
class Training:
    """How runs are trained, whatever their settings.

    Attributes:
        machines: where; None for all GPUs of this machine, or one process on the CPU.
        weights: what the trunk begins with; None begins from scratch.
        progress: show a bar.
        on_epoch: called after each epoch with its line of the history, and with the number of epochs.
        bar: makes a bar of that name, which is then told (pictures done, pictures in all).
    """

    machines: Machines | None = None
    weights: Path | None = None
    progress: bool = False
    on_epoch: Callable[[dict[str, float], int], None] | None = None
    bar: Bar = _no_bar


@dataclass(frozen=True)
class Run:
    """A folder and the settings of the run that is in it, or shall be."""

    folder: Path
    config: TrainConfig

    def check(self, data: str | None = None) -> None:
        """Raise CheckpointError when the folder holds a run with settings of which the result depends on others.

        Args:
            data: the digest of the training pictures, which must be the run's too; None takes any.
        """
        path = self.folder / SETTINGS
        if path.exists() or (self.folder / STATE).exists():
            self.config.check_resume(path, self.data() if data is None else data)

    def ready(self, dataset: DataSet, training: Training) -> None:
        """Raise DataError or CheckpointError when :meth:`train` would refuse to start; touches nothing."""
        self.check(digest(dataset))
        self._check_weights(training.weights)
        check(dataset, self.config, self.folder, resume=True, machines=training.machines)

    def data(self) -> str:
        """The digest of the run's training pictures; empty where nothing tells it."""
        try:
            return str(yaml.safe_load((self.folder / SETTINGS).read_text(encoding="utf-8"))[DATA])
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
            return ""

    def epochs(self) -> list[dict[str, float]]:
        """The lines of the history that tell of whole epochs. Raises DataError."""
        path = self.folder / logs.HISTORY
        return [row for row in logs.read(path) if row.get("epoch", 0.5).is_integer()] if path.is_file() else []

    def figures(self) -> dict[str, float]:
        """The line of the last epoch, with all that was measured after it; empty until then. Raises DataError."""
        rows = self.epochs()
        return rows[-1] if rows and rows[-1]["epoch"] == self.config.epochs else {}

    def minutes(self) -> float:
        """What the epochs took, evaluations left out."""
        return sum(row.get("seconds", 0.0) for row in self.epochs()) / 60

    def weights(self) -> dict[str, str] | None:
        """What the trunk began with: "file" and "sha256"; None for a run from scratch. Raises DataError.

        A run of ``mgran-fast train`` does not tell it; the file is "unknown" then.
        """
        path = self.folder / WEIGHTS
        if not path.exists():
            return {"file": "unknown", "sha256": ""}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return None if found is None else {name: str(found[name]) for name in ("file", "sha256")}
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{path}: does not tell what the run began with; delete the folder to start anew") from None

    def trained(self) -> bool:
        """Whether the model is there that the last epoch left."""
        model, state = self.folder / CHECKPOINT, self.folder / STATE
        if not model.is_file() or not self.figures():
            return False
        # A run that was begun anew has a younger state than the model of the one before.
        return not state.exists() or state.stat().st_mtime <= model.stat().st_mtime

    def train(self, dataset: DataSet, masks: Masks | None, training: Training) -> MGRAN:
        """The trained model, in eval mode: read, trained to its end, or trained from the beginning.

        Raises as :func:`mgran_fast.train.run.train` does, and CheckpointError where the run began with other weights.
        """
        self.ready(dataset, training)
        if self.trained():
            return MGRAN.from_file(self.folder / CHECKPOINT).eval()
        model = build(self.config, len(dataset.people()))
        if not (self.folder / STATE).is_file():
            if training.weights is not None:
                load_trunk(model, training.weights)
            self._note_weights(training.weights)
        tell = training.on_epoch
        trained = run(
            dataset,
            masks,
            self.config,
            self.folder,
            model=model,
            resume=True,
            progress=training.progress,
            on_epoch=None if tell is None else lambda line: tell(line, self.config.epochs),
            machines=training.machines,
        )
        return trained.model

    def measure(
        self, model: MGRAN, dataset: DataSet, masks: Masks | None, training: Training, queries: str = "single"
    ) -> dict[str, float]:
        """Evaluate the trained model by the data set's rule, and put its figures into the history.

        Returns:
            "rank1", "rank5", "rank10", and "map" where the rule has one, as fractions; with ``queries="multiple"`` the
            names begin with "multiple ".
        """
        device = (training.machines or Machines()).device
        with training.bar("evaluate") as step:
            evaluation = evaluate(
                model.to(device),
                dataset.query,
                dataset.gallery,
                masks,
                Rule(dataset.protocol, queries),
                multi_query=dataset.multi_query,
                workers=self.config.workers,
                progress=step,
            )
        found = {f"{prefix(queries)}{name}": value for name, value in _figures(evaluation).items()}
        logs.amend(self.folder, found)
        return found

    def _check_weights(self, weights: Path | None) -> None:
        """Refuse other weights than a run that is there began with."""
        if not ((self.folder / STATE).is_file() or self.trained()):
            return
        began = self.weights()
        if weights is None:
            if began is None or not began["sha256"]:
                return
            remedy = f"give {began['file']} with --weights"
        else:
            if began is not None and began["sha256"] == files.sha256(weights):
                return
            remedy = f"leave --weights {weights} out" if began is None else "give the same with --weights"
        what = "from scratch" if began is None else f"with other weights ({began['file']})"
        raise CheckpointError(f"{self.folder}: the run in it began {what}; {remedy}, or take another --output")

    def _note_weights(self, weights: Path | None) -> None:
        if not is_first():
            return
        note = None if weights is None else {"file": weights.name, "sha256": files.sha256(weights)}
        try:
            files.write(self.folder / WEIGHTS, f"{json.dumps(note)}\n".encode())
        except OSError as error:
            raise DataError(
                f"{self.folder}: cannot be written to ({error.strerror}); choose another --output"
            ) from None


def prefix(queries: str) -> str:
    """What the names of a row's figures begin with in a history."""
    return "multiple " if queries == "multiple" else ""


def _figures(evaluation: Evaluation) -> dict[str, float]:
    found = evaluation.figures()
    return {name: found[name] for name in FIGURES if name in found}


def changes(config: TrainConfig, given: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Settings of which the result depends and that differ: (in ``config``, in ``given``) by name."""
    return {
        name: (getattr(config, name), getattr(given, name))
        for name in TrainConfig.kinds()
        if name not in TrainConfig.free_on_resume and getattr(config, name) != getattr(given, name)
    }


def settings_digest(config: TrainConfig) -> str:
    """SHA-256, in hex, of the settings of which the result depends."""
    kept: Mapping[str, Any] = {
        name: value for name, value in dataclasses.asdict(config).items() if name not in TrainConfig.free_on_resume
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
