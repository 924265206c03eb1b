"""What every command that trains tells: its epochs, and how it broke off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from mgran_fast.cli import common
from mgran_fast.errors import MGRANError
from mgran_fast.train.machines import is_first

#: What training says of going on, and what is right of a command that always does.
_RESUME, _AGAIN = "with --resume", "when the command is run again"


@contextmanager
def told() -> Iterator[None]:
    """Turn the ways in which training breaks off into one line and an exit code, for commands that always go on."""
    try:
        yield
    except (FloatingPointError, MGRANError) as error:
        raise MGRANError(str(error).replace(_RESUME, _AGAIN)) from None
    except KeyboardInterrupt as stopped:
        text = str(stopped) or f"interrupted; the run goes on {_RESUME}"
        common.console.print(f"mgran-fast: {text.replace(_RESUME, _AGAIN)}")
        raise typer.Exit(getattr(stopped, "code", 130)) from None


def say(line: str) -> None:
    """Print a line; of several processes the first one does."""
    if is_first():
        common.console.print(line)


def epoch(line: dict[str, float], epochs: int) -> None:
    """Tell an epoch of so many, by its line of the history."""
    text = f"epoch {line['epoch']:.0f}/{epochs}: {line['seconds']:.0f} s"
    if "loss" in line:
        text += f", loss {line['loss']:.3f}, training accuracy {100 * line['accuracy']:.1f} %"
    if "waiting" in line:
        text += f", {line['persons_per_second']:.0f} persons/s, {100 * line['waiting']:.0f} % waiting for data"
    if "rank1" in line:
        text += f", Rank-1 {100 * line['rank1']:.1f} %"
    if "map" in line:
        text += f", mAP {100 * line['map']:.1f} %"
    common.console.print(text)
