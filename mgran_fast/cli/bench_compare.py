"""mgran-fast bench-compare: what got slower between two records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mgran_fast.cli import MEASURE, app


@app.command("bench-compare", rich_help_panel=MEASURE)
def bench_compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="record.json of mgran-fast bench.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Another, of the same machine.")],
    json_: Annotated[bool, typer.Option("--json", help="Print the changes as JSON.")] = False,
) -> None:
    """Compare two records, race by race; ends with 1 when something got slower than the noise.

    A change is ours after / ours before, divided by how the peers of the same race drifted: what slows everybody is the
    machine. Noise is what lies between the 10 % and 90 % quantiles, 3 % at least.

    Example: mgran-fast bench-compare before/record.json after/record.json
    """
    from mgran_fast.bench import record
    from mgran_fast.bench.compare import compare
    from mgran_fast.cli import common

    found = compare(record.load(before), record.load(after))
    if json_:
        common.print_json(found.as_dict())
    else:
        typer.echo("\n".join(found.text))
    if found.slower:
        raise typer.Exit(1)
