"""The curves of a training run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mgran_fast.weights import files

Rows = Sequence[Mapping[str, float]]

#: Columns of the history that are no curve, or have a place of their own.
_PLACED = ("epoch", "step", "seconds", "learning_rate", "persons_per_second", "waiting")
#: How the most usual ones are written.
_NAMES = {"rank1": "Rank-1", "map": "mAP"}


def available() -> bool:
    """Whether matplotlib is there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def panels(rows: Rows) -> dict[str, list[str]]:
    """Which columns are drawn together, by what they are called together; those without a column are left out."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in _PLACED))
    found = {
        "loss": [name for name in names if "loss" in name],
        "learning rate": ["learning_rate"],
        "persons/s": ["persons_per_second", "waiting"],
        "share": [name for name in names if "loss" not in name],
    }
    known = {name for row in rows for name in row}
    return {title: kept for title, some in found.items() if (kept := [name for name in some if name in known])}


def draw(rows: Rows, path: Path) -> None:
    """Draw the history of a run into the PNG file ``path``, whole or not at all.

    What is known of whole epochs is the curve, and what is known within them a pale one behind it. The share of waiting
    has its axis on the right. Raises OSError, and ImportError without matplotlib.
    """
    # Not pyplot: its figures belong to the whole process, and it may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    shown = panels(rows)
    across = min(2, len(shown)) or 1
    down = -(-len(shown) // across) or 1
    figure = Figure(figsize=(5.5 * across, 3.2 * down), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (title, names) in enumerate(shown.items()):
        axes = figure.add_subplot(down, across, place + 1)
        axes.set_xlabel("epoch")
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        lines = []
        for number, name in enumerate(names):
            on = axes
            if name == "waiting" and len(names) > 1:
                on = axes.twinx()
                on.set_ylabel("waiting for data")
            if name == "persons_per_second":
                axes.set_ylim(0, 1.1 * max(row[name] for row in rows if name in row) or 1)
            if name == "waiting" or title == "share":
                on.yaxis.set_major_formatter(PercentFormatter(1.0))
                on.set_ylim(0, 1)
            colour, label = f"C{number % 10}", _NAMES.get(name, name.replace("_", " "))
            within = [(row["epoch"], row[name]) for row in rows if name in row]
            whole = [(epoch, value) for epoch, value in within if epoch.is_integer()]
            if len(whole) < len(within):
                on.plot(*zip(*within, strict=True), color=colour, alpha=0.3, linewidth=1)
            # A point alone would be no line.
            marker = "o" if len(whole) <= 30 else None
            lines += on.plot(*zip(*whole), color=colour, marker=marker, markersize=3, label=label)  # noqa: B905
        if len(lines) > 1:
            axes.legend(handles=lines, fontsize="small")
    with files.replaced(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
