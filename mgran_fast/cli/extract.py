"""mgran-fast extract: embeddings of any number of pictures, as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mgran_fast.cli import USE, app

if TYPE_CHECKING:
    from mgran_fast.extraction import Extracted

_MACHINES = "Machines"


@app.command(rich_help_panel=USE)
def extract(
    pictures: Annotated[
        Path,
        typer.Argument(
            help="A folder of pictures and all below it; or a table (CSV or Parquet) with the columns path and, maybe,"
            " person, camera, time."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The folder to write, of Parquet files; read it as one table.")] = Path(
        "runs/embeddings.parquet"
    ),
    checkpoint: Annotated[
        Path, typer.Option(help="model.safetensors of a run, or an engine that was saved, in int8 for example.")
    ] = Path("runs/train/model.safetensors"),
    precision: Annotated[
        str | None, typer.Option(help="Of a checkpoint's engine: float32, bfloat16 or float16 (on a GPU).")
    ] = None,
    mra: Annotated[
        str, typer.Option(help="What finds the people: regionnet, regionnet+flip, torchvision, or a file.")
    ] = "regionnet",
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Region cache of mgran-fast masks; default: PICTURES/regions; where there is none, --mra looks at the"
            " pictures."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once.")] = 32,
    retry: Annotated[bool, typer.Option("--retry", help="Try pictures that could not be read once more.")] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="That read and embed, and share the GPUs; default: one for each two cores, at least one for each GPU;"
            " on a cluster all that there is room for.",
            rich_help_panel=_MACHINES,
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each process; default: its share.", rich_help_panel=_MACHINES)
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Share the work out to a Ray cluster: auto, HOST:PORT, or local for one that is made here. OUTPUT,"
            " the pictures and the checkpoint must be there on every machine, under the same path.",
            rich_help_panel=_MACHINES,
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Embed all pictures of a folder or table, and write them to a folder of Parquet files.

    Its columns: path, person, camera, time, embedding, visible (of each part of the body), no_person, model.

    Run it again after a kill, a crash or a full disk: it goes on where it stopped, nothing is lost or twice. Run it
    again when there are more pictures: those are added. mgran-fast search takes the folder as a gallery, with the same
    checkpoint.

    Example: mgran-fast extract pictures/ --output pictures.parquet --checkpoint runs/market/model.safetensors
    """
    from mgran_fast.cli import common
    from mgran_fast.errors import DataError
    from mgran_fast.extraction import extract as run

    with common.bar("pictures") as step:
        try:
            found = run(
                pictures, output, checkpoint, precision=precision, mra=mra, masks=masks, batch_size=batch_size,
                processes=processes, threads=threads, ray=ray, retry=retry, progress=step,
            )  # fmt: skip
        except ValueError as error:
            raise DataError(str(error)) from None
    _tell(found, common.console.print)
    if json_:
        common.print_json(
            {
                "output": str(found.output),
                "pictures": found.pictures,
                "made": found.made,
                "kept": found.kept,
                "added": found.added,
                "gone": found.gone,
                "no_person": found.no_person,
                "problems": list(found.problems),
                "seconds": found.seconds,
            }
        )


def _tell(found: Extracted, say: Any) -> None:
    from mgran_fast.cli.common import tell_some

    say(
        f"{found.output}: {found.pictures} pictures, {found.made} embedded in {found.seconds:.1f} s"
        + (f" ({found.made / found.seconds:.1f} a second)" if found.made else "")
        + (f", {found.kept} there before" if found.kept else "")
    )
    if found.added:
        say(f"  {found.added} came to those of before")
    if found.gone:
        say(f"  {found.gone} are no longer where they were; their rows stay", style="yellow")
    if found.no_person:
        say(f"  {found.no_person} show nobody, by their mask or presence: column no_person", style="yellow")
    if found.problems:
        say(f"  {len(found.problems)} cannot be read, and have no row; --retry tries them again:", style="yellow")
        tell_some(found.problems)
