"""The region cache: reading region maps against making them from mask files, a picture at a time as datasets do."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mgran_fast import ops
from mgran_fast.data import MaskFiles, RegionCache, synthetic
from mgran_fast.data.precompute import build
from mgran_fast.data.provenance import provenance

SIZE = (256, 128)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], MaskFiles, RegionCache]:
    """600 synthetic crops, their masks as files, and the cache of them."""
    root = tmp_path_factory.mktemp("cache")
    drawn = synthetic.write(root / "data", people=(50, 0), cameras=4, views=3, size=SIZE)
    pictures, files = [record.path for record in drawn.train], MaskFiles(drawn.root)
    file = root / "regions" / "bounding_box_train.sqlite"
    build(pictures, files, provenance(files, size=SIZE), file, root=drawn.root, folder="bounding_box_train")
    random.Random(0).shuffle(pictures)
    return pictures, files, RegionCache(file, root=drawn.root)


def test_reading(compare: Callable[..., None], data: tuple[list[Path], MaskFiles, RegionCache]) -> None:
    pictures, files, cache = data

    def from_files() -> list[torch.Tensor]:
        maps = []
        for path in pictures:
            source = files.find(path, SIZE)
            assert source is not None
            mask, keypoints = torch.from_numpy(source.mask)[None], torch.from_numpy(source.keypoints)[None]
            maps.append(ops.regions(mask, keypoints, SIZE)[0])
        return maps

    def from_cache() -> list[torch.Tensor]:
        return [cache.regions(path, SIZE).region_map for path in pictures]

    different = [bool((a != b).float().mean() > 0.01) for a, b in zip(from_files(), from_cache(), strict=True)]
    assert not any(different), "the cache's maps are not those of the files"
    compare(
        f"region maps of {len(pictures)} pictures, one by one",
        {"ours": from_cache, "mask files and regions": from_files},
        bars={"mask files and regions": 2.0},
        count=len(pictures),
    )
