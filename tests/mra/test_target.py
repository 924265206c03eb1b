"""The person that a crop is about, on made-up boxes."""

from __future__ import annotations

import math

import pytest
import torch

from mgran_fast.mra import target

SIZE = (256, 128)


def chosen(people, size=SIZE):
    """people: (x1, y1, x2, y2, score), all in one crop -> the row chosen."""
    table = torch.tensor(people, dtype=torch.float32).view(-1, 5)
    crop = torch.zeros(len(table), dtype=torch.long)
    return int(target.choose(table[:, :4], table[:, 4], crop, 1, size)[0])


CENTRED = (20, 10, 110, 250, 0.6)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ((0, 20, 30, 250, 0.99), "a sure one cut off by the border"),
        ((50, 100, 75, 160, 0.99), "a sure one far behind, in the middle"),
        ((90, 0, 128, 256, 0.95), "somebody who enters from the side"),
        ((20, 10, 110, 250, 0.5), "the same place, less sure"),
        ((-60, -100, 40, 150, 0.9), "a large one, mostly outside"),
    ],
)
def test_the_centred_large_person_wins(other, why):
    assert chosen([CENTRED, other]) == 0, why
    assert chosen([other, CENTRED]) == 1, why


def test_centre_decides_between_equal_sizes_and_size_between_equal_centres():
    assert chosen([(0, 0, 60, 256, 0.8), (34, 0, 94, 256, 0.8)]) == 1
    assert chosen([(40, 80, 88, 176, 0.8), (20, 40, 108, 216, 0.8)]) == 1


def test_a_badly_placed_person_is_taken_when_alone():
    assert chosen([(0, 0, 10, 10, 0.1)]) == 0


def test_the_first_of_equals():
    assert chosen([CENTRED, CENTRED, CENTRED]) == 0


def test_nobody():
    assert chosen([]) == -1
    assert chosen([(130, 0, 150, 256, 0.9)]) == -1  # outside of the crop
    assert chosen([(30, 30, 30, 90, 0.9)]) == -1  # without an area
    assert chosen([(20, 10, 110, 250, 0.0)]) == -1
    nothing = torch.zeros(0)
    assert target.choose(nothing.view(0, 4), nothing, nothing.long(), 0, SIZE).shape == (0,)


def test_rank_is_the_documented_product():
    boxes = torch.tensor([[32.0, 64, 96, 192], [0, 0, 128, 256], [-64, 0, 64, 256]])
    found = target.rank(boxes, torch.tensor([0.5, 1.0, 1.0]), SIZE)
    # The third is seen from 0 to 64: its centre is a quarter of the width away, half of the crop is covered.
    expected = torch.tensor([0.25, 1.0, math.exp(-0.5) * math.sqrt(0.5)])
    torch.testing.assert_close(found, expected)


def test_batched_choice_equals_a_loop():
    generator = torch.Generator().manual_seed(0)
    k, n = 60, 9
    low = torch.rand(k, 2, generator=generator) * torch.tensor([100.0, 200.0])
    boxes = torch.cat((low, low + torch.rand(k, 2, generator=generator) * 80 - 5), dim=1)
    scores = torch.rand(k, generator=generator)
    crop = torch.randint(0, n - 1, (k,), generator=generator)  # in any order; the last crop has nobody
    found = target.choose(boxes, scores, crop, n, SIZE)
    assert int(found[-1]) == -1
    for i in range(n):
        rows = [row for row in range(k) if int(crop[row]) == i]
        ranks = [float(target.rank(boxes[row : row + 1], scores[row : row + 1], SIZE)) for row in rows]
        expected = rows[ranks.index(max(ranks))] if ranks and max(ranks) > 0 else -1
        assert int(found[i]) == expected
