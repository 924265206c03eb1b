"""mgran-fast cost: what one forward pass costs a GPU, on paper."""

from __future__ import annotations

from typing import Annotated

import typer

from mgran_fast.cli import MEASURE, app
from mgran_fast.errors import MGRANError

#: Below the table.
NOTES = (
    "One forward pass, from crops and region map to embeddings. GFLOP: 1e9 operations, 2 for each multiply-add.",
    "GB: what the launches read and write, as if no cache kept anything.",
    "ms: a floor, the larger of operations / peak rate (of float32: TF32's) and bytes / bandwidth, by data sheets; what"
    " a cache keeps lowers it.",
)


@app.command(rich_help_panel=MEASURE)
def cost(
    people: Annotated[int, typer.Option(min=1, help="People in one pass; the engine takes 32 at most.")] = 8,
    size: Annotated[str, typer.Option(help="Height x width of a crop in pixels.")] = "256x128",
    trunk: Annotated[str, typer.Option(help="resnet18, 34, 50, 101 or 152.")] = "resnet50",
    last_stride: Annotated[int, typer.Option(min=1, max=2, help="Of the trunk's last stage.")] = 1,
    shape: Annotated[str, typer.Option(help="full or single.")] = "full",
    precision: Annotated[
        str, typer.Option(help="Of the engine and the eager batch: bfloat16, float16 or float32.")
    ] = "bfloat16",
    json_: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Compute launches, bytes and operations of one pass on a GPU, engine and eager model. Needs no GPU.

    Example: mgran-fast cost --people 8 --precision bfloat16
    """
    from rich.table import Table
    from rich.text import Text

    from mgran_fast.cli import common
    from mgran_fast.engine.cost import DTYPES, GPUS, SHAPES, costs
    from mgran_fast.ma import TRUNKS

    pixels = common.parse_size(size)
    for option, value, known in (("trunk", trunk, TRUNKS), ("precision", precision, DTYPES)):
        if value not in known:
            raise MGRANError(f"--{option} must be one of {', '.join(known)}, not {value!r}")
    if shape not in SHAPES:
        why = ": its frames of several sizes are not counted" if shape == "crop" else ""
        raise MGRANError(f"--shape must be one of {', '.join(SHAPES)}, not {shape!r}{why}")
    found = costs(people, pixels, trunk, last_stride=last_stride, shape=shape, dtype=DTYPES[precision])
    floors = {name: {gpu.name: gpu.floor(one) for gpu in GPUS} for name, one in found.items()}
    names = {dtype: name for name, dtype in DTYPES.items()}
    if json_:
        common.print_json(
            {
                "measured": False,
                "people": people,
                "size": list(pixels),
                "trunk": trunk,
                "last_stride": last_stride,
                "shape": shape,
                "passes": {
                    name: {
                        "precision": names[one.dtype],
                        "launches": one.launches,
                        "bytes": one.bytes,
                        "operations": one.operations,
                        "floor_seconds": floors[name],
                    }
                    for name, one in found.items()
                },
            }
        )
        return
    title = f"{trunk}, {people} people, {pixels[0]}x{pixels[1]}, shape {shape}: COMPUTED, not measured"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("")
    for column in ("precision", "launches", "GB", "GFLOP", *(f"{gpu.name}, ms" for gpu in GPUS)):
        table.add_column(column, justify="right")
    for name, one in found.items():
        limits = (f"{1e3 * limit:.2f}" for limit in floors[name].values())
        moved, done = f"{one.bytes / 1e9:.2f}", f"{one.operations / 1e9:.1f}"
        table.add_row(name, names[one.dtype], str(one.launches), moved, done, *limits)
    common.console.print(table)
    for line in NOTES:
        common.console.print(line)
