"""People on full frames: one pass a frame, answers in the coordinates of each person's crop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional
from torchvision.models.detection import MaskRCNN as Detector
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from mgran_fast import ops
from mgran_fast.mra import frames as on_frames
from mgran_fast.mra import people
from mgran_fast.mra.inference import Network
from mgran_fast.mra.maskrcnn import MaskRCNN

# Few of them: the tests take seconds.
PROPOSALS = 200
NAMES = ("mask", "keypoints", "presence", "keypoint_masks")


def picture(height, width, seed=0):
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model(narrow):
    torch.manual_seed(0)
    model = narrow(MaskRCNN(backbone="resnet18", num_classes=2))
    model.rpn._post_nms_top_n["testing"] = PROPOSALS
    model.calibrate(torch.stack([picture(64, 32, seed) for seed in range(4)]))
    return model


def box(*rows):
    return torch.tensor(rows, dtype=torch.float32).view(-1, 4)


def check_same(one, other, rows=slice(None), tolerance=1e-4):
    for name in NAMES:
        ours, theirs = getattr(one, name), getattr(other, name)[rows]
        assert ours.shape == theirs.shape
        assert not ((ours - theirs).abs().max() > tolerance * max(1, float(theirs.abs().max()))), name


def test_a_box_that_is_the_frame_is_a_crop(model):
    crop = picture(64, 32)
    found = model.estimate_people(crop, box([0, 0, 32, 64]), size=(64, 32), keypoint_masks=True)
    assert (found.frame.tolist(), found.boxes.tolist()) == ([0], [[0, 0, 32, 64]])
    check_same(found.estimate, model(crop[None], keypoint_masks=True))
    assert torch.equal(found.scores, found.estimate.presence)


def test_the_heads_see_what_torchvision_pools(model):
    """Boxes on several levels, by torchvision's own modules."""
    frame, boxes = picture(160, 224), box([3, 5, 30, 60], [10, 0, 215, 155], [100.5, 20, 160, 140.25])
    found = model.estimate_people(frame, boxes, size=(56, 56), keypoint_masks=True).estimate
    heads = model.roi_heads
    with torch.no_grad():
        features = model.backbone(people.normalised(frame[None], (160, 224), torch.float32))
        pooled = heads.mask_roi_pool(features, [boxes], [(160, 224)])
        small = heads.mask_predictor(heads.mask_head(pooled))[:, 1:].sigmoid()
        heatmaps = heads.keypoint_predictor(heads.keypoint_head(pooled))
        scores = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, [boxes], [(160, 224)])))[0]
    mask = functional.interpolate(small, size=(56, 56), mode="bilinear", align_corners=False)[:, 0]
    assert mask.std() > 0.1
    torch.testing.assert_close(found.mask, mask, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.presence, scores.softmax(dim=1)[:, 1], atol=1e-4, rtol=0)
    relative = (heatmaps - heatmaps.amax((2, 3), keepdim=True)).exp()
    torch.testing.assert_close(found.keypoint_masks, relative, atol=1e-2, rtol=0)


def test_frames_of_all_sizes_keep_their_order(model, monkeypatch):
    frames = [picture(64, 96, 0), picture(40, 50, 1), picture(64, 96, 2), picture(33, 17, 3), picture(64, 96, 4)]
    boxes = [box([1, 2, 30, 60], [50, 1, 90, 64]), box(), box([5, 5, 20, 60]), box([0, 0, 17, 33]), box([9, 9, 60, 60])]
    monkeypatch.setattr(on_frames, "PIXELS", 2 * 64 * 96)
    monkeypatch.setattr(people, "CHUNK", 2)
    found = model.estimate_people(frames, boxes, keypoint_masks=True)
    assert len(found) == 5
    assert found.frame.tolist() == [0, 0, 2, 3, 4]
    assert torch.equal(found.boxes, torch.cat(boxes))
    assert found.estimate.mask.shape == (5, 256, 128)
    for i, (frame, given) in enumerate(zip(frames, boxes, strict=True)):
        alone = model.estimate_people(frame, given, keypoint_masks=True)
        check_same(alone.estimate, found.estimate, found.frame == i) if len(given) else None
    batch = model.estimate_people(torch.stack([frames[0], frames[2]]), [boxes[0], boxes[2]], keypoint_masks=True)
    check_same(batch.estimate, found.estimate, slice(0, 3))
    assert batch.frame.tolist() == [0, 0, 1]


