"""Labelled pictures of a folder, and the crops of single people that are cut from labelled pictures."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from mgran_fast.data import BadPicture, DataSet, read_mask, read_picture
from mgran_fast.data.folder import list_pictures, read_folder
from mgran_fast.data.labels import (
    LabelledBatch,
    LabelledCrop,
    LabelledPicture,
    PersonCrops,
    PictureDataset,
    collate_crops,
    collate_pictures,
    crops,
    digest,
)
from mgran_fast.data.synthetic import write
from mgran_fast.errors import DataError

SIZE = (32, 16)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write(tmp_path_factory.mktemp("tiny") / "data", people=(2, 2), cameras=1, views=2, size=SIZE)


@pytest.fixture
def copied(tiny: DataSet, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.root, tmp_path / "copied"))


def crop(dataset: PersonCrops, item: int | tuple[int, int]) -> LabelledCrop:
    found = dataset[item]
    assert isinstance(found, LabelledCrop), found
    return found


def edit(root: Path, change: Any) -> None:
    table = json.loads((root / "keypoints.json").read_text())
    change(table)
    (root / "keypoints.json").write_text(json.dumps(table))


# --- folders --------------------------------------------------------------------------------------------------


def test_a_folder_as_labelled_pictures(tiny: DataSet) -> None:
    found = read_folder(tiny.root)
    assert (found.name, found.notes, found.people()) == ("data", (), 8)
    assert [one.path for one in found.pictures] == sorted(list_pictures(tiny.root))
    table = json.loads((tiny.root / "keypoints.json").read_text())
    for one in found.pictures:
        place = one.path.relative_to(tiny.root)
        assert (len(one), one.shape, one.boxes.tolist()) == (1, SIZE, [[0, 0, 16, 32]])
        assert np.array_equal(one.read(), read_picture(one.path))
        assert np.array_equal(one.masks()[0], read_mask(tiny.root / "masks" / place.with_suffix(".png")))
        assert np.array_equal(one.keypoints[0], np.float32(table[place.as_posix()]["keypoints"]))
        assert (one.has_mask.tolist(), one.has_keypoints.tolist(), one.presence.tolist()) == ([True], [True], [1.0])
        assert one.keypoints.dtype == one.boxes.dtype == one.presence.dtype == np.float32


def test_parts_of_a_market_style_folder(tiny: DataSet) -> None:
    train, test = (list_pictures(tiny.root, part) for part in ("train", "test"))
    assert {path.parent.name for path in train} == {"bounding_box_train"}
    assert {path.parent.name for path in test} == {"query", "bounding_box_test"}
    with pytest.raises(ValueError, match="part must be one of all, train, test, not 'query'"):
        list_pictures(tiny.root, "query")


def test_any_folder_of_crops(tiny: DataSet, tmp_path: Path) -> None:
    """Pictures at the top and deep below, hidden folders and the masks left out, the same name twice."""
    for number, place in enumerate(["a.jpg", "x/y/a.jpg", "z/y/a.jpg", ".hidden/a.jpg"]):
        file = tmp_path / place
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16), (number, 0, 0)).save(file)
        mask = tmp_path / "masks" / Path(place).with_suffix(".png")
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 8), 50 * number).save(mask)
    found = read_folder(tmp_path)
    assert [one.path.relative_to(tmp_path).as_posix() for one in found.pictures] == ["a.jpg", "x/y/a.jpg", "z/y/a.jpg"]
    assert [int(one.masks().max()) for one in found.pictures] == [0, 50, 100]
    assert [one.has_keypoints.tolist() for one in found.pictures] == [[False]] * 3


def test_labels_of_another_folder(copied: Path, tmp_path: Path) -> None:
    other = tmp_path / "labels"
    other.mkdir()
    (copied / "masks").rename(other / "masks")
    (copied / "keypoints.json").rename(other / "keypoints.json")
    found = read_folder(copied, labels=[other])
    assert len(found.pictures) == 8
    assert all(one.masks().max() > 200 for one in found.pictures)


def test_pictures_without_labels_are_counted(copied: Path) -> None:
    names = [path.relative_to(copied) for path in list_pictures(copied)]
    for place in names[:3]:
        (copied / "masks" / place.with_suffix(".png")).unlink()
    edit(copied, lambda table: [table.pop(place.as_posix()) for place in names[1:5]])
    found = read_folder(copied)
    assert [one.path.relative_to(copied) for one in found.pictures] == [names[0], *names[3:]]
    assert [bool(one.has_mask[0]) for one in found.pictures[:3]] == [False, True, True]
    assert [bool(one.has_keypoints[0]) for one in found.pictures[:3]] == [True, False, False]
    assert found.notes == (f"{copied}: 2 of 8 pictures have neither a mask nor keypoints, left out",)
    every = read_folder(copied, unlabelled=True)
    assert [one.path.relative_to(copied) for one in every.pictures] == names
    assert "left out" not in every.notes[0]


def test_what_the_presence_is_where_nobody_tells(copied: Path) -> None:
    names = [path.relative_to(copied).as_posix() for path in list_pictures(copied)]

    def change(table: Any) -> None:
        for name in names[:3]:
            del table[name]["presence"]
        table[names[1]]["keypoints"] = [[1, 2, 0.25]] * 17

    edit(copied, change)
    (copied / "masks" / names[1]).with_suffix(".png").unlink()
    mask = (copied / "masks" / names[2]).with_suffix(".png")
    Image.fromarray(np.full(SIZE, 51, np.uint8)).save(mask)
    found = read_folder(copied)
    assert np.isnan([one.presence[0] for one in found.pictures[:4]]).tolist() == [True] * 3 + [False]
    dataset = crops(found.pictures, SIZE)
    assert [crop(dataset, i).presence for i in range(4)] == pytest.approx([1.0, 0.25, 0.2, 1.0], abs=0.02)


def test_a_presence_alone_is_no_keypoints(copied: Path) -> None:
    names = [path.relative_to(copied).as_posix() for path in list_pictures(copied)]
    (copied / "masks" / names[1]).with_suffix(".png").unlink()
    edit(
        copied, lambda table: table.update({names[0]: {"presence": 0.9, "keypoints": None}, names[1]: {"presence": 0}})
    )
    first, second, third = read_folder(copied).pictures[:3]
    assert (first.has_mask.tolist(), first.has_keypoints.tolist()) == ([True], [False])
    assert (second.has_mask.tolist(), second.has_keypoints.tolist(), second.presence.tolist()) == (
        [False],
        [False],
        [0],
    )
    assert third.has_keypoints.tolist() == [True]


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01"])
def test_broken_exif_data_spoils_nothing(exif: bytes, tmp_path: Path) -> None:
    """Pillow warns of it, and warnings are errors here."""
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (16, 32)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (16, 32), 255).save(tmp_path / "masks" / "a.png")
    one = read_folder(tmp_path).pictures[0]
    assert one.shape == one.read().shape[:2] == SIZE


def test_a_turned_picture(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 16))
    exif = picture.getexif()
    exif[0x0112] = 6
    (tmp_path / "masks").mkdir()
    picture.save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (8, 16), 255).save(tmp_path / "masks" / "a.png")
    one = read_folder(tmp_path).pictures[0]
    assert one.shape == one.read().shape[:2] == (32, 16)
    assert one.masks().min() == 255


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: shutil.rmtree(root / "masks"), "masks: no such folder"),
        (lambda root: (root / "keypoints.json").write_text("{"), "keypoints.json: not valid JSON"),
        (lambda root: (root / "keypoints.json").write_text("[]"), "keypoints.json: must be an object"),
        (lambda root: edit(root, lambda t: t["query/0003_c1_00.jpg"].update(keypoints=[[1, 2, 9]] * 17)), "query/0003"),
    ],
)
def test_a_folder_with_broken_labels(change: Any, words: str, copied: Path) -> None:
    change(copied)
    with pytest.raises(DataError, match=words):
        read_folder(copied)


def test_a_folder_that_is_none(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(DataError, match="none: no such folder; give a folder of crops, or a COCO file"):
        read_folder(tmp_path / "none")
    with pytest.raises(DataError, match=r"keypoints\.json: a file, not a folder"):
        read_folder(copied / "keypoints.json")
    (tmp_path / "empty" / "masks").mkdir(parents=True)
    with pytest.raises(DataError, match="empty: no pictures"):
        read_folder(tmp_path / "empty")
    shutil.rmtree(copied / "masks")
    (copied / "masks").mkdir()
    (copied / "keypoints.json").unlink()
    with pytest.raises(DataError, match="has neither a mask nor keypoints for any of its 8 pictures"):
        read_folder(copied)


# --- crops of people --------------------------------------------------------------------------------------------


class Square:
    """A mask at half the picture's resolution: the person of number k is a square of value 100 + k."""

    def mask(self, person: int) -> NDArray[np.uint8]:
        mask = np.zeros((20, 30), np.uint8)
        mask[5:10, 10 * person : 10 * person + 5] = 100 + person
        return mask


