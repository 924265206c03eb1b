"""mgran-fast demo: synthetic people, a few minutes of training, a report. Needs no data and no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mgran_fast.cli import START, WORKERS, app
from mgran_fast.cli.train import missing_extra

# Found by trying: what two cores learn from in a few minutes. A ResNet-50, the trunk of everything else, and its last
# stage unstrided would take several times as long.
TRUNK, LAST_STRIDE = "resnet18", 2
SIZE = (64, 32)
PEOPLE = (192, 40)
CAMERAS, VIEWS = 3, 4
# With black at 0, as published, dark clothes and the background look alike; with about the mean colour at 0 the
# network learns faster (docs/results.md).
MEAN, STD = (0.4, 0.4, 0.4), (0.25, 0.25, 0.25)


@app.command(rich_help_panel=START)
def demo(
    output: Annotated[Path, typer.Option(help="Folder for pictures, checkpoints and the report.")] = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(help="Passes over the training pictures.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the people and the training.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUTPUT.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Draw synthetic people, train MGRAN on them, rank others, write a report.

    Example: mgran-fast demo --output runs/demo
    """
    from mgran_fast.cli import common
    from mgran_fast.data import MaskFiles
    from mgran_fast.data.synthetic import write

    try:
        from mgran_fast.cli import job
        from mgran_fast.train.machines import Machines
    except ImportError as error:
        raise missing_extra(error) from error

    config = job.settings(
        size=SIZE,
        trunk=TRUNK,
        last_stride=LAST_STRIDE,
        mean=MEAN,
        std=STD,
        epochs=epochs,
        people=8,
        pictures=4,
        learning_rate=2e-3,
        erase=0.0,
        workers=0,
        evaluate_every=1,
        seed=seed,
    )
    common.console.print(
        f"MGRAN with four inputs of {SIZE[0]}x{SIZE[1]} pixels and a shared {TRUNK}, small enough for a few minutes"
    )
    common.console.print(f"drawing {sum(PEOPLE)} people as {CAMERAS} cameras see them ...")
    dataset = write(
        output / "data",
        people=PEOPLE,
        cameras=CAMERAS,
        views=VIEWS,
        size=(2 * SIZE[0], 2 * SIZE[1]),
        seed=seed,
        workers=WORKERS,
    )
    common.tell_notes(dataset)
    if not resume:
        # The demo may be typed twice: a finished or broken run of it is its own to replace.
        (output / job.STATE).unlink(missing_ok=True)
    outcome = job.train_and_evaluate(
        dataset,
        MaskFiles(dataset.root),
        config,
        output,
        title="MGRAN on synthetic people",
        resume=resume,
        machines=Machines(devices=1),
    )
    if json_:
        common.print_json(outcome)
