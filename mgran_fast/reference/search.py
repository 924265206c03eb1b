"""The nearest entries of a gallery, one query at a time: what `mgran_fast.Gallery.search` finds."""

from __future__ import annotations

from collections.abc import Sequence


def nearest(distances: Sequence[float], k: int, places: Sequence[int] | None = None) -> list[tuple[float, int]]:
    """The k entries with the least distance, nearest first; of two at one distance the one with the lower place.

    Args:
        distances: from the query to each entry of the gallery.
        places: the entries that may be found; None for all.

    Returns:
        Distance and place of each, fewer than k where there are no more.
    """
    allowed = range(len(distances)) if places is None else places
    return sorted((distances[place], place) for place in allowed)[:k]