@pytest.fixture
def scene(tmp_path: Path) -> LabelledPicture:
    """40x60 pixels, every pixel of its own colour, with two people: 0 all known, 1 without keypoints and presence."""
    y, x = np.mgrid[:40, :60].astype(np.uint8)
    Image.fromarray(np.dstack([x * 4, y * 6, x + y])).save(tmp_path / "scene.png")
    keypoints = np.zeros((2, 17, 3), np.float32)
    keypoints[0] = [5.5, 12.5, 1.0]
    return LabelledPicture(
        tmp_path / "scene.png",
        (40, 60),
        np.float32([[0, 10, 10, 20], [20, 10, 30, 20]]),
        keypoints,
        np.array([True, False]),
        np.float32([0.75, np.nan]),
        np.array([True, True]),
        Square(),
    )


def test_a_crop_of_each_person(scene: LabelledPicture) -> None:
    dataset = crops([scene], (10, 10))
    assert len(dataset) == 2
    first, second = crop(dataset, 0), crop(dataset, 1)
    assert np.array_equal(first.crop.numpy(), scene.read()[10:20, 0:10])
    assert np.array_equal(second.crop.numpy(), scene.read()[10:20, 20:30])
    # Beyond the border of the box lies background, which a mask of half the resolution reaches into.
    assert bool((first.mask[1:-1, :-1] == 100).all())
    assert bool((second.mask[1:-1, 1:-1] == 101).all())
    assert torch.equal(first.keypoints, torch.tensor([5.5, 2.5, 1.0]).expand(17, 3))
    assert (second.keypoints == 0).all()
    assert (first.has_keypoints, second.has_keypoints, first.presence) == (True, False, 0.75)
    assert second.presence == pytest.approx(101 / 255)


