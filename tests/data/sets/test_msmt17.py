"""MSMT17's four lists, and what is wrong with such lists."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.data.sets import SETS, Tally

Draw = Callable[..., Any]


@pytest.fixture
def made(draw: Draw) -> Any:
    return draw("msmt17", "v1")


def lines(made: Any, name: str) -> list[str]:
    return (made.root / name).read_text().splitlines()


def write(made: Any, name: str, new: list[str]) -> None:
    (made.root / name).write_text("\n".join(new) + "\n")


@pytest.mark.parametrize(("variant", "top"), [("v1", "train"), ("v2", "mask_train_v2")])
def test_parts(variant: str, top: str, draw: Draw) -> None:
    made = draw("msmt17", variant)
    found = made.read(variant=None)
    assert (found.name, found.variant) == (f"MSMT17 {variant}", variant)
    assert (len(found.train), len(found.query), len(found.gallery)) == (9, 6, 6)
    assert found.train[0].path.parent == made.root / top / "0000"
    assert {record.camera for record in found.train} == {1, 4}
    # Both sides number people from 0.
    assert found.people() == [0, 1, 2]
    assert {record.person for record in found.query} == {record.person for record in found.gallery} == {3, 4, 5}
    assert "test people are numbered from 3" in found.notes
    assert "list_val.txt: 3 pictures left out" in found.notes


def test_train_and_val(draw: Draw) -> None:
    made = draw("msmt17-trainval", "v1")
    found = made.read()
    assert found.name == "MSMT17 v1, train and val"
    assert len(found.train) == 12
    assert list(found.train) == sorted(found.train)
    assert "list_val.txt: 3 pictures trained on as well" in found.notes


def test_published_numbers() -> None:
    for variant in ("v1", "v2"):
        parts = SETS["msmt17"].published[variant].parts
        assert parts["train and val"] == Tally(32_621, 1_041, 15)
        assert (parts["query"].pictures, parts["gallery"].pictures) == (11_659, 82_161)
        assert (parts["train and val"].people or 0) + (parts["query"].people or 0) == 4_101


def test_missing_folders(made: Any, tmp_path: Path) -> None:
    made.refused("no such folder; give the folder that holds list_train.txt", root=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    made.refused("no list_train.txt, list_val.txt", "here", root=tmp_path / "empty", variant=None)
    (made.root / "list_query.txt").rename(tmp_path / "kept")
    made.refused(f"{made.root / 'list_query.txt'}: no such list; MSMT17 holds list_train.txt")
    (tmp_path / "kept").rename(made.root / "list_query.txt")
    shutil.rmtree(made.root / "train")
    made.refused(f"{made.root / 'train'}: no such folder; list_train.txt names pictures in it")
    assert made.read(need=("query", "gallery")).train == ()
    made.refused(f"{made.root / 'mask_test_v2'}: no such folder", variant="v2", need=("query", "gallery"))


def test_wrong_count(made: Any) -> None:
    write(made, "list_query.txt", lines(made, "list_query.txt")[1:])
    made.refused("not the drawn numbers of MSMT17 v1: query: 5 pictures instead of 6")
    write(made, "list_query.txt", [])
    made.refused("list_query.txt: names no picture")


def test_a_picture_that_is_not_there(made: Any) -> None:
    place = lines(made, "list_gallery.txt")[0].split()[0]
    (made.root / "test" / place).unlink()
    made.refused(str(made.root / "test" / place), "list_gallery.txt names it, and it is not there, one of 1 such")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0000/picture.jpg 0", "does not read as"),
        ("0000/0000_000_01_0303morning_0000_0.jpg", "does not read as"),
        ("0000/0000_000_01_0303morning_0000_0.jpg x", "does not read as"),
        ("0000/0000_000_16_0303morning_0000_0.jpg 0", "with a camera from 01 to 15"),
        ("0000/0000_000_01_0303morning_0000_0.png 0", "does not read as"),
        ("../train/0000/0000_000_01_0303morning_0000_0.jpg 0", "leads out of the data set"),
        ("0000/../../0000_000_01_0303morning_0000_0.jpg 0", "leads out of the data set"),
        ("/data/0000/0000_000_01_0303morning_0000_0.jpg 0", "leads out of the data set"),
        ("C:/0000/0000_000_01_0303morning_0000_0.jpg 0", "leads out of the data set"),
        ("\\\\host\\0000_000_01_0303morning_0000_0.jpg 0", "leads out of the data set"),
    ],
)
def test_wrong_lines(line: str, words: str, made: Any) -> None:
    write(made, "list_train.txt", [*lines(made, "list_train.txt"), line])
    made.refused(f"{made.root / 'list_train.txt'}, line 10: ", words, counts="any")


def test_a_list_that_is_no_text(made: Any) -> None:
    (made.root / "list_train.txt").write_bytes(b"\xff\xfe\x00")
    made.refused("list_train.txt: cannot be read")


def test_a_person_who_is_there_twice(made: Any) -> None:
    listed = lines(made, "list_train.txt")
    write(made, "list_train.txt", [*listed, listed[0]])
    made.refused("list_train.txt, line 10", "is named twice", counts="any")
    write(made, "list_train.txt", [listed[0].rpartition(" ")[0] + " 7", *listed[1:]])
    made.refused("the pictures of folder 0000 are person 7 and person 0")
    write(made, "list_train.txt", [*listed, lines(made, "list_val.txt")[0]])
    made.refused("both list_train.txt and list_val.txt name it, one of 1 such")
    write(made, "list_train.txt", listed)
    write(made, "list_query.txt", [*lines(made, "list_query.txt"), lines(made, "list_gallery.txt")[0]])
    made.refused("both list_query.txt and list_gallery.txt name it, one of 1 such")


def test_people_on_both_sides(made: Any) -> None:
    # The same numbers are other people, the same pictures are not.
    shutil.rmtree(made.root / "test")
    shutil.copytree(made.root / "train", made.root / "test")
    made.refused(f"{made.root}: 12 pictures in train and in test (0000/0000_000_01", "scores would be too good")
