"""The published system as plain code: its steps by hand, with small detectors and trunks put in."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from mgran_fast.reference.published import PublishedMGRAN

SIZE = (64, 32)
# The logits of a Gaussian around the centre of the cell in row 28 and column 14.
HEATMAP = -((torch.arange(56)[:, None] - 28) ** 2 + (torch.arange(56)[None] - 14) ** 2) / (2 * 4.0**2)


def random_crops(n, height=64, width=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)


class FakeMasks(nn.Module):
    """Three detections: another class with the best score, a person, a better person; none in a black picture."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, images):
        self.calls.append([tuple(image.shape) for image in images])
        image = images[0]
        assert not self.training
        assert 0 <= float(image.min()) <= float(image.max()) <= 1
        masks = torch.zeros(3, 1, *image.shape[1:])
        masks[1, :, :2] = 0.9
        masks[2, :, 8:56, 8:24] = 0.75
        n = 3 if image.any() else 0
        return [
            {"labels": torch.tensor([7, 1, 1])[:n], "scores": torch.tensor([0.9, 0.3, 0.6])[:n], "masks": masks[:n]}
        ]


class FakeKeypoints(nn.Module):
    """One person with the box 8, 8, 24, 56, whose joint j lies at (12 + j % 2, 10 + 2 j)."""

    def forward(self, images):
        j = torch.arange(17.0)
        points = torch.stack((12 + j % 2, 10 + 2 * j, torch.ones(17)), dim=1)[None]
        found = {"labels": torch.tensor([1]), "scores": torch.tensor([0.8]), "keypoints": points}
        found |= {"keypoints_scores": torch.linspace(-3, 9, 17)[None], "boxes": torch.tensor([[8.0, 8.0, 24.0, 56.0]])}
        n = 1 if images[0].any() else 0
        return [{key: value[:n] for key, value in found.items()}]


class WithHead(FakeKeypoints):
    """The same with a keypoint head like torchvision's, whose heatmaps peak in row 28, column 14."""

    def __init__(self):
        super().__init__()
        self.roi_heads = nn.Module()
        self.roi_heads.keypoint_predictor = nn.Identity()

    def forward(self, images):
        self.roi_heads.keypoint_predictor(HEATMAP.expand(1, 17, 56, 56))
        return super().forward(images)


