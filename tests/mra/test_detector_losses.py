"""Training the joint Mask R-CNN: the losses go down, who has no labels adds nothing, bad targets are named."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d, box_iou

from mgran_fast.data.synthetic import render
from mgran_fast.mra import detector_losses
from mgran_fast.mra.maskrcnn import MaskRCNN, Target

SIZE = (64, 32)
BOX = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_keypoint")
PROPOSALS = ("loss_objectness", "loss_rpn_box_reg")


@pytest.fixture(scope="module")
def people():
    """Two pedestrians: crops, and targets whose boxes are the crops."""
    views = [render(person, 0, 0, size=SIZE) for person in range(2)]
    crops = torch.stack([torch.from_numpy(view.crop) for view in views])
    whole = torch.tensor([[0.0, 0, SIZE[1], SIZE[0]]])
    targets = [
        Target(whole, torch.from_numpy(view.mask)[None], torch.from_numpy(view.keypoints)[None]) for view in views
    ]
    return crops, targets


@pytest.fixture(scope="module")
def untrained(people, narrow):
    torch.manual_seed(0)
    model = narrow(MaskRCNN(backbone="resnet18", num_classes=2))
    model.calibrate(people[0])
    # Few regions and proposals: the tests take seconds.
    model.roi_heads.fg_bg_sampler.batch_size_per_image = 12
    model.rpn._post_nms_top_n["training"] = 100
    return model.train()


def generator():
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize(("mode", "names"), [("box", BOX), ("detect", BOX + PROPOSALS)])
def test_a_few_steps_reduce_the_loss(untrained, people, mode, names):
    model = copy.deepcopy(untrained)
    model.mode = mode
    torch.manual_seed(2)  # torchvision draws its samples from torch's own generator
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    history = []
    for _ in range(6):
        losses = model.losses(*people, generator=generator())
        assert set(losses) == set(names)
        assert all(value.dtype == torch.float32 and value.dim() == 0 for value in losses.values())
        total = torch.stack(list(losses.values())).sum()
        history.append({name: float(value.detach()) for name, value in losses.items()})
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert history[0]["loss_keypoint"] == pytest.approx(math.log(56 * 56), rel=0.5)
    for name in ("loss_mask", "loss_keypoint"):
        assert history[-1][name] < 0.97 * history[0][name], (name, history)
    assert sum(history[-1].values()) < 0.9 * sum(history[0].values())
    # What was trained answers, and anew.
    model.mode = "box"
    assert model.eval()(people[0]).mask.isfinite().all()


def grads(model, loss):
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_all_heads_train_one_backbone(untrained, people):
    losses = untrained.losses(*people, generator=generator())
    for name, head in (("loss_mask", "mask_"), ("loss_keypoint", "keypoint_"), ("loss_classifier", "box_")):
        reached = grads(untrained, losses[name])
        assert "backbone.body.conv1.weight" in reached
        assert {key.split(".")[1][: len(head)] for key in reached if key.startswith("roi_heads.")} == {head}
        assert not any(key.startswith("rpn.") for key in reached)
    untrained.zero_grad()
    assert {module.training for module in untrained.modules()} == {True}


def test_who_has_no_labels_adds_nothing(untrained, people):
    crops, targets = people
    alone = untrained.losses(crops[:1], targets[:1], jitter=0.0, generator=generator())
    empty = Target(targets[1].boxes, torch.zeros(1, *SIZE), torch.full((1, 17, 3), 9.0), *(torch.zeros(2, 1).bool()))
    nothing = Target(targets[1].boxes)
    unlabelled = Target(targets[1].boxes, None, targets[1].keypoints * 0)
    for other in (empty, nothing, unlabelled):
        both = untrained.losses(crops[:2], [targets[0], other], jitter=0.0, generator=generator())
        for name in ("loss_mask", "loss_keypoint"):
            torch.testing.assert_close(both[name], alone[name], rtol=1e-3, atol=1e-4)
    none = untrained.losses(crops[:2], [empty, nothing], generator=generator())
    assert none["loss_mask"].item() == none["loss_keypoint"].item() == 0
    untrained.zero_grad()
    torch.stack(list(none.values())).sum().backward()
    for name, parameter in untrained.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.isfinite().all()
            if "mask_" in name or "keypoint_" in name:
                assert not parameter.grad.any()
    untrained.zero_grad()


@pytest.mark.parametrize("mode", ["box", "detect"])
def test_pictures_without_people(untrained, people, mode):
    model = copy.deepcopy(untrained)
    model.mode = mode
    crops, targets = people
    nobody = Target(torch.zeros(0, 4), torch.zeros(0, *SIZE), torch.zeros(0, 17, 3))
    for pictures in ([nobody, nobody], [nobody, targets[1]]):
        losses = model.losses(crops[:2], pictures)
        assert all(value.isfinite() for value in losses.values())
        assert losses["loss_classifier"] > 0
    if mode == "box":  # neither people nor background: nothing at all to learn from
        losses = model.losses(crops[:1], [nobody], background=0)
        assert all(value.item() == 0 for value in losses.values())


def test_masks_of_all_kinds_are_the_same(untrained, people):
    crops, targets = people
    mask = (targets[0].masks > 0.5).float()
    found = []
    for masks in (mask, mask.bool(), (mask * 255).to(torch.uint8), mask.double()):
        target = {"boxes": targets[0].boxes, "masks": masks}
        losses = untrained.losses(crops[:1], [target], jitter=0.0, generator=generator())
        found.append(losses["loss_mask"].item())
    assert found == [found[0]] * 4
    assert found[0] > 0


def test_the_mask_loss_is_the_cross_entropy_in_the_box(untrained):
    """A head that says what the target is has the least loss that the target allows."""
    model = copy.deepcopy(untrained)
    logits = model.roi_heads.mask_predictor.mask_fcn_logits
    with torch.no_grad():
        logits.weight.zero_()
        logits.bias.fill_(3.0)
    mask = torch.zeros(1, *SIZE)
    mask[:, 16:48, 8:24] = 1  # the box, and nothing else
    target = Target(torch.tensor([[8.0, 16, 24, 48]]), mask)
    picture = torch.zeros(1, *SIZE, 3, dtype=torch.uint8)
    loss = model.losses(picture, [target], jitter=0.0)["loss_mask"]
    # Cells at the border see half a pixel of what lies outside.
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3)), abs=0.3)
    target = Target(torch.tensor([[0.0, 0, 8, 16]]), mask)
    assert model.losses(picture, [target], jitter=0.0)["loss_mask"].item() == pytest.approx(3.05, abs=0.2)


def test_pictures_of_several_sizes(untrained, people):
    crops, targets = people
    large = torch.zeros(96, 50, 3, dtype=torch.uint8)
    large[:64, :32] = crops[1]
    padded = Target(targets[1].boxes, torch.nn.functional.pad(targets[1].masks, (0, 18, 0, 32)), targets[1].keypoints)
    losses = untrained.losses([crops[0], large], [targets[0], padded], generator=generator())
    assert all(value.isfinite() and value > 0 for value in losses.values())
    batch = detector_losses.batch([crops[0], large], next(untrained.parameters()))
    assert batch.shape == (2, 3, 96, 64)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert not batch[0, :, 64:].any()
    torch.testing.assert_close(batch[:1, :, :64, :32], detector_losses.batch(crops[:1], next(untrained.parameters())))


def test_jitter_and_background():
    boxes = torch.tensor([[10.0, 20, 30, 60], [0, 0, 4, 4]])
    moved = detector_losses._jittered(boxes, 0.1, generator())
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    shift = ((moved - boxes) / sides).abs()
    assert (shift <= 0.1 + 1e-6).all()
    assert shift.max() > 0.05
    assert torch.equal(detector_losses._jittered(boxes, 0.0, None), boxes)
    assert (detector_losses._jittered(boxes, 0.49, generator())[:, 2:] > boxes[:, :2]).all()
    empty = detector_losses._background(boxes, (100, 80), 5, generator())
    assert empty.shape == (5, 4)
    assert box_iou(empty, boxes).max() < detector_losses.BACKGROUND_OVERLAP
    assert (empty >= 0).all()
    assert (empty <= torch.tensor([80.0, 100, 80, 100])).all()
    assert (empty[:, 2:] > empty[:, :2]).all()
    nobody = detector_losses._background(boxes[:0], (100, 80), 3, generator())
    assert nobody[0].tolist() == [0, 0, 80, 100]
    assert nobody.shape == (3, 4)


def test_calibration_makes_every_layer_normal(untrained, people):
    model = copy.deepcopy(untrained)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.fill_(3.0)
            module.running_var.fill_(5.0)
    images = detector_losses.batch(people[0], next(model.parameters()))

    model.calibrate(people[0])
    norm = next(module for module in model.modules() if isinstance(module, FrozenBatchNorm2d))
    with torch.no_grad():
        out = norm(model.backbone.body.conv1(images))
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(64), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.var((0, 2, 3), correction=0), torch.ones(64), atol=1e-3, rtol=0)
    with torch.no_grad():
        assert 0.3 < model.backbone.body(images)["3"].std() < 3
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_second_backbone_trains_the_keypoints(untrained, people):
    model = copy.deepcopy(untrained)
    model.add_keypoint_backbone(0.0)
    model.calibrate(people[0])
    losses = model.losses(*people, generator=generator())
    assert any(key.startswith("keypoint_backbone.") for key in grads(model, losses["loss_keypoint"]))
    assert not any(key.startswith("keypoint_backbone.") for key in grads(model, losses["loss_mask"]))


def test_wrong_targets_are_told(untrained, people):
    crops, (good, *_) = people
    k = torch.ones(1, dtype=torch.bool)
    cases = [
        (ValueError, "1 pictures and 0 targets", []),
        (TypeError, "picture 0 must be a Target or a dict, not Tensor", [good.boxes]),
        (ValueError, "picture 0 must have boxes", [{"masks": good.masks}]),
        (ValueError, "picture 0 must have boxes and may have", [{"boxes": good.boxes, "labels": 1}]),
        (ValueError, "boxes must be \\[K, 4\\]", [Target(good.boxes[0])]),
        (ValueError, "empty or not finite", [Target(torch.tensor([[5.0, 5, 5, 9]]))]),
        (ValueError, "empty or not finite", [Target(torch.tensor([[0.0, 0, math.nan, 9]]))]),
        (ValueError, "masks must be \\[1, 64, 32\\]", [Target(good.boxes, good.masks[:, 1:])]),
        (ValueError, "keypoints must be \\[1, 17, 3\\]", [Target(good.boxes, None, good.keypoints[0])]),
        (ValueError, "has_mask must be bool \\[1\\]", [Target(good.boxes, good.masks, has_mask=k.float())]),
        (ValueError, "has_keypoints says that somebody", [Target(good.boxes, has_keypoints=k)]),
    ]
    for error, message, targets in cases:
        with pytest.raises(error, match=message):
            untrained.losses(crops[:1], targets)
    with pytest.raises(TypeError, match=r"picture 0 is torch\.float32"):
        untrained.losses(crops[:1].float(), [good])
    with pytest.raises(ValueError, match="at least one pixel"):
        untrained.losses([crops[0, :0]], [good])
    with pytest.raises(ValueError, match="at least one picture"):
        untrained.losses([], [])
    for name, value in (("jitter", 0.5), ("background", -1)):
        with pytest.raises(ValueError, match=name):
            untrained.losses(crops[:1], [good], **{name: value})
    with pytest.raises(RuntimeError, match="train"):
        copy.deepcopy(untrained).eval().losses(crops[:1], [good])
