"""The shapes crop and single: what they compute, said once more in plain loops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from mgran_fast import MGRAN, layouts, ops
from mgran_fast.ma.cuts import cut
from mgran_fast.model import Encoding

SIZE = (64, 32)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def people(size: tuple[int, int] = SIZE, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Four people: whole, without a head, nobody, and a head in the corner."""
    g = torch.Generator().manual_seed(seed)
    h, w = size
    crops = torch.randint(0, 256, (4, h, w, 3), generator=g, dtype=torch.uint8)
    region_map = torch.zeros(4, h, w, dtype=torch.uint8)
    region_map[0, h // 8 : h // 4, w // 3 : w // 2] = 1
    region_map[0, h // 4 : h // 2, w // 4 : w // 4 * 3] = 2
    region_map[0, h // 2 : h - 3, w // 4 : w // 2] = 3
    region_map[1, h // 4 : h // 2, 1 : w // 2] = 2
    region_map[1, h // 2 :, :] = 3
    region_map[3, 0:3, 0:2] = 1
    return crops, region_map


def made(shape: str, *, layout: str = "region", num_classes: int = 0, size: tuple[int, int] = SIZE) -> MGRAN:
    torch.manual_seed(1)
    model = MGRAN(num_classes, layout, shape, trunk="resnet18", size=size, mean=MEAN, std=STD).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, std=0.2)
    return model


@torch.no_grad()
def test_single_pools_every_region_from_one_pass() -> None:
    model, full = made("single"), made("full")
    crops, region_map = people()
    # The same weights: the whole person's features are those of the shape full.
    images = full.inputs(crops, region_map)
    features = full.ma.trunk(images[:, 0].contiguous(memory_format=torch.channels_last))
    got = model.encode(crops, region_map=region_map)
    for i in range(4):
        want = ops.pooling(features, region_map, torch.full((4,), i))
        want = model.ma.neck(want[:, None].expand(4, 4, -1), got.visible)[:, i]
        assert torch.allclose(got.embeddings[:, i], want, atol=1e-5)
    assert torch.equal(got.visible, full.encode(crops, region_map=region_map).visible)
    assert model.dim == full.dim == 4 * 512


def slow_cut(
    crop: torch.Tensor, region_map: torch.Tensor, region: int, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """One person, pixel by pixel."""
    h, w = size
    height, width = region_map.shape
    pixels, where = torch.zeros(h, w, 3), torch.zeros(h, w, dtype=torch.uint8)
    places = (region_map == region).nonzero().tolist()
    if not places:
        return pixels, where
    top, bottom = min(y for y, _ in places), max(y for y, _ in places) + 1
    left, right = min(x for _, x in places), max(x for _, x in places) + 1
    tall = max(bottom - top, (right - left) * h / w)
    wide = tall * w / h
    for i in range(h):
        for j in range(w):
            y = (top + bottom) / 2 - tall / 2 + (i + 0.5) * tall / h
            x = (left + right) / 2 - wide / 2 + (j + 0.5) * wide / w
            r, c = math.floor(y), math.floor(x)
            if 0 <= r < height and 0 <= c < width and region_map[r, c] == region:
                where[i, j] = region
            y, x = min(max(y - 0.5, 0), height - 1), min(max(x - 0.5, 0), width - 1)
            r, c = math.floor(y), math.floor(x)
            r1, c1 = min(r + 1, height - 1), min(c + 1, width - 1)
            corners = (crop[r, c], crop[r, c1], crop[r1, c], crop[r1, c1])
            a, b, d, e = (corner.double() for corner in corners)
            dy, dx = y - r, x - c
            pixels[i, j] = (a * (1 - dx) + b * dx) * (1 - dy) + (d * (1 - dx) + e * dx) * dy
    return pixels, where


@pytest.mark.parametrize("size", [(16, 16), (24, 9), (5, 12)])
def test_cut_equals_its_definition(size: tuple[int, int]) -> None:
    crops, region_map = people((33, 21), 3)
    for region in (1, 2, 3):
        pixels, where = cut(crops, region_map, region, size)
        assert pixels.dtype == where.dtype == torch.uint8
        for person in range(4):
            want, want_where = slow_cut(crops[person], region_map[person], region, size)
            assert torch.equal(where[person], want_where)
            assert (pixels[person].float() - want).abs().max() <= 0.51
    assert not cut(crops, region_map, 1, size)[0][1:3].any()  # not visible: all 0


@torch.no_grad()
def test_crop_runs_the_trunk_on_each_cut() -> None:
    model = made("crop")
    crops, region_map = people()
    got = model.encode(crops, region_map=region_map)
    assert got.visible.tolist() == [[True] * 4, [True, False, True, True], [True, False, False, False],
                                    [True, True, False, False]]  # fmt: skip
    assert model.region_sizes == ((16, 16), (24, 24), (32, 24))
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    for region, size in enumerate(model.region_sizes, 1):
        pixels, where = cut(crops, region_map, region, size)
        images = ((pixels / 256 - mean) / std * (where == region)[..., None]).permute(0, 3, 1, 2)
        features = model.ma.trunk(images)
        want = ops.pooling(features, where, torch.full((4,), region))
        want = model.ma.neck(want[:, None].expand(4, 4, -1), got.visible)[:, region]
        assert torch.allclose(got.embeddings[:, region], want, atol=1e-4)
        assert bool(want.any())
    whole = made("full").encode(crops, region_map=region_map)
    assert torch.allclose(got.embeddings[:, 0], whole.embeddings[:, 0], atol=1e-4)


def test_a_region_that_vanishes_in_its_cut_is_not_visible() -> None:
    model = made("crop")
    crops, region_map = people()
    region_map[:] = 0
    # Two specks far apart, between which every pixel of the small frame falls.
    region_map[0, 0, 0] = region_map[0, 63, 31] = 1
    assert not cut(crops, region_map, 1, model.region_sizes[0])[1].any()
    encoding = model.encode(crops, region_map=region_map)
    assert not encoding.visible[:, 1:].any()
    assert not encoding.embeddings[:, 1:].any()
    assert encoding.vector.isfinite().all()


@pytest.mark.parametrize("shape", ["crop", "single"])
@pytest.mark.parametrize("layout", ["region", "part", "box", "none"])
def test_every_layout(shape: str, layout: str) -> None:
    model = made(shape, layout=layout)
    crops, _ = people()
    with torch.no_grad():
        vector = model(crops, masks=torch.ones(4, 64, 32))
    assert vector.shape == (4, model.dim)
    assert torch.allclose(vector.norm(dim=1), torch.ones(4), atol=1e-4)
    with torch.no_grad():
        assert model(crops[:0], masks=torch.ones(0, 64, 32)).shape == (0, model.dim)


@pytest.mark.parametrize("shape", ["full", "crop", "single"])
@pytest.mark.parametrize("statistics", ["joint", "per_input"])
def test_training_reaches_every_weight(shape: str, statistics: str) -> None:
    torch.manual_seed(0)
    model = MGRAN(5, shape=shape, trunk="resnet18", size=(40, 27), statistics=statistics).train()
    crops, region_map = people((40, 27))
    output = model(crops, region_map=region_map)
    assert output.logits.shape == (4, 4, 5)
    output.logits.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.ma.parameters())
    # Fresh residual branches begin at 0, so what reaches the stem came by the shortcuts.
    assert bool(model.ma.trunk.conv1.weight.grad.any())


@pytest.mark.parametrize("shape", ["full", "crop", "single"])
def test_checkpoints_keep_the_shape(shape: str, tmp_path: Path) -> None:
    model = made(shape)
    model.save(tmp_path / "model.safetensors")
    again = MGRAN.from_file(tmp_path / "model.safetensors")
    assert again.shape == shape
    crops, region_map = people()
    with torch.no_grad():
        assert torch.equal(again(crops, region_map=region_map), model(crops, region_map=region_map))


def test_errors() -> None:
    with pytest.raises(ValueError, match="full, crop, single"):
        MGRAN(shape="quadruple")
    crops, region_map = people()
    with pytest.raises(ValueError, match="region must be 1 to 255"):
        cut(crops, region_map, 0, (8, 8))
    with pytest.raises(ValueError, match="region_map"):
        cut(crops, region_map[:, 1:], 1, (8, 8))
    with pytest.raises(ValueError, match="cuts must be 1 pairs"):
        layouts.Layout("one", ("all",), (0, 1), whole=True, cuts=((1, 1), (2, 2)))


def test_sizes_of_cuts() -> None:
    assert layouts.REGION.region_sizes((256, 128)) == ((64, 64), (96, 96), (128, 96))
    assert layouts.REGION.region_sizes((1, 1)) == ((1, 1), (1, 1), (1, 1))
    own = layouts.Layout("two halves", ("a", "b"), (0, 1, 2), whole=True)
    assert own.region_sizes((256, 128)) == ((128, 96), (128, 96))
    encoding = Encoding(torch.ones(1, 2, 3), torch.tensor([[True, False]]))
    assert encoding.vector.shape == (1, 6)
