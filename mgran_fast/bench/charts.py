"""What the plots of a record show. Each function draws one figure, or returns None where its races are missing.

matplotlib is imported when something is drawn. Not by pyplot: its figures belong to the whole process, and it may look
for a display.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mgran_fast.bench import looks
from mgran_fast.bench.case import OURS
from mgran_fast.bench.fit import Curve, curves
from mgran_fast.bench.suite.pipeline import PUBLISHED, STAGES
from mgran_fast.report.words import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
#: In which precision ours goes the whole way, where its name says none.
DEFAULT = "bfloat16"
#: Of the stages of the way.
COLOURS = ("#56B4E9", "#0072B2", "#F0E442", "#D55E00")


def precision(record: Row) -> Figure | None:
    """People a second of each contestant, by precision, at the largest number of people."""
    rows = [row for row in _all_threads(_of(record, "MA")) if {"people", "precision"} <= set(row.get("at", {}))]
    if not rows:
        return None
    people = max(row["at"]["people"] for row in rows)
    rows = [row for row in rows if row["at"]["people"] == people]
    bars = [len(row["milliseconds"]) for row in rows]
    figure = looks.figure_of(0.9 + 0.24 * sum(bars) + 0.5 * len(rows))
    panels = looks.panels(figure, len(rows), height_ratios=bars, sharex=True)
    for axes, row in zip(panels, rows, strict=True):
        speeds = {name: 1e3 * people / one["median"] for name, one in row["milliseconds"].items()}
        looks.bars(axes, dict(sorted(speeds.items(), key=lambda item: -item[1])))
        axes.set_title(row["at"]["precision"], loc="left")
    panels[-1].set_xlabel("people a second")
    figure.suptitle(f"Embedding, {people} people in a call{_by(rows[0].get('threads'))}")
    return figure


def people(record: Row) -> Figure | None:
    """People a second by people in a call, on all threads and on one."""
    found = _curves(record, "embedding, more people")
    if not found:
        return None
    figure = looks.figure_of(4.0)
    for axes, curve in zip(looks.panels(figure, 1, len(found), sharey=True), found, strict=True):
        for name, times in curve.milliseconds.items():
            colour, _ = looks.look(name)
            looks.line(axes, name, {size: 1e3 * size / ms for size, ms in times.items()})
            fit = curve.fit(name)
            if fit is not None:
                dense = looks.between(min(times), max(times))
                axes.plot(dense, [1e3 * size / fit.at(size) for size in dense], color=colour, linewidth=0.7)
        looks.log(axes, curve.sizes)
        own = curve.fit(OURS)
        cost = "" if own is None else f"\nours: {own.fixed:.3g} ms + {own.each:.3g} ms each"
        axes.set_title(_threads(curve.threads) + cost, loc="left")
        axes.set_xlabel("people in a call")
    figure.axes[0].set_ylabel("people a second")
    figure.axes[0].legend()
    words = ", ".join(str(value) for value in found[0].at.values())
    figure.suptitle(f"Embedding{', ' if words else ''}{words}; thin: the fitted cost")
    return figure


def threads(record: Row) -> Figure | None:
    """How many times as fast all threads are as one."""
    found = {curve.threads or 0: curve for curve in _curves(record, "embedding, more people")}
    most = max(found, default=0)
    if 1 not in found or most < 2:
        return None
    alone, all_ = found[1].milliseconds, found[most].milliseconds
    gains = {
        name: {size: ms / all_[name][size] for size, ms in times.items() if size in all_[name]}
        for name, times in alone.items()
        if name in all_
    }
    gains = {name: values for name, values in gains.items() if values}
    if not gains:
        return None
    figure = looks.figure_of(3.6)
    axes = figure.add_subplot()
    for name, values in gains.items():
        looks.line(axes, name, values)
    axes.axhline(most, color="black", linewidth=0.8, linestyle=":")
    axes.annotate(f"{most} times: all that there is", (1, most), xycoords=("axes fraction", "data"), ha="right",
                  xytext=(0, 3), textcoords="offset points", fontsize=9)  # fmt: skip
    looks.log(axes, sorted({size for values in gains.values() for size in values}), both=False)
    axes.set_ylim(0, 1.15 * max(most, *(gain for values in gains.values() for gain in values.values())))
    axes.set_xlabel("people in a call")
    axes.set_ylabel(f"speed by {most} threads / by 1")
    axes.legend(loc="lower right")
    figure.suptitle("Embedding: what more threads are worth")
    return figure


def crops(record: Row) -> Figure | None:
    """Milliseconds by boxes of a frame."""
    return _grown(record, "crops of a frame", "Crops of a frame", "boxes in the frame")


def search(record: Row) -> Figure | None:
    """Milliseconds by entries."""
    return _grown(record, "search, larger gallery", "Search", "entries in the gallery")


def ranking(record: Row) -> Figure | None:
    """Milliseconds by pictures in the gallery."""
    return _grown(record, "ranking, larger gallery", "Ranking", "pictures in the gallery")


def pipeline(record: Row) -> Figure | None:
    """The whole way, stage by stage: all at one scale, and ours enlarged below, since it is a sliver there."""
    rows = {row["name"]: row for row in _all_threads(_of(record, "pipeline"))}
    if not set(STAGES) <= set(rows):
        return None
    *stages, whole = STAGES
    count = rows[whole]["at"].get("people", 1)
    # The stages before the network are the same whatever its precision is.
    parts = {
        name: [rows[stage]["milliseconds"].get(name, rows[stage]["milliseconds"][OURS])["median"] / count
               for stage in stages]
        for name in rows[whole]["milliseconds"]
    }  # fmt: skip
    measured = {name: one["median"] / count for name, one in rows[whole]["milliseconds"].items()}
    own = [name for name in parts if name != PUBLISHED]
    if PUBLISHED not in parts or not own:
        return None
    labels = {name: f"ours, {DEFAULT}" if name == OURS else name for name in parts}
    figure = looks.figure_of(3.6 + 0.25 * len(own))
    top, bottom = looks.panels(figure, 2, height_ratios=[2, len(own)])
    for axes, names in ((top, [PUBLISHED, OURS]), (bottom, own)):
        for place, name in enumerate(names):
            left = 0.0
            for stage, colour, ms in zip(stages, COLOURS, parts[name], strict=True):
                axes.barh(place, ms, 0.6, left, color=colour, label=stage if place == 0 else None)
                left += ms
            axes.plot(measured[name], place, "|", color="black", markersize=16, markeredgewidth=1.5,
                      label="the whole, measured" if place == 0 else None)  # fmt: skip
            axes.annotate(f"{number(round(measured[name], 1))} ms", (max(measured[name], left), place), va="center",
                          xytext=(6, 0), textcoords="offset points", fontsize=9)  # fmt: skip
        axes.set_yticks(range(len(names)), [labels[name] for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 1.15 * max(max(measured[name], sum(parts[name])) for name in names))
        axes.grid(axis="x")
    top.set_title("both at one scale", loc="left")
    wide = top.get_xlim()[1] / bottom.get_xlim()[1]
    bottom.set_title(f"ours alone, enlarged {wide:.0f} times", loc="left")
    bottom.set_xlabel("milliseconds a person")
    top.xaxis.set_major_formatter("{x:,.0f}")
    marks, words = top.get_legend_handles_labels()
    # Bars come after lines there: the stages first.
    figure.legend(marks[1:] + marks[:1], words[1:] + words[:1], loc="outside lower center", ncols=3)
    times = rows[whole].get("ratios", {}).get(PUBLISHED) or measured[PUBLISHED] / measured[OURS]
    figure.suptitle(
        f"Pictures to embeddings: {times:.3g} times as fast as the published way{_by(rows[whole].get('threads'))}"
    )
    return figure


def roofline(record: Row) -> Figure | None:
    """Ours below the machine's measured ceilings; what moves bytes alone beside the measured copy."""
    ceilings = record.get("ceilings", {})
    roofs = {name.split(", ")[1]: top for name, top in ceilings.items() if name.startswith("GFLOP/s")}
    copy = ceilings.get("GB/s, copy")
    rows = [row for row in _all_threads(_races(record)) if row.get("bytes") and row.get("group") != "growth"]
    points = [row for row in rows if row.get("operations")]
    moving = [row for row in rows if not row.get("operations")]
    if not (roofs and copy and points):
        return None
    figure = looks.figure_of(5.4 + (0.8 + 0.25 * len(moving) if moving else 0))
    panels = looks.panels(figure, 2 if moving else 1, height_ratios=[4.6, 0.8 + 0.25 * len(moving)] if moving else [1])
    axes = panels[0]
    at = [(row["operations"] / row["bytes"], row["operations"] / _ms(row) / 1e6) for row in points]
    # So wide that a good part of the slope is there, wherever the points lie.
    ridges = [top / copy for top in roofs.values()]
    left, right = min(0.5 * min(x for x, _ in at), 0.05 * min(ridges)), 3 * max(*(x for x, _ in at), *ridges)
    for name, top in roofs.items():
        axes.plot([left, top / copy, right], [left * copy, top, top], color="black", linewidth=0.9)
        # To the left of its ridge no point can be, but of what fits into a cache.
        axes.annotate(f"{name}, {number(round(top))} GFLOP/s", (top / copy, top), ha="right", va="center",
                      xytext=(-8, 0), textcoords="offset points", fontsize=9)  # fmt: skip
    # Where nothing else can be: above all roofs.
    axes.annotate(f"slope: copy, {copy:.3g} GB/s", (0.02, 0.97), xycoords="axes fraction", va="top", fontsize=9)
    for place, ((x, y), row) in enumerate(zip(at, points, strict=True), 1):
        axes.plot(x, y, "o", color=looks.look(OURS)[0], markersize=5, zorder=4, label=f"{place}  {_words(row)}")
    looks.numbers(axes, at)
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_ylim(0.4 * min(left * copy, *(y for _, y in at)), 2 * max(*roofs.values(), *(y for _, y in at)))
    looks.plain(axes.xaxis)
    looks.plain(axes.yaxis)
    axes.grid()
    axes.set_xlabel("operations a byte that must be moved")
    axes.set_ylabel("GFLOP/s, ours")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), handlelength=0, handletextpad=0, markerscale=0,
                title="ours", alignment="left", title_fontsize=9, labelspacing=0.35)  # fmt: skip
    if moving:
        speeds = {_words(row): row["bytes"] / _ms(row) / 1e6 for row in moving}
        looks.bars(panels[1], speeds, colour=looks.look(OURS)[0])
        panels[1].axvline(copy, color="black", linewidth=0.9)
        panels[1].annotate(f"copy, {copy:.3g}", (copy, 1), xycoords=("data", "axes fraction"), ha="center",
                           xytext=(0, 3), textcoords="offset points", fontsize=9)  # fmt: skip
        panels[1].set_xlim(0, 1.12 * max(copy, *speeds.values()))
        panels[1].set_xlabel("GB/s of what must be moved, ours")
    figure.suptitle(f"Ours and what this machine can do, measured{_by(points[0].get('threads'))}")
    return figure


