"""A run as one self-contained HTML page: what went in, what came out, and what went wrong.

The page refers to nothing outside itself: no fonts, no scripts, no pictures but ``data:`` URIs. It holds pictures
of people; ``blur_faces`` hides every head in it.
"""

from __future__ import annotations

import math
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mgran_fast import layouts
from mgran_fast.errors import DataError
from mgran_fast.report import pictures
from mgran_fast.report.pictures import CropView, Match, Query

#: At most so many lines of problems, unmatched queries and crops without a person are told; the rest is counted.
MOST_LINES = 200
#: The CMC curve ends here: nobody reads on.
MOST_RANKS = 50
#: The keys of a history that are fractions, drawn and written in per cent.
ACCURACY = re.compile(r"rank[-_ ]?\d+|map", re.IGNORECASE)
_DASH = "\u2013"
# Control characters are no HTML; file names may hold them all the same.
_UNPRINTABLE = {code: 0xFFFD for code in (*range(9), 11, *range(12, 32), *range(127, 160)) if code != 13}


@dataclass(frozen=True, eq=False)
class RankedList:
    """The nearest gallery crops of a query, best first.

    ``first_right`` is the rank of the first right match, from 1, which may lie beyond ``matches``; None for no
    right match at all.
    """

    query: Query | Match
    matches: Sequence[Match]
    first_right: int | None


@dataclass(frozen=True)
class Scores:
    """Accuracy at one point of the run: ``rank`` such as {1: 0.8, 5: 0.9}, ``map`` and ``cmc`` are fractions.

    ``cmc[k - 1]`` is the share of queries with a right match among the first k; ``map`` is None where the protocol has
    no mAP.
    """

    name: str
    rank: Mapping[int, float]
    map: float | None
    cmc: Sequence[float]


@dataclass(frozen=True, eq=False)
class Report:
    """All that the page tells.

    Attributes:
        title, dataset, protocol: the heading, and what was measured and how.
        scores: in the order of the run. The last is the headline, the first is what it is compared with.
        history: one mapping an epoch, with keys such as "epoch", "loss", "rank1", "map" (the last two fractions).
            Keys may come and go; every number is in the table, losses and accuracies are drawn as well.
        crops, rankings: what is shown.
        counts: such as {"empty masks": 3}, in the order of the page.
        problems: one line each, such as pictures that could not be read.
        command: the command line of the run.
        environment: such as {"torch": "2.9.0"}.
        seconds: by stage of the run.
        layout: the body layout of the region maps in the rankings.
        unmatched: one line for each query without a right match in the gallery.
        without_person: one line for each crop in which nobody was found.
    """

    title: str
    dataset: str
    protocol: str
    scores: Sequence[Scores] = ()
    history: Sequence[Mapping[str, float]] = ()
    crops: Sequence[CropView] = ()
    rankings: Sequence[RankedList] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    problems: Sequence[str] = ()
    command: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    layout: str = "region"
    unmatched: Sequence[str] = ()
    without_person: Sequence[str] = ()


def write(path: str | os.PathLike[str], report: Report, *, blur_faces: bool = False) -> Path:
    """Write the report to ``path`` as one HTML file, whole or not at all, and return its path.

    Folders on the way are made. ``blur_faces`` pixelates the head in every picture, found as
    :func:`mgran_fast.report.pictures.head_box` says; heads of other people in a crop stay.

    Raises:
        ValueError: an array of the report has the wrong shape or dtype; the message names it.
        DataError: the file cannot be written.
    """
    page = render(report, blur_faces=blur_faces)
    target = Path(path)
    if target.is_dir():
        raise DataError(f"{target} is a folder: name the file to write, such as {target / 'report.html'}")
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Names of files need not be Unicode; what is not is shown escaped.
            draft.write_text(page, encoding="utf-8", errors="backslashreplace")
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}): choose another path") from error
    return target


