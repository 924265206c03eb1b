"""The rows of the published tables: the data set of each, its settings, and what was published."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgran_fast.errors import DataError
from mgran_fast.train.config import TrainConfig

#: The folder of the settings.
CONFIGS = Path(__file__).with_name("configs")
#: The splits of CUHK03's classic protocol.
CLASSIC = tuple(range(1, 21))


@dataclass(frozen=True)
class Row:
    """One row of the tables of Zhou & Yu, "Mask-Guided Region Attention Network for Person Re-Identification", PAKDD
    2020.

    Attributes:
        name: what the command line calls it.
        title: what the tables call it.
        dataset, variant: which of :data:`mgran_fast.data.sets.SETS`, and which form of it.
        config: the file of its settings in ``configs``. Rows with the same file share one training.
        published: figures as fractions: "rank1", "rank5", "map".
        splits: whose mean counts; empty where the data set has one split.
        queries: "single", or "multiple": all pictures of a query's person by the query's camera are one query.
    """

    name: str
    title: str
    dataset: str
    config: str
    published: Mapping[str, float]
    variant: str | None = None
    splits: tuple[int, ...] = ()
    queries: str = "single"

    @property
    def file(self) -> Path:
        """Its settings in YAML, as ``mgran-fast train --config`` takes them."""
        return CONFIGS / self.config

    @property
    def training(self) -> str:
        """What its training is called, which other rows may share."""
        return self.file.stem

    def settings(self, **overrides: Any) -> TrainConfig:
        """Its settings, and what is asked for instead. Raises DataError."""
        return TrainConfig.from_yaml(self.file, **overrides)


# That these are of the classic protocol is our reading: 93 % at Rank-1 with 98.9 % at Rank-5 and no mAP beside them fit
# a ranking of one picture each of 100 people; the new protocol, with 700, is told as Rank-1 and mAP.
_CUHK03: Mapping[str, Any] = {"dataset": "cuhk03-classic", "splits": CLASSIC}

#: Every row, by its name, in the order of the tables.
ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row(
            "market1501-single",
            "Market-1501, single query",
            "market1501",
            "market1501.yaml",
            {"rank1": 0.8891, "map": 0.7803},
        ),
        Row(
            "market1501-multiple",
            "Market-1501, multiple query",
            "market1501",
            "market1501.yaml",
            {"rank1": 0.9007, "map": 0.8130},
            queries="multiple",
        ),
        Row(
            "dukemtmc-reid",
            "DukeMTMC-reID",
            "dukemtmc-reid",
            "dukemtmc-reid.yaml",
            {"rank1": 0.7812, "map": 0.6357},
        ),
        Row(
            "cuhk03-labeled",
            "CUHK03 labeled, region level (RL)",
            config="cuhk03-labeled.yaml",
            published={"rank1": 0.9302, "rank5": 0.9894},
            variant="labeled",
            **_CUHK03,
        ),
        Row(
            "cuhk03-detected",
            "CUHK03 detected, region level (RL)",
            config="cuhk03-detected.yaml",
            published={"rank1": 0.9067, "rank5": 0.9821},
            variant="detected",
            **_CUHK03,
        ),
        Row(
            "cuhk03-labeled-part",
            "CUHK03 labeled, part level (PL)",
            config="cuhk03-labeled-part.yaml",
            published={"rank1": 0.9183, "rank5": 0.9741},
            variant="labeled",
            **_CUHK03,
        ),
        Row(
            "cuhk03-detected-part",
            "CUHK03 detected, part level (PL)",
            config="cuhk03-detected-part.yaml",
            published={"rank1": 0.8935, "rank5": 0.9675},
            variant="detected",
            **_CUHK03,
        ),
    )
}


def find(name: str) -> Row:
    """The row of that name. Raises DataError, which lists the names or tells the nearest."""
    row = ROWS.get(name.lower())
    if row is None:
        near = difflib.get_close_matches(name.lower(), ROWS, 1, 0.6)
        hint = f"the nearest is {near[0]!r}" if near else f"there are {', '.join(ROWS)}"
        raise DataError(f"no row is called {name!r}; {hint}: mgran-fast reproduce")
    return row