class Shrink(nn.Module):
    """A trunk without weights: the mean of 4 x 4 pixels, and how often it was called."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images):
        self.calls += 1
        return nn.functional.avg_pool2d(images, 4)


def quarters(mask, keypoints, *, size, layout):
    """A region map of bands where the mask is set: rows 8 to 23, 24 to 39, 40 to 55."""
    assert keypoints.shape == (len(mask), 17, 3)
    assert mask.shape[1:] == size
    rows = torch.zeros(size, dtype=torch.uint8)
    for region in range(3):
        rows[8 + 16 * region : 24 + 16 * region] = region + 1
    return rows * (mask >= 0.5)


def system(**arguments):
    chosen = {"trunk": Shrink(), "mask_detector": FakeMasks(), "keypoint_detector": FakeKeypoints()}
    return PublishedMGRAN(**{**chosen, "size": SIZE, "regions": quarters, **arguments})


def test_each_crop_goes_through_the_detectors_alone():
    model = system()
    answer = model.estimate(random_crops(3))
    assert model.mask_detector.calls == [[(3, 64, 32)]] * 3
    expected = torch.zeros(3, 64, 32)
    expected[:, 8:56, 8:24] = 0.75
    assert torch.equal(answer.mask, expected)
    torch.testing.assert_close(answer.presence, torch.full((3,), 0.6))
    assert answer.keypoints[1, 3, :2].tolist() == [13.0, 16.0]
    torch.testing.assert_close(answer.keypoints[0, :, 2], torch.linspace(-3, 9, 17).sigmoid())
    assert answer.keypoint_masks is None


def test_the_heatmaps_are_kept_as_keypoint_masks():
    answer = system(keypoint_detector=WithHead()).estimate(random_crops(1))
    assert answer.keypoint_masks.shape == (1, 17, 64, 32)
    mask = answer.keypoint_masks[0, 5]
    row, column = divmod(int(mask.argmax()), 32)
    # Cell 28, 14 of 56 of the box from 8, 8 to 24, 56, up to the rounding of the box when it is pasted.
    assert abs(row + 0.5 - (8 + 48 * 28.5 / 56)) <= 1.5
    assert abs(column + 0.5 - (8 + 16 * 14.5 / 56)) <= 1.5
    assert 0.8 < float(mask.max()) <= 1
    assert not mask[:, 28:].any()
    probability = HEATMAP.exp() / HEATMAP.exp().sum()
    assert float(answer.keypoints[0, 0, 2]) == pytest.approx(float(probability[25:32, 11:18].sum()), rel=1e-4)


def test_nobody_found():
    answer = system(keypoint_detector=WithHead()).estimate(torch.zeros(2, 64, 32, 3, dtype=torch.uint8))
    for tensor in (answer.mask, answer.keypoints, answer.presence, answer.keypoint_masks):
        assert not tensor.any()


def test_inputs_are_scaled_inside_and_zero_outside():
    crops = random_crops(2)
    model = system()
    region_map = model.region_map(model.estimate(crops))
    region_map[1] = 0
    inputs = model.inputs(crops, region_map)
    assert len(inputs) == 4
    pixels = crops.permute(0, 3, 1, 2).float() / 256
    assert torch.equal(inputs[0][0], pixels[0] * (region_map[0] > 0))
    for region in (1, 2, 3):
        assert torch.equal(inputs[region][0], pixels[0] * (region_map[0] == region))
        assert not inputs[region][1].any()
    # An empty map: the global input is the whole crop.
    assert torch.equal(inputs[0][1], pixels[1])


def test_embedding_by_hand():
    crops = random_crops(3)
    model = system(trunk=Shrink())
    region_map = model.region_map(model.estimate(crops))
    region_map[1][region_map[1] == 2] = 0
    region_map[2] = 0
    answer = model.embed(model.inputs(crops, region_map), region_map)
    assert model.trunk.calls == 4
    assert answer.dtype == torch.float32
    torch.testing.assert_close(answer.norm(dim=1), torch.ones(3))
    # Regions start and end at multiples of 4 here, so pooling the mean of 4 x 4 pixels is the mean of the pixels.
    for i, visible in ((0, (0, 1, 2, 3)), (1, (0, 1, 3)), (2, (0,))):
        for part in range(4):
            if part not in visible:
                assert not answer[i, 3 * part : 3 * part + 3].any()
                continue
            if part == 0:
                place = (region_map[i] > 0) if i < 2 else torch.ones(64, 32, dtype=torch.bool)
            else:
                place = region_map[i] == part
            mean = crops[i][place].float().mean(dim=0)
            expected = mean / mean.norm() / math.sqrt(len(visible))
            torch.testing.assert_close(answer[i, 3 * part : 3 * part + 3], expected, atol=1e-5, rtol=1e-5)


def test_a_cell_counts_by_its_share():
    """Two cells, of which the region holds all and a quarter: weights 1 and 1/4."""
    model = system(trunk=nn.AvgPool2d(4), size=(4, 8))
    region_map = torch.zeros(1, 4, 8, dtype=torch.uint8)
    region_map[:, :, :4] = 1
    region_map[:, 0, 4:] = 1
    images = torch.zeros(1, 3, 4, 8)
    images[:, 0, :, :4], images[:, 1, :, 4:] = 1, 1
    answer = model.embed([images] * 4, region_map)[0]
    expected = torch.tensor([1, 0.25, 0]) / math.hypot(1, 0.25) / math.sqrt(2)
    torch.testing.assert_close(answer[:3], expected)
    torch.testing.assert_close(answer[3:6], expected)
    assert not answer[6:].any()


def test_forward_is_the_steps_one_after_another():
    torch.manual_seed(0)
    model = system(trunk=resnet18(weights=None))
    crops = random_crops(2)
    with torch.no_grad():
        answer = model(crops)
        region_map = model.region_map(model.estimate(crops))
        assert torch.equal(answer, model.embed(model.inputs(crops, region_map), region_map))
    assert answer.shape == (2, 4 * 512)
    assert not any(name.startswith("trunk.fc") for name, _ in model.named_parameters())
    with torch.no_grad():
        large = model(random_crops(1, 100, 50))  # resized to the trunk's size first
    assert large.shape == (1, 4 * 512)
    assert model.mask_detector.calls[-1] == [(3, 64, 32)]


def test_the_trunk_learns_and_the_detectors_do_not_switch():
    torch.manual_seed(0)
    model = system(trunk=resnet18(weights=None)).train()
    assert model.trunk.training
    assert not model.mask_detector.training
    assert not model.keypoint_detector.training
    model(random_crops(2))[:, 0].sum().backward()
    assert model.trunk.conv1.weight.grad.abs().sum() > 0


def test_no_crops():
    assert system()(random_crops(0)).shape == (0, 12)


@pytest.mark.parametrize("layout", ["region", "part", "none"])
def test_region_map_of_the_library(layout):
    """Without ``regions=`` the library's reference geometry makes the map."""
    model = system(regions=None, layout=layout)
    crops = random_crops(1)
    region_map = model.region_map(model.estimate(crops))
    assert region_map.shape == (1, 64, 32)
    assert region_map.dtype == torch.uint8
    count = {"region": 3, "part": 6, "none": 0}[layout]
    inputs = model.inputs(crops, region_map)
    assert len(inputs) == 1 + count
    if layout == "none":
        assert torch.equal(inputs[0], crops.permute(0, 3, 1, 2).float() / 256)
    else:
        assert torch.equal(region_map[0] > 0, model.estimate(crops).mask[0] >= 0.5)
        torch.testing.assert_close(sum(inputs[1:]), inputs[0])


def test_the_stock_parts_at_a_small_size():
    """torchvision's own detectors and ResNet-50, with random weights."""
    torch.manual_seed(0)
    model = PublishedMGRAN(min_size=64, size=SIZE)
    assert not model.mask_detector.training
    for detector in (model.mask_detector, model.keypoint_detector):
        detector.roi_heads.detections_per_img = 4
        detector.rpn._post_nms_top_n["testing"] = 50
    with torch.no_grad():
        answer = model(random_crops(1))
        assert answer.shape == (1, 4 * 2048)
        torch.testing.assert_close(answer.norm(dim=1), torch.ones(1))
        # Two classes with random weights: the keypoint detector sees people, and its heatmaps are caught.
        estimate = model.estimate(random_crops(1))
        assert model.trunk(torch.zeros(1, 3, 64, 32)).shape == (1, 2048, 4, 2)
    assert estimate.keypoint_masks.shape == (1, 17, 64, 32)
    assert (estimate.keypoints[..., 2] > 0).all()
    assert (estimate.keypoint_masks.amax((2, 3)) > 0).all()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="last_stride"):
        system(last_stride=3)
    with pytest.raises(ValueError, match="layout"):
        system(layout="bodies")
    with pytest.raises(TypeError, match="uint8"):
        system()(torch.zeros(1, 64, 32, 3))
    with pytest.raises(ValueError, match="N, H, W, 3"):
        system()(torch.zeros(1, 3, 64, 32, dtype=torch.uint8))
