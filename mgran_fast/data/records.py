"""A data set as lists of records: which picture shows which person, seen by which camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, order=True)
class Record:
    """One crop of one person.

    Attributes:
        path: the picture.
        person: the identity as the data set numbers it; 0 may be a distractor (Market-1501).
        camera: the camera as the data set numbers it.
    """

    path: Path
    person: int
    camera: int


@dataclass(frozen=True)
class DataSet:
    """Training people, and test people split into query and gallery.

    Attributes:
        name: what reports call it.
        root: the folder; masks and keypoints are looked up below it.
        train, query, gallery: the records, sorted by path.
        notes: what a reader noticed (junk left out, files with odd names): one line each.
    """

    name: str
    root: Path
    train: Sequence[Record]
    query: Sequence[Record]
    gallery: Sequence[Record]
    notes: Sequence[str] = field(default=())

    def people(self) -> list[int]:
        """The training identities, sorted; a person's label is its place in this list."""
        return sorted({record.person for record in self.train})
