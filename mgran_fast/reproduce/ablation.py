"""The ablation: what masks, regions and the shape of the inputs are worth, with several seeds of each.

Every run lies in a folder of its own, ``<variation>-<seed>``, that of any run of ``mgran-fast train``: who has trained
some of them already has them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgran_fast import layouts
from mgran_fast.data import DataSet, Masks
from mgran_fast.errors import CheckpointError, DataError
from mgran_fast.reproduce.rows import CONFIGS
from mgran_fast.reproduce.runs import Run, Training, settings_digest
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.machines import is_first
from mgran_fast.train.run import digest
from mgran_fast.weights import files

__all__ = ["CONFIG", "OWN", "VARIATIONS", "Line", "ablate", "check", "markdown", "plan", "table", "write"]

#: The settings of the ablation where no others are given.
CONFIG = CONFIGS / "ablation-small.yaml"
#: What is varied: no mask, rectangles, six parts, three regions; and the latter as inputs of three shapes.
VARIATIONS: Mapping[str, Mapping[str, str]] = {
    "none": {"layout": "none", "shape": "full"},
    "box": {"layout": "box", "shape": "full"},
    "part": {"layout": "part", "shape": "full"},
    "region": {"layout": "region", "shape": "full"},
    "crop": {"layout": "region", "shape": "crop"},
    "single": {"layout": "region", "shape": "single"},
}
#: Settings that are the ablation's own.
OWN = ("layout", "shape", "seed")

#: The runs of each variation, by its seeds.
Plan = Mapping[str, Sequence[Run]]


def plan(base: TrainConfig, output: Path, seeds: int, only: Iterable[str] = ()) -> Plan:
    """The runs of the ablation.

    Args:
        base: the settings; those of :data:`OWN` are the ablation's.
        output: the folder of all runs.
        seeds: how many; they are counted from 0.
        only: the variations; none for all of them.

    Raises DataError for an unknown variation.
    """
    names = list(dict.fromkeys(only)) or list(VARIATIONS)
    unknown = [name for name in names if name not in VARIATIONS]
    if unknown:
        raise DataError(f"--only: no variation is called {unknown[0]!r}; there are {', '.join(VARIATIONS)}")
    plain = {name: getattr(base, name) for name in TrainConfig.kinds() if name not in OWN}
    return {
        name: [
            Run(output / f"{name}-{seed}", TrainConfig.make({**plain, **VARIATIONS[name], "seed": seed}))
            for seed in range(seeds)
        ]
        for name in VARIATIONS
        if name in names
    }


def check(runs: Plan, data: str | None = None) -> str:
    """Raise CheckpointError for a run with other settings, or of other training pictures than ``data`` or each other.

    Args:
        data: the digest of the training pictures; None where only the runs tell.

    Returns:
        The digest of the training pictures; empty where neither tells.
    """
    first: Run | None = None
    for run in _all(runs):
        run.check(data)
        found = run.data()
        if found and data is None and first is not None and found != first.data():
            raise CheckpointError(
                f"{run.folder}: trained on other pictures or people than {first.folder}; use one --output for each data"
            )
        first = first or (run if found else None)
    return data or (first.data() if first else "")


def ablate(
    dataset: DataSet,
    masks: Callable[[], Masks | None],
    runs: Plan,
    training: Training,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Train and measure what is missing of the runs; all variations with the first seed, then with the next one.

    Args:
        masks: gives the masks of the data set, for the first run that wants some.
        say: told what is done, line by line.

    Raises as training does; before anything is trained DataError or CheckpointError for runs that would be refused.
    """
    check(runs, digest(dataset))
    todo = [run for run in _all(runs) if not _done(run)]
    for run in _all(runs):
        run.ready(dataset, training)
    total = len(_all(runs))
    say(f"{total - len(todo)} of {total} runs are there already")
    opened: list[Masks | None] = []
    for place, run in enumerate(todo, 1):
        say(f"{run.folder.name}: {place} of {len(todo)}")
        wanted = not layouts.get(run.config.layout).whole
        if wanted and not opened:
            opened.append(masks())
        found = opened[0] if wanted else None
        model = run.train(dataset, found, training)
        if is_first():
            run.measure(model, dataset, found, training)


@dataclass(frozen=True)
class Line:
    """What the finished runs of one variation gave.

    Attributes:
        variation: its name.
        seeds: of the finished runs; the other lists are in the same order.
        rank1, map: fractions; ``map`` is empty where the data set's rule has none.
        minutes: of training.
        missing: how many runs are not finished.
    """

    variation: str
    seeds: Sequence[int]
    rank1: Sequence[float]
    map: Sequence[float]
    minutes: Sequence[float]
    missing: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **VARIATIONS[self.variation],
            "seeds": list(self.seeds),
            "missing": self.missing,
            "rank1": _spread(self.rank1),
            "map": _spread(self.map),
            "minutes": _spread(self.minutes),
        }


def table(runs: Plan) -> list[Line]:
    """A line of each variation, from what the runs' folders tell. Raises DataError for a broken history."""
    lines = []
    for name, some in runs.items():
        done = [run for run in some if _done(run)]
        figures = [run.figures() for run in done]
        lines.append(
            Line(
                name,
                [run.config.seed for run in done],
                [one["rank1"] for one in figures],
                [one["map"] for one in figures if "map" in one],
                [run.minutes() for run in done],
                len(some) - len(done),
            )
        )
    return lines


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 1) -> str:
    """Mean and sample standard deviation, such as "12.3 ± 0.4"; of one value no deviation, of none a dash."""
    found = _spread(values)
    if found["mean"] is None:
        return "–"
    text = f"{scale * found['mean']:.{digits}f}"
    return text if found["deviation"] is None else f"{text} ± {scale * found['deviation']:.{digits}f}"


HEADER = ("variation", "layout", "shape", "Rank-1, %", "mAP, %", "seeds", "minutes")


def cells(line: Line) -> tuple[str, ...]:
    """What a table tells of a variation, as :data:`HEADER` names it."""
    varied = VARIATIONS[line.variation]
    return (
        line.variation,
        varied["layout"],
        varied["shape"],
        spread(line.rank1, 100),
        spread(line.map, 100),
        f"{len(line.seeds)}" + (f" of {len(line.seeds) + line.missing}" if line.missing else ""),
        spread(line.minutes),
    )


def markdown(lines: Sequence[Line]) -> str:
    """The table in Markdown."""
    rows = [HEADER, tuple("---" for _ in HEADER), *map(cells, lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def write(lines: Sequence[Line], output: Path, base: TrainConfig, **details: Any) -> dict[str, Any]:
    """Write ``ablation.json`` and ``ablation.md`` into ``output``; returns what the first holds. Raises DataError.

    Args:
        details: whatever else the JSON tells.
    """
    found = {
        "settings": settings_digest(base),
        **details,
        "variations": {line.variation: line.to_json() for line in lines},
    }
    try:
        files.write(output / "ablation.json", f"{json.dumps(found, indent=2)}\n".encode())
        files.write(output / "ablation.md", markdown(lines).encode())
    except OSError as error:
        raise DataError(f"{output}: the table cannot be written ({error.strerror})") from None
    return found


def _all(runs: Plan) -> list[Run]:
    """All runs, by their seeds: a table of what is there soon has a line of everything."""
    longest = max(map(len, runs.values()), default=0)
    return [some[place] for place in range(longest) for some in runs.values() if place < len(some)]


def _done(run: Run) -> bool:
    return "rank1" in run.figures()


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (None of fewer than two values), and the values."""
    return {
        "mean": statistics.fmean(values) if values else None,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "each": list(values),
    }
