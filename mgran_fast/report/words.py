"""Figures as people read them."""

from __future__ import annotations

import math
import re

#: The keys of a history that are fractions, drawn and written in per cent.
ACCURACY = re.compile(r"rank[-_ ]?\d+|map", re.IGNORECASE)
_DASH = "\u2013"


def cell(key: str, value: float | None) -> str:
    return percent(value) if ACCURACY.fullmatch(key) or key == "waiting" else number(value)


def percent(value: float | None) -> str:
    return _DASH if value is None or not math.isfinite(value) else f"{100 * value:.1f}\u00a0%"


def number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return _DASH
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def distance(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else number(value)


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return _DASH
    if seconds < 60:
        return f"{seconds:.2g}\u00a0s" if seconds < 10 else f"{seconds:.0f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes:02}\u00a0min" if hours else f"{minutes}\u00a0min {rest:02}\u00a0s"


def words(key: str) -> str:
    """A key as a person reads it: "rank1" is Rank-1, "map" mAP, and underscores are spaces."""
    rank = re.fullmatch(r"rank[-_ ]?(\d+)", key, re.IGNORECASE)
    if rank:
        return f"Rank-{rank[1]}"
    return "mAP" if key.lower() == "map" else key.replace("_", " ")