def test_a_margin_stays_inside_the_picture(scene: LabelledPicture) -> None:
    """Person 0 stands at the left border: the box grows to three sides only, and labels move along."""
    found = crop(crops([scene], (20, 30), 0.5), 0)
    assert np.array_equal(found.crop.numpy()[::4, ::6][:, :1], np.array(Image.fromarray(scene.read()).resize(
        (30, 20), Image.Resampling.BILINEAR, box=(0, 5, 15, 25)))[::4, ::6][:, :1])  # fmt: skip
    assert torch.allclose(found.keypoints[0], torch.tensor([11.0, 7.5, 1.0]))
    assert found.mask[5:15, 0:19].float().mean() > 90
    assert found.mask[17:, :].max() == 0


def test_jitter_needs_a_seed_and_moves_labels_along(scene: LabelledPicture) -> None:
    still, moving = crops([scene], (40, 40)), crops([scene], (40, 40), jitter=0.3)
    assert torch.equal(crop(still, 1).crop, crop(moving, 1).crop)
    seen = [crop(moving, (1, seed)) for seed in (1, 1, 2)]
    assert torch.equal(seen[0].crop, seen[1].crop)
    assert not torch.equal(seen[0].crop, seen[2].crop)
    # A pixel's colour is its place: the keypoint must lie on the pixel that it marked.
    for seed in range(5):
        one = crop(moving, (0, seed))
        x, y = one.keypoints[0, :2].tolist()
        red, green, _ = one.crop[int(y), int(x)].tolist()
        assert abs(red / 4 + 0.5 - 5.5) < 0.8
        assert abs(green / 6 + 0.5 - 12.5) < 0.8


def test_small_people_and_pictures_without_people(scene: LabelledPicture) -> None:
    empty = LabelledPicture(
        scene.path, (40, 60), np.zeros((0, 4), np.float32), np.zeros((0, 17, 3), np.float32), np.zeros(0, np.bool_),
        np.zeros(0, np.float32), np.zeros(0, np.bool_),
    )  # fmt: skip
    assert len(crops([scene], SIZE, smallest=11.0)) == 0
    assert len(crops([scene, empty], SIZE)) == 2
    both = crops([scene, empty], SIZE, background=True)
    assert len(both) == 3
    nobody = crop(both, 2)
    assert (nobody.presence, nobody.has_mask, nobody.has_keypoints, int(nobody.mask.max())) == (0.0, True, False, 0)
    assert torch.equal(nobody.crop, crop(both, 2).crop)
    assert not torch.equal(nobody.crop, crop(both, (2, 5)).crop)
    assert empty.masks().shape == (0, 40, 60)


def test_tiny_and_odd_boxes(tmp_path: Path, scene: LabelledPicture) -> None:
    """Boxes under a pixel and at the border give a crop, whatever the jitter does."""
    boxes = np.float32([[59.9, 39.9, 60, 40], [0, 0, 0.1, 40]])
    odd = LabelledPicture(scene.path, (40, 60), boxes, *(getattr(scene, n) for n in _REST))
    dataset = crops([odd], (7, 5), 0.1, jitter=0.49)
    for seed in range(20):
        for person in range(2):
            assert crop(dataset, (person, seed)).crop.shape == (7, 5, 3)


_REST = ("keypoints", "has_keypoints", "presence", "has_mask", "source")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (0, 5)}, "size must be"),
        ({"margin": float("nan")}, "margin must be"),
        ({"jitter": 0.5}, "jitter must"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], words: str, scene: LabelledPicture) -> None:
    with pytest.raises(ValueError, match=words):
        crops([scene], **options)


