"""A record as tables: for a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mgran_fast.bench.case import OURS
from mgran_fast.bench.fit import Curve, curves
from mgran_fast.bench.suite import GROUPS
from mgran_fast.report.words import number

#: Of races that do not say theirs.
OTHER = "other"
GROWN = (
    "Milliseconds of a call. The last lines: the fitted cost, and the exponent over the upper half of the sizes"
    " (1: twice as many take twice as long)."
)
GROWTH = "growth"
Row = Mapping[str, Any]


def text(record: Mapping[str, Any]) -> list[str]:
    """Lines for a terminal: machine and versions, every race by group, other figures, who was left out and why."""
    lines = list(where(record))
    for group, races in groups(record["results"]).items():
        lines += ["", group, *(line for one in races for line in race(one))]
    for curve in curves(record["results"]):
        told = [f"  {name}: {fit.text}" for name in curve.milliseconds if (fit := curve.fit(name)) is not None]
        lines += ["", f"{_title(curve)}: cost of a call", *told] if told else []
    for one in record["results"]:
        if "values" in one:
            lines += ["", one["name"], *(f"  {name}: {number(value)}" for name, value in one["values"].items())]
            lines += [f"  command: {one['command']}"] if one.get("command") else []
    gone = left_out(record["results"])
    return lines + (["", "left out", *(f"  {name}: {why}" for name, why in gone)] if gone else [])


def race(row: Row) -> list[str]:
    """A line of what was raced and how fast ours is, and one for each contestant."""
    times = row["milliseconds"]
    ours = times.get(OURS)
    head = ", ".join([row["name"], *circumstances(row)])
    if ours is not None:
        head += f": {number(ours['median'])} ms"
    if row.get("per second"):
        head += f", {number(_three(row['per second']))} a second"
    width = max(map(len, times), default=0)
    lines = [head]
    for name, one in times.items():
        spread = f"  ({number(one['10 %'])} to {number(one['90 %'])})" if {"10 %", "90 %"} <= set(one) else ""
        ratio = row.get("ratios", {}).get(name)
        lines.append(
            f"  {name:{width}}  {number(one['median']):>8} ms{spread}" + (f"  {_times(ratio)}" if ratio else "")
        )
    return lines


def markdown(record: Mapping[str, Any]) -> str:
    """Headings and tables: the machine, its ceilings, a table a group, the curves, other figures, who was left out."""
    lines = ["# Benchmarks", "", *(f"- {line}" for line in where(record))]
    lines += ["", "Milliseconds are medians; the others took so many times as long, the median over rounds in which all"
              " ran."]  # fmt: skip
    if record.get("ceilings"):
        tops = [(name, number(_three(value))) for name, value in record["ceilings"].items()]
        lines += ["", "## Ceilings of the machine, measured", "", *_table(("ceiling", "reached"), tops)]
    found = curves(record["results"])
    on_curves = {curve.name for curve in found}
    for group, races in groups(record["results"]).items():
        kept = [one for one in races if not (group == GROWTH and one["name"] in on_curves)]
        if kept:
            lines += ["", f"## {group}", "", *_races(kept)]
    if found:
        lines += ["", "## How cost grows", "", GROWN]
        for curve in found:
            lines += ["", f"### {_title(curve)}", "", *_growth(curve)]
    others = [one for one in record["results"] if "values" in one]
    if others:
        figures = [
            (one["name"], name, number(value), f"`{one['command']}`" if one.get("command") else "")
            for one in others
            for name, value in one["values"].items()
        ]
        lines += ["", "## Other figures", "", *_table(("what", "figure", "", "command"), figures)]
    gone = left_out(record["results"])
    if gone:
        lines += ["", "## Left out", "", *(f"- {name}: {why}" for name, why in gone)]
    return "\n".join(lines) + "\n"


def where(record: Mapping[str, Any]) -> list[str]:
    """Machine, what ran, and versions, a line each."""
    machine = record["machine"]
    cores = machine.get("cores")
    parts = [
        machine.get("processor"), None if cores is None else f"{cores} cores", machine.get("device"),
        machine.get("instructions"), machine.get("system"),
    ]  # fmt: skip
    own = [("mgran_fast", "mgran_fast"), ("commit", "commit"), ("torch", "torch"), ("Python", "python")]
    ran = [f"{name} {machine[key]}" for name, key in own if machine.get(key)]
    ran += [str(machine["compiler"])] if machine.get("compiler") else []
    lines = [", ".join(str(part) for part in parts if part), ", ".join(ran)]
    lines.append(", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()))
    return [line for line in lines if line]


def groups(results: Iterable[Row]) -> dict[str, list[Row]]:
    """Races by group, in the suite's order; those that name none last."""
    found: dict[str, list[Row]] = {name: [] for name in GROUPS}
    for one in results:
        if "milliseconds" in one:
            found.setdefault(one.get("group", OTHER), []).append(one)
    found[OTHER] = found.pop(OTHER, [])
    return {name: races for name, races in found.items() if races}


def circumstances(row: Row) -> list[str]:
    """What a race was done with: "8 people", "bfloat16", "2 threads"."""
    about = [f"{number(value)} {name}" if isinstance(value, int) else str(value)
             for name, value in row.get("at", {}).items()]  # fmt: skip
    return about + _threads(row.get("threads"))


def left_out(results: Iterable[Row]) -> list[tuple[str, str]]:
    """Contestants that did not take part somewhere, and why, each once."""
    return list(dict.fromkeys((name, why) for one in results for name, why in one.get("left out", {}).items()))


def _threads(count: int | None) -> list[str]:
    return [] if count is None else [f"{count} thread{'' if count == 1 else 's'}"]


def _title(curve: Curve) -> str:
    about = circumstances({"at": curve.at, "threads": curve.threads})
    return ", ".join([curve.name, *about])


def _times(ratio: float) -> str:
    return f"{ratio:.0f} times" if ratio >= 99.5 else f"{ratio:.3g} times"


def _three(value: float) -> float:
    """Three digits, all of those before the point."""
    return round(value) if value >= 100 else float(f"{value:.3g}")


def _races(rows: Sequence[Row]) -> list[str]:
    cells = []
    for one in rows:
        about, threads = circumstances({"at": one.get("at", {})}), one.get("threads")
        times = one["milliseconds"]
        ratios = one.get("ratios", {})
        others = [
            f"{name}: {_times(ratios[name])} as long" if name in ratios else f"{name}: {number(figures['median'])} ms"
            for name, figures in times.items()
            if name != OURS
        ]
        ours = number(times[OURS]["median"]) if OURS in times else ""
        cells.append(
            (one["name"], ", ".join(about), "" if threads is None else str(threads), ours, "<br>".join(others))
        )
    return _table(("race", "circumstances", "threads", "ours, ms", "the others"), cells)


def _growth(curve: Curve) -> list[str]:
    names = list(curve.milliseconds)
    cells = [(number(size), *(number(curve.milliseconds[name].get(size)) for name in names)) for size in curve.sizes]
    fits = [curve.fit(name) for name in names]
    if any(fits):
        lines = (
            ("fixed, ms", [None if fit is None else fit.fixed for fit in fits]),
            ("each, ms", [None if fit is None else fit.each for fit in fits]),
            ("exponent", [None if fit is None else round(fit.exponent, 2) for fit in fits]),
        )
        cells += [(name, *map(_figure, values)) for name, values in lines]
    return _table((curve.axis, *names), cells)


def _figure(value: float | None) -> str:
    return number(value) if value is None or value >= 1000 else f"{value:.3g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), "|" + "---|" * len(head), *(line(cells) for cells in rows)]
