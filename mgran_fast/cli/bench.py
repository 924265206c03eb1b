"""mgran-fast bench: how fast this machine is, race by race, beside what else there is."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from mgran_fast.cli import MEASURE, app
from mgran_fast.errors import MGRANError


@app.command(rich_help_panel=MEASURE)
def bench(
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="model.safetensors of a run; default: a ResNet-50 at 256x128 with random weights."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="ops, MRA, MA, training, ranking, pipeline or growth; may be repeated.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A first look, within three minutes: less of everything, no compilers.")
    ] = False,
    people: Annotated[int | None, typer.Option(min=1, help="In a call of a network; default: 8, quickly 2.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU; default: all.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.01, help="How long a race is timed; default: 1.5, quickly 0.4.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the record, its tables and plots.")] = Path("runs/benchmark"),
    json_: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Race this library against what else there is, in turns: ops, MRA, MA, a training step, ranking, the whole way.

    Medians, and how many times longer the others take: the median over rounds in which all ran. Peers come with
    pip install 'mgran_fast[peers]'; who is missing is named. Nothing else should run meanwhile. On two cores with
    AVX-512 the whole takes a quarter of an hour.

    Example: mgran-fast bench --quick --only MA
    """
    import torch

    from mgran_fast.bench import record, report, tables
    from mgran_fast.bench.case import FULL, QUICK, DifferentAnswerError, Setting
    from mgran_fast.bench.ceilings import measure
    from mgran_fast.bench.run import run_all
    from mgran_fast.bench.suite import GROUPS, cases
    from mgran_fast.cli import common
    from mgran_fast.model import MGRAN

    unknown = [name for name in only or () if name not in GROUPS]
    if unknown:
        raise MGRANError(f"--only must be one of {', '.join(GROUPS)}, not {unknown[0]!r}")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = (MGRAN() if checkpoint is None else MGRAN.from_file(checkpoint)).eval()
    if torch.cuda.is_available():
        model = model.cuda()
    sizes = QUICK if quick else FULL
    if people is not None:
        sizes = dataclasses.replace(sizes, people=people)
    chosen = [
        case for case in cases(sizes, quick=quick, device=model.device.type) if only is None or case.group in only
    ]

    def say(row: record.Row) -> None:
        for line in tables.race(row):
            common.console.print(line, markup=False, highlight=False)

    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(model, Path(folder), sizes)
        try:
            rows = run_all(chosen, setting, seconds or (0.4 if quick else 1.5), say)
        except DifferentAnswerError as error:
            raise MGRANError(str(error)) from None
    made = record.record(rows, measure(model.device))
    report.write(made, output)
    if json_:
        common.print_json(made)
    else:
        common.console.print(f"record, tables and plots: {output}", markup=False, highlight=False)
