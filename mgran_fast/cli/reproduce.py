"""mgran-fast reproduce: run a row of the published tables, and print measured beside published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgran_fast.cli import TRAIN, WORKERS, app
from mgran_fast.cli.options import Accelerator, Counts, Devices, MasksFolder, Nodes, Strategy, TrunkWeights
from mgran_fast.cli.train import machines_of, missing_extra, overrides, own_cache
from mgran_fast.errors import DataError

if TYPE_CHECKING:
    from mgran_fast.reproduce.rows import Row
    from mgran_fast.reproduce.run import Result

_NAMES = {"rank1": "Rank-1", "rank5": "Rank-5", "map": "mAP"}


@app.command(rich_help_panel=TRAIN)
def reproduce(
    row: Annotated[str | None, typer.Argument(metavar="[ROW]", help="Which row; without it all are listed.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the row's data set. Wanted with a row.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for all rows: runs, and ROW.json.")] = Path("runs/reproduce"),
    masks: MasksFolder = None,
    weights: TrunkWeights = None,
    splits: Annotated[
        str | None, typer.Option(help="Of a row with splits these alone, as 1,2,3; default: all of them.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Another setting than the row's, in YAML; may be repeated."),
    ] = None,
    counts: Counts = "published",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    strategy: Strategy = "auto",
    accelerator: Accelerator = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a row of the published tables: train, evaluate, print measured beside published. Without a row: list them.

    Whatever is finished in OUTPUT is not done again, and what was broken off goes on.

    Example: mgran-fast reproduce market1501-single --data data/market1501 --weights resnet50.pth
    """
    from mgran_fast.cli import common

    try:
        from mgran_fast.cli.endings import epoch, say, told
        from mgran_fast.data.sets import Counts as Numbers
        from mgran_fast.reproduce import rows
        from mgran_fast.reproduce import run as running
        from mgran_fast.reproduce.runs import Training
    except ImportError as error:
        raise missing_extra(error) from error
    if row is None:
        found = {one.name: running.result(one, output) for one in rows.ROWS.values()}
        if json_:
            common.print_json({"rows": [_facts(one, found[one.name]) for one in rows.ROWS.values()]})
        else:
            _list(found)
        return
    chosen = rows.find(row)
    given = {"workers": WORKERS, **overrides(set_ or [])}
    config = chosen.settings(**given)
    if data is None:
        raise DataError(f"{row}: give the folder of its data set, {chosen.dataset}, with --data")
    machines = machines_of(devices, nodes, strategy, accelerator)
    training = Training(machines, weights, common.console.is_terminal, epoch, common.bar)
    numbers = _numbers(splits)
    with told():
        result = running.reproduce(
            chosen,
            running.Source(
                data,
                counts=counts if counts in ("published", "any") else Numbers.from_file(counts),
                masks=masks,
                make_masks=lambda dataset, folder: own_cache(dataset, config, folder, machines),
            ),
            output,
            config,
            training,
            splits=numbers,
            command=common.command(),
            say=say,
        )
    if result is None:
        raise typer.Exit
    _tell(result)
    common.console.print(f"measured: {result.details['rule']}")
    common.console.print(f"result: {running.result_file(chosen, output)}")
    if json_:
        common.print_json(result.to_json())


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise DataError(f"--splits {text}: write numbers, for example 1,2,3") from None


def _needs(row: Row) -> str:
    return " ".join(filter(None, (row.dataset, row.variant)))


def _facts(row: Row, result: Result | None) -> dict[str, Any]:
    return {
        "row": row.name,
        "title": row.title,
        "dataset": row.dataset,
        "variant": row.variant,
        "splits": list(row.splits),
        "queries": row.queries,
        "published": dict(row.published),
        "config": str(row.file),
        "measured": None if result is None else result.figures,
    }


def _list(results: dict[str, Result | None]) -> None:
    from rich.table import Table

    from mgran_fast.cli import common
    from mgran_fast.reproduce.rows import ROWS

    table = Table()
    for name in ("row", "", "data set", "splits", "published", "measured"):
        # Names are there to be copied.
        table.add_column(name, no_wrap=name in ("row", "data set"))
    for row in ROWS.values():
        result = results[row.name]
        table.add_row(
            row.name,
            row.title,
            _needs(row),
            f"{len(row.splits) or 1}",
            _percent(row.published),
            "" if result is None else f"{_percent(result.figures)}{_remark(result)}",
        )
    common.console.print(table)
    common.console.print("mgran-fast reproduce ROW --data FOLDER runs one; mgran-fast datasets tells what each needs")


def _percent(figures: Any) -> str:
    return ", ".join(f"{_NAMES[name]} {100 * value:.2f}" for name, value in figures.items())


def _remark(result: Result) -> str:
    """In what a result is not the published row's."""
    remarks = []
    if len(result.splits) < len(result.row.splits):
        remarks.append(f"{len(result.splits)} of {len(result.row.splits)} splits")
    if result.changed:
        remarks.append(f"with other settings: {', '.join(result.changed)}")
    return f" ({'; '.join(remarks)})" if remarks else ""


def _tell(result: Result) -> None:
    from rich.table import Table
    from rich.text import Text

    from mgran_fast.cli import common

    row, figures = result.row, result.figures
    table = Table(title=Text(f"{row.title}{_remark(result)}"), title_justify="left")
    table.add_column("")
    for name in ("measured", "published", "difference"):
        table.add_column(name, justify="right")
    for name, published in row.published.items():
        measured = figures[name]
        table.add_row(
            _NAMES[name], f"{100 * measured:.2f} %", f"{100 * published:.2f} %", f"{100 * (measured - published):+.2f}"
        )
    common.console.print(table)
