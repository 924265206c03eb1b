"""The weights in the package: small enough, and as good as the model card says, on people drawn from another seed."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import pytest
import torch

import mgran_fast
from mgran_fast.data.folder import read_folder
from mgran_fast.data.labels import crops
from mgran_fast.data.synthetic import render
from mgran_fast.metrics.agreement import agreement, measure
from mgran_fast.mra.estimate import Estimate
from mgran_fast.mra.regionnet import PRETRAINED, RegionNet


@pytest.fixture(scope="module")
def net() -> RegionNet:
    return RegionNet.from_pretrained()


def drawn(seed: int, people: int = 24, size: tuple[int, int] = (256, 128)) -> tuple[torch.Tensor, Estimate]:
    """Crops [N, H, W, 3] of people, each as a camera of its own sees them, and what is true."""
    views = [render(person, person, 0, size=size, seed=seed) for person in range(people)]
    truth = Estimate(
        torch.stack([torch.from_numpy(view.mask) for view in views]),
        torch.stack([torch.from_numpy(view.keypoints) for view in views]),
        torch.ones(people),
    )
    return torch.stack([torch.from_numpy(view.crop) for view in views]), truth


def test_the_file_is_small() -> None:
    assert (resources.files("mgran_fast.mra") / PRETRAINED).stat().st_size <= 6e6  # type: ignore[attr-defined]


def test_it_is_offered_by_the_package() -> None:
    assert mgran_fast.RegionNet is RegionNet


@pytest.mark.parametrize("size", [(256, 128), (160, 80), (192, 144)])
def test_people_from_unseen_cameras(net: RegionNet, size: tuple[int, int]) -> None:
    pictures, truth = drawn(seed=4711, size=size)
    found = agreement(net(pictures), truth)
    assert found.mean_iou >= 0.85
    assert found.within(0.2) >= 0.85


def test_presence_tells_people_from_none(net: RegionNet) -> None:
    pictures, _ = drawn(seed=4711)
    assert (net(pictures).presence > 0.5).all()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (4, 256, 128, 3), dtype=torch.uint8, generator=generator)
    plain = torch.full((1, 256, 128, 3), 127, dtype=torch.uint8)
    for nobody in (noise, plain):
        assert (net(nobody).presence < 0.5).all()


@pytest.mark.skipif(not Path(os.environ.get("MGRAN_DATA", "."), "cuhk03").is_dir(), reason="MGRAN_DATA has no cuhk03")
def test_real_people_that_were_not_trained_on(net: RegionNet) -> None:
    """Against the teacher's labels of every eighth test crop; docs/regionnet.md has the figures of all of them."""
    people = read_folder(Path(os.environ["MGRAN_DATA"]) / "cuhk03", part="test")
    found = measure(net, crops(people.pictures[::8], (256, 128), 0.0), batch_size=32, workers=0)
    assert found.mean_iou >= 0.86
    assert found.within(0.2) >= 0.83
