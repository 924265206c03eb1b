"""A run as one self-contained HTML page: what went in, what came out, and what went wrong.

The page refers to nothing outside itself: no fonts, no scripts, no pictures but ``data:`` URIs. It holds pictures
of people; ``blur_faces`` hides every head in it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgran_fast import layouts
from mgran_fast.report import pages, pictures, words
from mgran_fast.report.charts import Chart, chart
from mgran_fast.report.parts import WHOLE
from mgran_fast.report.pictures import CropView, Match, Query

#: The CMC curve ends here: nobody reads on.
MOST_RANKS = 50


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
    """Accuracy at one point of the run, as fractions.

    Attributes:
        name: what the page calls it.
        rank: such as {1: 0.8, 5: 0.9}.
        map: None where the protocol has no mAP.
        cmc: ``cmc[k - 1]`` is the share of queries with a right match among the first k.
        intervals: where "rank1" and so on, and "map", lie with 95 % of samples of such queries: (low, high).
        roc: points of the ROC curve of all pairs: (false positive rate, true positive rate), both rising.
    """

    name: str
    rank: Mapping[int, float]
    map: float | None
    cmc: Sequence[float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    roc: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class CameraRow:
    """Figures of the queries of one camera in the gallery of another; the figures are fractions."""

    query: str
    gallery: str
    queries: int
    rank1: float
    map: float


@dataclass(frozen=True, eq=False)
class Report:
    """All that the page tells.

    Attributes:
        title, dataset, protocol: the heading, and what was measured and how.
        scores: in the order of the run. The last is the headline, the first is what it is compared with.
        history: one mapping an epoch, with keys such as "epoch", "loss", "rank1", "map" (the last two fractions).
            Keys may come and go; every number is in the table, losses and accuracies are drawn as well.
        crops, rankings: what is shown.
        mistakes: the queries that went worst, as rankings; a match may stand apart from the others by its rank.
        cameras: figures by camera.
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
    mistakes: Sequence[RankedList] = ()
    cameras: Sequence[CameraRow] = ()
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
    return pages.put(path, render(report, blur_faces=blur_faces))


def render(report: Report, *, blur_faces: bool = False) -> str:
    """The page as a string; see :func:`write`."""
    _check(report)
    keys = list(dict.fromkeys(key for row in report.history for key in row))
    longest = max((s for s in report.seconds.values() if math.isfinite(s)), default=0.0) or 1.0
    return pages.fill(
        "run.html.j2",
        title=report.title,
        facts=[("Data set", report.dataset), ("Protocol", report.protocol)],
        shows_people=bool(report.crops or report.rankings or report.mistakes),
        report=report,
        blurred=blur_faces,
        ranks=sorted({rank for scores in report.scores for rank in scores.rank}),
        charts=charts_of(report),
        headline=_headline(report),
        # Epoch 0 is the network before training.
        epochs=sum(row.get("epoch", 1) > 0 for row in report.history),
        history_keys=keys,
        history_rows=[[words.cell(key, row.get(key)) for key in keys] for row in report.history],
        crops=[_crop_view(view, blur_faces) for view in report.crops],
        legends=_legends(report),
        rankings=[_ranking(ranked, report.layout, blur_faces) for ranked in report.rankings],
        mistakes=[_ranking(ranked, report.layout, blur_faces) for ranked in report.mistakes],
        first_hits=sum(ranked.first_right == 1 for ranked in report.rankings),
        sides={"left": _css(pictures.LEFT), "right": _css(pictures.RIGHT)},
        stages=[
            (name, value, f"{100 * value / longest if math.isfinite(value) else 0:.1f}")
            for name, value in report.seconds.items()
        ],
        total_seconds=math.fsum(report.seconds.values()),
        low_score=pictures.LOW_SCORE,
    )


def _check(report: Report) -> None:
    for i, view in enumerate(report.crops):
        pictures.check(f"crops[{i}]", view, view.layout)
    for name, lists in (("rankings", report.rankings), ("mistakes", report.mistakes)):
        for i, ranked in enumerate(lists):
            pictures.check(f"{name}[{i}].query", ranked.query, report.layout)
            for j, match in enumerate(ranked.matches):
                pictures.check(f"{name}[{i}].matches[{j}]", match, report.layout)
            if ranked.first_right is not None and ranked.first_right < 1:
                raise ValueError(f"{name}[{i}].first_right counts from 1, and is {ranked.first_right}")


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
            for region, (name, picture, flag) in enumerate(
                zip((WHOLE, *table.groups), inputs, (True, *seen), strict=True)
            )
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
        "matches": [
            (place if match.rank is None else match.rank, match, picture(match))
            for place, match in enumerate(ranked.matches, 1)
        ],
        "compared": [match.parts for match in ranked.matches if match.parts is not None],
        "first_right": ranked.first_right,
        "seen": any(match.right for match in ranked.matches),
    }


def _power(x: float) -> str:
    """A share by its logarithm."""
    return f"{100 * 10**x:.3g}\u00a0%"


def charts_of(report: Report) -> dict[str, Chart]:
    """The charts that the report has figures for: "cmc", "accuracy" and "loss"."""
    cmc = {s.name: {float(k): float(v) for k, v in enumerate(s.cmc[:MOST_RANKS], 1)} for s in report.scores}
    # By the logarithm: what matters are few wrong pairs of very many.
    roc = {s.name: {math.log10(x): y for x, y in s.roc if x > 0} for s in report.scores}
    accuracy: dict[str, dict[float, float]] = {}
    losses: dict[str, dict[float, float]] = {}
    for i, row in enumerate(report.history, 1):
        for key, value in row.items():
            into = accuracy if words.ACCURACY.fullmatch(key) else losses if "loss" in key.lower() else None
            if into is not None and value is not None:
                into.setdefault(words.words(key), {})[float(row.get("epoch", i))] = float(value)
    found = (
        chart("cmc", "CMC curve", "rank", cmc, fractions=True),
        chart("roc", "ROC curve", "false positive rate", roc, fractions=True, show_x=_power),
        chart("accuracy", "Accuracy by epoch", "epoch", accuracy, fractions=True),
        chart("loss", "Loss by epoch", "epoch", losses, fractions=False),
    )
    return {chart.key: chart for chart in found if chart is not None}


def _headline(report: Report) -> list[tuple[str, float | None, float | None]]:
    if not report.scores:
        return []
    first, last = report.scores[0], report.scores[-1]
    headline: list[tuple[str, float | None, float | None]] = [
        (f"Rank-{rank}", last.rank[rank], first.rank.get(rank)) for rank in sorted(last.rank)
    ]
    return headline if last.map is None else [*headline, ("mAP", last.map, first.map)]