def test_one_pass_of_the_backbone_for_all_people_of_equal_frames(model, monkeypatch):
    shapes, real = [], Network.features

    def counted(self, images, levels):
        shapes.append(tuple(images.shape))
        return real(self, images, levels)

    monkeypatch.setattr(Network, "features", counted)
    many = box(*([i, 2, i + 20, 60] for i in range(0, 60, 6)))
    model.estimate_people([picture(64, 96), picture(64, 96, 1)], [many, many])
    assert shapes == [(2, 3, 64, 96)]
    shapes.clear()
    # Nobody on a frame: nothing to run.
    model.estimate_people([picture(64, 96), picture(64, 96, 1)], [box(), box()])
    assert shapes == []


def test_nothing_is_seen_outside_of_the_frame():
    ones, heatmaps = torch.ones(3, 28, 28), torch.zeros(3, 17, 56, 56)
    heatmaps[:, 0, 8, 8] = 100.0  # at 8.5 / 56 of the box
    heatmaps[:, 1, 40, 40] = 100.0
    answers = people.Answers(ones, heatmaps, torch.full((3,), 0.5))
    boxes = box([-16, -32, 16, 32], [0, 0, 32, 64], [16, 32, 48, 96])
    size = (256, 128)
    valid = torch.tensor([True, True, True])
    found = on_frames._in_crops(answers, boxes, (64, 32), size, valid, True)
    expected = torch.zeros(3, *size)
    expected[0, 128:, 64:], expected[1], expected[2, :128, :64] = 1, 1, 1
    assert torch.equal(found.mask, expected)
    assert ((found.keypoints[..., 2] > 0.5)[:, :2]).tolist() == [[False, True], [True, True], [True, False]]
    torch.testing.assert_close(found.keypoints[1, 0, :2], torch.tensor([8.5 * 128 / 56, 8.5 * 256 / 56]))
    nobody = on_frames._in_crops(answers, boxes, (64, 32), size, ~valid, True)
    assert not any(getattr(nobody, name).any() for name in NAMES)


def test_boxes_out_of_the_frame_and_without_an_area(model):
    inf, nan = float("inf"), float("nan")
    good = [10, 5, 40, 60]
    bad = [
        [-20, 0, 0, 64],
        [96, 0, 120, 60],
        [5, 64, 20, 90],
        [30, 5, 30, 60],
        [40, 5, 30, 60],
        [0, 0, inf, 9],
        [nan] * 4,
    ]
    frame, boxes = picture(64, 96), box(good, *bad, good, [-10, -10, 40, 60])
    found = model.estimate_people(frame, boxes, keypoint_masks=True)
    assert found.frame.tolist() == [0] * 10
    assert torch.equal(found.boxes.nan_to_num(), boxes.nan_to_num())
    for name in NAMES:
        values = getattr(found.estimate, name)
        assert not values[1:8].any(), name
        assert values.isfinite().all()
        assert all(values[row].any() for row in (0, 8, 9))
        assert not ((values[0] - values[8]).abs().max() > 1e-4)
    # The crops say the same: black.
    assert not ops.crops(frame, boxes[1:8]).any()
    assert not found.estimate.mask[9, :30].any()


def test_the_answer_fits_the_crop_of_the_box(model):
    """Regions are made from it as it is."""
    frame, boxes = picture(64, 96), box([10, 5, 40, 60], [50, 0, 80, 64])
    estimate = model.estimate_people(frame, boxes).estimate
    assert ops.crops(frame, boxes).shape[:3] == estimate.mask.shape
    assert ops.regions(estimate.mask, estimate.keypoints).shape == estimate.mask.shape
    assert (estimate.keypoints[..., :2] <= torch.tensor([128, 256])).all()


def test_resized_frames(model, monkeypatch):
    """Boxes go along, and answers stay in the crop."""
    seen, real = [], people.answer

    def watched(network, features, rois, person, level=None):
        seen.append(rois)
        return real(network, features, rois, person, level)

    monkeypatch.setattr(people, "answer", watched)
    found = model.estimate_people(picture(64, 96), box([10, 4, 40, 60]), shorter=32)
    torch.testing.assert_close(seen[0], torch.tensor([[0.0, 5, 2, 20, 30]]))
    assert found.estimate.mask.shape == (1, 256, 128)
    assert found.boxes.tolist() == [[10, 4, 40, 60]]


