"""Readers of data sets: published ones, checked against their published numbers, and one's own."""

from mgran_fast.data.sets.checks import Counts, Tally
from mgran_fast.data.sets.info import SetInfo
from mgran_fast.data.sets.parts import pictures_by_part
from mgran_fast.data.sets.registry import SETS, detect, miniature, open_set, read_set

__all__ = [
    "SETS",
    "Counts",
    "SetInfo",
    "Tally",
    "detect",
    "miniature",
    "open_set",
    "pictures_by_part",
    "read_set",
]
