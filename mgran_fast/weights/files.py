"""Files that appear whole, and that are on the disk when we say so."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mgran_fast.errors import DataError


def write(path: Path, data: bytes | memoryview) -> None:
    """Write a file: after a kill or a power cut at any moment there is the old one or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two who write the same file must not write into one another's.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
        put(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write a file to, which takes the place of ``path`` when all went well.

    Whole after a kill, but not after a power cut as by :func:`write`, for what can be made again. Raises OSError.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def put(partial: Path, path: Path) -> None:
    """Rename a finished file into its place once its bytes, and then its name, are on the disk. Raises OSError."""
    _sync(partial, os.O_RDWR)  # Windows flushes nothing through a descriptor that may not write
    os.replace(partial, path)
    # Without this a power cut may bring the old name back; some file systems cannot do it for a folder.
    try:
        _sync(path.parent, os.O_RDONLY)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.EACCES, errno.EISDIR):
            raise


def sweep(folder: Path) -> None:
    """Remove the unfinished files that a killed process left in a folder of ours."""
    for partial in folder.glob(".*.partial"):
        partial.unlink(missing_ok=True)


def reason(error: OSError, path: Path, size: int) -> str:
    """Why a file of ``size`` bytes could not be written, in one line that names it and what is missing."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        try:
            free = shutil.disk_usage(path.parent).free
        except OSError:
            free = 0
        missing = max(size - free, 0) / 1e6
        want = f"{missing:.0f} MB more are" if missing >= 1 else "more space is"
        kind = "the quota is used up" if error.errno == errno.EDQUOT else "the disk is full"
        return f"{path}: cannot be written, {kind}: {want} needed for its {size / 1e6:.0f} MB"
    return f"{path}: cannot be written ({error.strerror or error})"


def sha256(path: Path) -> str:
    """The digest of a file, in hex. Raises DataError where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def told(path: Path, digest: str) -> str:
    """A file as people know it: its folder and name, and the start of its :func:`sha256`."""
    return f"{path.absolute().parent.name}/{path.name} {digest[:12]}"


def _sync(path: Path, access: int) -> None:
    descriptor = os.open(path, access)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