def _grown(record: Row, name: str, title: str, across: str) -> Figure | None:
    found = _curves(record, name)
    if not found:
        return None
    curve = found[0]
    figure = looks.figure_of(3.8)
    axes = figure.add_subplot()
    for contestant, times in curve.milliseconds.items():
        looks.line(axes, contestant, times)
        fit = curve.fit(contestant)
        if fit is not None:
            dense = looks.between(min(times), max(times))
            axes.plot(dense, [fit.at(size) for size in dense], color=looks.look(contestant)[0], linewidth=0.7)
    looks.log(axes, curve.sizes)
    axes.set_xlabel(across)
    axes.set_ylabel("milliseconds")
    axes.legend()
    about = "".join(f", {number(value)} {key}" for key, value in curve.at.items() if isinstance(value, int))
    figure.suptitle(f"{title}{about}{_by(curve.threads)}; thin: the fitted cost")
    return figure


def _races(record: Row) -> list[Row]:
    return [row for row in record["results"] if OURS in row.get("milliseconds", {})]


def _of(record: Row, group: str) -> list[Row]:
    return [row for row in _races(record) if row.get("group") == group]


def _all_threads(rows: Sequence[Row]) -> list[Row]:
    most = max((row.get("threads") or 0 for row in rows), default=0)
    return [row for row in rows if (row.get("threads") or 0) == most]


def _curves(record: Row, name: str) -> list[Curve]:
    """Those of at least two sizes, of most threads first."""
    return [one for one in curves(_races(record)) if one.name == name and len(one.sizes) > 1]


def _ms(row: Row) -> float:
    return float(row["milliseconds"][OURS]["median"])


def _words(row: Row) -> str:
    at = row.get("at", {})
    about = [f"{at['people']} people"] if row.get("group") == "MA" and "people" in at else []
    return ", ".join([row["name"], *about, *([at["precision"]] if "precision" in at else [])])


def _threads(count: int | None) -> str:
    return "" if count is None else f"{count} thread{'' if count == 1 else 's'}"


def _by(count: int | None) -> str:
    return "" if count is None else f", {_threads(count)}"
