"""What is known of a data set before any folder is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mgran_fast.data.records import MARKET
from mgran_fast.data.sets.checks import Counts
from mgran_fast.data.sets.reading import Reading, Request


@dataclass(frozen=True)
class SetInfo:
    """A data set that can be read.

    Attributes:
        name: what ``--dataset`` calls it.
        title: what people call it.
        layout: the files that it consists of, as a tree of text.
        where: how one comes by it, and where to put it.
        read: the reader.
        draw: writes a miniature, pictures of (height, width) pixels in exactly this layout, into an empty folder, and
            tells its counts. Arguments: folder, variant, size, seed.
        protocol: how its test set is scored, see :class:`mgran_fast.data.DataSet`.
        variants: its forms, the first of which is read when none is named; a single empty one where there is one form.
        splits: (first, last) of the numbered splits; None where there is one split.
        published: the published numbers, by variant; empty for sets that nobody published.
        warning: what people must know before they use it.
        packages: what of the extra ``datasets`` reading it takes.
        without: parts that the set does not have.
        choose: which variant a folder holds, for sets whose variants lie in folders of their own.
        drawn: the splits are seeds of splits that are drawn; without one the set must be split already.
    """

    name: str
    title: str
    layout: str
    where: str
    read: Callable[[Path, Request], Reading]
    draw: Callable[[Path, str, tuple[int, int], int], Counts]
    protocol: str = MARKET
    variants: tuple[str, ...] = ("",)
    splits: tuple[int, int] | None = None
    published: Mapping[str, Counts] = field(default_factory=dict)
    warning: str = ""
    packages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    choose: Callable[[Path], str] | None = None
    drawn: bool = False
