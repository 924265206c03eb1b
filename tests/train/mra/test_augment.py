"""Augmentation of labelled crops: the labels follow the pixels."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mgran_fast.data.labels import LabelledBatch
from mgran_fast.layouts import KEYPOINT_FLIP
from mgran_fast.train.mra.augment import AugmentSettings, BatchAugment

SIZE = (64, 32)
#: Nothing happens at all.
STILL = AugmentSettings(
    plain=0, flip=0, zoom=(1, 1), aspect=1, shift=0, rotate=0, cut=0, background=0, second=0, cover=0,
    blur=0, coarse=0, dark=0, noise=0, grey=0, jitter=0, nobody=0,
)  # fmt: skip


def dotted(n: int = 4, size: tuple[int, int] = SIZE) -> LabelledBatch:
    """A dark crop with an upright person of grey, and a bright dot in the mask at each of three keypoints."""
    height, width = size
    crops = torch.full((n, height, width, 3), 20, dtype=torch.uint8)
    masks = torch.zeros((n, height, width), dtype=torch.uint8)
    masks[:, height // 8 : height - height // 8, width // 4 : 3 * width // 4] = 255
    crops[masks > 0] = 120
    keypoints = torch.zeros(n, 17, 3)
    for joint, (y, x) in {5: (0.3, 0.4), 6: (0.35, 0.65), 15: (0.7, 0.5)}.items():
        row, column = int(y * height), int(x * width)
        keypoints[:, joint] = torch.tensor([column + 0.5, row + 0.5, 0.9])
        reach = 1 + height // 32
        crops[:, row - reach : row + reach + 1, column - reach : column + reach + 1] = 250
    yes = torch.ones(n, dtype=torch.bool)
    return LabelledBatch(crops, masks, keypoints, yes, yes.clone(), torch.ones(n), torch.arange(n))


def run(settings: AugmentSettings, batch: LabelledBatch, seed: int = 0, backgrounds: bool = False) -> LabelledBatch:
    pictures = torch.full((3, 20, 10, 3), 200, dtype=torch.uint8) if backgrounds else None
    return BatchAugment(SIZE, pictures, settings)(batch, torch.Generator().manual_seed(seed))


def test_nothing_is_changed_when_nothing_is_asked_for() -> None:
    batch = dotted()
    before = {k: v.clone() for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    got = run(STILL, batch)
    torch.testing.assert_close(got.crops, batch.crops.float(), atol=1e-2, rtol=0)
    assert torch.equal(got.masks, batch.masks)
    torch.testing.assert_close(got.keypoints, batch.keypoints, atol=1e-4, rtol=1e-5)
    assert all(torch.equal(getattr(batch, k), v) for k, v in before.items()), "the batch that was given was changed"


@pytest.mark.parametrize(
    "change",
    [
        {"flip": 1.0},
        {"zoom": (0.7, 1.4)},
        {"aspect": 1.4},
        {"shift": 0.1},
        {"rotate": 20.0},
        {"flip": 0.5, "zoom": (0.8, 1.2), "aspect": 1.2, "shift": 0.1, "rotate": 15.0},
    ],
)
def test_keypoints_move_with_the_pixels(change: dict[str, object]) -> None:
    """The bright dots are found again where the keypoints say."""
    batch = dotted(16, (256, 128))
    got = run(dataclasses.replace(STILL, **change), batch, seed=1)  # type: ignore[arg-type]
    moved = (got.keypoints[..., :2] - batch.keypoints[..., :2] / 4).abs().amax(2)[:, 5]
    assert (moved > 0.5).sum() >= 8
    checked = 0
    for crop, keypoints in zip(got.crops, got.keypoints, strict=True):
        for x, y, score in keypoints[keypoints[:, 2] > 0]:
            assert score == pytest.approx(0.9)
            if 2 <= x < SIZE[1] - 2 and 2 <= y < SIZE[0] - 2:
                assert crop[int(y), int(x)].min() > 190
                checked += 1
    assert checked >= 24


def test_left_is_right_in_a_mirror() -> None:
    batch = dotted()
    got = run(dataclasses.replace(STILL, flip=1.0), batch)
    want = batch.keypoints[:, list(KEYPOINT_FLIP)]
    torch.testing.assert_close(got.keypoints[..., 2], want[..., 2])
    seen = want[..., 2] > 0
    torch.testing.assert_close(got.keypoints[..., 0][seen], SIZE[1] - want[..., 0][seen])
    torch.testing.assert_close(got.masks, batch.masks.flip(2))


def test_what_leaves_the_crop_is_not_visible() -> None:
    got = run(dataclasses.replace(STILL, cut=1.0), dotted(32))
    x, y, score = got.keypoints.unbind(2)
    outside = (x < 0) | (x >= SIZE[1]) | (y < 0) | (y >= SIZE[0])
    labelled = dotted(1).keypoints[0, :, 2] > 0
    assert outside[:, labelled].any()
    assert (score[outside] == 0).all()
    assert (score[:, labelled][~outside[:, labelled]] > 0).all()


def test_another_background_leaves_the_person_alone() -> None:
    batch = dotted()
    got = run(dataclasses.replace(STILL, background=1.0), batch, backgrounds=True)
    person = batch.masks > 0
    torch.testing.assert_close(got.crops[person], batch.crops.float()[person], atol=1e-2, rtol=0)
    assert (got.crops[~person] - 200).abs().max() < 1
    without = dataclasses.replace(batch, has_mask=torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(
        run(dataclasses.replace(STILL, background=1.0), without, backgrounds=True).crops,
        batch.crops.float(),
        atol=1e-2,
        rtol=0,
    )


def test_a_second_person_is_not_part_of_the_mask() -> None:
    batch = dotted(32)
    batch.crops[::2] = torch.where(batch.masks[::2, ..., None] > 0, 60, batch.crops[::2]).to(torch.uint8)
    got = run(dataclasses.replace(STILL, second=1.0), batch)
    changed = (got.crops - batch.crops).abs().amax(3) > 20
    assert changed.flatten(1).any(1).sum() >= 16
    # Where the other one stands before the person, the person is no longer seen; nowhere does the mask grow.
    assert (got.masks <= batch.masks).all()
    assert (got.masks[changed & (batch.masks > 0)] < 128).float().mean() > 0.9


def test_where_nobody_is_no_second_person_comes() -> None:
    batch = dotted(32)
    for part in (batch.crops, batch.masks, batch.keypoints, batch.presence):
        part[::2] = 0
    got = run(dataclasses.replace(STILL, second=1.0), batch)
    assert not got.crops[::2].any()


def test_a_thing_in_front_takes_away_mask_and_visibility() -> None:
    batch = dotted(32)
    got = run(dataclasses.replace(STILL, cover=1.0), batch)
    assert (got.masks <= batch.masks).all()
    assert (got.masks < batch.masks).flatten(1).any(1).sum() >= 16
    x, y = got.keypoints[..., 0].long(), got.keypoints[..., 1].long()
    labelled = batch.keypoints[..., 2] > 0
    hidden = labelled & (got.masks.flatten(1).gather(1, y * SIZE[1] + x) == 0)
    assert hidden.any()
    assert (got.keypoints[..., 2][hidden] < 0.2).all()
    assert (got.keypoints[..., 2][labelled & ~hidden] > 0.8).all()


def test_nobody() -> None:
    got = run(dataclasses.replace(STILL, nobody=1.0), dotted())
    assert not got.masks.any()
    assert not got.presence.any()
    assert not got.keypoints[..., 2].any()
    assert got.has_mask.all()


@pytest.mark.parametrize("change", ["blur", "coarse", "dark", "noise", "grey"])
def test_the_sensor_changes_pixels_alone(change: str) -> None:
    batch = dotted()
    got = run(dataclasses.replace(STILL, **{change: 1.0}), batch)  # type: ignore[arg-type]
    coloured = dataclasses.replace(batch, crops=batch.crops * torch.tensor([1, 0, 1], dtype=torch.uint8))
    if change == "grey":
        got = run(dataclasses.replace(STILL, grey=1.0), coloured)
        assert (got.crops.amax(3) - got.crops.amin(3)).max() < 1e-3
    else:
        assert (got.crops - batch.crops).abs().max() > 5
    assert torch.equal(got.masks, batch.masks)
    torch.testing.assert_close(got.keypoints, batch.keypoints, atol=1e-4, rtol=1e-5)


def test_the_same_seed_gives_the_same_batch() -> None:
    batch = dotted(6, (128, 64))
    first, again, other = (run(AugmentSettings(), batch, seed, True) for seed in (5, 5, 6))
    assert torch.equal(first.crops, again.crops)
    assert torch.equal(first.keypoints, again.keypoints)
    assert not torch.equal(first.crops, other.crops)
    assert first.crops.shape == (6, *SIZE, 3)
    assert ((first.crops >= 0) & (first.crops <= 255)).all()


def test_a_batch_of_nobody() -> None:
    got = run(AugmentSettings(), dotted(0), backgrounds=True)
    assert got.crops.shape == (0, *SIZE, 3)
    assert got.masks.shape == (0, *SIZE)