def render(report: Report, *, blur_faces: bool = False) -> str:
    """The page as a string; see :func:`write`."""
    _check(report)
    files = resources.files("mgran_fast.report")
    # The style sheet is ours: it is the only text that goes in unescaped.
    css = Markup(files.joinpath("report.css").read_text("utf-8"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=_percent, number=_number, distance=_distance, duration=_duration, words=_words)
    keys = list(dict.fromkeys(key for row in report.history for key in row))
    longest = max((s for s in report.seconds.values() if math.isfinite(s)), default=0.0) or 1.0
    template = environment.from_string(files.joinpath("template.html.j2").read_text("utf-8"))
    return template.render(
        report=report,
        css=css,
        blurred=blur_faces,
        ranks=sorted({rank for scores in report.scores for rank in scores.rank}),
        charts=charts_of(report),
        headline=_headline(report),
        # Epoch 0 is the network before training.
        epochs=sum(row.get("epoch", 1) > 0 for row in report.history),
        history_keys=keys,
        history_rows=[[_cell(key, row.get(key)) for key in keys] for row in report.history],
        crops=[_crop_view(view, blur_faces) for view in report.crops],
        legends=_legends(report),
        rankings=[_ranking(ranked, report.layout, blur_faces) for ranked in report.rankings],
        first_hits=sum(ranked.first_right == 1 for ranked in report.rankings),
        sides={"left": _css(pictures.LEFT), "right": _css(pictures.RIGHT)},
        stages=[
            (name, value, f"{100 * value / longest if math.isfinite(value) else 0:.1f}")
            for name, value in report.seconds.items()
        ],
        total_seconds=math.fsum(report.seconds.values()),
        most_lines=MOST_LINES,
        low_score=pictures.LOW_SCORE,
    ).translate(_UNPRINTABLE)


def _check(report: Report) -> None:
    for i, view in enumerate(report.crops):
        pictures.check(f"crops[{i}]", view, view.layout)
    for i, ranked in enumerate(report.rankings):
        pictures.check(f"rankings[{i}].query", ranked.query, report.layout)
        for j, match in enumerate(ranked.matches):
            pictures.check(f"rankings[{i}].matches[{j}]", match, report.layout)
        if ranked.first_right is not None and ranked.first_right < 1:
            raise ValueError(f"rankings[{i}].first_right counts from 1, and is {ranked.first_right}")


def _crop_view(view: CropView, blur: bool) -> dict[str, Any]:
    table = layouts.get(view.layout)
    crop = view.crop
    if blur:
        crop = pictures.pixelate(crop, pictures.head_box(crop.shape[:2], view.region_map, view.keypoints, table))
    seen = [bool((view.region_map == region).any()) for region in range(1, table.regions + 1)]
    if view.visibility is not None:
        seen = [bool(flag) for flag in view.visibility][len(view.visibility) - table.regions :]
    inputs = pictures.network_inputs(crop, view.region_map, table)
    regions = pictures.region_overlay(crop, view.region_map, table)
    scored = view.keypoints is not None and bool((view.keypoints[:, 2] >= pictures.LOW_SCORE).any())
    return {
        "title": view.title,
        "crop": pictures.data_uri(crop),
        "found": pictures.data_uri(pictures.found_overlay(crop, view.mask, view.keypoints), pictures.OVERLAY_SIDE),
        "regions": None if table.whole else pictures.data_uri(regions, pictures.OVERLAY_SIDE),
        "inputs": [
            {
                "name": name,
                "picture": pictures.data_uri(picture),
                "seen": flag,
                "colour": _css(pictures.region_colour(region)) if region else "",
            }
            for region, (name, picture, flag) in enumerate(zip(table.inputs, inputs, (True, *seen), strict=True))
        ],
        "empty": not view.region_map.any(),
        "mask": view.mask is not None,
        "keypoints": scored,
        "whole": table.whole,
    }


def _legends(report: Report) -> list[dict[str, Any]]:
    names = dict.fromkeys(view.layout for view in report.crops)
    tables = [layouts.get(name) for name in names]
    return [
        {
            "name": table.name,
            "regions": [
                {"name": group, "colour": _css(pictures.region_colour(region))}
                for region, group in enumerate(table.groups, 1)
            ],
        }
        for table in tables
        if table.groups
    ]


def _css(colour: pictures.Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _ranking(ranked: RankedList, layout: str, blur: bool) -> dict[str, Any]:
    def picture(view: Query | Match) -> str:
        crop = view.crop
        if blur:
            crop = pictures.pixelate(crop, pictures.head_box(crop.shape[:2], view.region_map, None, layout))
        return pictures.data_uri(crop, side=192, quality=82)

    return {
        "query": ranked.query,
        "picture": picture(ranked.query),
        "matches": [(match, picture(match)) for match in ranked.matches],
        "first_right": ranked.first_right,
        "shown": len(ranked.matches),
    }


# --- charts ---------------------------------------------------------------------------------------------------


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

    @property
    def rows(self) -> list[tuple[str, list[str]]]:
        """The table: x, and the value of every line there."""
        xs = sorted({x for line in self.lines for x in line.values})
        return [(_number(x), [self.show(line.values.get(x)) for line in self.lines]) for x in xs]


#: The plot within a chart: left, right, top, bottom in pixels.
PLOT = (56.0, 468.0, 12.0, 252.0)


def charts_of(report: Report) -> dict[str, Chart]:
    """The charts that the report has figures for: "cmc", "accuracy" and "loss"."""
    cmc = {s.name: {float(k): float(v) for k, v in enumerate(s.cmc[:MOST_RANKS], 1)} for s in report.scores}
    accuracy: dict[str, dict[float, float]] = {}
    losses: dict[str, dict[float, float]] = {}
    for i, row in enumerate(report.history, 1):
        for key, value in row.items():
            into = accuracy if ACCURACY.fullmatch(key) else losses if "loss" in key.lower() else None
            if into is not None and value is not None:
                into.setdefault(_words(key), {})[float(row.get("epoch", i))] = float(value)
    found = (
        _chart("cmc", "CMC curve", "rank", cmc, fractions=True),
        _chart("accuracy", "Accuracy by epoch", "epoch", accuracy, fractions=True),
        _chart("loss", "Loss by epoch", "epoch", losses, fractions=False),
    )
    return {chart.key: chart for chart in found if chart is not None}


def _chart(
    key: str, title: str, across: str, series: Mapping[str, Mapping[float, float]], *, fractions: bool
) -> Chart | None:
    finite = {n: {x: y for x, y in v.items() if math.isfinite(x) and math.isfinite(y)} for n, v in series.items()}
    finite = {name: values for name, values in finite.items() if values}
    if not finite:
        return None
    xs = [x for values in finite.values() for x in values]
    ys = [y for values in finite.values() for y in values.values()]
    y_ticks = _ticks(min(ys), max(ys))
    if fractions and max(ys) <= 1:
        y_ticks = [i / 5 for i in range(6)] if min(ys) < 0.5 else [y for y in y_ticks if y <= 1.0]
    x_ticks = [x for x in _ticks(min(xs), max(xs)) if x.is_integer() and min(xs) <= x <= max(xs)]
    if min(xs) not in x_ticks:
        x_ticks = [min(xs), *x_ticks[(len(x_ticks) > 1 and x_ticks[0] - min(xs) < 0.5 * (x_ticks[1] - x_ticks[0])) :]]
    left, right, top, bottom = PLOT
    low, high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        wide = (x - min(xs)) / (max(xs) - min(xs)) if max(xs) > min(xs) else 0.5
        return round(left + wide * (right - left), 1), round(bottom - (y - low) / (high - low) * (bottom - top), 1)

    def show(y: float | None) -> str:
        return _percent(y) if fractions else _number(y)

    lines = []
    for i, (name, values) in enumerate(finite.items()):
        # The headline, the last of the scores, has the first style: blue, solid.
        style = len(finite) - 1 - i if key == "cmc" else i
        dots = [place(x, y) for x, y in sorted(values.items())]
        sparse = dots[:: -(-len(dots) // 12)]
        lines.append(Line(name, "M" + " L".join(f"{x:g} {y:g}" for x, y in dots), sparse, values, style))
    ends = [f"{n} goes from {show(v[min(v)])} to {show(v[max(v)])}" for n, v in finite.items()]
    text = f"Lines over {across} {_number(min(xs))} to {_number(max(xs))}: {'; '.join(ends)}."
    return Chart(
        key,
        title,
        text,
        across,
        [(place(x, low)[0], _number(x)) for x in x_ticks],
        [(place(min(xs), y)[1], f"{100 * y:.4g}\u00a0%" if fractions else _number(y)) for y in y_ticks],
        lines,
        show,
    )


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers from at most ``low`` to at least ``high``."""
    span = high - low or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if span / (unit * m) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


# --- figures and words ----------------------------------------------------------------------------------------


def _headline(report: Report) -> list[tuple[str, float | None, float | None]]:
    if not report.scores:
        return []
    first, last = report.scores[0], report.scores[-1]
    headline: list[tuple[str, float | None, float | None]] = [
        (f"Rank-{rank}", last.rank[rank], first.rank.get(rank)) for rank in sorted(last.rank)
    ]
    return headline if last.map is None else [*headline, ("mAP", last.map, first.map)]


def _cell(key: str, value: float | None) -> str:
    return _percent(value) if ACCURACY.fullmatch(key) or key == "waiting" else _number(value)


def _percent(value: float | None) -> str:
    return _DASH if value is None or not math.isfinite(value) else f"{100 * value:.1f}\u00a0%"


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return _DASH
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _distance(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else _number(value)


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return _DASH
    if seconds < 60:
        return f"{seconds:.2g}\u00a0s" if seconds < 10 else f"{seconds:.0f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u00a0h {minutes:02}\u00a0min" if hours else f"{minutes}\u00a0min {rest:02}\u00a0s"


def _words(key: str) -> str:
    """A key as a person reads it: "rank1" is Rank-1, "map" mAP, and underscores are spaces."""
    rank = re.fullmatch(r"rank[-_ ]?(\d+)", key, re.IGNORECASE)
    if rank:
        return f"Rank-{rank[1]}"
    return "mAP" if key.lower() == "map" else key.replace("_", " ")
