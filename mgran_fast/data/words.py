"""Words that readers of data sets share."""

from __future__ import annotations

from collections.abc import Iterable


def first(names: Iterable[str], number: int = 3) -> str:
    """The first few of some names, and dots when there are more."""
    names = list(names)
    return ", ".join(names[:number]) + (", ..." if len(names) > number else "")


def plural(number: int, one: str, more: str | None = None) -> str:
    """The word for that many."""
    return one if number == 1 else more or one + "s"