@pytest.mark.parametrize("shorter", [64, 128])
def test_detect_finds_what_torchvision_finds(model, shorter):
    stock = Detector(
        resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5),
        2,
        min_size=shorter,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_detections_per_img=6,
        box_nms_thresh=0.4,
        box_score_thresh=0.3,
    ).eval()
    for name in ("box_head", "box_predictor"):
        setattr(stock.roi_heads, name, copy.deepcopy(getattr(model.roi_heads, name)))
    stock.load_state_dict({k: v for k, v in model.state_dict().items() if "keypoint" not in k})
    frames = [picture(64, 96), picture(64, 64, 1), picture(64, 96, 2)]
    with torch.no_grad():
        # One at a time: in a batch of several sizes torchvision pads frames, which the backbone sees at the border.
        expected = [stock([frame.permute(2, 0, 1).float() / 255])[0] for frame in frames]
    found = model.detect(frames, shorter=shorter, score=0.3, nms=0.4, most=6, size=(64, 32), keypoint_masks=True)
    assert len(found) > 3
    for i, theirs in enumerate(expected):
        mine = found.frame == i
        torch.testing.assert_close(found.scores[mine], theirs["scores"], atol=1e-4, rtol=0)
        torch.testing.assert_close(found.boxes[mine], theirs["boxes"], atol=1e-2, rtol=0)
    assert torch.equal(found.estimate.presence, found.scores)
    if shorter == 64:  # frames as they are: boxes that are found are like boxes that are given
        given = [found.boxes[found.frame == i] for i in range(3)]
        again = model.estimate_people(frames, given, size=(64, 32), keypoint_masks=True)
        assert torch.equal(again.frame, found.frame)
        torch.testing.assert_close(again.estimate.mask, found.estimate.mask, atol=1e-3, rtol=0)


def test_detect_nobody(model):
    found = model.detect([picture(64, 96), picture(32, 32)], score=1.0, shorter=64, keypoint_masks=True)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert found.frame.dtype == torch.int64
    assert found.estimate.mask.shape == (0, 256, 128)
    assert found.estimate.keypoint_masks.shape == (0, 17, 56, 56)
    for none in (model.detect([]), model.estimate_people([], []), model.estimate_people(picture(9, 9), box())):
        assert len(none) == 0
        assert none.estimate.mask.shape == (0, 256, 128)
        assert none.estimate.keypoint_masks is None


def test_wrong_frames_and_boxes_are_told(model):
    frame, boxes = picture(8, 8), box([0, 0, 8, 8])
    cases = [
        (TypeError, "frame 1 is torch.float32", [frame, frame.float()], [boxes, boxes]),
        (TypeError, "frame 0 is list", [[1]], [boxes]),
        (ValueError, "frame 0 is \\[8, 8\\]", [frame[..., 0]], [boxes]),
        (ValueError, "at least one pixel", [frame[:0]], [boxes]),
        (ValueError, "frame 0 is on meta", [frame.to("meta")], [boxes]),
        (ValueError, "2 frames, not one tensor", [frame, frame], boxes),
        (ValueError, "2 frames want 2 tensors of boxes, not 1", [frame, frame], [boxes]),
        (TypeError, "those of frame 0 are torch.float64", frame, boxes.double()),
        (TypeError, "those of frame 0 are tuple", [frame], [(1, 2, 3, 4)]),
        (ValueError, "those of frame 0 are \\[4\\]", frame, boxes[0]),
        (ValueError, "boxes of frame 0 are on meta", frame, boxes.to("meta")),
    ]
    for error, message, frames, given in cases:
        with pytest.raises(error, match=message):
            model.estimate_people(frames, given)
    for name, value in (("score", 1.5), ("nms", -0.1), ("most", 0), ("shorter", 0), ("size", (1, 0)), ("size", 9)):
        with pytest.raises(ValueError, match=name):
            model.detect(frame, **{name: value})
    model.train()
    try:
        with pytest.raises(RuntimeError, match="eval"):
            model.estimate_people(frame, boxes)
        with pytest.raises(RuntimeError, match="eval"):
            model.detect(frame)
    finally:
        model.eval()
