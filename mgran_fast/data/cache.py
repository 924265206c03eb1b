"""Region maps and keypoints of a whole data set, computed once and read ever after: the region cache.

One SQLite file for each part of a data set, by default DATA/regions/<part>.sqlite; :mod:`mgran_fast.data.precompute`
and ``mgran-fast masks`` write it. A finished file is never changed again, only replaced as a whole, so it is opened
as immutable and mapped into memory. Its tables:

    meta     key -> JSON: provenance, root, folder, library
    records  name        of the picture, relative to the part's folder, with forward slashes
             bytes, mtime_ns, digest   the picture's size, time of change and BLAKE2b (8 bytes)
             presence    the probability that the crop shows a person
             flags       EMPTY: no foreground; ABSENT: presence below 0.5
             keypoints   17 x (x, y) int16 and 17 x score uint8, see :func:`mgran_fast.data.packing.pack_keypoints`
             region_map  runs of equal pixels, see :func:`mgran_fast.data.packing.pack_map`
             checksum    CRC-32 of all that, for a damaged file must not train a network
             error       why there is none of that: the picture cannot be used

A map that is asked for at another size, with another layout or another keypoint threshold than the cached one is made
by :func:`mgran_fast.ops.regions` from the cached foreground (map > 0) and keypoints. At the cached size that is
exactly what the estimator's own mask would have given; at another size the outline is that of the binarized mask.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mgran_fast import layouts
from mgran_fast.data.masks import MaskFiles, RegionSource
from mgran_fast.data.packing import checksum, picture_digest, unpack_keypoints, unpack_map
from mgran_fast.data.provenance import Provenance, layout_digest
from mgran_fast.data.records import Record
from mgran_fast.errors import DataError
from mgran_fast.layouts import Layout

#: Counts up whenever a file of before can no longer be read.
FORMAT = 1
#: "MGRN": tells a region cache from any other SQLite file.
APPLICATION = 0x4D47524E
#: The folder beside the pictures, and how its files end.
FOLDER, SUFFIX = "regions", ".sqlite"
EMPTY, ABSENT = 1, 2
#: Below this presence a crop counts as one without a person.
PRESENT = 0.5
#: What counts() tells, and the query for it.
COUNTED = ("pictures", "crops without a person", "empty masks", "unreadable pictures")
COUNTS = f"count(*), total(flags != 0), total(flags & {EMPTY} != 0), total(error IS NOT NULL)"
_COLUMNS = "bytes, mtime_ns, digest, presence, flags, keypoints, region_map, checksum, error"


@dataclass(frozen=True)
class Entry:
    """What the cache knows of one crop.

    Attributes:
        region_map: uint8 [H, W] of the cached size and layout.
        keypoints: float32 [17, 3], x and y in pixels of the cached size, score in [0, 1].
        presence: in [0, 1].
        empty: the map has no foreground.
    """

    region_map: NDArray[np.uint8]
    keypoints: NDArray[np.float32]
    presence: float
    empty: bool


class Regions(NamedTuple):
    """The region map uint8 [H, W] of one crop, and whether it has no foreground, no usable keypoint, a presence
    below 0.5."""

    region_map: torch.Tensor
    empty_mask: bool
    no_keypoints: bool
    no_person: bool


class RegionCache:
    """The region maps and keypoints that ``mgran-fast masks`` has computed.

    Stands wherever a :class:`~mgran_fast.data.MaskFiles` does. The object can be pickled and shared by the workers of
    a DataLoader; each process and thread opens the files for itself when it first reads.

    Args:
        path: one file of a cache, or a folder of them.
        root: the folder of the data set; by default the one around a folder called ``regions``, otherwise the one
            that the cache was made from.

    Raises:
        DataError: there is no cache, it is not finished, or one of its files is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path)
        files = sorted(self.path.glob(f"*{SUFFIX}")) if self.path.is_dir() else [self.path]
        if not files:
            raise DataError(f"{self.path}: no region cache here; make one with: mgran-fast masks DATASET")
        self._connections: dict[tuple[int, int], dict[str, sqlite3.Connection]] = {}
        self._trusted: dict[str, tuple[int, int]] = {}
        self._parts: dict[str, _Part] = {}
        for file in files:
            part = self._open_part(file)
            self._parts[part.folder] = part
        first = next(iter(self._parts.values()))
        folder = self.path if self.path.is_dir() else self.path.parent
        beside = folder.absolute().parent if folder.absolute().name == FOLDER else Path(first.root)
        self.root = Path(root) if root is not None else beside
        self._prefix = os.path.join(os.path.abspath(self.root), "")

    def __repr__(self) -> str:
        return f"RegionCache({str(self.path)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connections": {}, "_trusted": {}}

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; they are opened again when something is read."""
        for connections in self.__dict__.get("_connections", {}).values():
            for connection in connections.values():
                connection.close()
        self.__dict__.get("_connections", {}).clear()

    @staticmethod
    def available(path: str | os.PathLike[str]) -> bool:
        """Whether ``path`` is a file of a cache by its name, or a folder that holds one."""
        path = Path(path)
        return path.suffix == SUFFIX if path.is_file() else any(path.glob(f"*{SUFFIX}"))

    @property
    def provenance(self) -> Mapping[str, Provenance]:
        """What each part was made with, by the part's folder; "." is a plain folder of pictures."""
        return {folder: part.provenance for folder, part in self._parts.items()}

    def counts(self) -> dict[str, int]:
        """Of all parts together: "pictures", "crops without a person" (presence below 0.5 or an empty mask), "empty
        masks" and "unreadable pictures"."""
        rows = [self._query(part, f"SELECT {COUNTS} FROM records", ())[0] for part in self._parts.values()]
        return {name: int(sum(row[i] for row in rows)) for i, name in enumerate(COUNTED)}

    def check(self, records: Sequence[Record], part: str) -> None:
        """Raise DataError when pictures are missing from the cache: the first one is named.

        Args:
            records: the crops.
            part: what the error calls them, such as "training".
        """
        known = {
            folder: {name for (name,) in self._query(one, "SELECT name FROM records", ())}
            for folder, one in self._parts.items()
        }
        missing = []
        for record in records:
            found = self._locate(os.fspath(record.path))
            if found is None or found[1] not in known[found[0].folder]:
                missing.append(record.path)
        if missing:
            raise DataError(
                f"{missing[0]}: not in the region cache {self.path}, one of {len(missing)} such among {len(records)} "
                f"{part} pictures; {self._remedy()}"
            )

    def check_threshold(self, threshold: float) -> None:
        """Raise DataError when masks were binarized at another threshold: the cache does not know their values."""
        for part in self._parts.values():
            if part.provenance.threshold != threshold:
                raise DataError(
                    f"{part.file}: its masks were binarized at {part.provenance.threshold:g}, wanted is {threshold:g}; "
                    f"run: mgran-fast masks {self.root} --threshold {threshold:g}"
                )

    def check_estimator(self, sha256: str) -> None:
        """Raise DataError when an estimator with other weights (see ``data.provenance.identity``) made the cache."""
        for part in self._parts.values():
            if part.provenance.sha256 != sha256:
                raise DataError(
                    f"{part.file}: made by {part.provenance.estimator} with weights {part.provenance.sha256[:12]}, "
                    f"not by those of now ({sha256[:12]}); {self._remedy()}"
                )

    def entry(self, path: str | os.PathLike[str]) -> Entry:
        """What the cache knows of the picture ``path``.

        Raises:
            DataError: the picture is not in the cache, could not be read when it was made, has changed since, or its
                record is damaged.
        """
        return self._entry(os.fspath(path))[0]

    def find(self, path: str | os.PathLike[str], shape: tuple[int, int]) -> RegionSource:
        """Mask (255 where the map has a region, at the cached size) and keypoints of a crop of ``shape`` (height,
        width) as it is displayed; see :meth:`entry` for errors."""
        entry, part = self._entry(os.fspath(path))
        height, width = part.provenance.size
        return RegionSource(
            mask=np.where(entry.region_map > 0, np.uint8(255), np.uint8(0)),
            keypoints=entry.keypoints * np.array([shape[1] / width, shape[0] / height, 1], np.float32),
            presence=entry.presence,
        )

    def regions(
        self,
        path: str | os.PathLike[str],
        size: tuple[int, int] = (256, 128),
        layout: str | Layout = "region",
        *,
        keypoint_threshold: float = 0.3,
    ) -> Regions:
        """The region map of a crop: the cached one, or one made from its foreground and keypoints.

        Args:
            path: the picture.
            size: (height, width) of the map in pixels.
            layout: the body layout.
            keypoint_threshold: lowest score of a usable keypoint.

        Raises:
            DataError: see :meth:`entry`.
        """
        entry, part = self._entry(os.fspath(path))
        made, layout = part.provenance, layouts.get(layout)
        no_keypoints = not float(entry.keypoints[:, 2].max()) >= keypoint_threshold
        same = size == made.size and keypoint_threshold == made.keypoint_threshold
        if same and layout.name == made.layout and part.digest_of(layout) == made.layout_digest:
            region_map, empty = torch.from_numpy(entry.region_map), entry.empty
        else:
            # Imported here: reading data must not need the compiled ops.
            from mgran_fast import ops

            scale = np.array([size[1] / made.size[1], size[0] / made.size[0], 1], np.float32)
            region_map = ops.regions(
                torch.from_numpy(np.where(entry.region_map > 0, np.uint8(255), np.uint8(0)))[None],
                torch.from_numpy(entry.keypoints * scale)[None],
                size=size,
                layout=layout,
                keypoint_threshold=keypoint_threshold,
            )[0]
            empty = not bool(region_map.any())
        return Regions(region_map, empty, no_keypoints, entry.presence < PRESENT)

    def _entry(self, path: str) -> tuple[Entry, _Part]:
        found = self._locate(path)
        rows = []
        if found is not None:
            rows = self._query(found[0], f"SELECT {_COLUMNS} FROM records WHERE name = ?", (found[1],))
        if found is None or not rows:
            raise DataError(f"{path}: not in the region cache {self.path}; {self._remedy()}")
        part, name = found
        size, mtime_ns, digest, presence, flags, keypoints, region_map, crc, error = rows[0]
        self._check_fresh(path, size, mtime_ns, digest)
        if error is not None:
            raise DataError(f"{path}: {error}")
        try:
            if checksum(name, digest, flags, presence, keypoints, region_map) != crc:
                raise ValueError("the checksum is wrong")
            shape = part.provenance.size
            packed = unpack_map(region_map, shape), unpack_keypoints(keypoints, shape)
            return Entry(*packed, float(presence), bool(flags & EMPTY)), part
        except (ValueError, TypeError, AttributeError, zlib.error) as reason:
            raise damaged(part.file, f"{name}: {reason}") from reason

    def _check_fresh(self, path: str, size: int, mtime_ns: int, digest: bytes) -> None:
        """Like git's index: equal size and time are trusted, otherwise the content decides."""
        try:
            now = os.stat(path)
            seen = (now.st_size, now.st_mtime_ns)
            if seen == (size, mtime_ns) or self._trusted.get(path) == seen:
                return
            if now.st_size == size:
                with open(path, "rb") as file:
                    if picture_digest(file.read()) == digest:
                        self._trusted[path] = seen
                        return
        except OSError as error:
            raise DataError(f"{path}: the picture cannot be read ({error.strerror}); check the path") from error
        raise DataError(f"{path}: the picture has changed since its regions were computed; {self._remedy()}")

    def _locate(self, path: str) -> tuple[_Part, str] | None:
        """The part that would hold this picture, and its name there."""
        parent, name = os.path.split(path)
        part = self._parts.get(os.path.basename(parent))
        if part is not None:
            return part, name
        plain = self._parts.get(".")
        if plain is None:
            return None
        full = os.path.abspath(path)
        return plain, full[len(self._prefix) :].replace(os.sep, "/") if full.startswith(self._prefix) else name

    def _remedy(self) -> str:
        return f"run: mgran-fast masks {self.root} (with the same options as before)"

    def _open_part(self, file: Path) -> _Part:
        if not file.is_file():
            raise DataError(f"{file}: no such region cache; make one with: mgran-fast masks DATASET")
        try:
            connection = self._connection(file)
            (application,), (version,) = (
                connection.execute(f"PRAGMA {pragma}").fetchone() for pragma in ("application_id", "user_version")
            )
            if application != APPLICATION:
                raise DataError(f"{file}: not a region cache; name a file that mgran-fast masks wrote")
            if version != FORMAT:
                raise DataError(
                    f"{file}: a region cache of format {version}, this release reads {FORMAT}; "
                    "delete it and run mgran-fast masks again"
                )
            meta = dict(connection.execute("SELECT key, value FROM meta"))
            return _Part(
                file, json.loads(meta["folder"]), json.loads(meta["root"]), Provenance.from_json(meta["provenance"])
            )
        except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
            raise damaged(file, str(error)) from error

    def _connection(self, file: Path) -> sqlite3.Connection:
        # A connection must not cross a fork; each thread has its own.
        mine = self._connections.setdefault((os.getpid(), threading.get_ident()), {})
        key = str(file)
        if key not in mine:
            connection = sqlite3.connect(uri(file), uri=True, isolation_level=None, check_same_thread=False)
            try:
                connection.execute(f"PRAGMA mmap_size = {1 << 40}")
                for part in self._parts.values():
                    if part.file == file:
                        _check_same(part, connection)
            except BaseException:
                connection.close()
                raise
            mine[key] = connection
        return mine[key]

    def _query(self, part: _Part, query: str, values: tuple[Any, ...]) -> list[Any]:
        try:
            return self._connection(part.file).execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise damaged(part.file, str(error)) from error


