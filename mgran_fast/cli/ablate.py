"""mgran-fast ablate: no mask, box, part, region; full, crop, single; with several seeds of each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mgran_fast.cli import TRAIN, app
from mgran_fast.cli.options import (
    Accelerator,
    Counts,
    Dataset,
    Devices,
    MasksFolder,
    Nodes,
    Split,
    Strategy,
    TrunkWeights,
    Variant,
)
from mgran_fast.cli.train import machines_of, missing_extra, overrides, own_cache
from mgran_fast.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mgran_fast.data import DataSet, Masks
    from mgran_fast.reproduce.ablation import Line
    from mgran_fast.train.config import TrainConfig
    from mgran_fast.train.machines import Machines


@app.command(rich_help_panel=TRAIN)
def ablate(
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data set, or file of a table. Wanted but with --table-only.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for all runs, each in VARIATION-SEED.")] = Path("runs/ablation"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variation; seeds count from 0.")] = 3,
    only: Annotated[
        str | None, typer.Option(help="These variations alone, of none,box,part,region,crop,single.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings; default: small ones that come with the package.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, in YAML; may be repeated."),
    ] = None,
    masks: MasksFolder = None,
    weights: TrunkWeights = None,
    table_only: Annotated[
        bool, typer.Option("--table-only", help="Train nothing: a table of the runs that are finished.")
    ] = False,
    dataset: Dataset = "auto",
    variant: Variant = None,
    split: Split = None,
    counts: Counts = "published",
    devices: Devices = "auto",
    nodes: Nodes = 1,
    strategy: Strategy = "auto",
    accelerator: Accelerator = "auto",
    json_: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """The ablation study: no mask, rectangles, six parts, three regions, and the regions as inputs of three shapes.

    Runs in OUTPUT that are finished are taken as they are, those that were broken off go on. At the end a table, mean
    and standard deviation over the seeds, also in OUTPUT/ablation.md and ablation.json.

    Example: mgran-fast ablate --data data/mine --output runs/ablation
    """
    from mgran_fast.cli import common

    try:
        from mgran_fast.cli.endings import epoch, say, told
        from mgran_fast.reproduce import ablation
        from mgran_fast.reproduce.run import versions
        from mgran_fast.reproduce.runs import Training
        from mgran_fast.train.config import TrainConfig
        from mgran_fast.train.machines import is_first
        from mgran_fast.train.run import digest
    except ImportError as error:
        raise missing_extra(error) from error
    given = overrides(set_ or [])
    own = next((name for name in ablation.OWN if name in given), None)
    if own is not None:
        raise DataError(f"--set {own}: the ablation varies it; leave it out")
    base = TrainConfig.from_yaml(config or ablation.CONFIG, **given)
    runs = ablation.plan(base, output, seeds, only.split(",") if only else ())
    if data is None and not table_only:
        raise DataError("give the folder of the data set with --data, or --table-only for a table of what is there")
    found = None if data is None else common.open_data(data, dataset, variant, split, counts)
    if found is not None:
        common.tell_notes(found)
    if found is not None and not table_only:
        machines = machines_of(devices, nodes, strategy, accelerator)
        training = Training(machines, weights, common.console.is_terminal, epoch, common.bar)
        with told():
            ablation.ablate(
                found,
                lambda: _masks(found, masks, base, output, machines),
                runs,
                training,
                say,
            )
        if not is_first():
            raise typer.Exit
    trained_on = ablation.check(runs, None if found is None else digest(found))
    lines = ablation.table(runs)
    if not any(line.seeds for line in lines):
        raise DataError(f"{output}: no finished run of {', '.join(runs)}; leave --table-only out to train them")
    told_ = ablation.write(lines, output, base, data=trained_on, versions=versions(), command=common.command())
    _tell(lines)
    common.console.print(f"tables: {output / 'ablation.md'}, {output / 'ablation.json'}")
    if json_:
        common.print_json(told_)


def _masks(dataset: DataSet, masks: Path | None, config: TrainConfig, output: Path, machines: Machines) -> Masks | None:
    from mgran_fast.cli import common

    return common.open_masks(dataset.root, masks, wanted=True) or own_cache(
        dataset, config, output / "regions", machines
    )


def _tell(lines: Sequence[Line]) -> None:
    from rich.table import Table

    from mgran_fast.cli import common
    from mgran_fast.reproduce.ablation import HEADER, cells

    table = Table()
    for name in HEADER:
        table.add_column(name, justify="left" if name in HEADER[:3] else "right")
    for line in lines:
        table.add_row(*cells(line))
    common.console.print(table)
