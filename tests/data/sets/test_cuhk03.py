"""CUHK03 from its MATLAB files and from its folders; what is wrong with such files."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgran_fast.data.records import MARKET, SINGLE_GALLERY_SHOT
from mgran_fast.data.sets import SETS, Tally, cuhk03, cuhk03_mat, open_set
from mgran_fast.errors import DataError, MGRANError

h5py = pytest.importorskip("h5py")
scipy_io = pytest.importorskip("scipy.io")

Draw = Callable[..., Any]
MAT, CONFIG = "cuhk03_release/cuhk-03.mat", "cuhk03_new_protocol_config_detected.mat"


@pytest.fixture
def raw(draw: Draw) -> Any:
    return draw("cuhk03", "detected")


@pytest.fixture
def classic(draw: Draw) -> Any:
    return draw("cuhk03-classic", "detected")


def change(made: Any, **fields: Any) -> None:
    """Write the new protocol's file again with other fields; None leaves one out."""
    old = {name: value for name, value in scipy_io.loadmat(made.root / CONFIG).items() if not name.startswith("__")}
    new = {name: value for name, value in (old | fields).items() if value is not None}
    scipy_io.savemat(made.root / CONFIG, new)


def config(made: Any) -> dict[str, Any]:
    return dict(scipy_io.loadmat(made.root / CONFIG))


# --- what is read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["detected", "labeled"])
def test_the_new_protocol(variant: str, draw: Draw) -> None:
    made = draw("cuhk03", variant)
    found = made.read()
    assert (found.name, found.variant, found.protocol) == (f"CUHK03 {variant}, new protocol", variant, MARKET)
    assert found.notes[0].startswith(f"variant {variant}: ")
    assert found.people() == [3, 4, 5, 6]
    assert {record.person for record in found.query} == {record.person for record in found.gallery} == {1, 2, 7, 8}
    assert {record.camera for record in found.train} == {1, 2}
    first = found.query[0]
    assert first.path == made.root / f"images_{variant}" / "1_001_1_01.png"
    assert (first.person, first.camera) == (1, 1)
    # The two variants are different pictures.
    assert len(found.train) == (14 if variant == "detected" else 15)
    with h5py.File(made.root / MAT) as file:
        cell = file[file[file[variant][0][0]][0][0]][:]
    assert np.array_equal(np.array(Image.open(first.path)), cell.T)


def test_the_classic_protocol(classic: Any) -> None:
    tested = set()
    for split in (1, 2, 20):
        found = classic.read(split=split)
        assert found.name == f"CUHK03 detected, classic split {split} of 20"
        assert found.protocol == SINGLE_GALLERY_SHOT
        assert found.query == found.gallery
        people = {record.person for record in found.query}
        assert len(people) == 2
        assert not people & set(found.people())
        assert len(found.people()) == 6
        assert len(found.train) + len(found.query) == 30
        tested.add(tuple(sorted(people)))
    assert len(tested) == 3
    assert classic.read().name == classic.read(split=1).name
    classic.refused("CUHK03, classic protocol has the splits 1 to 20, not 21", split=21)


def test_published_numbers() -> None:
    new, classic = SETS["cuhk03"].published, SETS["cuhk03-classic"].published
    for variant, pictures in (("detected", 14_097), ("labeled", 14_096)):
        parts = new[variant].parts
        # Every picture is in one part.
        assert sum(parts[part].pictures or 0 for part in ("train", "query", "gallery")) == pictures
        assert parts["train"].people == 767
        assert parts["query"] == Tally(1_400, 700, 2)
        assert classic[variant].parts["train and test"] == Tally(pictures, 1_467, 2)
        assert SETS["cuhk03-np"].published[variant] == new[variant]


def test_folders(draw: Draw) -> None:
    for variant, pictures in (("detected", 12), ("labeled", 18)):
        made = draw("cuhk03-np", variant)
        found = made.read()
        assert (found.name, len(found.train)) == (f"CUHK03-NP {variant}", pictures)
        assert found.root == made.root / variant
        # One of the folders alone tells the variant by its name.
        assert made.read(made.root / variant, variant=None).variant == variant
        other = "labeled" if variant == "detected" else "detected"
        made.refused(f"holds the {variant} pictures", root=made.root / variant, variant=other)
        shutil.rmtree(made.root / other)
        made.refused(f"{made.root / other}: no such folder; there is {variant} beside it", variant=other)
        assert made.read(variant=None).variant == variant
        shutil.rmtree(made.root)


# --- taking the pictures out --------------------------------------------------------------------------------------


def test_pictures_are_taken_out_once(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[int, int]] = []
    first = raw.read(progress=lambda done, total: steps.append((done, total)))
    assert steps == [(i, 30) for i in range(1, 31)]
    before = {path: path.stat().st_mtime_ns for path in (raw.root / "images_detected").iterdir()}
    assert not (raw.root / "images_labeled").exists()

    def fail(*_: object) -> None:
        raise AssertionError("opened again")

    monkeypatch.setattr(cuhk03_mat, "opened", fail)
    assert raw.read() == first
    assert {path: path.stat().st_mtime_ns for path in (raw.root / "images_detected").iterdir()} == before


