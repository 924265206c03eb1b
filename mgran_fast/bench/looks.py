"""How plots look: colours, markers, axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mgran_fast.bench.case import OURS
from mgran_fast.bench.suite.pipeline import PUBLISHED
from mgran_fast.report.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito's colours, which the colour-blind tell apart, by how a contestant's name begins: colour, marker.
LOOKS = {
    OURS: ("#0072B2", "o"), "eager": ("#999999", "s"), "four eager": ("#666666", "v"), PUBLISHED: ("#666666", "v"),
    "plain torch": ("#999999", "s"), "torch.compile": ("#E69F00", "^"), "ONNX Runtime": ("#009E73", "D"),
    "OpenVINO": ("#D55E00", "P"), "OpenCV": ("#009E73", "D"), "NumPy": ("#E69F00", "^"), "FAISS": ("#D55E00", "P"),
    "torchreid": ("#CC79A7", "X"),
}  # fmt: skip
#: Of whoever is not among them.
OTHERS = ("#CC79A7", "X")
STYLE = {
    "font.size": 10, "axes.titlesize": 11, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "legend.fontsize": 9, "legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "grid.color": "#e0e0e0", "grid.linewidth": 0.6, "figure.facecolor": "white",
}  # fmt: skip
WIDTH = 8.0


def figure_of(height: float) -> Figure:
    """A figure of the width of all, height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def panels(figure: Figure, down: int, across: int = 1, **options: Any) -> list[Axes]:
    """Row by row."""
    return list(figure.subplots(down, across, squeeze=False, **options).flat)


def look(name: str) -> tuple[str, str]:
    """Colour and marker of a contestant."""
    return next((look for begin, look in LOOKS.items() if name.startswith(begin)), OTHERS)


def line(axes: Axes, name: str, values: Mapping[int, float]) -> None:
    """The measured points of a contestant."""
    colour, marker = look(name)
    ours = name == OURS
    axes.plot(list(values), list(values.values()), marker, color=colour, label=name, markersize=6.5 if ours else 5,
              zorder=3 if ours else 2)  # fmt: skip


def bars(axes: Axes, values: Mapping[str, float], colour: str | None = None) -> None:
    """From the top down, each with its figure."""
    for place, (name, value) in enumerate(values.items()):
        ours = colour is not None or name == OURS
        axes.barh(place, value, 0.7, color=colour or (look(OURS)[0] if ours else "#b0b0b0"))
        axes.annotate(f"{value:.3g}", (value, place), va="center", xytext=(4, 0), textcoords="offset points",
                      fontsize=9, fontweight="bold" if name == OURS else "normal")  # fmt: skip
    axes.set_yticks(range(len(values)), list(values))
    for label in axes.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() == OURS else "normal")
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.margins(x=0.1)
    axes.grid(axis="x")


def log(axes: Axes, sizes: Sequence[int], *, both: bool = True) -> None:
    """A logarithmic axis with the sizes themselves as ticks."""
    from matplotlib.ticker import LogLocator

    axes.set_xscale("log")
    axes.set_xticks(sizes, [number(size) for size in sizes], minor=False)
    axes.set_xticks([], minor=True)
    if both:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if high < 50 * low:
            # One tick a decade would be one or two in all.
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        plain(axes.yaxis)
    axes.grid()


def plain(axis: Any) -> None:
    """Figures as people write them: 0.01, 1, 1,000."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def between(low: float, high: float) -> list[float]:
    """Numbers from low to high, the next always so many times the one before."""
    return [low * (high / low) ** (step / 60) for step in range(61)]


def numbers(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Numbers beside points of two logarithmic axes, each where most room is."""
    import numpy as np

    # Points of the page, about: the axes are some 290 by 290.
    places = np.log(np.asarray(points))
    places = 290 * (places - places.min(0)) / np.maximum(np.ptp(places, 0), 1e-9)
    around = [(9 * np.cos(angle), 9 * np.sin(angle)) for angle in np.arange(8) * np.pi / 4]
    taken = list(places)
    for index, (point, place) in enumerate(zip(points, places, strict=True), 1):
        others = np.asarray([one for one in taken if one is not place]).reshape(-1, 2)
        room = [min(np.hypot(*(others - place - offset).T), default=0.0) for offset in around]
        offset = around[int(np.argmax(room))]
        taken.append(place + offset)
        axes.annotate(str(index), point, xytext=offset, textcoords="offset points", ha="center", va="center",
                      fontsize=9, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.3})  # fmt: skip
