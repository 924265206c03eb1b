"""mgran-fast bench-report: tables and plots of a record."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mgran_fast.cli import MEASURE, app
from mgran_fast.errors import MGRANError


@app.command("bench-report", rich_help_panel=MEASURE)
def bench_report(
    path: Annotated[Path, typer.Argument(metavar="RECORD", help="record.json of mgran-fast bench.")],
    output: Annotated[Path | None, typer.Option(help="Folder for tables and plots; default: the record's.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the files that were written as JSON.")] = False,
) -> None:
    """Write tables.md and plots of a record, and print its figures.

    Plots want matplotlib: pip install 'mgran_fast[train]'; without it the tables are written all the same.

    Example: mgran-fast bench-report runs/benchmark/record.json
    """
    from mgran_fast.bench import plots, record, report, tables
    from mgran_fast.cli import common

    made = record.load(path)
    folder = output or path.parent
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / report.TABLES]
    written[0].write_text(tables.markdown(made), encoding="utf-8")
    try:
        written += plots.draw(made, folder)
    except MGRANError as error:
        common.console.print(f"no plots: {error}", style="yellow")
    if json_:
        common.print_json({"record": str(path), "written": [str(one) for one in written]})
        return
    typer.echo("\n".join([*tables.text(made), "", *(f"written: {one}" for one in written)]))
