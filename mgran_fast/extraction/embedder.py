"""What embeds the pictures of a part and writes it: one in each process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mgran_fast.data import find_masks
from mgran_fast.engine.opened import open_engine
from mgran_fast.errors import DataError
from mgran_fast.extraction import parts
from mgran_fast.extraction.plan import FOLDER, Plan
from mgran_fast.metrics.embedding import NothingReadError
from mgran_fast.mra.named import open_estimator
from mgran_fast.search.pictures import Picture, embed_pictures, taken
from mgran_fast.weights.files import sha256


@dataclass(frozen=True)
class Report:
    """A part that was written: its number, its pictures, those that could be read, and those that show nobody."""

    number: int
    pictures: int
    read: int
    no_person: int


class Embedder:
    """Embeds and writes parts of an output folder.

    Args:
        output: the folder; its plan says all the rest.
        threads: of this process; None leaves them.

    Raises:
        DataError: the folder has no plan, or the model's file is not the one of the plan.
        CheckpointError: the model's file cannot be read.
    """

    def __init__(self, output: Path, threads: int | None = None) -> None:
        plan = Plan.opened(output)
        if plan is None:
            raise DataError(
                f"{output / FOLDER}: not there; the output must be on a file system that all machines share, under the"
                " same path"
            )
        settings = plan.settings
        if sha256(Path(settings.checkpoint)) != settings.sha256:
            raise DataError(f"{settings.checkpoint}: another file than at the start; name another --output")
        if threads is not None:
            torch.set_num_threads(threads)
        self.plan = plan
        self.engine = open_engine(settings.checkpoint, settings.precision, mra=open_estimator(settings.mra))
        self._masks = None if settings.masks is None else find_masks(settings.root, settings.masks)

    def __call__(self, number: int) -> Report:
        """Embed and write a part. Raises DataError where it cannot be written."""
        pictures = [
            one if one.time is not None else replace(one, time=taken(one.path)) for one in self.plan.part(number)
        ]
        rows = self._rows(pictures)
        layout = self.engine.alignment.layout
        parts.write(self.plan, number, rows, layout.name, layout.inputs)
        return Report(number, len(pictures), len(rows.pictures), int(rows.no_person.sum()))

    def _rows(self, pictures: list[Picture]) -> parts.Rows:
        try:
            # What cannot be read is told at the end, by whoever asked for it all.
            with _silent():
                found = embed_pictures(
                    self.engine, pictures, self._masks, batch_size=self.plan.settings.batch_size
                )  # fmt: skip
        except NothingReadError as error:
            shape = len(self.engine.alignment.layout.inputs)
            nobody = torch.zeros(0, dtype=torch.bool)
            return parts.Rows(
                [], torch.zeros(0, self.engine.dim), nobody.reshape(0, shape), nobody, error.problems.lines()
            )  # fmt: skip
        absent = torch.isin(found.indices, found.without_person)
        chosen = [pictures[i] for i in found.indices.tolist()]
        return parts.Rows(chosen, found.vectors, found.visible, absent, found.problems.lines())


@contextmanager
def _silent() -> Iterator[None]:
    log = logging.getLogger("mgran_fast.data.dataset")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
