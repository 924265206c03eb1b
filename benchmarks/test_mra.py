"""MRA: the stock detectors of torchvision against the joint one and RegionNet, and what MRA adds to MA.

A call handles 8 crops of 256 x 128 and finds one person in each. Weights are random where none are shipped: the
detectors' speed does not depend on them, given one detection a crop.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch

from mgran_fast import MGRAN, MaskRCNN, RegionNet, ops
from mgran_fast.bench import paired, peers

PEOPLE, SIZE = 8, (256, 128)
# What the joint detector in bfloat16 must be, against the stock detectors at their default size.
BAR = 50.0


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock detectors take seconds a person: once to warm up, then three times."""
    monkeypatch.setattr(paired, "WARM_UP", 1)
    monkeypatch.setattr(paired, "race", functools.partial(paired.race, least=3))


def people() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (PEOPLE, *SIZE, 3), dtype=torch.uint8, generator=generator)


def stock() -> Callable[[torch.Tensor], object]:
    """Both detectors at their default size, 800 pixels, one detection each, crop after crop.

    Crop after crop, because eight of them at 800 x 1333 together need several gigabytes and are no faster.
    """
    detectors = peers.detectors()

    def run(crops: torch.Tensor) -> object:
        with torch.no_grad():
            return [detector([crop.permute(2, 0, 1).float() / 255]) for detector in detectors for crop in crops]

    return run


def joint(dtype: torch.dtype) -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN().to(dtype)


@pytest.mark.timeout(3600)
def test_estimators(compare: Callable[..., None], few_rounds: None) -> None:
    crops, detectors = people(), stock()
    float32, region_net = joint(torch.float32), RegionNet.from_pretrained()
    bfloat16 = copy.deepcopy(float32).bfloat16()
    compare(
        f"MRA of {PEOPLE} crops of 256x128: Mask R-CNN, joint and box-prompted, bfloat16",
        {
            "ours": lambda: bfloat16(crops),
            "the same in float32": lambda: float32(crops),
            "RegionNet": lambda: region_net(crops),
            "two stock detectors at 800 pixels": lambda: detectors(crops),
        },
        bars={"two stock detectors at 800 pixels": BAR},
        count=PEOPLE,
    )


@pytest.mark.parametrize("kind", ["RegionNet", "Mask R-CNN"])
def test_whole_model(compare: Callable[..., None], kind: str) -> None:
    """MRA and MA against MA alone, and against MRA alone: what masks cost."""
    crops = people()
    mra = RegionNet.from_pretrained() if kind == "RegionNet" else joint(torch.float32)
    torch.manual_seed(0)
    model = MGRAN(mra=mra).eval()
    # What MA is given: regions of people, which a model of random weights does not find.
    region_map = torch.zeros(PEOPLE, *SIZE, dtype=torch.uint8)
    region_map[:, 16:60, 40:88], region_map[:, 60:130, 24:104], region_map[:, 130:248, 32:96] = 1, 2, 3

    def run(**given: torch.Tensor) -> object:
        with torch.no_grad():
            return model(crops, **given)

    compare(
        f"MGRAN of {PEOPLE} crops of 256x128, {kind} and MA, float32",
        {
            "ours": run,
            "MA alone, region maps given": lambda: run(region_map=region_map),
            "MRA alone": lambda: mra(crops),
        },
        count=PEOPLE,
    )


@pytest.mark.parametrize("count", [5, 20, 80])
def test_frame(compare: Callable[..., None], few_rounds: None, count: int) -> None:
    """People on one frame of 1280 x 720: one pass of the backbone for all, or a crop for each.

    The frame has as many pixels as 28 crops. Sharing pays for crowds; a few people are cheaper as crops.
    """
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (720, 1280, 3), dtype=torch.uint8, generator=generator)
    low = torch.rand(count, 2, generator=generator) * torch.tensor([1150.0, 460.0])
    boxes = torch.cat((low, low + torch.tensor([128.0, 256.0])), dim=1)
    model = joint(torch.float32)
    compare(
        f"Mask R-CNN, float32, {count} people of 256x128 on a frame of 1280x720, boxes given",
        {
            "ours": lambda: model.estimate_people(frame, boxes),
            "a crop for each": lambda: model(ops.crops(frame, boxes)),
        },
        count=count,
    )
