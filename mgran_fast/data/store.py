"""The SQLite file that a region cache is built in: locked, transactional, renamed when it is whole."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from mgran_fast.data.cache import APPLICATION, COUNTED, COUNTS, FORMAT, damaged, uri
from mgran_fast.data.provenance import Provenance
from mgran_fast.errors import DataError

#: How the file ends while it is built.
PARTIAL = ".partial"
#: name, bytes, mtime_ns, digest, presence, flags, keypoints, region_map, checksum, error
Row = tuple[str, int, int, bytes, float | None, int, bytes | None, bytes | None, int | None, str | None]

INSERT = f"INSERT OR REPLACE INTO records VALUES ({', '.join('?' * 10)})"
Result = TypeVar("Result")

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE records (
    name TEXT PRIMARY KEY,
    bytes INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, digest BLOB NOT NULL,
    presence REAL, flags INTEGER NOT NULL, keypoints BLOB, region_map BLOB, checksum INTEGER,
    error TEXT
);
"""


class Store:
    """The unfinished file of a cache, open for one writer; use it in a ``with`` statement.

    It starts with what is there: an unfinished file made the same way, or else the finished one. SQLite's exclusive
    lock, which the system takes back when a process dies, keeps a second writer out.

    Args:
        file: the final file; the unfinished one lies beside it.
        made: what the records are made with.
        meta: more to keep, as values that JSON knows.

    Attributes:
        changes: what differs from the file that was there, if all has to be made anew.
        finished: whether a finished file made the same way, with the same ``meta``, was there, and nothing had been
            added to it.

    Raises:
        DataError: another writer is at it, a file is damaged or cannot be written, the disk is full.
    """

    def __init__(self, file: Path, made: Provenance, meta: Mapping[str, Any]) -> None:
        self.file, self.partial = file, file.with_suffix(PARTIAL)
        self.made, self.meta = made, {key: json.dumps(value) for key, value in meta.items()}
        self.changes: list[str] = []
        self.finished = False
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Store:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # Made here only where there is none: closing any descriptor of a file drops this process's locks on it.
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
            before = os.stat(self.partial)
        except OSError as error:
            raise DataError(
                f"{self.partial}: cannot be written ({error.strerror}); name another folder with --output"
            ) from error
        try:
            self._guarded(self._open, before)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def stamps(self) -> dict[str, tuple[int, int, bytes, bool]]:
        """Of each record: the picture's size, time of change and digest, and whether it is an error."""
        rows = self._all("SELECT name, bytes, mtime_ns, digest, error IS NOT NULL FROM records")
        return {name: (size, mtime_ns, digest, bool(failed)) for name, size, mtime_ns, digest, failed in rows}

    def errors(self) -> list[tuple[str, str]]:
        """Name and reason of each picture that cannot be used."""
        return [(name, error) for name, error in self._all(
            "SELECT name, error FROM records WHERE error IS NOT NULL ORDER BY name"
        )]  # fmt: skip

    def counts(self) -> dict[str, int]:
        """See :meth:`mgran_fast.data.RegionCache.counts`."""
        (row,) = self._all(f"SELECT {COUNTS} FROM records")
        return {name: int(value) for name, value in zip(COUNTED, row, strict=True)}

    def forget(self, names: Iterable[str]) -> None:
        """Drop records."""
        self._change("DELETE FROM records WHERE name = ?", [(name,) for name in names])

    def restamp(self, touched: Iterable[tuple[str, int]]) -> None:
        """Note a new time of change of pictures that are the same."""
        self._change("UPDATE records SET mtime_ns = ? WHERE name = ?", [(mtime, name) for name, mtime in touched])

    def put(self, rows: Sequence[Row]) -> None:
        """Store records, all or none."""
        self._change(INSERT, rows)

    def finish(self) -> None:
        """Give the file its final name; the one of before is replaced."""

        def rename() -> None:
            connection = self._connected()
            (free,), (pages,) = (
                connection.execute(f"PRAGMA {name}").fetchone() for name in ("freelist_count", "page_count")
            )
            if 10 * free > pages:
                connection.execute("VACUUM")
            # Under the lock: from here on a second writer starts a file of its own.
            os.replace(self.partial, self.file)

        self._guarded(rename)
        self._close()
        _sync(self.file.parent)

    def discard(self) -> None:
        """Remove the unfinished file; a finished one stays."""
        self.partial.unlink(missing_ok=True)

    def _open(self, before: os.stat_result) -> None:
        self._connection = connection = sqlite3.connect(self.partial, isolation_level=None, timeout=0)
        try:
            # Small pages would waste the rest of a page that the next record does not fit in.
            connection.execute("PRAGMA page_size = 8192")
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise self._busy() from error
        try:
            same = os.path.samestat(before, os.stat(self.partial))
        except FileNotFoundError:
            same = False
        if not same:
            # The other writer has just finished: what was opened is the finished file.
            raise self._busy()
        # One transaction from here: killed before its end, the next writer starts here again.
        known = self._known()
        if known is None:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        elif known != self.made:
            self.changes = known.differences(self.made)
            connection.execute("DELETE FROM records")
        values = {**self.meta, "provenance": self.made.to_json(), "library": json.dumps(_version())}
        connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())
        if known != self.made and self.file.exists():
            for rows in self._finished():
                connection.executemany(INSERT, rows)
        connection.execute("COMMIT")

    def _known(self) -> Provenance | None:
        """What the unfinished file was made with; None for a new one."""
        connection = self._connected()
        (application,), (version,) = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        if (application, version) == (0, 0) and not connection.execute("SELECT * FROM sqlite_master").fetchone():
            return None
        if (application, version) != (APPLICATION, FORMAT):
            raise damaged(self.partial, f"it is of format {version}, this release writes {FORMAT}")
        ((state,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
        if state != "ok":
            raise damaged(self.partial, state)
        return _provenance(connection)

    def _finished(self) -> Iterator[list[Row]]:
        """The records of the finished file, if they were made the same way."""
        try:
            with contextlib.closing(sqlite3.connect(uri(self.file), uri=True)) as old:
                (application,), (version,) = (
                    old.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
                )
                if application != APPLICATION:
                    raise damaged(self.file, "not a region cache")
                if version != FORMAT:
                    self.changes = [f"format {version}, not {FORMAT}"]
                    return
                made = _provenance(old)
                self.changes = made.differences(self.made)
                if made != self.made:
                    return
                ((state,),) = old.execute("PRAGMA quick_check(1)").fetchall()
                if state != "ok":
                    raise damaged(self.file, state)
                # A data set that was moved is noted, though nothing is computed.
                self.finished = self.meta.items() <= dict(old.execute("SELECT key, value FROM meta")).items()
                found = old.execute("SELECT * FROM records ORDER BY name")
                while rows := found.fetchmany(4096):
                    yield rows
        except sqlite3.Error as error:
            raise damaged(self.file, str(error)) from error

    def _change(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        rows = list(rows)
        if not rows:
            return

        def run() -> None:
            connection = self._connected()
            connection.execute("BEGIN")
            connection.executemany(statement, rows)
            connection.execute("COMMIT")

        self._guarded(run)

    def _all(self, query: str) -> list[Any]:
        return self._guarded(lambda: self._connected().execute(query).fetchall())

    def _guarded(self, run: Callable[..., Result], *arguments: Any) -> Result:
        """What ``run`` returns; SQLite's errors become DataError."""
        try:
            return run(*arguments)
        except sqlite3.OperationalError as error:
            # Closing rolls back what was not committed.
            self._close()
            raise DataError(
                f"{self.partial}: cannot be written ({error}); free some space or name another folder with --output, "
                "and run the command again: it goes on where it stopped"
            ) from error
        except sqlite3.DatabaseError as error:
            self._close()
            raise damaged(self.partial, str(error)) from error
        except OSError as error:
            self._close()
            raise DataError(f"{self.file}: cannot be written ({error.strerror}); check the folder") from error

    def _connected(self) -> sqlite3.Connection:
        assert self._connection is not None, "a Store is used in a with statement"
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _busy(self) -> DataError:
        return DataError(f"{self.file}: another process is writing this region cache; wait until it is done")


def _provenance(connection: sqlite3.Connection) -> Provenance:
    row = connection.execute("SELECT value FROM meta WHERE key = 'provenance'").fetchone()
    try:
        return Provenance.from_json(row[0])
    except (ValueError, TypeError, KeyError) as error:
        raise sqlite3.DatabaseError(f"no provenance: {error}") from error


def _version() -> str:
    try:
        return metadata.version("mgran_fast")
    except metadata.PackageNotFoundError:
        return "not installed"


def _sync(folder: Path) -> None:
    """Make the new name outlive a loss of power, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
