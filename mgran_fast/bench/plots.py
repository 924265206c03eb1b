"""A record as plots: SVG files, the same bytes for the same record by one version of matplotlib."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgran_fast.bench import charts, looks
from mgran_fast.errors import MGRANError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What draws each file's figure, or says with None that its races are missing.
PLOTS: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
    "pipeline.svg": charts.pipeline,
    "precision.svg": charts.precision,
    "people.svg": charts.people,
    "threads.svg": charts.threads,
    "crops.svg": charts.crops,
    "search.svg": charts.search,
    "ranking.svg": charts.ranking,
    "roofline.svg": charts.roofline,
}
_FROM = "drawn from a record with SHA-256 "


def draw(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what the record has races for; a plot of an earlier record that it has none for is removed.

    Each file tells what it was drawn from: :func:`drawn_from`.

    Returns:
        The files that were written.

    Raises:
        MGRANError: matplotlib is not installed.
    """
    try:
        import matplotlib.style
    except ImportError:
        raise MGRANError("plots want matplotlib: pip install 'mgran_fast[train]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    about = {"Date": None, "Creator": "mgran_fast", "Description": _FROM + digest(record)}
    # Whatever a matplotlibrc says: ids that do not change, and matplotlib's own font, as outlines.
    with matplotlib.style.context(["default", {**looks.STYLE, "svg.hashsalt": "mgran_fast", "svg.fonttype": "path"}]):
        for name, make in PLOTS.items():
            path, figure = folder / name, make(record)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            figure.savefig(path, metadata=about)
            written.append(path)
    return written


def digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record, in hexadecimal, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def drawn_from(path: Path) -> str | None:
    """The digest of the record that a plot was drawn from; None where it tells none."""
    found = re.search(re.escape(_FROM) + "([0-9a-f]{64})", path.read_text(encoding="utf-8"))
    return None if found is None else found[1]
