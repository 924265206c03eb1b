"""A gallery on disk: what comes back, what a kill leaves, what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mgran_fast import DataError, Gallery, MGRANError
from mgran_fast.weights import files

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def made(count: int = 9, seed: int = 0, **options: str) -> Gallery:
    generator = torch.Generator().manual_seed(seed)
    gallery = Gallery(**options)
    gallery.add(
        torch.randn(count, 8, generator=generator),
        [f"{i}.jpg" for i in range(count)],
        persons=["ä", None, 3] * (count // 3),
        cameras=[1, 2, None] * (count // 3),
        times=[None, 1.5, "2026-11-27T08:30:00.123456Z"] * (count // 3),
        visible=torch.randint(0, 2, (count, 4), generator=generator),
    )
    return gallery


def same(found: Gallery, want: Gallery) -> None:
    assert torch.equal(found.embeddings, want.embeddings)
    assert found.visible is not None
    assert torch.equal(found.visible, want.visible)
    for name in ("names", "persons", "cameras", "metric", "model", "root"):
        assert getattr(found, name) == getattr(want, name), name
    assert np.array_equal(found.times, want.times, equal_nan=True)


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    want = made(metric="cosine", model="street 0123", root="/pictures")
    assert want.save(tmp_path / "new" / "gallery") == tmp_path / "new" / "gallery"
    found = Gallery.load(tmp_path / "new" / "gallery")
    same(found, want)
    query = torch.randn(2, 8)
    assert found.search(query, cameras=[1]).entries == want.search(query, cameras=[1]).entries
    # It goes on where it was.
    found.remove(["0.jpg"])
    found.add(torch.ones(1, 8), ["new"], visible=[[1, 1, 0, 0]])
    found.save(tmp_path / "new" / "gallery")
    same(Gallery.load(tmp_path / "new" / "gallery"), found)
    assert len(list((tmp_path / "new" / "gallery").iterdir())) == 2, "the old embeddings are gone"
    table = parquet.read_table(tmp_path / "new" / "gallery" / "entries.parquet")
    assert table.column_names == ["name", "person", "camera", "time"], "for other programs"


def test_an_empty_gallery(tmp_path: Path) -> None:
    found = Gallery.load(Gallery().save(tmp_path / "gallery"))
    assert (len(found), found.names) == (0, ())


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made().save(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    put = files.put

    def full(partial: Path, path: Path) -> None:
        if path.name == "entries.parquet":
            raise OSError(28, "No space left on device")
        put(partial, path)

    monkeypatch.setattr(files, "put", full)
    with pytest.raises(DataError, match="cannot be written, the disk is full"):
        made(seed=1).save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    same(Gallery.load(tmp_path), made())


@pytest.mark.skipif(sys.platform == "win32", reason="kills by a signal")
@pytest.mark.parametrize("step", ["embeddings", "entries"])
def test_a_kill_leaves_the_gallery_of_before_or_the_new_one(step: str, tmp_path: Path) -> None:
    """SIGKILL right before and right after each of the two files gets its name."""
    program = """
import os, signal, sys
import torch
from mgran_fast import Gallery
from mgran_fast.weights import files
folder, step, after = sys.argv[1:]
gallery = Gallery.load(folder)
gallery.add(torch.ones(1, 8), ["new"], visible=[[1, 0, 0, 0]])
put = files.put
def killed(partial, path):
    mine = path.name.startswith(step)
    if mine and after == "yes":
        put(partial, path)
    if mine:
        os.kill(os.getpid(), signal.SIGKILL)
    put(partial, path)
files.put = killed
gallery.save(folder)
"""
    for after in ("no", "yes"):
        folder = tmp_path / after
        made().save(folder)
        done = subprocess.run(
            [sys.executable, "-c", program, str(folder), step, after], env={**os.environ}, check=False
        )
        assert done.returncode == -signal.SIGKILL
        found = Gallery.load(folder)
        assert len(found) == (10 if (step, after) == ("entries", "yes") else 9)
        made(seed=2).save(folder)
        same(Gallery.load(folder), made(seed=2))
        assert len([path for path in folder.iterdir() if not path.name.startswith("embeddings")]) == 1


def test_what_cannot_be_read(tmp_path: Path) -> None:
    def refused(words: str) -> None:
        with pytest.raises(DataError, match=words) as caught:
            Gallery.load(tmp_path)
        assert "\n" not in str(caught.value)

    refused(r"no gallery, it has no entries\.parquet; Gallery\.save or mgran-fast search --save writes one")
    entries = tmp_path / "entries.parquet"
    entries.write_bytes(b"nothing of the kind")
    refused(r"entries\.parquet: cannot be read .*write the gallery again")
    parquet.write_table(pyarrow.table({"name": ["a"]}), entries)
    refused("not the entries of a gallery")
    made().save(tmp_path)
    table = parquet.read_table(entries)
    (key, about), *_ = table.schema.metadata.items()
    told = json.loads(about)

    def change(**changes: object) -> None:
        parquet.write_table(table.replace_schema_metadata({key: json.dumps({**told, **changes})}), entries)

    change(format=2)
    refused("written in format 2, this version reads 1; update mgran_fast")
    change(embeddings="../elsewhere.safetensors")
    refused("its embeddings are not beside it")
    change(embeddings="gone.safetensors")
    refused(r"gone\.safetensors: cannot be read")
    parquet.write_table(table.slice(1), entries)
    refused("names has 8 values for 9 embeddings")
    parquet.write_table(
        pyarrow.concat_tables([table.slice(1), table.slice(1, 1)]).replace_schema_metadata({key: about}), entries
    )
    refused("'1.jpg' is named twice")
    parquet.write_table(table, entries)
    same(Gallery.load(tmp_path), made())
    held = tmp_path / told["embeddings"]
    held.write_bytes(held.read_bytes()[:-8])
    refused(r"embeddings-.*\.safetensors: cannot be read")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for act in (lambda: made().save(tmp_path), lambda: Gallery.load(tmp_path)):
        with pytest.raises(MGRANError, match=r"pip install 'mgran_fast\[search\]'"):
            act()
