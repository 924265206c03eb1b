"""mgran-fast bench: how fast this machine is, stage by stage, beside plain code."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mgran_fast.cli import MEASURE, app


@app.command(rich_help_panel=MEASURE)
def bench(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="model.safetensors of a run; default: a ResNet-50 at 256x128 with random weights."),
    ] = None,
    people: Annotated[int, typer.Option(min=1, help="In one call.")] = 8,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="Of the engine: float32, bfloat16, int8, float16 (on a GPU); may be repeated."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU; default: all.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each stage is timed.")] = 2.0,
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Time each stage from pictures to a ranking, ours and the plain way in turns.

    Medians, and how many times longer the plain way takes: the median over rounds in which both ran. Nothing else
    should run meanwhile.

    Example: mgran-fast bench --people 8 --precision bfloat16
    """
    import torch

    from mgran_fast.bench import cases, race, ratio
    from mgran_fast.cli import common
    from mgran_fast.errors import DataError
    from mgran_fast.model import MGRAN
    from mgran_fast.report.collect import environment

    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = (MGRAN() if checkpoint is None else MGRAN.from_file(checkpoint)).eval()
    if torch.cuda.is_available():
        model = model.cuda()
    rows: list[dict[str, Any]] = []
    try:
        for case in cases(model, people, tuple(precision or ("float32", "bfloat16"))):
            timings = race(case.contestants, seconds=seconds, least=3)
            ours = timings["ours"]
            rows.append(
                {
                    "stage": case.name,
                    "milliseconds": {name: 1e3 * one.median for name, one in timings.items()},
                    "quantiles": {name: [1e3 * one.quantile(q) for q in (0.1, 0.9)] for name, one in timings.items()},
                    "a second": case.people / ours.median,
                    "times": {name: ratio(one, ours) for name, one in timings.items() if name != "ours"},
                    "rounds": len(ours.rounds),
                }
            )
            _tell(rows[-1], common.console.print)
    except ValueError as error:
        raise DataError(str(error)) from None
    if json_:
        common.print_json(
            {"machine": environment(), "threads": torch.get_num_threads(), "people": people, "stages": rows}
        )


def _tell(row: dict[str, Any], say: Any) -> None:
    """A line for each stage, as soon as it is known."""
    ours = row["milliseconds"]["ours"]
    others = ", ".join(
        f"{name} {row['milliseconds'][name]:.2f} ms ({times:.2f}x)" for name, times in row["times"].items()
    )
    say(f"{row['stage']}: {ours:.2f} ms, {row['a second']:,.0f} a second" + (f"; {others}" if others else ""))
