"""The command ``mgran-fast``. Each command lives in a module of its own and imports heavy things when it runs."""

from __future__ import annotations

import logging
import os
import sys

import typer

from mgran_fast import __version__
from mgran_fast.errors import MGRANError

# Threads that wait for their turn by spinning starve each other as soon as a machine does something else as well.
# Set before torch loads its OpenMP runtime, and only by the command line: a library has no business with its host's
# threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# How --help groups the commands.
START, TRAIN, USE, MEASURE = "Begin here", "Train and evaluate", "Use a model", "Measure"

# Two processes read as fast as a network on a few cores learns.
WORKERS = min(2, os.cpu_count() or 1)

app = typer.Typer(
    name="mgran-fast",
    help="MGRAN person re-identification: train, evaluate, embed, search.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mgran-fast {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Tell what runs where, and why."),
) -> None:
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    # One line a picture is what people want of warnings; the logger's name is for those who debug.
    handler = logging.getLogger().handlers[0]
    handler.setFormatter(logging.Formatter("%(message)s" if not verbose else "%(levelname)s %(name)s: %(message)s"))
    if verbose:
        logging.getLogger("mgran_fast").setLevel(logging.DEBUG)


# They register themselves with the app.
from mgran_fast.cli import (  # noqa: E402
    ablate,
    bench,
    bench_compare,
    bench_report,
    cost,
    datasets,
    demo,
    doctor,
    evaluate,
    export,
    extract,
    masks,
    reproduce,
    search,
    train,
    train_mra,
)

__all__ = [
    "ablate",
    "app",
    "bench",
    "bench_compare",
    "bench_report",
    "cost",
    "datasets",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "extract",
    "main",
    "masks",
    "reproduce",
    "search",
    "train",
    "train_mra",
]
# In the order in which a newcomer wants them, not that of the modules' imports.
_ORDER = (
    *("demo", "doctor"),
    *("masks", "train", "train-mra", "evaluate", "reproduce", "ablate"),
    *("extract", "search", "export"),
    *("bench", "bench-report", "bench-compare", "cost"),
)
app.registered_commands.sort(key=lambda command: _ORDER.index(command.name or command.callback.__name__))  # type: ignore[union-attr]


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 an error that people make, 2 wrong usage, 130 interrupted."""
    try:
        app()
    except MGRANError as error:
        sys.stderr.write(f"mgran-fast: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("mgran-fast: interrupted\n")
        sys.exit(130)