# --- batches ----------------------------------------------------------------------------------------------------


def test_bad_pictures_travel_with_the_batch(copied: Path) -> None:
    paths = list_pictures(copied)
    paths[0].write_bytes(b"no picture")
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    Image.new("L", (64, 64)).save((copied / "masks" / paths[2].relative_to(copied)).with_suffix(".png"))
    found = read_folder(copied)
    (copied / "masks" / paths[3].relative_to(copied)).with_suffix(".png").unlink()
    dataset = crops(found.pictures, SIZE, smallest=10.0)
    assert len(dataset) == 8
    batch = collate_crops([dataset[i] for i in range(8)])
    assert len(batch) == 4
    assert batch.indices.tolist() == [4, 5, 6, 7]
    assert [bad.index for bad in batch.bad] == [0, 1, 2, 3]
    for bad, path, words in zip(
        batch.bad, paths, ["not a picture", "cannot be read", "aspect", "has gone"], strict=False
    ):
        assert path.stem in bad.message
        assert words in bad.message
        assert "\n" not in bad.message
    only_bad = collate_crops(list(batch.bad))
    assert (len(only_bad), only_bad.crops.shape, only_bad.masks.shape) == (0, (0, *SIZE, 3), (0, *SIZE))
    assert only_bad.keypoints.shape == (0, 17, 3)
    pictures = collate_pictures([PictureDataset(found.pictures)[i] for i in range(8)])
    assert len(pictures) == 4
    assert len(pictures.bad) == 4


def test_who_is_not_there_is_no_target_of_whole_pictures(copied: Path) -> None:
    names = [path.relative_to(copied).as_posix() for path in list_pictures(copied)]

    def change(table: Any) -> None:
        table[names[0]]["presence"] = 0.4
        table[names[1]]["presence"] = 0.5
        for name in names[2:4]:
            del table[name]["presence"]

    edit(copied, change)
    Image.new("L", (16, 32)).save((copied / "masks" / names[2]).with_suffix(".png"))
    batch = collate_pictures([PictureDataset(read_folder(copied).pictures)[i] for i in range(4)])
    assert [len(target["boxes"]) for target in batch.targets] == [0, 1, 0, 1]
    for target in batch.targets:
        assert {len(values) for values in target.values()} == {len(target["boxes"])}


def test_a_picture_that_was_exchanged(copied: Path) -> None:
    found = read_folder(copied)
    Image.new("RGB", (100, 200)).save(found.pictures[0].path)
    bad = crops(found.pictures, SIZE)[0]
    assert isinstance(bad, BadPicture)
    assert "the picture is 200x100 (height x width), its labels are for 32x16" in bad.message


def test_batches_move_as_a_whole(tiny: DataSet) -> None:
    dataset = crops(read_folder(tiny.root).pictures, (16, 8))
    batch = collate_crops([dataset[i] for i in range(3)])
    assert isinstance(batch, LabelledBatch)
    assert (len(batch), batch.crops.shape, batch.masks.shape) == (3, (3, 16, 8, 3), (3, 16, 8))
    assert batch.crops.dtype == batch.masks.dtype == torch.uint8
    away = batch.to("meta")
    assert {t.device.type for t in vars(away).values() if isinstance(t, torch.Tensor)} == {"meta"}
    whole = collate_pictures([PictureDataset(read_folder(tiny.root).pictures)[i] for i in range(2)])
    assert whole.pictures[0].shape == (*SIZE, 3)
    assert {name: tuple(t.shape) for name, t in whole.targets[0].items()} == {
        "boxes": (1, 4), "masks": (1, *SIZE), "keypoints": (1, 17, 3), "has_mask": (1,), "has_keypoints": (1,)
    }  # fmt: skip
    assert whole.to("meta").targets[1]["masks"].device.type == "meta"


def test_data_sets_are_pickled(tiny: DataSet) -> None:
    dataset = crops(read_folder(tiny.root).pictures, SIZE)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(crop(again, 3).mask, crop(dataset, 3).mask)


def test_the_digest_sees_names_and_labels(copied: Path, tiny: DataSet) -> None:
    before = digest(read_folder(tiny.root).pictures)
    assert digest(read_folder(copied).pictures) == before
    edit(copied, lambda table: table["query/0003_c1_00.jpg"].update(presence=0.5))
    assert digest(read_folder(copied).pictures) != before
    assert digest(read_folder(tiny.root).pictures[1:]) != before


@pytest.mark.real_data
def test_real_crops(real_data: Path) -> None:
    found = read_folder(real_data, part="test")
    assert len(found.pictures) > 900
    sample = crop(crops(found.pictures), 0)
    assert sample.crop.shape == (256, 128, 3)
    assert sample.has_mask
    assert sample.has_keypoints
