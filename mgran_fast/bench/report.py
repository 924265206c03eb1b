"""A record as files: the figures, their tables and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mgran_fast.bench import plots, record, tables
from mgran_fast.errors import MGRANError

RECORD, TABLES = "record.json", "tables.md"


def write(made: dict[str, Any], folder: Path) -> list[str]:
    """Write record, tables and plots into a folder.

    Returns:
        Lines for a terminal: what was measured, and where it lies.
    """
    record.save(folder / RECORD, made)
    said = tables.text(made)
    (folder / TABLES).write_text(tables.markdown(made), encoding="utf-8")
    said += ["", f"figures: {folder / RECORD}", f"tables: {folder / TABLES}"]
    try:
        said += [f"plot: {path}" for path in plots.draw(made, folder)]
    except MGRANError as error:
        said.append(f"no plots: {error}")
    return said
