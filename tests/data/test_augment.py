"""Augmentation: crop and region map move together, and the person never disappears."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgran_fast import layouts
from mgran_fast.data import Augment

OFF = {"flip": 0.0, "pad": 0, "erase": 0.0}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int, width: int, regions: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = seeded(seed)
    crop = torch.randint(1, 256, (height, width, 3), dtype=torch.uint8, generator=rng)
    return crop, torch.randint(0, regions + 1, (height, width), dtype=torch.uint8, generator=rng)


@settings(max_examples=60)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    layout=st.sampled_from(["region", "part", "box", "none"]),
    seed=st.integers(0, 999),
    pad=st.sampled_from([0, 10, 300]),
    fill=st.sampled_from(["noise", "mean"]),
)
def test_shapes_values_and_a_person_that_stays(
    height: int, width: int, layout: str, seed: int, pad: float, fill: str
) -> None:
    crop, region_map = picture(height, width, layouts.get(layout).regions, seed)
    before = crop.clone(), region_map.clone()
    augment = Augment(layout, pad=pad, erase=1.0, erase_fill=fill, brightness=0.3, contrast=0.3, colour=0.3)  # type: ignore[arg-type]
    new_crop, new_map = augment(crop, region_map, seeded(seed))
    assert new_crop.shape == crop.shape
    assert new_map.shape == region_map.shape
    assert new_crop.dtype == new_map.dtype == torch.uint8
    flip = layouts.get(layout).flip
    possible = {0} | set(region_map.unique().tolist()) | {flip[i] for i in region_map.unique().tolist()}
    assert set(new_map.unique().tolist()) <= possible
    assert bool(new_map.any()) == bool(region_map.any())
    # The arguments are left alone.
    assert torch.equal(crop, before[0])
    assert torch.equal(region_map, before[1])
    assert new_crop.is_contiguous()
    assert new_map.is_contiguous()
    new_crop.add_(1)
    assert torch.equal(crop, before[0])


@settings(max_examples=30)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    layout=st.sampled_from(["region", "part"]),
    seed=st.integers(0, 99),
)
def test_flipping_twice_changes_nothing(height: int, width: int, layout: str, seed: int) -> None:
    crop, region_map = picture(height, width, layouts.get(layout).regions, seed)
    flip = Augment(layout, **{**OFF, "flip": 1.0})
    once = flip(crop, region_map)
    assert torch.equal(once[0], crop.flip(1))
    twice = flip(*once)
    assert torch.equal(twice[0], crop)
    assert torch.equal(twice[1], region_map)


def test_flip_exchanges_left_and_right() -> None:
    flip = Augment("part", **{**OFF, "flip": 1.0})
    region_map = torch.tensor([[3, 2, 0], [5, 1, 6]], dtype=torch.uint8)
    _, mirrored = flip(torch.zeros(2, 3, 3, dtype=torch.uint8), region_map)
    # Left arm 3 becomes right arm 4; legs 5 and 6 change place twice, by picture and by name.
    assert mirrored.tolist() == [[0, 2, 4], [5, 1, 6]]


def test_everything_off_is_the_identity() -> None:
    crop, region_map = picture(12, 7)
    new_crop, new_map = Augment("region", **OFF)(crop, region_map)
    assert torch.equal(new_crop, crop)
    assert torch.equal(new_map, region_map)


def test_shift_moves_crop_and_map_together() -> None:
    height, width = 64, 32
    ys, xs = torch.meshgrid(torch.arange(1, height + 1), torch.arange(1, width + 1), indexing="ij")
    crop = torch.stack([ys, xs, ys], 2).to(torch.uint8)
    region_map = torch.full((height, width), 2, dtype=torch.uint8)
    shifts = set()
    for seed in range(60):
        new_crop, new_map = Augment("region", flip=0, erase=0, pad=10)(crop, region_map, seeded(seed))
        inside = new_map == 2
        assert torch.equal(inside, new_crop[..., 0] > 0)
        assert (new_crop[~inside] == 0).all()
        dy = (ys - new_crop[..., 0])[inside].unique().tolist()
        dx = (xs - new_crop[..., 1])[inside].unique().tolist()
        assert len(dy) == len(dx) == 1
        shifts.add((dy[0], dx[0]))
    # 10 pixels at a height of 256 are 2.5 at 64, rounded to even; every direction comes.
    assert {dy for dy, _ in shifts} == {dx for _, dx in shifts} == {-2, -1, 0, 1, 2}


def test_a_shift_that_would_lose_the_person_is_skipped() -> None:
    crop, region_map = picture(16, 16)
    region_map.zero_()
    region_map[0, 0] = 1
    for seed in range(40):
        _, new_map = Augment("region", flip=0, erase=0, pad=100)(crop, region_map, seeded(seed))
        assert (new_map == 1).sum() == 1


@pytest.mark.parametrize("fill", ["noise", "mean"])
def test_erased_rectangle(fill: str) -> None:
    crop = torch.zeros(64, 32, 3, dtype=torch.uint8) + torch.tensor([10, 20, 30], dtype=torch.uint8)
    crop[:, :16] += 100
    region_map = torch.full((64, 32), 3, dtype=torch.uint8)
    augment = Augment("region", flip=0, pad=0, erase=1.0, erase_area=(0.1, 0.3), erase_fill=fill)  # type: ignore[arg-type]
    shares, aspects = [], []
    for seed in range(40):
        new_crop, new_map = augment(crop, region_map, seeded(seed))
        erased = new_map == 0
        rows, columns = erased.any(1).nonzero().flatten(), erased.any(0).nonzero().flatten()
        assert erased.sum() == len(rows) * len(columns)  # one rectangle
        assert torch.equal(new_crop[~erased], crop[~erased])
        if fill == "mean":
            assert new_crop[erased].unique(dim=0).tolist() == [[60, 70, 80]]
        else:
            assert len(new_crop[erased].unique()) > 50
        shares.append(erased.float().mean().item())
        aspects.append(len(rows) / len(columns))
    assert 0.09 < min(shares) < max(shares) < 0.31
    assert 0.28 < min(aspects) < 1 < max(aspects) < 3.6


def test_noise_is_uniform_and_independent() -> None:
    crop, region_map = torch.zeros(128, 64, 3, dtype=torch.uint8), torch.ones(128, 64, dtype=torch.uint8)
    augment = Augment("region", flip=0, pad=0, erase=1.0, erase_area=(0.2, 0.4))
    found = []
    for seed in range(40):
        new_crop, new_map = augment(crop, region_map, seeded(seed))
        found.append(new_crop[new_map == 0].flatten())
    noise = torch.cat(found).double()
    count = len(noise)
    assert count > 100_000
    values = torch.bincount(noise.long(), minlength=256)
    # The statistic of a uniform byte has a mean of 255 and a spread of 23: five of those.
    assert float(((values - count / 256) ** 2).sum() * 256 / count) < 255 + 5 * 23
    # Eight bytes are drawn at once: neither neighbours nor those eight apart know of each other.
    noise = (noise - 127.5) / 73.9
    for apart in range(1, 17):
        assert abs(float((noise[apart:] * noise[:-apart]).mean())) < 5 / math.sqrt(count)


def test_an_erasing_that_would_lose_the_person_is_skipped() -> None:
    crop, region_map = picture(32, 32)
    region_map.zero_()
    region_map[15:17, 15:17] = 2
    augment = Augment("region", flip=0, pad=0, erase=1.0, erase_area=(0.3, 0.6))
    untouched = 0
    for seed in range(40):
        new_crop, new_map = augment(crop, region_map, seeded(seed))
        assert new_map.any()
        untouched += torch.equal(new_crop, crop)
    assert 5 < untouched < 40


def test_without_a_person_a_crop_is_still_erased() -> None:
    crop, region_map = picture(32, 32)
    region_map.zero_()
    new_crop, new_map = Augment("region", flip=0, pad=0, erase=1.0)(crop, region_map, seeded(1))
    assert not torch.equal(new_crop, crop)
    assert not new_map.any()


def test_jitter() -> None:
    crop, region_map = picture(16, 8)
    grey = crop[..., :1].expand(-1, -1, 3).contiguous()
    for seed in range(5):
        # Saturation leaves grey alone; contrast leaves the mean grey alone; brightness scales.
        assert torch.equal(Augment("region", **OFF, colour=0.5)(grey, region_map, seeded(seed))[0], grey)
        flat = torch.full_like(crop, 90)
        assert torch.equal(Augment("region", **OFF, contrast=0.5)(flat, region_map, seeded(seed))[0], flat)
        bright, same = Augment("region", **OFF, brightness=0.5)(flat, region_map, seeded(seed))
        assert len(bright.unique()) == 1
        assert 45 <= bright[0, 0, 0] <= 135
        assert torch.equal(same, region_map)
    assert not torch.equal(Augment("region", **OFF, colour=0.5)(crop, region_map, seeded(0))[0], crop)


def test_randomness_is_torchs() -> None:
    crop, region_map = picture(64, 32)
    augment = Augment("region")
    torch.manual_seed(5)
    a = [augment(crop, region_map) for _ in range(4)]
    torch.manual_seed(5)
    b = [pickle.loads(pickle.dumps(augment))(crop, region_map) for _ in range(4)]
    assert all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True))
    assert not all(torch.equal(a[0][0], other[0]) for other in a[1:])
    one, two = augment(crop, region_map, seeded(9)), augment(crop, region_map, seeded(9))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


def test_no_pixels() -> None:
    crop, region_map = Augment("region")(torch.zeros(0, 4, 3, dtype=torch.uint8), torch.zeros(0, 4, dtype=torch.uint8))
    assert crop.shape == (0, 4, 3)
    assert region_map.shape == (0, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip": 1.5},
        {"erase": -0.1},
        {"pad": -1},
        {"pad": float("nan")},
        {"erase_area": (0.4, 0.2)},
        {"erase_area": (0.0, 0.2)},
        {"erase_aspect": 0},
        {"erase_fill": "white"},
        {"colour": 2},
        {"layout": "arms"},
    ],
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augment(**{"layout": "region", **wrong})  # type: ignore[arg-type]


def test_arguments_are_checked() -> None:
    crop, region_map = picture(4, 4)
    augment = Augment("region")
    with pytest.raises(TypeError, match="crop must be a uint8 tensor"):
        augment(crop.float(), region_map)
    with pytest.raises(TypeError, match="region_map must be a uint8 tensor"):
        augment(crop, region_map.numpy())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"crop must be \[H, W, 3\]"):
        augment(crop[..., 0], region_map)
    with pytest.raises(ValueError, match=r"region_map must be \[4, 4\]"):
        augment(crop, region_map[:2])
