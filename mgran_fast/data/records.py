"""A data set as lists of records: which picture shows which person, seen by which camera."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: How a test set is scored. The Market-1501 rule: a gallery picture of the query's person and camera is left out, all
#: others are ranked.
MARKET = "market"
#: The classic CUHK03 rule: of what is left by the Market-1501 rule, one picture of each gallery person is drawn; the
#: mean over many draws counts, and no mAP is told.
SINGLE_GALLERY_SHOT = "single-gallery-shot"


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
        multi_query: for evaluation with multiple queries: further pictures of a query's person by the query's camera
            (Market-1501's ``gt_bbox``), sorted by path. A query's pictures are those of its person and camera; the
            query itself may or may not be among them. Empty where a set has none.
        protocol: how the test set is scored: ``MARKET`` ("market") or ``SINGLE_GALLERY_SHOT`` ("single-gallery-shot").
        variant: which form of the set this is, such as "detected" or "labeled"; empty where there is one form.
        person_names, camera_names: what the set itself calls a person or a camera, by its number in the records; empty
            where it calls them by that number.
    """

    name: str
    root: Path
    train: Sequence[Record]
    query: Sequence[Record]
    gallery: Sequence[Record]
    notes: Sequence[str] = field(default=())
    multi_query: Sequence[Record] = field(default=())
    protocol: str = MARKET
    variant: str = ""
    person_names: Mapping[int, str] = field(default_factory=dict)
    camera_names: Mapping[int, str] = field(default_factory=dict)

    def people(self) -> list[int]:
        """The training identities, sorted; a person's label is its place in this list."""
        return sorted({record.person for record in self.train})