def test_an_interrupted_extraction_goes_on(raw: Any) -> None:
    def stop(done: int, total: int) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        raw.read(progress=stop)
    folder = raw.root / "images_detected"
    kept = sorted(folder.iterdir())
    assert len(kept) == 11
    stamps = [path.stat().st_mtime_ns for path in kept[:10]]
    # A file that somebody else left half written is made again.
    kept[10].write_bytes(kept[10].read_bytes()[:40])
    found = raw.read()
    assert [path.stat().st_mtime_ns for path in kept[:10]] == stamps
    for record in (*found.train, *found.query, *found.gallery):
        Image.open(record.path).load()
    assert not list(folder.glob(".*"))


def test_several_at_once(raw: Any) -> None:
    """As the processes of one training do."""
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: raw.read(), range(3)))
    assert found[0] == found[1] == found[2]
    folder = raw.root / "images_detected"
    assert len(list(folder.glob("*.png"))) == 30
    assert not list(folder.glob(".*"))


def test_a_picture_that_went_missing_is_made_again(raw: Any) -> None:
    record = raw.read().train[3]
    record.path.unlink()
    assert raw.read().train[3] == record
    assert record.path.is_file()


def test_nothing_stored_knows_where_it_is(raw: Any, tmp_path: Path) -> None:
    raw.read()
    for file in (raw.root / "images_detected").glob("*.json"):
        assert str(tmp_path) not in file.read_text()
    moved = Path(shutil.move(raw.root, tmp_path / "elsewhere"))
    found = raw.read(moved)
    assert all(record.path.is_relative_to(moved) for record in (*found.train, *found.query, *found.gallery))


def test_pictures_elsewhere(classic: Any, tmp_path: Path) -> None:
    output = tmp_path / "output"
    assert cuhk03.extract_all(classic.root, output) == {"detected": 30, "labeled": 31}
    assert not (classic.root / "images_detected").exists()
    shutil.rmtree(classic.root)
    # The new folder is all that it takes.
    found = classic.read(output, split=3)
    assert len(found.query) == 8
    assert found.root == output
    assert open_set("cuhk03", output, variant="labeled", counts="any").train
    assert "cuhk-03.mat" not in {path.name for path in output.rglob("*")}


def test_the_archive_folder_itself(raw: Any) -> None:
    found = raw.read(raw.root / "cuhk03_release")
    assert found.root == raw.root / "cuhk03_release"
    assert len(found.train) == 14


def test_a_folder_that_cannot_be_written(raw: Any) -> None:
    (raw.root / "images_detected").write_text("a file")
    raw.refused(f"{raw.root / 'images_detected'}: the pictures cannot be written", "mgran-fast datasets extract")