Masks = MaskFiles | RegionCache


def find_masks(root: str | os.PathLike[str], given: str | os.PathLike[str] | None = None) -> Masks | None:
    """Where the masks of a data set are.

    Args:
        root: the folder of the data set.
        given: a file or folder of a region cache, or a folder with ``masks`` or ``regions`` in it; None looks for
            ``regions`` and then ``masks`` in ``root``.

    Returns:
        None when ``given`` is None and neither is there.

    Raises:
        DataError: nothing of that is at ``given``, or it is damaged.
    """
    place = Path(root if given is None else given)
    # Who names a folder with masks/ in it wants those, whatever has been made of them.
    first = place / FOLDER if given is None else place
    if RegionCache.available(first):
        return RegionCache(first, root=root)
    if MaskFiles.available(place):
        return MaskFiles(place)
    if given is None:
        return None
    if RegionCache.available(place / FOLDER):
        return RegionCache(place / FOLDER, root=root)
    raise DataError(
        f"{place / 'masks'}: no such folder, and {place} is no region cache; make one with: mgran-fast masks {root}, "
        "name another place, or use layout 'none'"
    )


class _Part:
    """One file of a cache and what it says of itself."""

    def __init__(self, file: Path, folder: str, root: str, provenance: Provenance) -> None:
        self.file, self.folder, self.root, self.provenance = file, folder, root, provenance
        self._digest: tuple[Layout, str] | None = None

    def digest_of(self, layout: Layout) -> str:
        if self._digest is None or self._digest[0] is not layout:
            self._digest = (layout, layout_digest(layout))
        return self._digest[1]


def _check_same(part: _Part, connection: sqlite3.Connection) -> None:
    """Raise DataError when the file is another one by now: its maps would be taken for those of before."""
    try:
        now = Provenance.from_json(dict(connection.execute("SELECT key, value FROM meta"))["provenance"])
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(part.file, str(error)) from error
    if now != part.provenance:
        raise DataError(
            f"{part.file}: the region cache was made anew, with other settings, while it was in use; start again"
        )


def uri(file: Path) -> str:
    """How SQLite opens a finished file: read-only, and without looking for locks or journals."""
    return f"{file.absolute().as_uri()}?mode=ro&immutable=1"


def damaged(file: Path, reason: str) -> DataError:
    """The error for a file that is no region cache, or no longer."""
    return DataError(f"{file}: the region cache is damaged ({reason}); delete it and run mgran-fast masks again")
