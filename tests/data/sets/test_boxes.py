"""Market-1501 with its distractors and multiple queries, DukeMTMC-reID, Occluded-Duke."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.data import Record
from mgran_fast.data.sets import SETS, Tally, read_set

Draw = Callable[..., Any]
LAYOUT = ("market1501", "market1501-500k", "dukemtmc-reid", "occluded-duke", "cuhk03-np")
EXAMPLES = {
    "market1501": "0002_c1s1_000451_03.jpg",
    "market1501-500k": "0002_c1s1_000451_03.jpg",
    "dukemtmc-reid": "0005_c2_f0046985.jpg",
    "occluded-duke": "0005_c2_f0046985.jpg",
    "cuhk03-np": "0001_c1_1.png",
}


def parts(made: Any) -> Path:
    """The folder with the parts of the layout."""
    return Path(made.root / "detected" if made.name == "cuhk03-np" else made.root)


def test_market1501(draw: Draw) -> None:
    made = draw("market1501")
    found = made.read()
    assert (len(found.train), len(found.query), len(found.gallery)) == (12, 6, 14)
    assert found.people() == [2, 7, 10]
    assert sum(record.person == 0 for record in found.gallery) == 2
    assert not any(record.person == -1 for record in found.gallery)
    assert "bounding_box_test: 2 junk pictures (person -1) left out" in found.notes
    assert found.query[0] == Record(made.root / "query" / "0001_c1s1_001900_00.jpg", 1, 1)
    assert found.name == "Market-1501"


def test_multiple_queries(draw: Draw) -> None:
    made = draw("market1501")
    found = made.read()
    asked = {(record.person, record.camera) for record in found.query}
    assert len(list((made.root / "gt_bbox").iterdir())) == 16
    # Those of training people are no query's.
    assert len(found.multi_query) == 12
    assert {(record.person, record.camera) for record in found.multi_query} == asked
    assert all(record.path.parent.name == "gt_bbox" for record in found.multi_query)
    shutil.rmtree(made.root / "gt_bbox")
    found = made.read()
    assert found.multi_query == ()
    assert "no folder gt_bbox: no multiple queries" in found.notes


def test_the_distractors(draw: Draw) -> None:
    made = draw("market1501-500k")
    found = made.read()
    assert found.name == "Market-1501+500k"
    assert len(found.gallery) == 18
    assert {record.person for record in found.gallery if record.path.parent.name == "images"} == {0}
    (made.root / "images" / "0007_c1s1_000001_01.jpg").touch()
    made.refused("0007_c1s1_000001_01.jpg", "not a distractor (person 0 or -1)")
    shutil.rmtree(made.root / "images")
    made.refused("no folder images with the 500,000 distractors")


def test_duke_is_told_as_withdrawn(draw: Draw) -> None:
    for name in ("dukemtmc-reid", "occluded-duke"):
        found = draw(name).read()
        assert any("withdrawn by its authors" in note for note in found.notes)
        assert (len(found.train), len(found.query), len(found.gallery)) == (12, 6, 16)
        assert {record.camera for record in found.train} == {1, 2}


def test_published_numbers() -> None:
    market, duke, occluded = (
        SETS[name].published[""].parts for name in ("market1501", "dukemtmc-reid", "occluded-duke")
    )
    assert market["train"] == Tally(12_936, 751, 6)
    assert market["query"] == Tally(3_368, 750, 6)
    # What lies on the disk: 19,732.
    assert market["gallery"].pictures == 19_732 - (market["junk"].pictures or 0)
    assert market["distractors"] == Tally(2_793)
    assert [duke[part].pictures for part in ("train", "query", "gallery")] == [16_522, 2_228, 17_661]
    # 702 people to train on, 702 to test; 408 more in the gallery.
    assert (duke["train"].people or 0) + (duke["query"].people or 0) == 1_404
    assert duke["gallery"].people == 702 + 408
    assert [occluded[part].pictures for part in ("train", "query", "gallery")] == [15_618, 2_210, 17_661]
    assert [occluded[part].people for part in ("train", "query", "gallery")] == [702, 519, 1_110]


@pytest.mark.parametrize("name", LAYOUT)
def test_missing_folders(name: str, draw: Draw, tmp_path: Path) -> None:
    made = draw(name)
    made.refused(str(tmp_path / "nowhere"), "no such folder; give the folder that holds", root=tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    made.refused("not a folder", root=file)
    (tmp_path / "empty").mkdir()
    made.refused("give the folder that holds it", root=tmp_path / "empty")
    shutil.rmtree(parts(made) / "query")
    made.refused(str(parts(made)), "no folder query; a data set holds bounding_box_train")
    (parts(made) / "query").mkdir()
    made.refused("query: no picture; expected files such as")


@pytest.mark.parametrize("name", LAYOUT)
def test_a_part_that_is_not_needed(name: str, draw: Draw) -> None:
    made = draw(name)
    shutil.rmtree(parts(made) / "bounding_box_train")
    found = made.read(need=("query", "gallery"))
    assert found.train == ()
    assert found.query
    made.refused("no folder bounding_box_train")


@pytest.mark.parametrize("name", LAYOUT)
@pytest.mark.parametrize(
    "wrong", ["picture.jpg", "0003_c9_f0000001.jpg", "0003_c0_1.jpg", "-5_c1_1.jpg", "x3_c1_1.png"]
)
def test_wrong_names(name: str, wrong: str, draw: Draw) -> None:
    made = draw(name)
    (parts(made) / "query" / wrong).touch()
    line = made.refused(str(parts(made) / "query" / wrong), f"1 name in query that does not read as {EXAMPLES[name]}")
    assert "with a camera from 1 to" in line
    # Counts are one thing, names another.
    made.refused("that does not read as", counts="any")


@pytest.mark.parametrize("name", LAYOUT)
def test_a_person_who_is_there_twice(name: str, draw: Draw) -> None:
    made = draw(name)
    one = sorted(path for path in (parts(made) / "query").iterdir() if path.suffix != ".db")[0]
    person = int(one.name[:4])
    twin = one.with_name(f"{person}{one.name[4:]}")
    shutil.copy(one, twin)
    made.refused(f"person {person} is there twice, as {one.name[:4]} and as {person}")
    twin.unlink()
    shutil.copy(one, one.with_suffix(".jpeg"))
    made.refused("are one picture twice; remove one of them")


@pytest.mark.parametrize("name", LAYOUT)
def test_a_person_on_both_sides(name: str, draw: Draw) -> None:
    made = draw(name)
    one = sorted(path for path in (parts(made) / "bounding_box_train").iterdir() if path.suffix != ".db")[0]
    shutil.copy(one, parts(made) / "bounding_box_test" / one.name)
    made.refused(f"1 person in train and in test ({int(one.name[:4])}): scores would be too good")


def test_distractors_and_junk_are_on_no_side(draw: Draw) -> None:
    made = draw("market1501")
    one = next((made.root / "bounding_box_test").glob("0000_*"))
    shutil.copy(one, made.root / "bounding_box_train" / one.name)
    reading = read_set("market1501", made.root, counts="any")
    assert reading.counts.parts["train"] == Tally(13, 4, 2)


def test_files_of_the_operating_system(draw: Draw) -> None:
    made = draw("market1501")
    for name in ("._0001_c1s1_001900_00.jpg", ".DS_Store", "readme.txt"):
        (made.root / "query" / name).touch()
    assert len(made.read().query) == 6


@pytest.mark.parametrize("name", ["market1501", "dukemtmc-reid"])
def test_wrapped_in_folders(name: str, draw: Draw, tmp_path: Path) -> None:
    made = draw(name)
    deep = tmp_path / "outer" / "inner" / "set"
    deep.parent.mkdir(parents=True)
    shutil.move(made.root, deep)
    assert made.read(tmp_path / "outer").root == deep
    shutil.copytree(deep, deep.with_name("other"))
    made.refused("holds more than one data set (other, set); give one of them", root=deep.parent)
