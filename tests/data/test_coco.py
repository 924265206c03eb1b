"""COCO files: what becomes of boxes, segmentations and keypoints, and what is said of files that are broken."""

from __future__ import annotations

import builtins
import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgran_fast.data.coco import SCORES, read_coco
from mgran_fast.data.labels import LabelledSet, PictureDataset, crops
from mgran_fast.errors import DataError, MGRANError

WIDTH, HEIGHT = 40, 30
Edit = Callable[[dict[str, Any]], object]


def runs(mask: np.ndarray[Any, np.dtype[np.uint8]]) -> list[int]:
    """Plain run lengths, column by column, beginning with the background."""
    found, value, count = [], 0, 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            found.append(count)
            value, count = pixel, 0
        count += 1
    return [*found, count]


def disc(x: float, y: float, radius: float) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return ((columns - x) ** 2 + (rows - y) ** 2 < radius**2).astype(np.uint8)


def content() -> dict[str, Any]:
    """Three pictures: two people in the first, a crowd in the second, nobody in the third; a dog here and there."""
    keypoints = [[10 + i, 5 + i, i % 3] for i in range(17)]
    person: dict[str, Any] = {"image_id": 7, "category_id": 4, "iscrowd": 0}
    return {
        "images": [
            {"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for number, name in [(7, "b.jpg"), (8, "a.jpg"), (9, "c.jpg")]
        ],
        "categories": [{"id": 1, "name": "dog"}, {"id": 4, "name": "person"}],
        "annotations": [
            {**person, "bbox": [10, 5, 20, 12], "segmentation": [[10, 5, 30, 5, 30, 17, 10, 17]],
             "keypoints": [v for row in keypoints for v in row], "num_keypoints": 11},
            {**person, "bbox": [-5, 20, 15, 50], "keypoints": [0] * 51,
             "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs(disc(5, 25, 4))}},
            {**person, "bbox": [1, 1, 9, 9], "category_id": 1, "segmentation": "of a dog, never looked at"},
            {**person, "bbox": [1, 1, 0.2, 9], "segmentation": []},
            {**person, "image_id": 8, "bbox": [0, 0, 40, 30], "iscrowd": 1,
             "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}},
        ],
    }  # fmt: skip


def written(folder: Path, edit: Edit | None = None, name: str = "instances_some.json") -> Path:
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "some").mkdir(exist_ok=True)
    for number, picture in enumerate("abc"):
        Image.new("RGB", (WIDTH, HEIGHT), (number, 90, 0)).save(folder / "some" / f"{picture}.jpg")
    file = folder / "annotations" / name
    table = content()
    if edit is not None:
        edit(table)
    file.write_text(json.dumps(table))
    return file


def test_people_of_a_coco_file(tmp_path: Path) -> None:
    found = read_coco(written(tmp_path))
    assert found.name == "instances_some"
    assert [one.path.name for one in found.pictures] == ["b.jpg", "c.jpg"], "a crowd is no picture without people"
    assert found.notes == (
        "instances_some.json: 1 people with an empty box left out",
        "instances_some.json: 1 crowds left out",
    )
    one, nobody = found.pictures
    assert one.boxes.tolist() == [[10, 5, 30, 17], [0, 20, 10, 30]]
    assert one.presence.tolist() == [1, 1]
    assert (one.has_mask.tolist(), one.has_keypoints.tolist()) == ([True, True], [True, False])
    assert (len(nobody), nobody.source) == (0, None)
    assert [one.path.name for one in read_coco(written(tmp_path), background=False).pictures] == ["b.jpg"]


def test_keypoints_have_scores_and_lie_in_the_middle_of_their_pixels(tmp_path: Path) -> None:
    keypoints = read_coco(written(tmp_path)).pictures[0].keypoints
    for i in range(17):
        want = [10.5 + i, 5.5 + i, SCORES[i % 3]] if i % 3 else [0, 0, 0]
        assert keypoints[0, i].tolist() == pytest.approx(want)
    assert SCORES[0] == 0 < 0.3 <= SCORES[1] < 0.5 <= SCORES[2]
    assert (keypoints[1] == 0).all()


def test_polygons_and_plain_run_lengths(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    masks = read_coco(written(tmp_path)).pictures[0].masks()
    want = np.zeros((HEIGHT, WIDTH), np.uint8)
    want[5:17, 10:30] = 255
    assert np.array_equal(masks[0], want)
    assert np.array_equal(masks[1], disc(5, 25, 4) * 255)


def test_several_polygons_are_one_person(tmp_path: Path) -> None:
    """A slanted one as well: the pixels whose centres are inside, but for some of the outline."""
    pytest.importorskip("pycocotools")
    parts = [[2, 2, 6, 2, 6, 6, 2, 6], [20, 4, 36, 14, 12, 26]]
    file = written(tmp_path, lambda table: table["annotations"][0].update(segmentation=parts))
    mask = read_coco(file).pictures[0].masks()[0]
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = (x > 2) & (x < 6) & (y > 2) & (y < 6)
    corners = np.array(parts[1]).reshape(3, 2)
    sides = [
        (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])
        for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)
    ]
    inside |= (np.stack(sides) > 0).all(axis=0)
    assert ((mask > 0) != inside).mean() < 0.02
    assert mask[3, 3] == mask[14, 22] == 255
    assert mask[10, 5] == 0


@pytest.mark.parametrize("seed", range(6))
def test_compressed_run_lengths_are_those_of_pycocotools(seed: int, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    mask = [np.zeros, np.ones][seed]((HEIGHT, WIDTH), np.uint8) if seed < 2 else disc(20, 15, 3.0 * seed)
    if seed > 3:
        mask ^= rng.random((HEIGHT, WIDTH)) < 0.2
    counts = coco.encode(np.asfortranarray(mask))["counts"].decode()
    change = {"size": [HEIGHT, WIDTH], "counts": counts}
    file = written(tmp_path, lambda table: table["annotations"][1].update(segmentation=change))
    assert np.array_equal(read_coco(file).pictures[0].masks()[1], mask * np.uint8(255))


def test_a_compressed_text_by_hand(tmp_path: Path) -> None:
    """Runs 1195, 3, 2: 11 | 5 << 5 | 1 << 10 in three groups, then single groups; no library needed."""
    text = "".join(chr(48 + group) for group in [11 | 32, 5 | 32, 1, 3, 2])
    change = {"size": [HEIGHT, WIDTH], "counts": text}
    file = written(tmp_path, lambda table: table["annotations"][1].update(segmentation=change))
    column = read_coco(file).pictures[0].source
    assert column is not None
    mask = column.mask(1)
    assert mask[25:28, 39].tolist() == [255] * 3
    assert int((mask > 0).sum()) == 3


def test_crops_of_a_coco_file(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    dataset = crops(read_coco(written(tmp_path)).pictures, (24, 40))
    assert len(dataset) == 2
    sample = pickle.loads(pickle.dumps(dataset))[0]
    assert sample.crop.shape == (24, 40, 3)
    assert sample.mask[2:-2, 2:-2].min() == 255
    assert sample.keypoints[1].tolist() == pytest.approx([3.0, 3.0, SCORES[1]])


def test_where_pictures_are_looked_for(tmp_path: Path) -> None:
    file = written(tmp_path)
    (tmp_path / "some").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"its first picture b\.jpg is not in .*; name the folder with --pictures"):
        read_coco(file)
    assert len(read_coco(file, tmp_path / "elsewhere").pictures) == 2
    with pytest.raises(DataError, match=r"is not in .*annotations; name"):
        read_coco(file, tmp_path / "annotations")
    beside = written(tmp_path / "flat")
    (beside.parent / "some").mkdir()
    for path in (tmp_path / "flat" / "some").iterdir():
        path.rename(beside.parent / path.name)
    assert read_coco(beside).pictures[0].path.parent == beside.parent


def test_no_categories_means_cocos_own(tmp_path: Path) -> None:
    def change(table: dict[str, Any]) -> None:
        del table["categories"]
        for row in table["annotations"]:
            row["category_id"] = 1 if row["category_id"] == 4 else 2

    assert read_coco(written(tmp_path, change)).people() == 2


def test_a_missing_or_another_picture_is_a_bad_one(tmp_path: Path) -> None:
    found = read_coco(written(tmp_path))
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(found.pictures[0].path)
    found.pictures[1].path.unlink()
    dataset = PictureDataset(found.pictures)
    first, second = dataset[0], dataset[1]
    assert "its labels are for 30x40" in first.message  # type: ignore[union-attr]
    assert "no such picture" in second.message  # type: ignore[union-attr]


def test_without_pycocotools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: LabelledSet = read_coco(written(tmp_path))
    original = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("pycocotools"):
            raise ImportError("none", name="pycocotools")
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MGRANError, match=r"not installed \(pycocotools\): pip install 'mgran_fast\[train\]'"):
        found.pictures[0].masks()


# --- broken files -------------------------------------------------------------------------------------------------


def segmentation(value: Any) -> Edit:
    return lambda table: table["annotations"][1].update(segmentation=value)


def counts(value: Any) -> Edit:
    return segmentation({"size": [HEIGHT, WIDTH], "counts": value})


def first(**values: Any) -> Edit:
    return lambda table: table["annotations"][0].update(values)


def image(**values: Any) -> Edit:
    return lambda table: table["images"][1].update(values)


BROKEN: list[tuple[Edit, str]] = [
    (lambda table: table.pop("images"), 'it must be an object with "images" and "annotations"'),
    (lambda table: table.update(images=[]), "no images in it"),
    (lambda table: table.update(images={}), '"images" must be a list'),
    (lambda table: table.update(annotations=[3]), r"annotations\[0\] must be an object"),
    (lambda table: table.update(annotations=[]), "nobody is annotated in it"),
    (lambda table: table["categories"][1].update(name="cat"), 'no category is named "person"; the file has dog, cat'),
    (image(id=[1]), r"images\[1\]: its id must be a number"),
    (image(file_name=""), r"images\[1\]: has no file_name"),
    (image(file_name="../x.jpg"), "leads out of the folder"),
    (image(file_name="/etc/x.jpg"), "leads out of the folder"),
    (image(width="40"), r"images\[1\]: width must be a whole number"),
    (image(height=0), r"images\[1\]: height must be a whole number"),
    (first(image_id=99), r"annotations\[0\]: image_id 99 is not among the images"),
    (first(image_id=None), "image_id None is not among"),
    (first(bbox=None), "bbox must be a list of finite numbers"),
    (first(bbox=[1, 2, 3]), "bbox must be 4 numbers, not 3"),
    (first(bbox=[1, 2, float("nan"), 3]), "bbox must be a list of finite numbers"),
    (first(keypoints=[1, 2, 2]), "keypoints must be 51 numbers, not 3"),
    (first(keypoints=[[1, 2, 2]] * 17), "keypoints must be a list of finite numbers"),
    (first(keypoints=[3.0] * 51), "the third number of each keypoint must be 0, 1 or 2"),
    (segmentation([[1, 2, 3, 4]]), "three or more pairs"),
    (segmentation([[1, 2, 3, 4, 5, 6, 7]]), "three or more pairs"),
    (segmentation([[1, 2, 3, 4, 5, 1e9]]), "lies far outside"),
    (segmentation([[1, 2, 3, 4, 5, "x"]]), "a list of finite numbers"),
    (segmentation("x"), 'must be polygons, or an object with "size" and "counts"'),
    (segmentation({"size": [WIDTH, HEIGHT], "counts": "0"}), r"the picture is \[30, 40\]"),
    (counts([5, 5]), "do not add up"),
    (counts([-5, 1205]), "do not add up"),
    (counts([0.5, 1199.5]), "do not add up"),
    (counts(""), "do not add up"),
    (counts("zz"), "not COCO's run lengths"),
    (counts("é"), "not COCO's run lengths"),
    (counts("PPPPPPPPPPPPPPPPPPPPPPP"), "not COCO's run lengths"),
    (counts("0P"), "break off"),
    (counts("0017"), "do not add up"),
]


@pytest.mark.parametrize(("edit", "words"), BROKEN, ids=[words for _, words in BROKEN])
def test_a_broken_file_is_one_clear_error(edit: Edit, words: str, tmp_path: Path) -> None:
    before = content()
    changed = copy.deepcopy(before)
    edit(changed)
    assert json.dumps(changed) != json.dumps(before), "the edit changes something"
    file = written(tmp_path, edit)
    with pytest.raises(DataError, match=words) as caught:
        read_coco(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1}', "\udcff", "[" * 100_000])
def test_no_coco_file_at_all(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match=r"x\.json: not "):
        read_coco(file)
    with pytest.raises(DataError, match="no such file"):
        read_coco(tmp_path / "y.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_coco(tmp_path)
