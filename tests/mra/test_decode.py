"""From heatmaps to keypoints and from boxes to the crop: exact where the shape is known, equal to plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

from mgran_fast.mra import decode


def gaussian(x, y, h=56, w=56, sigma=2.0):
    """Logits of a Gaussian whose peak lies at cell coordinates x, y (cell j has its centre at j + 0.5)."""
    rows, columns = torch.arange(h)[:, None] + 0.5, torch.arange(w)[None] + 0.5
    return -((rows - y) ** 2 + (columns - x) ** 2) / (2 * sigma**2)


def test_the_peak_of_a_gaussian_is_found_exactly():
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(4, 17, 2, generator=generator) * 50 + 3
    maps = torch.stack([torch.stack([gaussian(*p) for p in person]) for person in places])
    boxes = torch.tensor([[0, 0, 56, 56], [10, 20, 66, 76], [0, 0, 128, 256], [5, 5, 12, 19]], dtype=torch.float32)
    found = decode.decode_keypoints(maps, boxes)
    scale = ((boxes[:, 2:] - boxes[:, :2]) / 56)[:, None]
    error = (found[..., :2] - boxes[:, None, :2]) / scale - places
    assert error.abs().max() < 0.01  # half a cell without the refinement


def test_a_peak_at_the_border_stays_in_the_box():
    maps = torch.stack([gaussian(-3.0, 28.0), gaussian(60.0, 60.0)])[None]
    found = decode.decode_keypoints(maps, torch.tensor([[0.0, 0.0, 56.0, 56.0]]))[0]
    torch.testing.assert_close(found[0, :2], torch.tensor([0.5, 28.0]), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[1, :2], torch.tensor([55.5, 55.5]), atol=1e-3, rtol=0)


def test_batched_decoding_equals_one_person_after_another():
    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(5, 17, 9, 7, generator=generator) * 3
    boxes = torch.tensor([[0.0, 0, 30, 60], [3, 4, 9, 10], [0, 0, 1, 1], [7, 0, 107, 300], [0, 0, 7, 9]])
    found = decode.decode_keypoints(maps, boxes)
    for i in range(5):
        x1, y1, x2, y2 = boxes[i].tolist()
        for j in range(17):
            m = maps[i, j]
            row, column = divmod(int(m.argmax()), 7)
            dx = dy = 0.0
            if 0 < column < 6:
                low, mid, high = m[row, column - 1 : column + 2].tolist()
                dx = (low - high) / (2 * (low - 2 * mid + high))
            if 0 < row < 8:
                low, mid, high = m[row - 1 : row + 2, column].tolist()
                dy = (low - high) / (2 * (low - 2 * mid + high))
            around = slice(max(row - 3, 0), row + 4), slice(max(column - 3, 0), column + 4)
            mass = float(m.flatten().softmax(0).view(9, 7)[around].sum())
            expected = [x1 + (column + 0.5 + dx) * (x2 - x1) / 7, y1 + (row + 0.5 + dy) * (y2 - y1) / 9, mass]
            torch.testing.assert_close(found[i, j], torch.tensor(expected), atol=1e-3, rtol=1e-4)


def test_decoding_agrees_with_torchvision_within_a_cell():
    generator = torch.Generator().manual_seed(2)
    places = torch.rand(17, 2, generator=generator) * 40 + 8
    maps = torch.stack([gaussian(*p) for p in places])[None]
    boxes = torch.tensor([[4.0, 8.0, 68.0, 136.0]])
    theirs, _ = heatmaps_to_keypoints(maps, boxes)
    cell = torch.tensor([64 / 56, 128 / 56])
    assert ((decode.decode_keypoints(maps, boxes)[..., :2] - theirs[..., :2]).abs() <= cell).all()


def test_scores_of_a_sharp_and_a_flat_heatmap():
    sharp, flat = gaussian(28, 28, sigma=0.5), torch.zeros(56, 56)
    scores = decode.decode_keypoints(torch.stack([sharp, flat])[None], torch.tensor([[0.0, 0, 9, 9]]))[0, :, 2]
    assert scores[0] > 0.999
    # The first cell of a tie is the corner: 16 of the 49 cells of its window are on the map.
    assert float(scores[1]) == pytest.approx(16 / 3136, rel=1e-3)


def test_keypoint_masks_peak_at_one():
    masks = decode.keypoint_masks(torch.stack([gaussian(10.5, 20.5), gaussian(30, 30)])[None] * 40 + 1000)
    assert masks.shape == (1, 2, 56, 56)
    assert torch.equal(masks.amax((2, 3)), torch.ones(1, 2))
    assert float(masks[0, 0, 20, 10]) == 1
    assert float(masks.min()) >= 0


def test_paste_is_one_inside_the_box_and_zero_outside():
    boxes = torch.tensor([[8.0, 16.0, 24.0, 48.0], [0.0, 0.0, 32.0, 64.0], [5.0, 5.0, 5.0, 5.0]])
    laid = decode.paste(torch.ones(3, 1, 28, 28), boxes, (64, 32), (64, 32))
    expected = torch.zeros(64, 32)
    expected[16:48, 8:24] = 1
    torch.testing.assert_close(laid[0, 0], expected)
    torch.testing.assert_close(laid[1, 0], torch.ones(64, 32))
    assert not laid[2].any()
    ramp = torch.arange(28.0).view(1, 1, 1, 28).expand(1, 1, 28, 28)
    across = decode.paste(ramp, torch.tensor([[0.0, 0.0, 28.0, 28.0]]), (28, 28), (28, 28))
    torch.testing.assert_close(across, ramp, atol=1e-4, rtol=0)


def test_blurring_finds_where_most_probability_is():
    heatmaps = torch.full((1, 2, 12, 10), -20.0)
    # A lonely highest cell against a neighbourhood with more probability in all.
    heatmaps[0, 0, 2, 2] = 1.0
    heatmaps[0, 0, 7:10, 5:8] = 0.5
    heatmaps[0, 1, 4, 9] = 3.0
    boxes = torch.tensor([[0.0, 0.0, 10.0, 12.0]])
    plain, found = (decode.decode_keypoints(maps, boxes)[0] for maps in (heatmaps, decode.blurred(heatmaps, 1.0)))
    assert plain[0, :2].tolist() == [2.5, 2.5]
    assert (found[0, :2] - torch.tensor([6.5, 8.5])).abs().max() <= 0.05
    assert found[1, 1].item() == pytest.approx(4.5, abs=0.05)
    # Against a convolution, written out.
    probability = heatmaps.flatten(2).softmax(2).view_as(heatmaps)[0, 0]
    want = sum(probability[y, x] * math.exp(-0.5 * ((y - 7) ** 2 + (x - 4) ** 2)) for y in range(12) for x in range(10))
    assert decode.blurred(heatmaps, 1.0)[0, 0, 7, 4].exp().item() == pytest.approx(float(want), rel=1e-4)
