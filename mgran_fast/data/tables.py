"""Tables of texts, CSV or Parquet, by the names of their columns."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mgran_fast.errors import DataError, MGRANError

#: How tables end.
SUFFIXES = (".csv", ".parquet")

Row = tuple[int, dict[str, str]]
#: The names of a table -> where those are that we know.
Columns = Callable[[Sequence[str]], dict[str, int]]


def read_rows(file: Path, known: Sequence[str], needed: Sequence[str], told: str) -> Iterator[Row]:
    """The rows of a table: the line, and the text in each column that it has and we know; "" where there is none.

    Names of columns in any case, with any others beside them. Whole numbers have no point, times are ISO 8601.

    Args:
        file: CSV in UTF-8, or Parquet.
        known: the columns to read. needed: those that must be there.
        told: what errors say that a table has.

    Raises:
        DataError: there is no such file, it cannot be read, or a column is missing.
        MGRANError: Parquet, and pyarrow is not installed.
    """
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no such file"
        raise DataError(f"{file}: {what}; give the table, a {' or '.join(SUFFIXES)} file")

    def columns(names: Sequence[str]) -> dict[str, int]:
        names = [name.strip().lower() for name in names]
        missing = [name for name in needed if name not in names]
        if missing:
            raise DataError(f"{file}: no column {', '.join(missing)}; {told}")
        return {name: names.index(name) for name in known if name in names}

    return _parquet(file, columns) if file.suffix.lower() == ".parquet" else _csv(file, columns)


def _csv(file: Path, columns: Columns) -> Iterator[Row]:
    try:
        # utf-8-sig: spreadsheets put a mark before the first column's name.
        with open(file, newline="", encoding="utf-8-sig") as text:
            lines = csv.reader(text)
            names = next(lines, [])
            places = columns(names)
            for values in lines:
                if values and len(values) != len(names):
                    raise DataError(f"{file}, line {lines.line_num}: {len(values)} values for {len(names)} columns")
                if values:
                    yield lines.line_num, {name: values[at].strip() for name, at in places.items()}
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a CSV file in UTF-8 ({error}); save it again as one") from error


def _parquet(file: Path, columns: Columns) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MGRANError(
            f"{file}: Parquet takes pyarrow, which is not installed: pip install 'mgran_fast[datasets]'"
        ) from error
    try:
        names = parquet.read_schema(file).names
        places = {name: names[at] for name, at in columns(names).items()}
        table = parquet.read_table(file, columns=list(places.values()))
        values = [table.column(name).to_pylist() for name in places.values()]
    except (ArrowException, OSError) as error:
        raise DataError(f"{file}: not a Parquet file that can be read ({error}); write it again") from error
    for number, row in enumerate(zip(*values, strict=True), 1):
        yield number, {name: _text(value) for name, value in zip(places, row, strict=True)}


def _text(value: Any) -> str:
    """A value as text; whole numbers without a point, which is how tables with gaps store them."""
    if value is None:
        return ""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
