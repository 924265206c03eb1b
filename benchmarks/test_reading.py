"""Reading training pictures: the loader and its parts against Pillow and torchvision's transforms, as the field reads.

All read the same JPEG files and the same region cache, and move the map along with the crop. The peers give what the
field's training code gives: float32 crops, normalised; or, for fairness, bytes as ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from mgran_fast.data import Augment, CropDataset, MaskFiles, RegionCache, Sample, collate, synthetic
from mgran_fast.data.pictures import read_picture
from mgran_fast.data.precompute import build
from mgran_fast.data.provenance import provenance
from mgran_fast.data.records import Record

SIZE = (256, 128)
BATCH = 32
#: (height, width) of the files.
SOURCES = [(256, 128), (512, 256)]


@pytest.fixture
def threads() -> Iterator[int]:
    """One: who reads in several processes has no threads left to give to each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield 1
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=SOURCES, ids=lambda size: f"{size[0]}x{size[1]}")
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, RegionCache]:
    """The files' size in words, 96 records in another order, and the region cache of them."""
    root = tmp_path_factory.mktemp("reading")
    drawn = synthetic.write(root / "data", people=(12, 0), cameras=4, views=2, size=request.param)
    files, file = MaskFiles(drawn.root), root / "regions" / "bounding_box_train.sqlite"
    paths = [record.path for record in drawn.train]
    build(paths, files, provenance(files, size=SIZE), file, root=drawn.root, folder="bounding_box_train")
    records = list(drawn.train)
    random.Random(0).shuffle(records)
    return f"JPEG {request.param[0]}x{request.param[1]}", records, RegionCache(file, root=drawn.root)


class Usual(Dataset[Any]):
    """What training code does with torchvision's transforms."""

    def __init__(self, records: list[Record], cache: RegionCache, *, floats: bool) -> None:
        self.records, self.cache = records, cache
        end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
        self.resize = v2.Resize(SIZE)
        self.change = v2.Compose(
            [
                v2.RandomHorizontalFlip(),
                v2.Pad(10),
                v2.RandomCrop(SIZE),
                v2.ToImage(),
                *(end if floats else []),
            ]
        )
        # Of the crop alone: torchvision leaves masks as they are. Noise is for floats only.
        self.erase = v2.RandomErasing(0.5, scale=(0.02, 0.4), value="random" if floats else 0)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Any:
        record = self.records[index]
        with Image.open(record.path) as file:
            picture = self.resize(file.convert("RGB"))
        region_map = tv_tensors.Mask(self.cache.regions(record.path, SIZE).region_map)
        crop, region_map = self.changed(picture, region_map)
        return crop, region_map, record.person, record.camera, index

    def changed(self, picture: Image.Image, region_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        crop, region_map = self.change(picture, region_map)
        return self.erase(crop), region_map


def ours(records: list[Record], cache: RegionCache) -> CropDataset:
    return CropDataset(records, masks=cache, size=SIZE, augment=Augment("region"))


def loaded(dataset: Dataset[Any], workers: int, **options: Any) -> Callable[[], int]:
    loader = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0, **options)
    return lambda: sum(1 for _ in loader)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_loader(compare: Callable[..., None], source: tuple[str, Any, RegionCache], workers: int) -> None:
    name, records, cache = source
    compare(
        f"{len(records)} pictures, {name}, {workers} workers",
        {
            "ours": loaded(ours(records, cache), workers, collate_fn=collate),
            "torchvision v2, float32": loaded(Usual(records, cache, floats=True), workers),
            "torchvision v2, bytes": loaded(Usual(records, cache, floats=False), workers),
        },
        bars={"torchvision v2, float32": 1.5, "torchvision v2, bytes": 1.2},
        count=len(records),
    )


def test_decoding(compare: Callable[..., None], source: tuple[str, Any, RegionCache]) -> None:
    """Decode and resize: alone that is the most that a worker can do."""
    name, records, _ = source

    def pillow() -> list[Any]:
        found = []
        for record in records:
            with Image.open(record.path) as file:
                picture = file.convert("RGB").resize((SIZE[1], SIZE[0]), Image.Resampling.BILINEAR)
            found.append(np.array(picture))
        return found

    def mine() -> list[Any]:
        return [read_picture(record.path, SIZE) for record in records]

    assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(mine(), pillow(), strict=True)) <= 1
    compare(f"decode and resize, {name}", {"ours": mine, "Pillow": pillow}, count=len(records))


def samples(records: list[Record], cache: RegionCache) -> list[Sample]:
    found = [CropDataset(records, masks=cache, size=SIZE)[index] for index in range(len(records))]
    return [sample for sample in found if isinstance(sample, Sample)]


def test_augmenting(compare: Callable[..., None], source: tuple[str, Any, RegionCache]) -> None:
    name, records, cache = source
    if not name.endswith("256x128"):
        pytest.skip("the crops are resized by then")
    crops, augment, usual = samples(records, cache), Augment("region"), Usual(records, cache, floats=False)
    pictures = [(Image.fromarray(one.crop.numpy()), tv_tensors.Mask(one.region_map)) for one in crops]
    compare(
        "mirror, shift and erase crops and maps",
        {
            "ours": lambda: [augment(one.crop, one.region_map) for one in crops],
            "torchvision v2, bytes": lambda: [usual.changed(*pair) for pair in pictures],
        },
        count=len(crops),
    )


class Ready(Dataset[Any]):
    """Samples that cost nothing to make."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_handing_over(compare: Callable[..., None], source: tuple[str, Any, RegionCache]) -> None:
    """Batches from one worker to the main process, and nothing else."""
    name, records, cache = source
    if not name.endswith("256x128"):
        pytest.skip("the crops are resized by then")
    crops = samples(records, cache)
    usual = [(v2.functional.to_dtype(one.crop, torch.float32), one.region_map, one.person, one.camera) for one in crops]
    compare(
        f"batches of {BATCH} from a worker",
        {
            "ours": loaded(Ready(crops), 1, collate_fn=collate),
            "torch's, float32": loaded(Ready(usual), 1),
        },
        count=len(crops),
    )
