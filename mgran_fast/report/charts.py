"""Line charts, computed here and drawn by the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mgran_fast.report.words import number, percent


@dataclass(frozen=True)
class Line:
    """A line of a chart: its path and markers in pixels, its values y by x, and which of the line styles it has."""

    name: str
    path: str
    dots: Sequence[tuple[float, float]]
    values: Mapping[float, float]
    style: int


@dataclass(frozen=True)
class Chart:
    """A line chart in a box of 480 x 300 pixels, ready to be drawn; ``rows`` are the table of its figures."""

    key: str
    title: str
    text: str
    across: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line]
    show: Callable[[float | None], str]
    show_x: Callable[[float], str]

    @property
    def rows(self) -> list[tuple[str, list[str]]]:
        """The table: x, and the value of every line there."""
        xs = sorted({x for line in self.lines for x in line.values})
        return [(self.show_x(x), [self.show(line.values.get(x)) for line in self.lines]) for x in xs]


#: The plot within a chart: left, right, top, bottom in pixels.
PLOT = (56.0, 468.0, 12.0, 252.0)


def chart(
    key: str,
    title: str,
    across: str,
    series: Mapping[str, Mapping[float, float]],
    *,
    fractions: bool,
    show_x: Callable[[float], str] = number,
) -> Chart | None:
    """A chart of lines y by x, by name; None where there is nothing to draw.

    ``fractions``: y is a share, written in per cent. ``show_x`` writes x.
    """
    finite = {n: {x: y for x, y in v.items() if math.isfinite(x) and math.isfinite(y)} for n, v in series.items()}
    finite = {name: values for name, values in finite.items() if values}
    if not finite:
        return None
    xs = [x for values in finite.values() for x in values]
    ys = [y for values in finite.values() for y in values.values()]
    y_ticks = _ticks(min(ys), max(ys))
    if fractions and max(ys) <= 1:
        y_ticks = [y for y in y_ticks if y <= 1.0]
        # One tick alone: everything is 100 %.
        if min(ys) < 0.5 or len(y_ticks) < 2:
            y_ticks = [i / 5 for i in range(6)]
    x_ticks = [x for x in _ticks(min(xs), max(xs)) if x.is_integer() and min(xs) <= x <= max(xs)]
    if min(xs) not in x_ticks:
        x_ticks = [min(xs), *x_ticks[(len(x_ticks) > 1 and x_ticks[0] - min(xs) < 0.5 * (x_ticks[1] - x_ticks[0])) :]]
    left, right, top, bottom = PLOT
    low, high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        wide = (x - min(xs)) / (max(xs) - min(xs)) if max(xs) > min(xs) else 0.5
        return round(left + wide * (right - left), 1), round(bottom - (y - low) / (high - low) * (bottom - top), 1)

    def show(y: float | None) -> str:
        return percent(y) if fractions else number(y)

    lines = []
    for i, (name, values) in enumerate(finite.items()):
        # The headline, the last of the scores, has the first style: blue, solid.
        style = len(finite) - 1 - i if key in ("cmc", "roc") else i
        dots = [place(x, y) for x, y in sorted(values.items())]
        sparse = dots[:: -(-len(dots) // 12)]
        lines.append(Line(name, "M" + " L".join(f"{x:g} {y:g}" for x, y in dots), sparse, values, style))
    ends = [f"{n} goes from {show(v[min(v)])} to {show(v[max(v)])}" for n, v in finite.items()]
    text = f"Lines over {across} {show_x(min(xs))} to {show_x(max(xs))}: {'; '.join(ends)}."
    return Chart(
        key,
        title,
        text,
        across,
        [(place(x, low)[0], show_x(x)) for x in x_ticks],
        [(place(min(xs), y)[1], f"{100 * y:.4g}\u00a0%" if fractions else number(y)) for y in y_ticks],
        lines,
        show,
        show_x,
    )


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers from at most ``low`` to at least ``high``."""
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if span / (unit * m) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]
