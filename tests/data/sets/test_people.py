"""One's own folder: how people and cameras are told, splits that are drawn, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.data import DataSet
from mgran_fast.data.sets import open_set

Draw = Callable[..., Any]


@pytest.fixture
def made(draw: Draw) -> Any:
    return draw("people")


def touch(root: Path, *places: str) -> Path:
    """Empty files: the reader lists them and opens none."""
    for place in places:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).touch()
    return root


def read(root: Path, split: int | None = None) -> DataSet:
    return open_set("people", root, split=split)


def test_three_ways_to_tell(made: Any) -> None:
    found = made.read()
    assert found.name == "people"
    assert list(found.person_names.values()) == ["alice", "bob", "carol", "dave", "erin"]
    assert {found.person_names[person] for person in found.people()} == {"alice", "bob", "carol"}
    assert {found.person_names[record.person] for record in found.query} == {"dave", "erin"}
    assert {record.camera for record in found.train} == {1, 2}
    assert found.camera_names == {}
    assert found.notes == ()


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/0007_c3.jpg", "query/12/a_camera10.PNG", "gallery/12/02/x.jpeg")
    found = read(root)
    assert [(r.person, r.camera) for r in (*found.train, *found.query, *found.gallery)] == [(7, 3), (12, 10), (12, 2)]
    assert found.person_names == {}


def test_text_for_cameras(tmp_path: Path) -> None:
    found = read(touch(tmp_path, "train/1/gate/x.jpg", "query/2/door/x.jpg", "gallery/2/gate/y.jpg"))
    assert found.camera_names == {1: "door", 2: "gate"}
    assert [r.camera for r in (*found.train, *found.query, *found.gallery)] == [2, 1, 2]


def test_the_names_of_the_market_layout(tmp_path: Path) -> None:
    root = touch(tmp_path, "bounding_box_train/a_c1.jpg", "query/b_c1.jpg", "bounding_box_test/b_c2.jpg")
    assert len(read(root).gallery) == 1
    touch(root, "gallery/b_c3.jpg")
    with pytest.raises(ValueError, match="gallery and bounding_box_test are the same part; keep one of them"):
        read(root)


def test_odd_names_are_noted(tmp_path: Path) -> None:
    root = touch(
        tmp_path, "train/1_c1.jpg", "train/picture.jpg", "train/1/a/b/c.jpg", "train/-1_c1.jpg", "train/-4_c1.jpg",
        "query/2_c1.jpg", "gallery/2_c2.jpg", "gallery/2/none.jpg", "gallery/.hidden_c1.jpg",
    )  # fmt: skip
    found = read(root)
    assert (len(found.train), len(found.gallery)) == (1, 1)
    assert found.notes == (
        "train: 1 junk picture (person -1) left out",
        "train: 3 pictures left out, neither PERSON_cCAMERA nor in a folder of a person: -4_c1.jpg, picture.jpg, "
        "1/a/b/c.jpg",
        "1 picture left out, neither the name nor a folder tells the camera: none.jpg",
    )


def test_masks_and_regions_are_no_people(made: Any) -> None:
    touch(made.root, "masks/train/alice_c1_0.png", "regions/x_c1.png", "train/masks/y_c1.png")
    assert len(made.read().train) == 12


def test_without_cameras_nothing_is_left_out(tmp_path: Path) -> None:
    found = read(touch(tmp_path, "train/a/1.jpg", "query/b/1.jpg", "gallery/b/2.jpg", "gallery/c/3.jpg"))
    assert {r.camera for r in found.query}.isdisjoint({r.camera for r in found.gallery})
    assert found.notes == ("no cameras are told: no gallery picture is left out as seen by the query's camera",)


def test_a_split_is_drawn(tmp_path: Path) -> None:
    for person in range(20):
        for camera in (1, 2):
            touch(tmp_path, *(f"{person}/{view}_c{camera}.jpg" for view in range(2)))
    found = read(tmp_path, split=5)
    again = read(tmp_path, split=5)
    assert found == again
    assert len(found.people()) == 10
    test = {record.person for record in found.gallery}
    assert len(test) == 10
    assert not test & set(found.people())
    assert {record.person for record in found.query} == test
    assert (len(found.query), len(found.gallery)) == (20, 20)
    assert read(tmp_path, split=6).people() != found.people()
    with pytest.raises(ValueError, match=r"nothing tells who is to train on and who to test on; .* --split 0"):
        read(tmp_path)


def test_a_new_person_moves_few_others(tmp_path: Path) -> None:
    names = ["ann", "bea", "cid", "dan", "eve", "fay", "gus", "hal", "ida", "jim"]
    for name in names:
        touch(tmp_path, f"{name}/a_c1.jpg", f"{name}/b_c2.jpg")
    before = read(tmp_path, split=2)
    touch(tmp_path, "aaron/a_c1.jpg", "aaron/b_c2.jpg")
    after = read(tmp_path, split=2)
    # Their numbers are others now, but for one at most they are on the sides where they were.
    sides = [{one.person_names[person] for person in one.people()} for one in (before, after)]
    assert len((sides[0] ^ sides[1]) - {"aaron"}) <= 1
    assert before.people() != after.people()


def test_a_drawn_query_has_a_match(tmp_path: Path) -> None:
    for person in range(8):
        touch(tmp_path, f"{person}/a_c1.jpg", f"{person}/b_c2.jpg")
    found = read(tmp_path, split=0)
    for query in found.query:
        assert any(r.person == query.person and r.camera != query.camera for r in found.gallery)
    assert len(found.query) == 4
    # Cameras that nobody tells do not stand in the way.
    for path in tmp_path.rglob("*_c*.jpg"):
        path.rename(path.with_name(f"{path.name[0]}.jpg"))
    found = read(tmp_path, split=0)
    assert len(found.query) == 4
    for query in found.query:
        assert any(r.person == query.person and r.camera != query.camera for r in found.gallery)


def test_no_split_can_be_drawn(tmp_path: Path) -> None:
    touch(tmp_path, "1/a_c1.jpg", "2/b_c1.jpg")
    with pytest.raises(ValueError, match="no split can be drawn"):
        read(tmp_path, split=0)


def test_missing_folders(made: Any, tmp_path: Path) -> None:
    made.refused("no such folder; give the folder that holds train, query, gallery", root=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    made.refused("empty: no usable picture; expected PERSON_cCAMERA names", root=tmp_path / "empty", split=0)
    made.refused("is split already; leave --split out", split=3)
    shutil.rmtree(made.root / "gallery")
    made.refused("no folder gallery; a data set holds train, query, gallery", need=("query", "gallery"))
    (made.root / "gallery").mkdir()
    made.refused("gallery: no usable picture", need=("gallery",))


def test_wrong_count(made: Any) -> None:
    (made.root / "train" / "alice_c1_0.jpg").unlink()
    made.refused("not the drawn numbers of people: train: 11 pictures instead of 12")
    # Nobody published numbers of it.
    assert len(made.read(counts="published").train) == 11


def test_a_person_who_is_there_twice(tmp_path: Path) -> None:
    touch(tmp_path, "train/2/a_c1.jpg", "train/0002/a_c2.jpg", "query/3_c1.jpg", "gallery/3_c2.jpg")
    with pytest.raises(ValueError, match="person 2 is there twice, as 0002 and as 2"):
        read(tmp_path)


def test_a_person_on_both_sides(made: Any) -> None:
    shutil.copytree(made.root / "query" / "dave", made.root / "train" / "dave")
    made.refused("1 person in train and in test (4)", counts="any")