def test_a_full_disk(raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    room, replace = iter(range(12)), os.replace

    def until_full(draft: Path, path: Path) -> None:
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(draft, path)

    monkeypatch.setattr("os.replace", until_full)
    raw.refused("images_detected: the pictures cannot be written (No space left on device); make room there")
    monkeypatch.setattr("os.replace", replace)
    assert len(list((raw.root / "images_detected").glob("*.png"))) == 12
    assert len(raw.read().train) == 14


# --- what is refused ----------------------------------------------------------------------------------------------


def test_missing_files(raw: Any, tmp_path: Path) -> None:
    raw.refused("no such folder; give the folder that holds cuhk03_release/cuhk-03.mat", root=tmp_path / "nowhere")
    (raw.root / MAT).rename(tmp_path / "mat")
    raw.refused(f"{raw.root / MAT}: no such file; put the published cuhk-03.mat there")
    (tmp_path / "mat").rename(raw.root / MAT)
    (raw.root / CONFIG).unlink()
    raw.refused(f"{raw.root / CONFIG}: no such file; the new protocol's files come apart")


@pytest.mark.parametrize("name", ["cuhk03", "cuhk03-classic"])
def test_unreadable_mat(name: str, draw: Draw) -> None:
    made = draw(name, "detected")
    path = made.root / MAT
    content = path.read_bytes()
    for broken in (b"", b"not HDF5 at all" * 100, content[: len(content) // 2], content[:700]):
        path.write_bytes(broken)
        line = made.refused(f"{path}: cannot be read as a MATLAB file", "copy the published file again")
        assert len(line) < 500
    path.write_bytes(content)
    with h5py.File(path, "r+") as file:
        del file["testsets"]
    made.refused(f"{path}: holds no testsets: not CUHK03's file")


def test_a_mat_with_other_things_in_it(raw: Any) -> None:
    path = raw.root / MAT
    with h5py.File(path, "r+") as file:
        del file["detected"]
        file["detected"] = np.zeros((1, 5))
    raw.refused(f"{path}: cannot be read as a MATLAB file")


def test_a_mat_with_an_odd_picture(raw: Any) -> None:
    path = raw.root / MAT
    with h5py.File(path, "r+") as file:
        first = file[file["detected"][0][0]]
        file["odd"] = np.zeros((3, 8, 16))
        first[0, 0] = file["odd"].ref
    raw.refused(f"{path}: cannot be read as a MATLAB file (1_001_1_01.png: float64 (16, 8, 3), not a colour picture)")


def test_unreadable_config(raw: Any) -> None:
    path = raw.root / CONFIG
    content = path.read_bytes()
    for broken in (b"", b"not a MATLAB file" * 50, content[: len(content) // 2]):
        path.write_bytes(broken)
        raw.refused(f"{path}: ", "copy the published file again")
    path.write_bytes(content)
    change(raw, labels=None, query_idx=None)
    raw.refused(f"{path}: holds no query_idx, no labels: not a file of the new protocol")


def test_wrong_names(raw: Any, classic: Any) -> None:
    for name, words in (
        ("1_001_3_01.png", "names that do not read as 1_001_1_01.png: 1_001_3_01.png"),
        ("../1_001_1_01.png", "leads out of the data set"),
        ("/etc/passwd", "leads out of the data set"),
        ("C:\\1_001_1_01.png", "leads out of the data set"),
    ):
        filelist = config(raw)["filelist"]
        filelist[0, 0] = name
        change(raw, filelist=filelist)
        raw.refused(str(raw.root / CONFIG), words)
    classic.read()
    (classic.root / "images_detected" / "picture.png").touch()
    classic.refused("picture.png: 1 name unlike 1_001_1_01.png")


def test_an_index_that_is_used_twice(raw: Any) -> None:
    found = config(raw)
    twice = found["gallery_idx"].copy()
    twice[0] = found["query_idx"][0]
    change(raw, gallery_idx=twice)
    raw.refused(f"the picture {int(found['query_idx'][0, 0])} (1_001_1_01.png) is used twice")
    change(raw, gallery_idx=np.array([[31]]))
    raw.refused("gallery has the picture 31 of 30")
    change(raw, gallery_idx=np.array([[0.5]]))
    raw.refused("gallery_idx must be whole numbers")


def test_a_person_who_is_there_twice(raw: Any, classic: Any) -> None:
    found = config(raw)
    labels = found["labels"].copy()
    labels[1] = 99
    change(raw, labels=labels)
    raw.refused("person 99 and 1_001 (1_001_1_02.png) are not one and the same", "a person is there twice")
    labels = found["labels"].copy()
    labels[labels == 8] = 1
    change(raw, labels=labels)
    raw.refused("a person is there twice")
    filelist = found["filelist"].copy()
    filelist[1, 0] = "1_001_1_01.png"
    change(raw, filelist=filelist, labels=found["labels"])
    raw.refused("1 pictures are named twice")
    with h5py.File(classic.root / MAT, "r+") as file:
        file[file["testsets"][0][0]][...] = [[1, 1], [2, 2]]
    classic.refused("split 1 has a person twice (1_002)")


def test_people_on_both_sides(raw: Any) -> None:
    found = config(raw)
    change(
        raw, train_idx=np.vstack((found["train_idx"], found["gallery_idx"][:1])), gallery_idx=found["gallery_idx"][1:]
    )
    raw.refused(f"{raw.root / CONFIG}: 1 person in train and in test (1)", counts="any")


def test_a_picture_that_the_mat_lacks(raw: Any, classic: Any) -> None:
    filelist = config(raw)["filelist"]
    filelist[0, 0] = "1_001_1_05.png"
    change(raw, filelist=filelist)
    raw.refused("1_001_1_05.png", f"{CONFIG} names it, and it is not there, one of 1 such")
    with h5py.File(classic.root / MAT, "r+") as file:
        file[file["testsets"][0][0]][...] = [[1, 5], [1, 9]]
    classic.refused("split 1 has people of whom there is no picture", "(5_009)")


def test_wrong_counts(raw: Any) -> None:
    found = config(raw)
    change(raw, gallery_idx=found["gallery_idx"][1:])
    raw.refused("not the drawn numbers of CUHK03 detected, new protocol: gallery: 7 pictures instead of 8")
    assert len(raw.read(counts="any").gallery) == 7


def test_test_sets_that_are_broken(classic: Any, tmp_path: Path) -> None:
    output = tmp_path / "output"
    cuhk03.extract_all(classic.root, output)
    (output / cuhk03.TEST_SETS).write_text("[[[1]]]")
    classic.refused(f"{output / cuhk03.TEST_SETS}: no test sets", root=output)


@pytest.mark.parametrize("package", ["h5py", "scipy"])
def test_a_package_that_is_not_installed(package: str, raw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MGRANError, match=rf"take {package}, which is not installed: pip install 'mgran_fast\[datasets\]'"
    ):
        raw.read()


def test_pictures_that_others_took_out(raw: Any, tmp_path: Path) -> None:
    """Their folder, without ``cuhk-03.mat``, will do for the new protocol."""
    raw.read()
    (raw.root / "images_detected" / cuhk03_mat.DONE).unlink()
    (raw.root / MAT).unlink()
    assert len(raw.read().train) == 14
    with pytest.raises(DataError, match=r"cuhk-03\.mat: no such file"):
        open_set("cuhk03-classic", raw.root, counts="any")
