"""mgran-fast datasets: which data sets can be read, what a folder holds, miniatures of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgran_fast.cli import TRAIN, app
from mgran_fast.cli.options import Counts, Split, Variant
from mgran_fast.errors import DataError

if TYPE_CHECKING:
    from mgran_fast.data.sets import Counts as Numbers
    from mgran_fast.data.sets import SetInfo

datasets = typer.Typer(no_args_is_help=False, rich_markup_mode="rich")
app.add_typer(datasets, name="datasets", rich_help_panel=TRAIN)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The data set's name, of mgran-fast datasets.")]


@datasets.callback(invoke_without_command=True)
def show(
    context: typer.Context,
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the data sets that can be read: what each needs, its published numbers, how it is scored.

    Every command that reads one takes its name: --dataset NAME, with --variant and --split where there are such.

    Example: mgran-fast datasets
    """
    if context.invoked_subcommand is not None:
        return
    from mgran_fast.cli import common
    from mgran_fast.data.sets import SETS

    if json_:
        common.print_json({"datasets": [_facts(info) for info in SETS.values()]})
        return
    for info in SETS.values():
        _tell(info, common.console.print)
    common.console.print(
        "mgran-fast datasets check NAME FOLDER reads a folder and tells what is in it; "
        "mgran-fast datasets miniature NAME FOLDER draws a small one"
    )


@datasets.command()
def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The data set's name; auto: what the folder looks like.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Its folder, or the file of a table.")],
    variant: Variant = None,
    split: Split = None,
    counts: Counts = "published",
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Read a data set, check it, and tell what was found. Leaves with 1 when something is wrong.

    Example: mgran-fast datasets check market1501 data/market1501
    """
    from mgran_fast.cli import common
    from mgran_fast.data.sets import pictures_by_part

    found = common.read_data(folder, name, variant, split, counts, need=None)
    dataset = found.dataset
    if json_:
        common.print_json(
            {
                "name": dataset.name,
                "root": str(dataset.root),
                "variant": dataset.variant,
                "protocol": dataset.protocol,
                "counts": found.counts.to_json(),
                "published": None if found.published is None else found.published.to_json(),
                "multi_query": len(dataset.multi_query),
                "parts": {part: len(pictures) for part, pictures in pictures_by_part(dataset).items()},
                "notes": list(dataset.notes),
            }
        )
        return
    common.console.print(f"{dataset.name} in {dataset.root}; scored by the rule {dataset.protocol}")
    for part, line in _lines(found.counts).items():
        common.console.print(f"  {part}: {line}")
    for note in dataset.notes:
        common.console.print(f"note: {note}", style="yellow")


@datasets.command()
def miniature(
    name: Name,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="An empty folder, or a new one.")],
    variant: Variant = None,
    size: Annotated[str, typer.Option(help="Height x width of the pictures.")] = "64x32",
    seed: Annotated[int, typer.Option(min=0, help="Of the world that people are drawn from.")] = 0,
    json_: Annotated[bool, typer.Option("--json", help="Print its numbers as JSON, for --counts.")] = False,
) -> None:
    """Draw a miniature: a few dozen pictures of drawn people in exactly the layout of a data set.

    Its numbers are not the published ones: read it with --counts any, or with a file of its --json.

    Example: mgran-fast datasets miniature cuhk03 runs/cuhk03
    """
    from mgran_fast.cli import common
    from mgran_fast.data.sets import miniature as draw

    counts = draw(name, folder, variant=variant, size=common.parse_size(size), seed=seed)
    if json_:
        common.print_json({"name": name, "folder": str(folder), "counts": counts.to_json()})
        return
    common.console.print(f"{folder}: a miniature of {name}; read it with --dataset {name} --counts any")
    for part, line in _lines(counts).items():
        common.console.print(f"  {part}: {line}")


@datasets.command()
def extract(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of CUHK03, with cuhk-03.mat.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder to write, for --data from then on.")],
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Take CUHK03's pictures out of cuhk-03.mat into another folder, with all that reading it takes.

    Without this they are written beside cuhk-03.mat when they are first read. Run it again after a kill or a full
    disk: it goes on where it stopped.

    Example: mgran-fast datasets extract data/cuhk03 /scratch/cuhk03
    """
    from mgran_fast.cli import common
    from mgran_fast.data.sets.cuhk03 import VARIANTS, extract_all

    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: a file, not a folder; choose another one")
    found: dict[str, int] = {}
    for variant in VARIANTS:
        with common.bar(variant) as step:
            found.update(extract_all(folder, output, (variant,), step))
    if json_:
        common.print_json({"folder": str(output), "pictures": found})
        return
    for variant, number in found.items():
        common.console.print(f"{output}: {number} {variant} pictures")


def _facts(info: SetInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "title": info.title,
        "layout": info.layout,
        "where": info.where,
        "protocol": info.protocol,
        "variants": [variant for variant in info.variants if variant],
        "splits": None if info.splits is None or info.drawn else list(info.splits),
        "published": {variant or "all": counts.to_json() for variant, counts in info.published.items()},
        "warning": info.warning,
        "packages": list(info.packages),
    }


def _tell(info: SetInfo, say: Any) -> None:
    say(f"{info.name}: {info.title}", style="bold")
    if info.warning:
        say(f"  {info.warning}", style="yellow")
    for line in info.layout.splitlines():
        say(f"    {line}")
    say(f"  where: {info.where}")
    if any(info.variants):
        say(f"  --variant: {' or '.join(info.variants)}")
    if info.splits is not None:
        say("  --split: a seed" if info.drawn else f"  --split: {info.splits[0]} to {info.splits[1]}")
    for variant, counts in info.published.items():
        say(f"  published{f' ({variant})' if variant else ''}:")
        for part, line in _lines(counts).items():
            say(f"    {part}: {line}")
    say(f"  scored by the rule: {info.protocol}")
    if info.packages:
        say(f"  takes {', '.join(info.packages)}: pip install 'mgran_fast[datasets]'")
    say("")


def _lines(counts: Numbers) -> dict[str, str]:
    return {
        part: ", ".join(f"{number:,} {what}" for what, number in tally.items())
        for part, tally in counts.to_json().items()
    }
