"""What the commands share: the console, options, data, tables and the report."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mgran_fast import progress
from mgran_fast.data import DataSet, Masks, find_masks
from mgran_fast.errors import DataError
from mgran_fast.metrics.evaluation import Evaluation
from mgran_fast.model import MGRAN
from mgran_fast.mra.named import open_estimator as open_estimator
from mgran_fast.progress import Step

if TYPE_CHECKING:
    from mgran_fast.data.sets.reading import Reading

#: For people. What a program reads (--json) goes to standard output alone.
# No markup: paths and names of data sets may hold any brackets.
console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


#: The most pictures that cannot be used that are listed.
LISTED = 20
#: False positive rates at which the true positive rate is told.
FALSE_RATES = (1e-4, 1e-3, 1e-2)


def open_data(
    data: Path,
    dataset: str = "auto",
    variant: str | None = None,
    split: int | None = None,
    counts: str = "published",
    *,
    need: Collection[str] | None = ("train", "query", "gallery"),
) -> DataSet:
    """The data set that the options name.

    Args:
        data: its folder, or the file of a table.
        dataset, variant, split: see :func:`mgran_fast.data.sets.open_set`.
        counts: "published", "any", or the path of a JSON file as ``mgran-fast datasets check --json`` prints it.
        need: the parts that must be there; None: all that the set has.

    Raises DataError or MGRANError.
    """
    return read_data(data, dataset, variant, split, counts, need=need).dataset


def read_data(
    data: Path,
    dataset: str,
    variant: str | None,
    split: int | None,
    counts: str,
    *,
    need: Collection[str] | None,
) -> Reading:
    """:func:`open_data`, and the numbers that were found."""
    from mgran_fast.data.sets import Counts, read_set

    expected = counts if counts in ("published", "any") else Counts.from_file(counts)
    with bar("pictures") as step:
        return read_set(dataset, data, variant=variant, split=split, counts=expected, need=need, progress=step)


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """ "256x128" -> (256, 128): height x width in pixels. Raises DataError, which names ``option``."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise DataError(f"{option} {text}: write height x width in pixels, for example 256x128")
    return int(height), int(width)


def parse_channels(option: str, text: str | None) -> tuple[float, float, float] | None:
    """ "0.485,0.456,0.406" -> three numbers. Raises DataError."""
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise DataError(f"{option} {text}: write one number for red, green and blue, for example 0.5,0.5,0.5") from None
    return red, green, blue


def open_masks(root: Path, masks: Path | None, *, wanted: bool) -> Masks | None:
    """The region cache or the mask files of a data set; None when its layout wants none, or when there are none.

    Args:
        root: the data set's folder, searched when ``masks`` is not given.
        wanted: whether the layout looks at masks.
    """
    return find_masks(root, masks) if wanted else None


def tell_notes(dataset: DataSet) -> None:
    """What the reader of a data set noticed."""
    console.print(
        f"{dataset.name}: {len(dataset.train)} training pictures of {len(dataset.people())} people,"
        f" {len(dataset.query)} queries, {len(dataset.gallery)} in the gallery"
    )
    for note in dataset.notes:
        console.print(f"note: {note}", style="yellow")


def bar(text: str) -> AbstractContextManager[Step | None]:
    """A progress bar on a terminal, nothing in a pipe."""
    return progress.bar(text, console)


def figures(evaluation: Evaluation) -> dict[str, float | None]:
    """ "rank1", "rank5", "rank10", "map" and "minp" as fractions; None where the protocol has no such figure."""
    return {"map": None, "minp": None, **evaluation.figures()}


def brief(evaluation: Evaluation) -> str:
    """Rank-1, and mAP where the protocol has it, for a line of text."""
    found = evaluation.figures()
    names = (("rank1", "Rank-1"), ("map", "mAP"))
    return ", ".join(f"{text} {100 * found[name]:.1f} %" for name, text in names if name in found)


def tell(results: Mapping[str, Evaluation], title: str) -> None:
    """A table of results, by which rule they are, and what was odd about the pictures."""
    last = list(results.values())[-1]
    names = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10", "map": "mAP"}
    shown = [name for name in names if name in last.figures()]
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    for column in shown:
        table.add_column(names[column], justify="right")
    for name, evaluation in results.items():
        found = evaluation.figures()
        table.add_row(name, *(f"{100 * found[column]:.1f} %" for column in shown))
    console.print(table)
    console.print(f"rule: {last.rule.text}")
    sure = last.intervals
    told = ", ".join(f"{names[name]} {100 * sure[name].low:.1f} to {100 * sure[name].high:.1f} %" for name in shown)
    console.print(f"95 % of samples of such queries: {told}")
    if (curve := last.roc) is not None:
        told = ", ".join(f"{100 * curve.at(rate):.1f} % at {100 * rate:g} %" for rate in FALSE_RATES)
        console.print(f"verification, true positives at false positives: {told}")
    usual = ("queries", "pictures of queries", "gallery")
    odd = {name: count for name, count in last.counts.items() if count and name not in usual}
    for name, count in odd.items():
        console.print(f"{name}: {count}", style="yellow")


def write_report(
    path: Path,
    *,
    title: str,
    model: MGRAN,
    dataset: DataSet,
    masks: Masks | None,
    results: Mapping[str, Evaluation],
    history: list[dict[str, float]],
    problems: list[str],
    seconds: Mapping[str, float],
    blur_faces: bool,
    counts: Mapping[str, int] | None = None,
) -> Path:
    """The report of a run; the last of ``results`` is shown in detail."""
    from mgran_fast import report
    from mgran_fast.report import collect

    evaluation = list(results.values())[-1]
    pictures = collect.Pictures(model, masks)
    lines = [*problems, *evaluation.problems()]
    return report.write(
        path,
        report.Report(
            title=title,
            dataset=f"{dataset.name}: {len(dataset.train)} training pictures of {len(dataset.people())} people,"
            f" {len(dataset.query)} queries, {len(dataset.gallery)} gallery pictures",
            protocol=collect.protocol(evaluation),
            scores=[collect.scores(name, one) for name, one in results.items()],
            history=history,
            crops=collect.crop_views(pictures, dataset.query, 8),
            rankings=collect.ranked_lists(pictures, dataset, evaluation),
            mistakes=collect.mistakes(pictures, dataset, evaluation),
            cameras=collect.cameras(dataset, evaluation),
            counts={**evaluation.counts, **(counts or {})},
            problems=list(dict.fromkeys(lines)),
            command=command(),
            environment=collect.environment(),
            seconds=dict(seconds),
            layout=model.layout.name,
            unmatched=collect.unmatched(dataset, evaluation),
            without_person=collect.without_person(dataset, evaluation),
        ),
        blur_faces=blur_faces,
    )


def tell_some(lines: Sequence[str]) -> None:
    """Pictures that cannot be used; beyond :data:`LISTED` they are counted, not listed."""
    for line in lines[:LISTED]:
        console.print(f"  {line}", style="yellow")
    if len(lines) > LISTED:
        console.print(f"  and {len(lines) - LISTED} more", style="yellow")


def command() -> str:
    """The command line of this process, as one would type it."""
    return shlex.join(["mgran-fast", *sys.argv[1:]])


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
