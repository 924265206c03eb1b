"""Options that several commands have. Light: commands import it when the program starts."""

from __future__ import annotations

from pathlib import Path
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
# Where the masks of a run are; common.open_masks takes it.
MasksFolder = Annotated[
    Path | None,
    typer.Option(
        help="Region cache of mgran-fast masks, or folder with masks/ and keypoints.json; default: DATA/regions,"
        " else DATA; where neither is, RegionNet makes OUTPUT/regions."
    ),
]
TrunkWeights = Annotated[
    Path | None, typer.Option(help="Trunk weights to start from: torchvision's .pth, or .safetensors.")
]
# Where a run trains; cli.train.machines_of takes the four.
Devices = Annotated[str, typer.Option(help="Processes on each machine: a number, or auto.", rich_help_panel="Machines")]
Nodes = Annotated[int, typer.Option(help="Machines.", rich_help_panel="Machines")]
Strategy = Annotated[str, typer.Option(help="auto, ddp or fsdp.", rich_help_panel="Machines")]
Accelerator = Annotated[str, typer.Option(help="auto, gpu or cpu.", rich_help_panel="Machines")]
