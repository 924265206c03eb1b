"""Options that several commands have. Light: commands import it when the program starts."""

from __future__ import annotations

from typing import Annotated

import typer

# What a data set is called, and which form of it; common.open_data takes the four.
Dataset = Annotated[
    str,
    typer.Option("--dataset", help="Its name, of mgran-fast datasets; auto: what the folder looks like."),
]
Variant = Annotated[
    str | None, typer.Option("--variant", help="Which form of it, such as detected or labeled; default: the first.")
]
Split = Annotated[
    int | None,
    typer.Option("--split", help="Which of its splits; of pictures of your own, the seed of a split that is drawn."),
]
Counts = Annotated[
    str,
    typer.Option(
        "--counts",
        help="published: refuse a folder with other numbers than the published ones; any: take it; or a JSON file with"
        " numbers.",
    ),
]
# Where a run trains; cli.train.machines_of takes the four.
Devices = Annotated[str, typer.Option(help="Processes on each machine: a number, or auto.", rich_help_panel="Machines")]
Nodes = Annotated[int, typer.Option(help="Machines.", rich_help_panel="Machines")]
Strategy = Annotated[str, typer.Option(help="auto, ddp or fsdp.", rich_help_panel="Machines")]
Accelerator = Annotated[str, typer.Option(help="auto, gpu or cpu.", rich_help_panel="Machines")]
