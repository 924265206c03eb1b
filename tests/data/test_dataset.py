"""Pictures, masks and keypoints from files, and the data set that puts them together."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mgran_fast import ops
from mgran_fast.aspect import same_aspect
from mgran_fast.data import (
    Augment,
    BadPicture,
    Batch,
    CropDataset,
    MaskFiles,
    PKBatchSampler,
    Problems,
    Record,
    Sample,
    collate,
    pictures,
    read_mask,
    read_picture,
)
from mgran_fast.data.pictures import read_picture_and_shape
from mgran_fast.errors import DataError

HEIGHT, WIDTH = 32, 16


def joints(score: float = 1.0) -> list[list[float]]:
    """An upright person in the middle of a 32 x 16 crop."""
    heights = [4, 3, 3, 4, 4, 8, 8, 12, 12, 15, 15, 16, 16, 22, 22, 29, 29]
    return [[8 + (0 if i == 0 else 3 if i % 2 else -3), y, score] for i, y in enumerate(heights)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four crops of two people, with masks (half the crop's size) and keypoints."""
    rng = np.random.default_rng(0)
    table = {}
    for folder in ("bounding_box_train", "masks/bounding_box_train"):
        (tmp_path / folder).mkdir(parents=True)
    for person in (1, 2):
        for camera in (1, 2):
            name = f"000{person}_c{camera}_0"
            picture = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "bounding_box_train" / f"{name}.png")
            mask = np.zeros((HEIGHT // 2, WIDTH // 2), np.uint8)
            mask[1:15, 2:6] = 255
            Image.fromarray(mask).save(tmp_path / "masks" / "bounding_box_train" / f"{name}.png")
            table[f"bounding_box_train/{name}.png"] = {"presence": 0.75, "keypoints": joints()}
    (tmp_path / "keypoints.json").write_text(json.dumps(table))
    return tmp_path


def records(root: Path) -> list[Record]:
    paths = sorted((root / "bounding_box_train").iterdir())
    return [Record(path, int(path.name[:4]), int(path.name[6])) for path in paths]


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the keypoint file."""
    file = root / "keypoints.json"
    table = json.loads(file.read_text())
    change(table)
    file.write_text(json.dumps(table))
    return file


FIRST = "bounding_box_train/0001_c1_0.png"


def test_picture_is_rgb_and_resized(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(read, pixels)
    assert read.flags.writeable
    resized, shape = read_picture_and_shape(str(tmp_path / "a.png"), (12, 9))
    assert resized.shape == (12, 9, 3)
    assert shape == (6, 4)
    assert abs(resized.mean() - pixels.mean()) < 8


@pytest.mark.parametrize("by_torch", [True, False])
@pytest.mark.parametrize("shape", [(6, 4), (128, 64), (301, 140), (97, 41), (64, 300), (1, 1)])
def test_resizing_is_pillows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], by_torch: bool
) -> None:
    monkeypatch.setattr(pictures, "_torch_resizes", lambda: by_torch)
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.asarray(Image.fromarray(pixels).resize((64, 128), Image.Resampling.BILINEAR))
    read = read_picture(tmp_path / "a.png", (128, 64))
    assert read.flags.writeable
    assert read.flags.c_contiguous
    error = np.abs(read.astype(int) - expected)
    assert error.max() <= (1 if by_torch else 0)
    assert error.mean() < 0.4


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = np.zeros((4, 6), np.uint8)
    grey[:, 3:] = 255
    picture = Image.fromarray(grey)
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode != "L":
        picture = picture.convert("RGB").convert(mode)
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(file)
    read = read_picture(file)
    assert read.shape == (4, 6, 3)
    assert np.abs(read.astype(int) - grey[..., None]).max() <= (40 if mode == "CMYK" else 0)
    if mode != "CMYK":
        np.testing.assert_array_equal(read_mask(file), grey)


def test_what_is_transparent_becomes_black(tmp_path: Path) -> None:
    pixels = np.full((2, 2, 4), 200, np.uint8)
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png")[..., 0].tolist() == [[0, 0], [200, 200]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 80, 80, 80])
    palette.save(tmp_path / "p.png", transparency=b"\x00\xff")
    assert read_picture(tmp_path / "p.png")[..., 1].tolist() == [[0, 80]]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    read, shape = read_picture_and_shape(tmp_path / "a.png")
    assert shape == (16, 8)
    assert read[:8].min() == 255
    assert read[8:].max() == 0


def test_broken_exif_is_ignored(tmp_path: Path) -> None:
    # Pillow warns of it, and warnings are errors here.
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert read_picture(tmp_path / "a.jpg").shape == (4, 4, 3)


@pytest.mark.parametrize("read", [read_picture, read_mask])
def test_unreadable_pictures(tmp_path: Path, read: Callable[[Path], object]) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    cut, text, empty = tmp_path / "cut.jpg", tmp_path / "text.jpg", tmp_path / "empty.png"
    cut.write_bytes(whole.read_bytes()[:-500])
    text.write_text("no picture")
    empty.touch()
    cases = {
        cut: "truncated",
        text: "not a picture",
        empty: "empty",
        tmp_path / "gone.jpg": "no such",
        tmp_path: "folder",
    }
    for path, reason in cases.items():
        with pytest.raises(DataError, match=reason) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        assert ";" in message


def test_find(root: Path) -> None:
    masks = MaskFiles(root)
    source = masks.find(root / FIRST, (HEIGHT, WIDTH))
    assert source is not None
    assert source.mask.dtype == np.uint8
    assert source.mask.shape == (HEIGHT // 2, WIDTH // 2)
    assert source.mask.max() == 255
    np.testing.assert_array_equal(source.keypoints, np.array(joints(), np.float32))
    assert source.keypoints.dtype == np.float32
    assert source.presence == 0.75
    # A crop that lies elsewhere is looked up by its folder's name and its own.
    assert masks.find(Path("elsewhere") / FIRST, (HEIGHT, WIDTH)) is not None
    assert masks.find(root / "query" / "0001_c1_0.png", (HEIGHT, WIDTH)) is None
    # What was handed out is the caller's.
    source.keypoints[:] = -1
    again = pickle.loads(pickle.dumps(masks)).find(root / FIRST, (HEIGHT, WIDTH))
    assert again is not None
    assert again.keypoints[0, 2] == 1


def test_parts_that_are_missing(root: Path) -> None:
    edit(root, lambda table: (table.pop(FIRST), table["bounding_box_train/0001_c2_0.png"].pop("keypoints")))
    masks = MaskFiles(root)
    source = masks.find(root / FIRST, (HEIGHT, WIDTH))
    assert source is not None
    assert not source.keypoints.any()
    assert source.presence == 1.0  # the mask's own
    source = masks.find(root / "bounding_box_train" / "0001_c2_0.png", (HEIGHT, WIDTH))
    assert source is not None
    assert not source.keypoints.any()
    masks.mask_path(root / "bounding_box_train" / "0002_c1_0.png").unlink()
    source = masks.find(root / "bounding_box_train" / "0002_c1_0.png", (HEIGHT, WIDTH))
    assert source is not None
    assert not source.has_mask
    assert not source.mask.any()
    assert source.keypoints.any()
    (root / "keypoints.json").unlink()
    assert MaskFiles(root).find(root / FIRST, (HEIGHT, WIDTH)) is not None


def test_no_masks_folder(root: Path) -> None:
    assert MaskFiles.available(root)
    assert not MaskFiles.available(root / "bounding_box_train")
    with pytest.raises(DataError, match="masks: no such folder"):
        MaskFiles(root / "bounding_box_train")


def test_pictures_deeper_than_their_masks(root: Path) -> None:
    (root / "inner").mkdir()
    (root / "bounding_box_train").rename(root / "inner" / "bounding_box_train")
    masks, path = MaskFiles(root), root / "inner" / FIRST
    source = masks.find(path, (HEIGHT, WIDTH))
    assert source is not None
    assert source.has_mask
    assert source.keypoints.any()
    assert masks.mask_path(path) == (root / "masks" / FIRST)
    masks.check(records(root / "inner"), "training")
    # Keypoints alone are found there too, and a mask in the same place below the root goes first.
    masks.mask_path(path).unlink()
    source = masks.find(path, (HEIGHT, WIDTH))
    assert source is not None
    assert not source.has_mask
    own = root / "masks" / "inner" / FIRST
    own.parent.mkdir(parents=True)
    Image.new("L", (WIDTH, HEIGHT), 9).save(own)
    assert masks.mask_path(path) == own
    # Where nothing is known, the place below the root is the one to name.
    assert masks.mask_path(root / "inner" / "query" / "x.jpg") == root / "masks" / "inner" / "query" / "x.png"


def test_not_one_mask_is_noticed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, rows = MaskFiles(root), records(root)
    masks.check((), "training")
    for row in rows[:-1]:
        masks.mask_path(row.path).unlink()
    masks.check(rows, "training")
    masks.mask_path(rows[-1].path).unlink()
    with pytest.raises(DataError, match="no such mask, nor one for any other of the 4 training pictures") as caught:
        masks.check(rows, "training")
    assert str(caught.value).startswith(f"{root / 'masks' / FIRST}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mask", "crop", "same"),
    [
        ((256, 128), (256, 128), True), ((128, 64), (256, 128), True), ((128, 66), (256, 128), True),
        ((128, 68), (256, 128), False), ((122, 64), (128, 64), True), ((121, 64), (128, 64), False),
        ((4, 10), (128, 256), False), ((7, 4), (256, 128), True), ((1, 1), (256, 128), True), ((1, 1), (3, 1), False),
    ],
)  # fmt: skip
def test_aspect_ratios(mask: tuple[int, int], crop: tuple[int, int], same: bool) -> None:
    assert same_aspect(mask, crop) is same
    assert same_aspect(mask[::-1], crop[::-1]) is same


def test_a_mask_of_another_shape(root: Path) -> None:
    masks = MaskFiles(root)
    file = masks.mask_path(root / FIRST)
    with pytest.raises(DataError, match="aspect ratio") as caught:
        masks.find(root / FIRST, (HEIGHT, 2 * WIDTH))
    assert all(part in str(caught.value) for part in (str(file), "16x8", "32x32"))
    # A few per cent are tolerated, and the rounding of a tiny mask.
    Image.new("L", (65, 128)).save(file)
    assert masks.find(root / FIRST, (128, 64)) is not None
    Image.new("L", (68, 128)).save(file)
    with pytest.raises(DataError, match="128x68"):
        masks.find(root / FIRST, (128, 64))
    Image.new("L", (4, 7)).save(file)
    assert masks.find(root / FIRST, (256, 128)) is not None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"keypoints": joints()[:16]}, "16 keypoints, expected the 17"),
        ({"keypoints": [[1, 2]] * 17}, "three numbers"),
        ({"keypoints": [[1, 2, 0.5]] * 16 + [[1, 2]]}, "three numbers"),
        ({"keypoints": [[1, float("nan"), 0.5]] * 17}, "three finite numbers"),
        ({"keypoints": [[1e300, 2, 0.5]] * 17}, "three finite numbers"),
        ({"keypoints": joints(2.0)}, "between 0 and 1, found 2 to 2"),
        ({"keypoints": {"nose": 1}}, "not an object"),
        ({"keypoints": joints(), "presence": "yes"}, "presence must be a number"),
        ({"presence": 1.5}, "presence must be a number"),
        (joints(), "must be an object"),
    ],
)
def test_broken_keypoints_name_file_and_key(root: Path, entry: object, message: str) -> None:
    file = edit(root, lambda table: table.update({FIRST: entry}))
    with pytest.raises(DataError, match=message) as caught:
        MaskFiles(root)
    assert str(caught.value).startswith(f"{file}: {FIRST}: ")


@pytest.mark.parametrize("text", ["{", "[]", "\x80"])
def test_broken_keypoint_file(root: Path, text: str) -> None:
    (root / "keypoints.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"keypoints\.json: "):
        MaskFiles(root)


def test_sample(root: Path) -> None:
    data = CropDataset(records(root), masks=MaskFiles(root), size=(64, 32), labels={1: 0, 2: 1})
    sample = data[2]
    assert isinstance(sample, Sample)
    assert len(data) == 4
    assert sample.crop.shape == (64, 32, 3)
    assert sample.crop.dtype == sample.region_map.dtype == torch.uint8
    assert (sample.label, sample.person, sample.camera, sample.index) == (1, 2, 1, 2)
    assert not sample.empty_mask
    assert not sample.no_keypoints
    column = sample.region_map[:, 16]
    assert sample.region_map.unique().tolist() == [0, 1, 2, 3]
    assert (column[4:60].diff(dim=0) >= 0).all()  # head above upper body above lower body
    assert column[8] == 1
    assert column[24] == 2
    assert column[52] == 3


def test_keypoints_follow_the_resize(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def spy(mask: torch.Tensor, keypoints: torch.Tensor, **options: object) -> torch.Tensor:
        calls.append((mask, keypoints, options))
        return torch.ones(1, 48, 40, dtype=torch.uint8)

    monkeypatch.setattr(ops, "regions", spy)
    data = CropDataset(records(root), masks=MaskFiles(root), size=(48, 40), layout="part", threshold=0.25)
    assert isinstance(data[0], Sample)
    mask, keypoints, options = calls[0]
    assert mask.dtype == torch.uint8
    assert mask.shape == (1, HEIGHT // 2, WIDTH // 2)
    expected = np.array(joints(), np.float32) * np.array([40 / WIDTH, 48 / HEIGHT, 1], np.float32)
    np.testing.assert_allclose(keypoints[0], expected, rtol=1e-6)
    assert options["size"] == (48, 40)
    assert options["threshold"] == 0.25


def test_empty_masks_and_missing_keypoints_are_flagged(root: Path) -> None:
    masks = MaskFiles(root)
    paths = [masks.mask_path(record.path) for record in records(root)]
    Image.new("L", (8, 16)).save(paths[0])  # empty
    paths[1].unlink()
    paths[2].unlink()
    edit(
        root,
        lambda t: (
            t.pop("bounding_box_train/0002_c1_0.png"),
            t["bounding_box_train/0002_c2_0.png"].update(keypoints=joints(0.1)),
        ),
    )
    data = CropDataset(records(root), masks=MaskFiles(root), size=(64, 32), augment=Augment("region"))
    batch = collate([data[i] for i in range(4)])
    assert batch.empty_masks.tolist() == [True, True, True, False]
    assert batch.no_keypoints.tolist() == [False, False, True, True]
    assert not batch.region_maps[:3].any()
    assert batch.region_maps[3].any()  # bands of the mask's box
    assert batch.labels.tolist() == [-1] * 4


def test_layout_none_needs_no_masks(root: Path) -> None:
    sample = CropDataset(records(root), masks=None, layout="none", size=(8, 4))[0]
    assert isinstance(sample, Sample)
    assert sample.region_map.tolist() == [[1] * 4] * 8
    assert not sample.empty_mask
    assert not sample.no_keypoints


def test_arguments_are_checked(root: Path) -> None:
    masks, rows = MaskFiles(root), records(root)
    with pytest.raises(ValueError, match="needs masks: pass masks=MaskFiles"):
        CropDataset(rows, masks=None)
    with pytest.raises(ValueError, match="labels has no entry for 1 people, the first is 2"):
        CropDataset(rows, masks=masks, labels={1: 0})
    with pytest.raises(ValueError, match="size must be"):
        CropDataset(rows, masks=masks, size=(0, 4))
    with pytest.raises(ValueError, match=r"^threshold must be"):
        CropDataset(rows, masks=masks, threshold=2)
    with pytest.raises(ValueError, match="keypoint_threshold must be"):
        CropDataset(rows, masks=masks, keypoint_threshold=-1)
    with pytest.raises(ValueError, match="layout must be one of"):
        CropDataset(rows, masks=masks, layout="arms")


def test_bad_pictures_travel_with_the_batch(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = records(root)
    rows[1].path.write_bytes(b"nothing")
    MaskFiles(root).mask_path(rows[3].path).write_bytes(b"nothing")
    data = CropDataset(rows, masks=MaskFiles(root), size=(64, 32))
    batch = collate([data[i] for i in range(4)])
    assert len(batch) == 2
    assert batch.indices.tolist() == [0, 2]
    assert batch.cameras.tolist() == [1, 1]
    assert [bad.index for bad in batch.bad] == [1, 3]
    assert batch.bad[0].message.startswith(f"{rows[1].path}: ")
    assert "masks" in batch.bad[1].message

    problems = Problems()
    with caplog.at_level(logging.WARNING, logger="mgran_fast"):
        problems.add(batch.bad)
        problems.add(batch.bad)
    assert problems.count == len(caplog.records) == 2
    assert problems.lines() == [bad.message for bad in batch.bad]
    assert problems.lines(1) == [batch.bad[0].message, "and 1 more"]
    assert problems.lines(2) == problems.lines()


def test_a_batch_without_a_single_good_picture() -> None:
    batch = collate([BadPicture(3, "a: b", (64, 32)), BadPicture(4, "c: d", (64, 32))])
    assert len(batch) == 0
    assert batch.crops.shape == (0, 64, 32, 3)
    assert batch.region_maps.shape == (0, 64, 32)
    assert batch.labels.dtype == batch.indices.dtype == torch.int64
    assert batch.empty_masks.dtype == batch.no_keypoints.dtype == torch.bool
    assert len(collate([])) == 0


def test_batch_moves_as_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = CropDataset(records(root), masks=MaskFiles(root), size=(64, 32))
    batch = collate([data[0], BadPicture(1, "a: b")])
    moved = batch.to("meta")
    assert moved.crops.device.type == moved.no_keypoints.device.type == "meta"
    assert moved.bad == batch.bad
    # Page-locked memory needs a GPU: here only that every tensor is asked for it.
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: asked.append(self) or self)
    pinned = torch.utils.data._utils.pin_memory.pin_memory(batch)
    assert isinstance(pinned, Batch)
    assert len(asked) == 9
    assert pinned.bad == batch.bad


@pytest.mark.parametrize("bad", [(), (BadPicture(1, "a: b", (64, 32)),)])
def test_a_pickled_batch_is_the_same(root: Path, bad: tuple[BadPicture, ...]) -> None:
    data = CropDataset(records(root), masks=MaskFiles(root), size=(64, 32))
    for batch in (collate([data[0], *bad, data[2]]), collate([*bad])):
        for again in (pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch)):
            assert again.bad == batch.bad
            for name, tensor in vars(batch).items():
                if isinstance(tensor, torch.Tensor):
                    assert getattr(again, name).dtype == tensor.dtype
                    assert torch.equal(getattr(again, name), tensor)
            again.labels.add_(1)
            assert len(again) == 0 or not torch.equal(again.labels, batch.labels)
    assert copy.deepcopy(batch.to("meta")).crops.device.type == "meta"


def test_workers_share_what_is_large(root: Path) -> None:
    data = CropDataset(records(root), masks=MaskFiles(root), size=(64, 32))
    there = next(iter(DataLoader(data, batch_size=4, collate_fn=collate, num_workers=1)))
    here = next(iter(DataLoader(data, batch_size=4, collate_fn=collate)))
    for name, tensor in vars(here).items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(getattr(there, name), tensor)
            assert getattr(there, name).is_shared() == (name in ("crops", "region_maps"))


def test_through_a_loader(root: Path) -> None:
    data = CropDataset(
        records(root), masks=MaskFiles(root), size=(64, 32), labels={1: 0, 2: 1}, augment=Augment("region")
    )
    data = pickle.loads(pickle.dumps(data))  # as a spawned worker gets it
    sampler = PKBatchSampler([0, 0, 1, 1], 2, 2, batches=3)
    batches = list(DataLoader(data, batch_sampler=sampler, collate_fn=collate))
    assert len(batches) == 3
    for batch in batches:
        assert batch.crops.shape == (4, 64, 32, 3)
        assert sorted(batch.labels.tolist()) == [0, 0, 1, 1]
        assert batch.region_maps.flatten(1).any(1).all()


def test_keypoints_alone_are_a_person(tmp_path: Path) -> None:
    """Nobody told a presence, and there is no mask that could be empty."""
    (tmp_path / "masks").mkdir()
    (tmp_path / "query").mkdir()
    path = tmp_path / "query" / "a.jpg"
    Image.new("RGB", (8, 16)).save(path)
    for score in (0.9, 0.2):
        (tmp_path / "keypoints.json").write_text(json.dumps({"query/a.jpg": {"keypoints": [[4, 4, score]] * 17}}))
        (found,) = CropDataset([Record(path, 1, 1)], masks=MaskFiles(tmp_path), size=(16, 8))
        assert isinstance(found, Sample)
        assert (found.empty_mask, found.no_person) == (True, score < 0.5)
