"""What a search finds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Entry:
    """An entry of a gallery, as a search finds it.

    Attributes:
        name: what it is called, such as the path of its picture.
        person, camera: as they were given, as text; None where they are not known.
        time: with a zone, UTC; None where it is not known.
        distance: from the query.
    """

    name: str
    person: str | None
    camera: str | None
    time: datetime | None
    distance: float


@dataclass(frozen=True, eq=False)
class Found:
    """The nearest entries of Q queries.

    Attributes:
        index: int64 [Q, k], places in the gallery as it was, nearest first; -1 where fewer than k entries are left.
        distance: float64 [Q, k]; infinite where the index is -1.
        entries: the same for people, a tuple for each query.
    """

    index: npt.NDArray[np.int64]
    distance: npt.NDArray[np.float64]
    entries: tuple[tuple[Entry, ...], ...]
