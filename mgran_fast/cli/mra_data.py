"""What ``train-mra`` learns from and is measured on: folders, COCO files, drawn people, the labels of a teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from mgran_fast.cli import common
from mgran_fast.data import MaskFiles, Problems, synthetic
from mgran_fast.data.coco import read_coco
from mgran_fast.data.folder import list_pictures, read_folder
from mgran_fast.data.labels import LabelledSet
from mgran_fast.errors import DataError
from mgran_fast.metrics.agreement import NEAR, Agreement
from mgran_fast.mra import Estimator

#: How ``--test`` asks for drawn people: synthetic:PEOPLE, or synthetic:PEOPLE:SEED.
SYNTHETIC = "synthetic"
# Cameras and views of each drawn person: many cameras, for it is cameras that an estimator must not care about.
_CAMERAS, _VIEWS = 12, 1


def open_set(name: str, *, part: str, pictures: Path | None = None, labels: Path | None = None) -> LabelledSet:
    """The labelled pictures of a folder or of a COCO file. Raises DataError."""
    path = Path(name)
    if path.suffix.lower() == ".json":
        return read_coco(path, pictures)
    if labels is None and not MaskFiles.available(path) and path.is_dir():
        other = "; name the folder that has them with --labels, or let --teacher make them" if part == "train" else ""
        raise DataError(f"{path}: there is no folder masks/ in it, with the masks of its pictures{other}")
    return read_folder(path, labels=None if labels is None else [labels], part=part)


def taught(
    name: str,
    teacher: Estimator,
    place: Path,
    *,
    labels: Path | None,
    size: tuple[int, int],
    workers: int,
    device: str,
    problems: Problems,
) -> LabelledSet:
    """The pictures of a folder with the labels that they have; a teacher writes those of the others to ``place``."""
    path = Path(name)
    from mgran_fast.train.mra.teacher import teach

    own = path if labels is None else labels
    known = [own] if labels is not None or MaskFiles.available(path) else []
    todo = list_pictures(path, "train")
    if known:
        have = read_folder(path, labels=known, part="train", unlabelled=True)
        todo = [
            one.path
            for one in have.pictures
            if not (one.has_mask.any() or one.has_keypoints.any()) and np.isnan(one.presence).all()
        ]
    with common.bar(f"labels for {path.name}") as step:
        teach(
            teacher, todo, path, place, size=size, workers=workers, device=device, problems=problems, progress=step
        )  # fmt: skip
    return read_folder(path, labels=[*known, place], part="train")


def drawn(people: int, seed: int, folder: Path, *, size: tuple[int, int], workers: int) -> LabelledSet:
    """Synthetic people with exact labels, drawn into ``folder`` once. Raises DataError."""
    if people < 1:
        raise DataError(f"{people} synthetic people: ask for one or more")
    place = folder / f"{SYNTHETIC}-{people}-{seed}-{size[0]}x{size[1]}"
    if not (place / "synthetic.json").is_file():
        common.console.print(f"drawing {people} people as {_CAMERAS} cameras see them ...")
    synthetic.write(
        place, people=(people, 0), cameras=_CAMERAS, views=_VIEWS, size=size, seed=seed, workers=workers
    )  # fmt: skip
    return read_folder(place, part="train")


def parse_synthetic(text: str) -> tuple[int, int] | None:
    """ "synthetic:100:7" -> (100, 7), people and seed; None for anything else. Raises DataError."""
    word, *numbers = text.split(":")
    if word != SYNTHETIC or not numbers:
        return None
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise DataError(
            f"--test {text}: write {SYNTHETIC}:PEOPLE or {SYNTHETIC}:PEOPLE:SEED, for example synthetic:50:7"
        )
    # Another world than that of --synthetic, whose seed is --seed, 0 by default.
    return int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else 1


def tell_set(found: LabelledSet) -> None:
    """How many pictures and people a set has, and what its reader noticed."""
    masks = sum(int(one.has_mask.sum()) for one in found.pictures)
    keypoints = sum(int(one.has_keypoints.sum()) for one in found.pictures)
    common.console.print(
        f"{found.name}: {len(found.pictures)} pictures, {found.people()} people, {masks} with a mask,"
        f" {keypoints} with keypoints"
    )
    for note in found.notes:
        common.console.print(f"note: {note}", style="yellow")


def figures(found: Agreement, problems: Sequence[str]) -> dict[str, Any]:
    """What ``--json`` says of a test set; None where nothing could be compared."""
    values = {"iou": found.mean_iou, "keypoints": found.within()}
    return {
        "people": len(found),
        "masks": int((~found.iou.isnan()).sum()),
        "visible_keypoints": int(found.visible.sum()),
        **{name: None if math.isnan(value) else value for name, value in values.items()},
        "problems": list(problems),
    }


def tell(results: dict[str, dict[str, Any]], title: str) -> None:
    """A table of test sets, one line each."""
    table = Table(title=Text(title), title_justify="left")
    for column in ("", "people", "mask IoU", f"keypoints within {NEAR:g} torso"):
        table.add_column(column, justify="right" if column else "left")
    for name, found in results.items():
        shown = ["-" if found[key] is None else f"{100 * found[key]:.1f} %" for key in ("iou", "keypoints")]
        table.add_row(Text(name), str(found["people"]), *shown)
    common.console.print(table)
