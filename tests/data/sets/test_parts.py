"""Masks and region caches of sets whose pictures do not lie in the folders of the Market-1501 layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mgran_fast.data import DataSet, MaskFiles, Record, RegionCache, find_masks
from mgran_fast.data.precompute import build
from mgran_fast.data.provenance import provenance
from mgran_fast.data.sets import pictures_by_part
from mgran_fast.errors import DataError
from mgran_fast.mra import Estimate

Draw = Callable[..., Any]
# Of each way that pictures may lie: the parts of its cache.
WAYS = {
    "market1501": ["bounding_box_train", "query", "bounding_box_test", "gt_bbox"],
    "market1501-500k": ["bounding_box_train", "query", "bounding_box_test", "gt_bbox", "images"],
    "cuhk03": ["images_detected"],
    "cuhk03-classic": ["images_detected"],
    "cuhk03-np": ["bounding_box_train", "query", "bounding_box_test"],
    "msmt17": ["."],
    "occluded-reid": ["."],
    "people": ["."],
    "table": ["."],
}


class Bright(nn.Module):
    """Takes pixels above the mean of the crop for the person."""

    def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        grey = crops.float().mean(3)
        mask = (grey > grey.mean((1, 2), keepdim=True)).float()
        return Estimate(mask, torch.full((len(crops), 17, 3), 0.5), torch.ones(len(crops)))


def read(draw: Draw, name: str) -> DataSet:
    made = draw(name)
    found: DataSet = made.read(made.root / "people.csv" if name == "table" else None)
    return found


def records(found: DataSet) -> list[Record]:
    return [*found.train, *found.query, *found.gallery, *found.multi_query]


@pytest.mark.parametrize("name", WAYS)
def test_a_region_cache_knows_every_picture(name: str, draw: Draw) -> None:
    found = read(draw, name)
    parts = pictures_by_part(found)
    assert list(parts) == WAYS[name]
    model = Bright().eval()
    made = provenance(model, size=(16, 8))
    for part, pictures in parts.items():
        file = found.root / "regions" / f"{'pictures' if part == '.' else part}.sqlite"
        build(pictures, model, made, file, root=found.root, folder=part)
    cache = find_masks(found.root)
    assert isinstance(cache, RegionCache)
    cache.check(records(found), "")
    assert cache.counts()["pictures"] == len({record.path for record in records(found)})
    for record in records(found):
        grey = np.array(Image.open(record.path)).astype(np.float32).mean(2)
        # Pictures of the same name in other folders are not mixed up.
        assert np.array_equal(cache.entry(record.path).region_map > 0, grey > grey.mean())


@pytest.mark.parametrize("name", ["cuhk03", "msmt17", "occluded-reid", "people", "table"])
def test_mask_files_lie_by_the_place_of_the_picture(name: str, draw: Draw) -> None:
    found = read(draw, name)
    everything = records(found)
    values = {record.path: i + 1 for i, record in enumerate(everything)}
    joints = {}
    for path, value in values.items():
        place = path.relative_to(found.root)
        file = (found.root / "masks" / place).with_suffix(".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 8), value, np.uint8)).save(file)
        joints[place.as_posix()] = {"presence": value / 255}
    (found.root / "keypoints.json").write_text(json.dumps(joints))
    masks = find_masks(found.root)
    assert isinstance(masks, MaskFiles)
    masks.check(found.query, "query")
    for path, value in values.items():
        source = masks.find(path, (16, 8))
        assert source is not None
        assert (source.mask == value).all()
        assert source.presence == pytest.approx(value / 255)


def test_both_variants_of_cuhk03_keep_their_caches(draw: Draw) -> None:
    made = draw("cuhk03", "detected")
    detected, labeled = made.read(), made.read(variant="labeled", counts="any")
    assert detected.root == labeled.root
    assert pictures_by_part(detected).keys().isdisjoint(pictures_by_part(labeled))


def test_a_picture_outside_of_the_root(tmp_path: Path) -> None:
    found = DataSet("x", tmp_path / "in", (Record(tmp_path / "out.jpg", 1, 1),), (), ())
    with pytest.raises(DataError, match=r"out\.jpg: not below .*in; give the folder that holds all pictures"):
        pictures_by_part(found)
    assert pictures_by_part(DataSet("x", tmp_path, (), (), ())) == {}
