"""Files that appear whole: what is on the disk, in which order, and what is left behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mgran_fast.weights import files


def test_bytes_are_flushed_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's bytes by a descriptor that may write, as Windows wants it; then the name; then the folder."""
    steps: list[str] = []
    replace = os.replace

    def fsync(descriptor: int) -> None:
        if not steps:
            assert os.write(descriptor, b"") == 0  # EBADF where it was opened for reading alone
        steps.append("flushed")

    def renamed(*paths: Path) -> None:
        steps.append("renamed")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", renamed)
    files.write(tmp_path / "a" / "b", b"content")
    assert steps[:2] == ["flushed", "renamed"]
    assert steps[2:] == (["flushed"] if os.name == "posix" else [])
    assert (tmp_path / "a" / "b").read_bytes() == b"content"


def test_folders_that_cannot_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows opens no folder: what is there is whole all the same. Any other trouble is told."""
    opened = os.open

    def refused(path: Path, flags: int) -> int:
        if Path(path).is_dir():
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, flags)

    monkeypatch.setattr(os, "open", refused)
    number = errno.EACCES
    files.write(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    number = errno.EIO
    with pytest.raises(OSError, match="a"):
        files.write(tmp_path / "a", b"2")
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    files.write(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
