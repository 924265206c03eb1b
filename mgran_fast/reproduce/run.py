"""One row, run: its data set, a training for each of its splits, its rule; beside it what was published."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mgran_fast
from mgran_fast import diagnosis, layouts
from mgran_fast.data import DataSet, Masks, find_masks
from mgran_fast.data.sets import Counts, open_set
from mgran_fast.errors import DataError
from mgran_fast.metrics.protocols import Rule
from mgran_fast.reproduce.rows import Row
from mgran_fast.reproduce.runs import Bar, Run, Training, changes, prefix, settings_digest
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.machines import is_first
from mgran_fast.weights import files

__all__ = ["Result", "Source", "reproduce", "result", "versions"]

#: Makes the masks of a data set into a folder where there are none.
MakeMasks = Callable[[DataSet, Path], Masks]


@dataclass(frozen=True)
class Source:
    """Where a row's data set is.

    Attributes:
        root: its folder.
        counts: see :func:`mgran_fast.data.sets.open_set`.
        masks: its masks; None looks beside the pictures.
        make_masks: what makes them where there are none; None refuses.
    """

    root: Path
    counts: str | Counts = "published"
    masks: Path | None = None
    make_masks: MakeMasks | None = None

    def open(self, row: Row, split: int | None, bar: Bar) -> DataSet:
        """The data set, with what the row wants of it. Raises DataError or MGRANError."""
        with bar("pictures") as step:
            dataset = open_set(
                row.dataset, self.root, variant=row.variant, split=split, counts=self.counts, progress=step
            )
        if row.queries == "multiple" and not dataset.multi_query:
            raise DataError(f"{dataset.root}: no gt_bbox with the pictures of multiple queries, which {row.name} wants")
        return dataset

    def open_masks(self, dataset: DataSet, layout: str, folder: Path) -> Masks | None:
        """Its masks, which are made in ``folder`` where there are none; None where the layout wants none."""
        if layouts.get(layout).whole:
            return None
        found = find_masks(dataset.root, self.masks)
        if found is None and self.make_masks is not None:
            found = self.make_masks(dataset, folder)
        if found is None:
            raise DataError(f"{dataset.root}: no regions/ nor masks/ beside the pictures: mgran-fast masks {self.root}")
        return found


@dataclass(frozen=True)
class Result:
    """What was measured of a row.

    Attributes:
        row: the row.
        splits: those that were measured; empty where the data set has one split.
        each: of each of them its figures, by the names that the row has.
        details: what else the file of the result tells.
    """

    row: Row
    splits: tuple[int, ...]
    each: Sequence[Mapping[str, float]]
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, float]:
        """The mean over the splits, as fractions, in the order of what was published."""
        return {name: statistics.fmean(one[name] for one in self.each) for name in self.row.published}

    @property
    def changed(self) -> Mapping[str, Sequence[Any]]:
        """The settings that are not the row's: (the row's, those of the run) by name."""
        found: Mapping[str, Sequence[Any]] = self.details.get("changed", {})
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain values; all figures are fractions."""
        figures = self.figures
        return {
            "row": self.row.name,
            "title": self.row.title,
            "measured": figures,
            "published": dict(self.row.published),
            "difference": {name: figures[name] - self.row.published[name] for name in figures},
            "splits": list(self.splits),
            "splits_published": len(self.row.splits),
            "each": [dict(one) for one in self.each],
            **self.details,
        }


def result_file(row: Row, output: Path) -> Path:
    """Where the result of a row is written."""
    return output / f"{row.name}.json"


def result(row: Row, output: Path) -> Result | None:
    """What was measured of a row into the folder ``output``; None where nothing was. Raises DataError."""
    path = result_file(row, output)
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        each = [{name: float(one[name]) for name in row.published} for one in found["each"]]
        if not each:
            raise ValueError
        return Result(row, tuple(map(int, found["splits"])), each, {"changed": dict(found["changed"])})
    except (OSError, ValueError, KeyError, TypeError):
        raise DataError(f"{path}: no result of the row {row.name}; delete it, and run the row again") from None


