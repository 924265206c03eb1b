"""Tables of one's own, CSV and Parquet, and what is refused of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.data import DataSet
from mgran_fast.data.sets import open_set
from mgran_fast.errors import DataError, MGRANError

Draw = Callable[..., Any]
HEAD = "path,person,camera,split"
ROWS = ("a.jpg,1,1,train", "b.jpg,2,1,query", "c.jpg,2,2,gallery")


def table(folder: Path, *lines: str, head: str = HEAD) -> Path:
    """A CSV file, and an empty file for each picture that it names."""
    file = folder / "people.csv"
    file.write_text("\n".join((head, *lines)) + "\n", encoding="utf-8")
    for line in lines:
        place = folder / line.partition(",")[0]
        if place.resolve().is_relative_to(folder.resolve()) and line.partition(",")[0]:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
    return file


def refused(file: Path, *words: str, split: int | None = None) -> None:
    with pytest.raises(MGRANError) as caught:
        open_set("table", file, split=split)
    line = str(caught.value)
    assert "\n" not in line
    for word in (str(file), *words):
        assert word in line, line


def numbers(found: DataSet) -> list[tuple[str, int, int]]:
    return [(r.path.name, r.person, r.camera) for r in (*found.train, *found.query, *found.gallery)]


def test_numbers(tmp_path: Path) -> None:
    found = open_set("auto", table(tmp_path, *ROWS, "d.jpg,-1,1,gallery"))
    assert numbers(found) == [("a.jpg", 1, 1), ("b.jpg", 2, 1), ("c.jpg", 2, 2)]
    assert (found.name, found.root) == ("people", tmp_path)
    assert found.notes == ("1 junk picture (person -1) left out",)
    assert found.person_names == found.camera_names == {}


def test_text_and_columns_in_any_order(tmp_path: Path) -> None:
    lines = ('sub/a.jpg, train ,"Zoe, the first",door,x', "b.jpg,query,Änne,door,y", "c.jpg,gallery,Änne,gate,z")
    found = open_set("table", table(tmp_path, *lines, head="\ufeffPath,SPLIT,person , Camera,more"))
    assert found.person_names == {1: "Zoe, the first", 2: "Änne"}
    assert found.camera_names == {1: "door", 2: "gate"}
    assert numbers(found) == [("a.jpg", 1, 1), ("b.jpg", 2, 1), ("c.jpg", 2, 2)]
    assert found.train[0].path == tmp_path / "sub" / "a.jpg"


def test_parquet_is_the_same(draw: Draw) -> None:
    pytest.importorskip("pyarrow")
    made = draw("table")
    csv, parquet = (made.read(made.root / f"people.{kind}") for kind in ("csv", "parquet"))
    assert csv == parquet
    assert list(csv.person_names.values()) == ["alice", "bob", "carol", "dave", "erin"]


def test_parquet_of_numbers(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table(tmp_path, *ROWS)
    columns = {"camera": [1, 1, 2], "person": [1.0, 2.0, 2.0], "path": ["a.jpg", "b.jpg", "c.jpg"], "more": [None] * 3}
    file = tmp_path / "people.parquet"
    parquet.write_table(pyarrow.table({**columns, "split": ["train", "query", "gallery"]}), file)
    assert numbers(open_set("table", file)) == [("a.jpg", 1, 1), ("b.jpg", 2, 1), ("c.jpg", 2, 2)]
    parquet.write_table(pyarrow.table({**columns, "camera": [1, None, 2]}), file)
    refused(file, "line 2: no camera; every row must tell it")
    parquet.write_table(pyarrow.table({"path": ["a.jpg"]}), file)
    refused(file, "no column person; a table has path, person, camera and maybe split")
    for content in (b"", b"PAR1 and nothing of the kind", (tmp_path / "people.csv").read_bytes()):
        file.write_bytes(content)
        refused(file, "not a Parquet file that can be read")


def test_a_split_is_drawn(tmp_path: Path) -> None:
    lines = [f"{p}{c}.jpg,p{p},{c}" for p in range(8) for c in (1, 2)]
    file = table(tmp_path, *lines, head="path,person,camera")
    found = open_set("table", file, split=1)
    assert len(found.people()) == 4
    assert len(found.query) == 4
    assert open_set("table", file, split=1) == found
    refused(file, "nothing tells who is to train on and who to test on")
    file = table(tmp_path, *ROWS)
    refused(file, "has a column split; leave --split out", split=1)


def test_without_cameras_nothing_is_left_out(tmp_path: Path) -> None:
    rows = [row.rsplit(",", 2)[0] + "," + row.rsplit(",", 1)[1] for row in ROWS]
    found = open_set("table", table(tmp_path, *rows, head="path,person,split"))
    assert numbers(found) == [("a.jpg", 1, 1), ("b.jpg", 2, 1), ("c.jpg", 2, 2)]
    assert any("no cameras are told" in note for note in found.notes)
    lines = [f"{p}{c}.jpg,p{p}" for p in range(8) for c in (1, 2, 3)]
    drawn = open_set("table", table(tmp_path, *lines, head="path,person"), split=1)
    assert [(one.path.name[1], one.camera) for one in drawn.query] == [("1", 1)] * 4
    assert {one.camera for one in drawn.gallery} == {2}


def test_missing_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.csv", "no such file; give the table, a .csv or .parquet file")
    refused(tmp_path, "a folder; give the table")
    refused(table(tmp_path), "no rows")
    file = table(tmp_path, *ROWS)
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"b\.jpg: people\.csv, line 3 names it, and it is not there, one of 1 such"):
        open_set("table", file)
    with pytest.raises(DataError, match="no picture for gallery; the column split"):
        open_set("table", table(tmp_path, *ROWS[:2]), need=("query", "gallery"))


def test_wrong_count(draw: Draw) -> None:
    made = draw("table")
    file = made.root / "people.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    made.refused("not the drawn numbers of people: gallery: 3 pictures instead of 4", root=file)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("d.jpg,3,1,test", "line 5: split 'test'; it must be train, query or gallery"),
        ("d.jpg,3,1,", "line 5: split ''"),
        ("d.jpg,3,,train", "line 5: no camera"),
        ("d.jpg, ,1,train", "line 5: no person"),
        (",3,1,train", "line 5: no path"),
        ("d.jpg,3,1", "line 5: 3 values for 4 columns"),
        ("d.jpg,-2,1,train", "line 5: person -2; numbers must be 0 or more"),
        ("../d.jpg,3,1,train", "line 5: ../d.jpg: leads out of the data set"),
        ("/d.jpg,3,1,train", "line 5: /d.jpg: leads out of the data set"),
        ("C:\\d.jpg,3,1,train", "line 5: C:\\d.jpg: leads out of the data set"),
    ],
)
def test_wrong_rows(line: str, words: str, tmp_path: Path) -> None:
    refused(table(tmp_path, *ROWS, line), words)


def test_no_table(tmp_path: Path) -> None:
    refused(table(tmp_path, *ROWS, head="file,person,camera,split"), "no column path; a table has path, person, camera")
    file = tmp_path / "people.csv"
    file.write_bytes(b"\xff\xfe\x00p\x00a")
    refused(file, "not a CSV file in UTF-8")
    file.write_bytes(b"")
    refused(file, "no column path, person;")


def test_a_person_who_is_there_twice(tmp_path: Path) -> None:
    refused(table(tmp_path, *ROWS, "a.jpg,5,1,train"), "line 5: a.jpg is named twice, as person 1 and person 5")
    refused(table(tmp_path, *ROWS, "./a.jpg,1,1,train"), "line 5: a.jpg is named twice; remove one of the rows")
    refused(table(tmp_path, *ROWS, "d.jpg,0001,1,train"), "person 1 is there twice, as 1 and as 0001")


def test_a_person_on_both_sides(tmp_path: Path) -> None:
    refused(table(tmp_path, *ROWS, "d.jpg,2,3,train"), "1 person in train and in test (2)")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["pyarrow", *(name for name in sys.modules if name.startswith("pyarrow."))]:
        monkeypatch.setitem(sys.modules, name, None)
    file = tmp_path / "people.parquet"
    file.touch()
    refused(file, "Parquet takes pyarrow, which is not installed: pip install 'mgran_fast[datasets]'")
