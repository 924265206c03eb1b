"""Which pictures go into which part, and how they are embedded: decided once, kept beside the parts."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mgran_fast.errors import DataError, MGRANError
from mgran_fast.search.pictures import Picture
from mgran_fast.weights import files

FOLDER, SETTINGS, PICTURES, LOCK = "_plan", "settings.json", "pictures-{:04}.arrow", "lock"
FORMAT = 1
#: The most pictures of a part. What a kill loses is a part of each process at the most.
LARGEST, SMALLEST = 1024, 32
# Parts that a folder of fewer pictures is shared out to, so that several processes have something to do.
_PARTS = 64


@dataclass(frozen=True)
class Settings:
    """How pictures are embedded: all that the embeddings depend on.

    Attributes:
        root: the folder that paths are below, whole.
        checkpoint: the file of the model or engine, whole.
        sha256: its digest in hex.
        model: how people are told of it.
        precision: of the engine, see :func:`mgran_fast.optimize`; None for the default.
        mra: who finds the people, see :func:`mgran_fast.mra.named.open_estimator`.
        masks: a region cache or a folder of mask files; None where the estimator looks.
        batch_size: pictures at once.
    """

    root: str
    checkpoint: str
    sha256: str
    model: str
    precision: str | None
    mra: str
    masks: str | None
    batch_size: int


# Where they may differ from those of a run before.
_MOVABLE = ("checkpoint", "model")


class Plan:
    """The parts of an output folder.

    Args:
        output: the folder that parts are written to.
        settings: how they are made.
        tables: the pictures of each generation, in the order in which they were added: Arrow tables with a column
            ``part`` beside path, person, camera and time.
    """

    def __init__(self, output: Path, settings: Settings, tables: Sequence[Any]) -> None:
        arrow = pyarrow()
        self.output, self.settings, self._tables = output, settings, list(tables)
        self._table = arrow.concat_tables(tables) if tables else None
        parts = np.zeros(0, np.int32) if self._table is None else self._table.column("part").to_numpy()
        # Where each part begins; parts are numbered without a gap.
        self._starts: list[int] = np.flatnonzero(np.diff(parts, prepend=-1)).tolist()

    @classmethod
    def opened(cls, output: Path) -> Plan | None:
        """The plan of a folder, None where there is none. Raises DataError where it is damaged."""
        arrow = pyarrow()
        file = output / FOLDER / SETTINGS
        if not file.is_file():
            return None
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            if told.pop("format") != FORMAT:
                raise DataError(f"{file}: written by another version of mgran_fast; name another --output")
            settings = Settings(**told)
            tables: list[Any] = []
            while (table := output / FOLDER / PICTURES.format(len(tables))).is_file():
                tables.append(arrow.feather.read_table(table))
            return cls(output, settings, tables)
        except DataError:
            raise
        except (OSError, ValueError, KeyError, TypeError, arrow.ArrowException) as error:
            raise DataError(f"{file.parent}: damaged ({error}); name another --output") from None

    @classmethod
    def begun(cls, output: Path, settings: Settings) -> Plan:
        """A plan without pictures, written."""
        _keep(output, settings)
        return cls(output, settings, [])

    def moved(self, settings: Settings) -> Plan:
        """With the checkpoint where it lies now. Raises as :meth:`check`."""
        self.check(settings)
        if settings.checkpoint == self.settings.checkpoint:
            return self
        # What people are told of the model stays: it is in the parts.
        now = dataclasses.replace(self.settings, checkpoint=settings.checkpoint)
        _keep(self.output, now)
        return Plan(self.output, now, self._tables)

    def forget(self) -> None:
        """Remove it. No process may be at work."""
        (self.output / FOLDER / SETTINGS).unlink()
        for number in range(len(self._tables)):
            (self.output / FOLDER / PICTURES.format(number)).unlink()

    def __len__(self) -> int:
        """How many parts there are."""
        return len(self._starts)

    @property
    def pictures(self) -> int:
        """How many pictures there are."""
        return 0 if self._table is None else int(self._table.num_rows)

    @property
    def names(self) -> list[str]:
        """Their paths below the root, in their order."""
        return [] if self._table is None else list(self._table.column("path").to_pylist())

    def size(self, number: int) -> int:
        """How many pictures a part has."""
        return (self._starts[number + 1] if number + 1 < len(self) else self.pictures) - self._starts[number]

    def part(self, number: int) -> list[Picture]:
        """The pictures of a part."""
        assert self._table is not None
        rows = self._table.slice(self._starts[number], self.size(number)).to_pylist()
        root = Path(self.settings.root)
        return [Picture(root / row["path"], row["path"], row["person"], row["camera"], row["time"]) for row in rows]

    def file(self, number: int) -> Path:
        """Where a part is, or will be."""
        return self.output / f"part-{number:06}.parquet"

    def missing(self) -> list[int]:
        """The parts that are not written yet."""
        there = {path.name for path in self.output.glob("part-*.parquet")}
        return [number for number in range(len(self)) if self.file(number).name not in there]

    def extended(self, pictures: Sequence[Picture]) -> Plan:
        """With further pictures in parts of their own, written. Raises DataError for a name that is no UTF-8."""
        arrow = pyarrow()
        for one in pictures:
            try:
                one.name.encode()
            except UnicodeEncodeError:
                raise DataError(f"{str(one.path)!r}: the name is not valid UTF-8; rename the file") from None
        size = part_size(len(pictures))
        columns = {
            "path": arrow.array([one.name for one in pictures], arrow.string()),
            "person": arrow.array([one.person for one in pictures], arrow.string()),
            "camera": arrow.array([one.camera for one in pictures], arrow.string()),
            "time": arrow.array([one.time for one in pictures], arrow.string()),
            "part": arrow.array([len(self) + i // size for i in range(len(pictures))], arrow.int32()),
        }
        table = arrow.table(columns)
        sink = arrow.BufferOutputStream()
        arrow.feather.write_feather(table, sink, compression="zstd")
        _write(self.output / FOLDER / PICTURES.format(len(self._tables)), sink.getvalue())
        return Plan(self.output, self.settings, [*self._tables, table])

    def check(self, settings: Settings) -> None:
        """Raises DataError where a run with these settings would write something else."""
        mine, theirs = dataclasses.asdict(self.settings), dataclasses.asdict(settings)
        changed = [name for name in mine if name not in _MOVABLE and mine[name] != theirs[name]]
        if changed:
            told = "; ".join(f"{name} {mine[name]}, now {theirs[name]}" for name in changed)
            raise DataError(f"{self.output}: was begun otherwise: {told}; give the same, or name another --output")


def part_size(pictures: int) -> int:
    """How many pictures a part has, of this many in all."""
    whole = -(-pictures // (_PARTS * SMALLEST)) * SMALLEST
    return min(LARGEST, max(SMALLEST, whole))


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """Keeps other processes out of a folder; the system takes the lock back when this one dies. Raises DataError."""
    file = output / FOLDER / LOCK
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # SQLite's exclusive lock is the one that every system has.
        connection = sqlite3.connect(file, isolation_level=None, timeout=0)
    except (OSError, sqlite3.Error) as error:
        raise DataError(f"{output}: cannot be written ({error}); name another --output") from None
    with closing(connection):
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise DataError(
                    f"{output}: another process is writing to it; wait for it, or name another --output"
                ) from None
            raise DataError(f"{file}: cannot be written ({error}); name another --output") from None
        yield


def pyarrow() -> Any:
    """The module, with its feather and parquet. Raises MGRANError where it is not installed."""
    try:
        import pyarrow.feather
        import pyarrow.parquet
    except ImportError as error:
        raise MGRANError("Parquet takes pyarrow, which is not installed: pip install 'mgran_fast[search]'") from error
    return pyarrow


def _keep(output: Path, settings: Settings) -> None:
    content = {"format": FORMAT, **dataclasses.asdict(settings)}
    _write(output / FOLDER / SETTINGS, json.dumps(content, indent=2).encode())


def _write(path: Path, content: Any) -> None:
    try:
        files.write(path, memoryview(content))
    except OSError as error:
        raise DataError(files.reason(error, path, len(content))) from None


def whole(path: str | os.PathLike[str]) -> str:
    """A path that means the same from everywhere."""
    return os.path.abspath(path)