def reproduce(
    row: Row,
    source: Source,
    output: Path,
    config: TrainConfig,
    training: Training,
    *,
    splits: Sequence[int] | None = None,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> Result | None:
    """Train and measure a row, or what is missing of it, and write its result.

    Each run lies in a folder of ``output`` that is called as its file of settings, below it one for each split. Runs
    that are finished are measured, those that are not are gone on with.

    Args:
        config: the settings, those of the row or others.
        splits: which of the row's splits; None for all of them.
        command: what the result is said to come from.
        say: told what is done, line by line.

    Returns:
        The result, which is written to ``output/<row>.json``; of several processes the first one gets it.

    Raises:
        DataError, CheckpointError, MGRANError: of reading and training; or runs in ``output`` with other settings.
    """
    chosen = _splits(row, splits)
    each: list[dict[str, float]] = []
    runs: list[Run] = []
    for split in chosen or (None,):
        dataset = source.open(row, split, training.bar)
        folder = output / row.training / ("" if split is None else f"split-{split:02d}")
        run = Run(folder, config)
        say(f"{dataset.name}: {len(dataset.train)} training pictures of {len(dataset.people())} people")
        if not runs:
            notes, protocol = dataset.notes, dataset.protocol
            for note in notes:
                say(f"note: {note}")
        each.append(_measured(row, run, dataset, source, output, training, say))
        runs.append(run)
    if not is_first():
        return None
    done = Result(
        row,
        chosen,
        each,
        {
            "dataset": row.dataset,
            "variant": row.variant,
            "queries": row.queries,
            "protocol": protocol,
            "rule": Rule(protocol, row.queries).text,
            "notes": list(notes),
            "changed": changes(row.settings(), config),
            "settings": settings_digest(config),
            "weights": runs[0].weights(),
            "minutes": sum(run.minutes() for run in runs),
            "folder": str(output / row.training),
            "versions": versions(),
            "command": command,
        },
    )
    path = result_file(row, output)
    try:
        files.write(path, f"{json.dumps(done.to_json(), indent=2)}\n".encode())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from None
    return done


def _splits(row: Row, splits: Sequence[int] | None) -> tuple[int, ...]:
    if splits is None:
        return row.splits
    if not row.splits:
        raise DataError(f"--splits: {row.name} has one split; leave it out")
    wrong = [split for split in splits if split not in row.splits]
    if wrong or not splits:
        told = f", not {wrong[0]}" if wrong else ""
        raise DataError(f"--splits: {row.name} has the splits {row.splits[0]} to {row.splits[-1]}{told}")
    return tuple(sorted(set(splits)))


def _measured(
    row: Row,
    run: Run,
    dataset: DataSet,
    source: Source,
    output: Path,
    training: Training,
    say: Callable[[str], None],
) -> dict[str, float]:
    """The figures of one run, from its history or measured now; nothing of use on other processes than the first."""
    # Before masks are made, which may take hours.
    run.ready(dataset, training)
    names = {name: f"{prefix(row.queries)}{name}" for name in row.published}
    found = run.figures()
    if all(name in found for name in names.values()):
        say(f"{run.folder}: measured already")
    else:
        regions = output / "regions" / "-".join(filter(None, (row.dataset, row.variant)))
        masks = source.open_masks(dataset, run.config.layout, regions)
        model = run.train(dataset, masks, training)
        if not is_first():
            return {}
        found = run.measure(model, dataset, masks, training, row.queries)
    return {name: found[there] for name, there in names.items()}


def versions() -> dict[str, Any]:
    """Versions and machine."""
    found = diagnosis.doctor()
    told = {name: found[name] for name in ("python", "platform", "packages", "devices")}
    return {"mgran_fast": mgran_fast.__version__, **told}
