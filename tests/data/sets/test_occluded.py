"""Occluded-ReID: a folder for each person, and cameras that nobody tells."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Draw = Callable[..., Any]


@pytest.fixture
def made(draw: Draw) -> Any:
    return draw("occluded-reid")


def test_parts(made: Any) -> None:
    found = made.read()
    assert (found.name, found.train, found.people()) == ("Occluded-ReID", (), [])
    assert {record.camera for record in found.query} == {1}
    assert {record.camera for record in found.gallery} == {2}
    assert found.query[0].path == made.root / "occluded_body_images" / "001" / "001_01.tif"
    assert "cameras are not told: no picture is left out" in found.notes


def test_missing_folders(made: Any, tmp_path: Path) -> None:
    made.refused("no such folder; give the folder that holds occluded_body_images", root=tmp_path / "nowhere")
    shutil.rmtree(made.root / "whole_body_images")
    made.refused(f"{made.root / 'whole_body_images'}: no such folder")
    (made.root / "whole_body_images").mkdir()
    made.refused("whole_body_images: no picture; expected files such as 001/001_01.tif")


def test_wrong_count(made: Any) -> None:
    (made.root / "whole_body_images" / "001" / "001_01.tif").unlink()
    made.refused("not the drawn numbers of Occluded-ReID: gallery: 7 pictures instead of 8")


@pytest.mark.parametrize("place", ["001/x.tif", "alice/001_01.tif", "005_01.tif"])
def test_wrong_names(place: str, made: Any) -> None:
    path = made.root / "whole_body_images" / place
    path.parent.mkdir(exist_ok=True)
    path.touch()
    made.refused(str(path), "1 picture in whole_body_images not named as 001/001_01.tif is", counts="any")


def test_a_person_who_is_there_twice(made: Any) -> None:
    folder = made.root / "whole_body_images"
    shutil.copytree(folder / "002", folder / "2")
    made.refused("person 2 is there twice, as 002 and as 2")
    shutil.rmtree(folder / "2")
    shutil.copy(folder / "002" / "002_01.tif", folder / "001")
    made.refused("the folder says person 001, the name says 002", counts="any")
