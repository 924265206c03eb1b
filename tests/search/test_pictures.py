"""What a folder or a table tells of its pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mgran_fast.errors import DataError
from mgran_fast.search.pictures import find_pictures


def draw(path: Path, taken: str | None = None, offset: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    told = {tag: text for tag, text in ((0x9003, taken), (0x9011, offset)) if text is not None}
    if told:
        exif.get_ifd(0x8769).update(told)
    Image.new("RGB", (4, 8)).save(path, exif=exif)
    return path


def test_a_folder(tmp_path: Path) -> None:
    draw(tmp_path / "b.jpg", "2026:11:27 08:30:00", "+01:00")
    draw(tmp_path / "deep" / "er" / "0012_c3_x.PNG")
    draw(tmp_path / "-1_c2_x.jpg", "2026:11:27 08:30:00")
    draw(tmp_path / "odd.jpg", "yesterday")
    draw(tmp_path / "odder.jpg", "2026:11:27 08:30:00", "noon")
    (tmp_path / "broken.jpeg").write_bytes(b"no picture")
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no picture")
    root, found = find_pictures(tmp_path)
    assert root == tmp_path
    assert [(one.name, one.person, one.camera, one.time) for one in found] == [
        ("-1_c2_x.jpg", None, "2", "2026-11-27T08:30:00"),
        ("b.jpg", None, None, "2026-11-27T08:30:00+01:00"),
        ("broken.jpeg", None, None, None),
        ("deep/er/0012_c3_x.PNG", "0012", "3", None),
        ("odd.jpg", None, None, None),
        ("odder.jpg", None, None, None),
    ]
    assert all(one.path == tmp_path / one.name for one in found)
    root, (one,) = find_pictures(tmp_path / "b.jpg")
    assert (root, one.name) == (tmp_path, "b.jpg")


def test_a_table(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/b.jpg"):
        draw(tmp_path / name, "2020:01:01 00:00:00")
    table = tmp_path / "pictures.csv"
    table.write_text("Time,path,camera\n2026-11-27T08:30,a.jpg,door\n,./deep/b.jpg,\n")
    root, found = find_pictures(table)
    assert root == tmp_path
    assert [(one.name, one.person, one.camera, one.time) for one in found] == [
        ("a.jpg", None, "door", "2026-11-27T08:30"),
        ("deep/b.jpg", None, None, None),
    ]
    for text, words in (
        ("path\n", "no rows; each names a picture"),
        ("name\na.jpg\n", "no column path; a table of pictures has path, person, camera, time"),
        ("path\nnone.jpg\n", "line 2: none.jpg: no such file; paths are relative to the table's folder"),
        ("path\na.jpg\n./a.jpg\n", "line 3: a.jpg is named twice; remove one of the rows"),
        ("path,time\na.jpg,noon\n", "line 2: 'noon' is no time"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=words):
            find_pictures(table)


def test_parquet_with_times(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    draw(tmp_path / "a.jpg")
    zone = pyarrow.timestamp("us", "UTC")
    columns = {"path": ["a.jpg"], "person": [7], "time": pyarrow.array([1_000_000], zone)}
    parquet.write_table(pyarrow.table(columns), tmp_path / "pictures.parquet")
    _, (one,) = find_pictures(tmp_path / "pictures.parquet")
    assert (one.person, one.camera, one.time) == ("7", None, "1970-01-01 00:00:01+00:00")


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no picture, \.jpg, \.jpeg, \.png, in this folder or below it"):
        find_pictures(tmp_path)
    with pytest.raises(DataError, match="no such file; give a picture, a folder of pictures, or a table"):
        find_pictures(tmp_path / "none.jpg")
