"""Reading a Market-1501 style folder: what is kept, what is left out, and what is said about it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mgran_fast.data import MaskFiles, read_market, read_picture
from mgran_fast.data.records import Record
from mgran_fast.errors import DataError

NAMES = {
    "bounding_box_train": ("0002_c1s1_000451_03.jpg", "0002_c2s1_000001_01.jpg", "0007_c10s2_1_1.PNG"),
    "query": ("0003_c1_0.jpeg",),
    "bounding_box_test": ("-1_c1s1_000401_03.jpg", "0000_c1s1_000151_01.jpg", "0003_c2_0.jpg"),
}


def make(root: Path, names: dict[str, tuple[str, ...]] = NAMES) -> Path:
    """Empty files: the reader lists them and opens none."""
    for folder, files in names.items():
        (root / folder).mkdir(parents=True)
        for file in files:
            (root / folder / file).touch()
    return root


def test_people_cameras_and_order(tmp_path: Path) -> None:
    data = read_market(make(tmp_path / "market"))
    train = tmp_path / "market" / "bounding_box_train"
    assert data.name == "market"
    assert data.root == tmp_path / "market"
    assert data.train == (
        Record(train / "0002_c1s1_000451_03.jpg", 2, 1),
        Record(train / "0002_c2s1_000001_01.jpg", 2, 2),
        Record(train / "0007_c10s2_1_1.PNG", 7, 10),
    )
    assert data.people() == [2, 7]
    assert [r.person for r in data.query] == [3]
    assert read_market(str(tmp_path / "market"), name="mine").name == "mine"


def test_junk_is_left_out_and_a_distractor_stays(tmp_path: Path) -> None:
    data = read_market(make(tmp_path / "d"))
    assert [r.person for r in data.gallery] == [0, 3]
    assert data.notes == ("bounding_box_test: 1 junk picture (person -1) left out",)


def test_odd_names_and_other_files_are_noted(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    query = root / "query"
    odd = ["a.jpg", "b.jpg", "c.jpg", "1-2_c1.jpg", "-5_c1.jpg", "0001.jpg"]
    for name in (*odd, "Thumbs.db", ".DS_Store", "._0003_c1_0.jpg", "list.txt"):
        (query / name).touch()
    (query / "0003_c1_folder.jpg").mkdir()
    data = read_market(root)
    assert len(data.query) == 1
    notes = [note for note in data.notes if note.startswith("query")]
    assert notes == [
        "query: 6 pictures left out, the name does not start with PERSON_cCAMERA: -5_c1.jpg, 0001.jpg, 1-2_c1.jpg, ...",
        "query: 2 left out, no jpg, jpeg or png file: 0003_c1_folder.jpg, list.txt",
    ]


def test_duplicate_stem_is_noted(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    (root / "query" / "0003_c1_0.png").touch()
    data = read_market(root)
    assert len(data.query) == 2
    assert any("query: 1 name with more than one extension" in note and "0003_c1_0" in note for note in data.notes)


def test_people_in_train_and_test_are_noted(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    (root / "query" / "0002_c1_9.jpg").touch()
    assert any(note.startswith("1 people are in bounding_box_train and in query") for note in read_market(root).notes)


@pytest.mark.parametrize("inner", ["Market-1501-v15.09.15", "wrapped/Market-1501-v15.09.15"])
def test_nested_folder_is_found(tmp_path: Path, inner: str) -> None:
    root = make(tmp_path / "download" / inner)
    (tmp_path / "download" / "readme.txt").touch()
    data = read_market(tmp_path / "download")
    assert data.root == root
    assert data.name == "Market-1501-v15.09.15"
    assert len(data.train) == 3


def test_two_sets_in_one_folder(tmp_path: Path) -> None:
    make(tmp_path / "detected")
    make(tmp_path / "labeled")
    with pytest.raises(DataError, match=r"more than one data set \(detected, labeled\); give one"):
        read_market(tmp_path)


def test_need_without_train(tmp_path: Path) -> None:
    root = make(tmp_path / "d", {k: v for k, v in NAMES.items() if k != "bounding_box_train"})
    data = read_market(root, need=("query", "gallery"))
    assert data.train == ()
    assert len(data.query) == 1
    with pytest.raises(DataError, match="no folder bounding_box_train") as caught:
        read_market(root)
    assert "here is bounding_box_test, query" in str(caught.value)
    with pytest.raises(ValueError, match="need must name parts among train, query, gallery, not 'test'"):
        read_market(root, need=("test",))


def test_missing_root_file_and_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; give the folder that holds bounding_box_train"):
        read_market(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(DataError, match="not a folder"):
        read_market(file)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="here is nothing") as caught:
        read_market(empty)
    message = str(caught.value)
    assert str(empty) in message
    assert "\n" not in message
    assert all(folder in message for folder in NAMES)
    with pytest.raises(DataError):
        read_market(empty, need=())


def test_empty_folder(tmp_path: Path) -> None:
    root = make(tmp_path / "d", {**NAMES, "query": ("odd.jpg",)})
    with pytest.raises(DataError, match="query: no usable picture"):
        read_market(root)
    assert read_market(root, need=("train",)).query == ()


def test_a_part_given_as_root(tmp_path: Path) -> None:
    root = make(tmp_path / "d")
    with pytest.raises(DataError, match="one part of a data set; give the folder above it"):
        read_market(root / "query")


@pytest.mark.real_data
@pytest.mark.skipif("MGRAN_DATA" not in os.environ, reason="MGRAN_DATA is not set")
def test_cuhk03() -> None:
    data = read_market(Path(os.environ["MGRAN_DATA"]) / "cuhk03")
    assert (len(data.train), len(data.query), len(data.gallery)) == (6265, 200, 774)
    assert len(data.people()) == 643
    assert data.notes == ()
    masks = MaskFiles(data.root)
    for record in (*data.train[:50], *data.query[:5], *data.gallery[:5]):
        shape = read_picture(record.path).shape
        source = masks.find(record.path, (shape[0], shape[1]))
        assert source is not None
        assert source.has_mask
        assert source.mask.shape == (128, 64)
        assert source.keypoints[:, 2].max() > 0
