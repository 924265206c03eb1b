"""The joint Mask R-CNN estimator: equal to torchvision's parts, checkpoints, odd input."""

from __future__ import annotations

import copy
import json
import logging
import math
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from mgran_fast.errors import CheckpointError
from mgran_fast.mra.estimate import Estimator
from mgran_fast.mra.maskrcnn import MEAN, STD, MaskRCNN, find_checkpoints
from mgran_fast.mra.weights import read_checkpoint, write


def random_crops(n, height=64, width=32, seed=0):
    return torch.randint(
        0, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def normalised(crops):
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return (crops.permute(0, 3, 1, 2).float() / 255 - mean) / std


def backbone(norm_layer=nn.BatchNorm2d):
    return resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=norm_layer)


def stock(build, num_classes, seed):
    """One of torchvision's detectors on a small backbone, as torchvision makes them without weights.

    Batch norm statistics are drawn, so that epsilon matters.
    """
    torch.manual_seed(seed)
    detector = build(backbone(), num_classes, min_size=64).eval()
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return detector


def few(detector):
    """Few proposals and detections: the tests take seconds."""
    detector.roi_heads.detections_per_img = 8
    detector.rpn._post_nms_top_n["testing"] = 100


@pytest.fixture(scope="module")
def mask_detector():
    return stock(detection.MaskRCNN, 91, 1)


@pytest.fixture(scope="module")
def keypoint_detector():
    return stock(detection.KeypointRCNN, 2, 2)


@pytest.fixture(scope="module")
def loaded(mask_detector, keypoint_detector):
    """A module with both checkpoints of torchvision, each with its own backbone; tests do not change it."""
    weights = {"mask": mask_detector.state_dict(), "keypoints": keypoint_detector.state_dict()}
    return MaskRCNN(weights=weights, backbone="resnet18")


@pytest.fixture(scope="module")
def pair():
    """Background and person only: random weights then find people everywhere. Tests do not change it."""
    torch.manual_seed(3)
    model = MaskRCNN(mode="detect", size=64, num_classes=2, backbone="resnet18")
    few(model)
    return model


def by_hand(detector, kind, crops):
    """A head of a stock detector on the box that is the whole crop."""
    height, width = crops.shape[1:3]
    images = normalised(crops)
    boxes = [torch.tensor([[0.0, 0.0, width, height]])] * len(crops)
    heads = detector.roi_heads
    with torch.no_grad():
        pooled = getattr(heads, f"{kind}_roi_pool")(detector.backbone(images), boxes, [(height, width)] * len(crops))
        return getattr(heads, f"{kind}_predictor")(getattr(heads, f"{kind}_head")(pooled))


def test_is_an_estimator(loaded):
    assert isinstance(loaded, Estimator)


def test_state_dict_is_that_of_torchvision():
    with torch.device("meta"):
        builders = (detection.keypointrcnn_resnet50_fpn, detection.maskrcnn_resnet50_fpn)
        theirs = [build(weights=None, weights_backbone=None).state_dict() for build in builders]
        mine = MaskRCNN().state_dict()
    # The last word on what both have, the box head, is the mask detector's.
    expected = {key: value.shape for state in theirs for key, value in state.items()}
    assert {key: value.shape for key, value in mine.items()} == {
        key: shape for key, shape in expected.items() if not key.endswith("num_batches_tracked")
    }


def test_box_mode_equals_the_heads_of_torchvision(loaded, mask_detector, keypoint_detector):
    crops = random_crops(2)
    answer = loaded(crops, keypoint_masks=True)
    small = by_hand(mask_detector, "mask", crops)[:, 1:2].sigmoid()
    mask = functional.interpolate(small, size=(64, 32), mode="bilinear", align_corners=False)[:, 0]
    assert answer.mask.std() > 0.01
    torch.testing.assert_close(answer.mask, mask, atol=1e-4, rtol=0)
    scores = by_hand(mask_detector, "box", crops)[0].softmax(dim=1)[:, 1]
    torch.testing.assert_close(answer.presence, scores, atol=1e-5, rtol=1e-3)
    heatmaps = by_hand(keypoint_detector, "keypoint", crops)
    relative = (heatmaps - heatmaps.amax((2, 3), keepdim=True)).exp()
    torch.testing.assert_close(answer.keypoint_masks, relative, atol=1e-3, rtol=0)


def test_a_level_further_up_is_the_one_torchvision_takes(loaded, mask_detector):
    crops = random_crops(1, 128, 128)  # 128 pixels a side: level 3, stride 8
    small = by_hand(mask_detector, "mask", crops)[:, 1:2].sigmoid()
    mask = functional.interpolate(small, size=(128, 128), mode="bilinear", align_corners=False)[:, 0]
    # Folding batch norm rounds differently, and the logits of these random weights are in the hundreds.
    torch.testing.assert_close(loaded(crops).mask, mask, atol=1e-3, rtol=0)


def test_a_batch_equals_its_crops_one_by_one(loaded):
    crops = random_crops(3)
    together = loaded(crops, keypoint_masks=True)
    for i in range(3):
        alone = loaded(crops[i : i + 1], keypoint_masks=True)
        for name in ("mask", "keypoints", "presence", "keypoint_masks"):
            assert (getattr(alone, name)[0] - getattr(together, name)[i]).abs().max() < 1e-4, name


@pytest.mark.parametrize(("height", "width"), [(1, 1), (33, 17), (7, 50)])
def test_odd_sizes(loaded, height, width):
    answer = loaded(random_crops(2, height, width))
    assert answer.mask.shape == (2, height, width)
    assert answer.keypoint_masks is None
    for tensor in (answer.mask, answer.presence, answer.keypoints[..., 2]):
        assert not tensor.requires_grad
        assert ((tensor >= 0) & (tensor <= 1)).all()
    assert ((answer.keypoints[..., :2] >= 0) & (answer.keypoints[..., :2] <= torch.tensor([width, height]))).all()


def test_not_contiguous_crops(loaded):
    wide = random_crops(1, 32, 32)
    crops = wide[:, :, ::2].flip(3)[..., [2, 1, 0]]
    assert torch.equal(loaded(crops).mask, loaded(crops.contiguous()).mask)
    strided = wide.transpose(1, 2)[:, :, ::2]
    assert not strided.is_contiguous()
    assert torch.equal(loaded(strided).mask, loaded(strided.contiguous()).mask)


@pytest.mark.parametrize("mode", ["box", "detect"])
def test_no_crops(loaded, pair, mode):
    model = loaded if mode == "box" else pair
    answer = model(random_crops(0), keypoint_masks=True)
    assert answer.mask.shape == (0, 64, 32)
    assert answer.keypoints.shape == (0, 17, 3)
    assert answer.presence.shape == (0,)
    assert answer.keypoint_masks.shape == (0, 17, 56, 56)


def test_wrong_crops_are_told(loaded):
    with pytest.raises(TypeError, match="uint8"):
        loaded(torch.zeros(1, 64, 32, 3))
    with pytest.raises(TypeError, match="not list"):
        loaded([[1]])
    for shape in ((64, 32, 3), (1, 3, 64, 32), (1, 0, 32, 3)):
        with pytest.raises(ValueError, match="N, H, W, 3"):
            loaded(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ValueError, match="move one of them"):
        loaded(torch.zeros(1, 4, 4, 3, dtype=torch.uint8, device="meta"))


def test_training_mode_is_refused(pair):
    pair.train()
    try:
        with pytest.raises(RuntimeError, match="eval"):
            pair(random_crops(1))
    finally:
        pair.eval()


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "fast"},
        {"size": 0},
        {"size": (64,)},
        {"size": (64.0, 32)},
        {"person_label": 91},
        {"backbone": "vgg16"},
    ],
)
def test_wrong_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        MaskRCNN(**arguments)


# Detect mode


def test_detect_finds_what_torchvision_finds(pair, monkeypatch):
    """The stock detector with the same weights: same scores, same choice, same mask up to its rounding of boxes."""
    stock_detector = detection.MaskRCNN(backbone(FrozenBatchNorm2d), 2, min_size=64).eval()
    few(stock_detector)
    stock_detector.load_state_dict({k: v for k, v in pair.state_dict().items() if "keypoint" not in k})
    crops = random_crops(3, 96, 48)
    monkeypatch.setattr("mgran_fast.mra.maskrcnn.CHUNK", 2)
    answer = pair(crops)
    with torch.no_grad():
        found = stock_detector(list(crops.permute(0, 3, 1, 2).float() / 255))
    for i, people in enumerate(found):
        best, choice = -1.0, None
        for j, (x1, y1, x2, y2) in enumerate(people["boxes"].tolist()):
            dx, dy = (x1 + x2) / 96 - 0.5, (y1 + y2) / 192 - 0.5
            size = ((x2 - x1) * (y2 - y1) / (96 * 48)) ** 0.5
            rank = float(people["scores"][j]) * math.exp(-8 * (dx**2 + dy**2)) * size
            best, choice = max((best, choice), (rank, j), key=lambda pair_: pair_[0])
        assert float(answer.presence[i]) == pytest.approx(float(people["scores"][choice]), abs=1e-4)
        theirs = people["masks"][choice, 0]
        assert ((answer.mask[i] > 0.5) == (theirs > 0.5)).float().mean() > 0.9
        assert (answer.mask[i] - theirs).abs().mean() < 0.1
        x1, y1, x2, y2 = people["boxes"][choice]
        points = answer.keypoints[i]
        assert (points[:, 0] >= x1 - 0.1).all()
        assert (points[:, 0] <= x2 + 0.1).all()
        assert (points[:, 1] >= y1 - 0.1).all()
        assert (points[:, 1] <= y2 + 0.1).all()


def test_detect_does_not_depend_on_the_first_crops(pair):
    """torchvision's pooling guesses its strides from the first sizes it sees, and guesses wrongly for 33 x 17."""
    crops = random_crops(1)
    model = MaskRCNN(mode="detect", size=(33, 17), num_classes=2, backbone="resnet18")
    model.load_state_dict(pair.state_dict())
    few(model)
    model(crops)
    model.size = 64
    assert torch.equal(model(crops).presence, pair(crops).presence)
    assert torch.equal(model(crops).mask, pair(crops).mask)


def test_detect_without_a_person_is_zero(pair):
    bias = pair.roi_heads.box_predictor.cls_score.bias
    kept = bias.detach().clone()
    try:
        with torch.no_grad():
            bias[0] += 1e4
        answer = pair(random_crops(2, 33, 17), keypoint_masks=True)
    finally:
        with torch.no_grad():
            bias.copy_(kept)
    assert answer.mask.shape == (2, 33, 17)
    assert answer.keypoint_masks.shape == (2, 17, 56, 56)
    for tensor in (answer.mask, answer.keypoints, answer.presence, answer.keypoint_masks):
        assert not tensor.any()


# Checkpoints


def old_names(state):
    """The key names of the files that torchvision published."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1.", key)
        key = re.sub(r"^rpn\.head\.conv\.0\.0\.", "rpn.head.conv.", key)
        key = re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)
        renamed[key] = value
    return renamed


def test_files_with_the_published_names_load(tmp_path, loaded, mask_detector, keypoint_detector):
    state = old_names(mask_detector.state_dict())
    assert "roi_heads.mask_head.mask_fcn4.bias" in state
    torch.save({"model": state}, tmp_path / "mask.pth")
    save_file(keypoint_detector.state_dict(), tmp_path / "keypoints.safetensors")
    weights = {"mask": tmp_path / "mask.pth", "keypoints": str(tmp_path / "keypoints.safetensors")}
    model = MaskRCNN(weights=weights, backbone="resnet18")
    crops = random_crops(1)
    assert torch.equal(model(crops).mask, loaded(crops).mask)
    assert torch.equal(model(crops).keypoints, loaded(crops).keypoints)


@pytest.mark.parametrize("backbone", ["mask", "keypoints"])
def test_one_backbone_for_both_heads(backbone, mask_detector, keypoint_detector, caplog):
    detectors = {"mask": mask_detector, "keypoints": keypoint_detector}
    model = MaskRCNN(backbone="resnet18")
    with caplog.at_level(logging.WARNING, logger="mgran_fast"):
        model.load_torchvision(mask_detector.state_dict(), keypoint_detector.state_dict(), backbone=backbone)
    other = "keypoints" if backbone == "mask" else "mask"
    assert [record.getMessage().split(" was ")[0] for record in caplog.records] == [f"the {other} head"]
    state, source = model.state_dict(), detectors[backbone].state_dict()
    assert model.keypoint_backbone is None
    for key in ("backbone.body.layer4.1.conv2.weight", "rpn.head.cls_logits.weight", "roi_heads.box_head.fc7.bias"):
        assert torch.equal(state[key], source[key])
    for role, key in (("mask", "roi_heads.mask_head.3.0.weight"), ("keypoints", "roi_heads.keypoint_head.14.weight")):
        assert torch.equal(state[key], detectors[role].state_dict()[key])
    if backbone == "keypoints":  # two classes became 91, of which the 89 others never win
        crops = random_crops(2)
        scores = by_hand(keypoint_detector, "box", crops)[0].softmax(dim=1)[:, 1]
        torch.testing.assert_close(model(crops).presence, scores, atol=1e-5, rtol=1e-3)
        assert state["roi_heads.box_predictor.bbox_pred.weight"].shape == (364, 1024)


def test_epsilon_follows_the_checkpoint(tmp_path, mask_detector):
    state = {"backbone.body.bn1.bias": torch.zeros(64)}
    assert read_checkpoint(state, "mask").eps == 0.0
    assert read_checkpoint(mask_detector.state_dict(), "mask").eps == 1e-5
    legacy = tmp_path / "keypointrcnn_resnet50_fpn_coco-9f466800.pth"
    torch.save(state, legacy)
    assert read_checkpoint(legacy, "keypoints").eps == 1e-5


def test_checkpoints_that_do_not_fit(tmp_path, pair, mask_detector, keypoint_detector):
    mask, keypoints = mask_detector.state_dict(), keypoint_detector.state_dict()
    before = {key: value.clone() for key, value in pair.state_dict().items()}
    text = tmp_path / "text.pth"
    text.write_text("no checkpoint")
    cut = tmp_path / "cut.safetensors"
    save_file({"a": torch.zeros(100)}, cut)
    cut.write_bytes(cut.read_bytes()[:-50])
    torch.save([1, 2], tmp_path / "list.pth")
    less = {key: value for key, value in keypoints.items() if key != "backbone.body.conv1.weight"}
    cases = [
        ({"mask": tmp_path / "none.pth"}, "none.pth: no such file"),
        ({"mask": text}, "text.pth is not a checkpoint"),
        ({"mask": cut}, "cut.safetensors is not a complete"),
        ({"mask": tmp_path / "list.pth"}, "holds a list"),
        ({"mask": {"a": 1}}, "holds no state dict"),
        ({"mask": mask}, "num_classes"),  # 91 classes, the model has 2
        ({"mask": keypoints}, "tensors are missing, roi_heads.mask"),
        ({"keypoints": less}, "1 tensors are missing, backbone.body.conv1.weight"),
        ({"keypoints": {**keypoints, "backbone.extra": torch.zeros(1)}}, "not known to it, backbone.extra"),
        ({"keypoints": {**keypoints, "backbone.body.conv1.weight": torch.zeros(1)}}, "expected is"),
    ]
    for sources, message in cases:
        with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
            pair.load_torchvision(**sources)
        assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in pair.state_dict().items())


def test_arguments_of_loading(pair, mask_detector):
    with pytest.raises(ValueError, match="mask=, keypoints= or both"):
        pair.load_torchvision()
    with pytest.raises(ValueError, match="other checkpoint"):
        pair.load_torchvision(mask={}, backbone="both")
    with pytest.raises(ValueError, match="backbone must be"):
        pair.load_torchvision(mask={}, backbone="resnet")
    with pytest.raises(TypeError, match="path or a state dict"):
        pair.load_torchvision(mask=3)
    with pytest.raises(TypeError, match="weights must be a dict"):
        MaskRCNN(weights=mask_detector.state_dict(), backbone="resnet18")


def test_find_checkpoints(tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert find_checkpoints() == {}
    folder.mkdir()
    legacy = folder / "keypointrcnn_resnet50_fpn_coco-9f466800.pth"
    legacy.touch()
    (folder / "resnet50-0676ba61.pth").touch()
    assert find_checkpoints() == {"keypoints": legacy}
    present = folder / "keypointrcnn_resnet50_fpn_coco-fc266e95.pth"
    mask = folder / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"
    present.touch()
    mask.touch()
    assert find_checkpoints() == {"mask": mask, "keypoints": present}
    assert find_checkpoints(tmp_path / "elsewhere") == {}


def test_save_and_from_file(tmp_path, loaded):
    path = tmp_path / "estimator.safetensors"
    loaded.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    state = torch.random.get_rng_state()
    again = MaskRCNN.from_file(path)
    assert torch.equal(torch.random.get_rng_state(), state), "reading took random numbers"
    assert not again.training
    assert again.backbone_name == "resnet18"
    assert again.keypoint_backbone is not None
    crops = random_crops(1)
    one, other = loaded(crops, keypoint_masks=True), again(crops, keypoint_masks=True)
    for name in ("mask", "keypoints", "presence", "keypoint_masks"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_save_keeps_arguments_and_precision(tmp_path, pair):
    path = tmp_path / "estimator.safetensors"
    model = copy.deepcopy(pair).half()
    model.size = (96, 32)
    model.save(path)
    again = MaskRCNN.from_file(path)
    assert (again.mode, again.size, again.num_classes, again.person_label) == ("detect", (96, 32), 2, 1)
    assert next(again.parameters()).dtype == torch.float16


def test_files_that_save_did_not_write(tmp_path):
    def file(name, metadata):
        save_file({"a": torch.zeros(1)}, tmp_path / name, metadata=metadata)
        return tmp_path / name

    good = {"format": "mgran_fast.MaskRCNN", "version": 1}
    arguments = {"mode": "box", "size": None, "num_classes": 2, "person_label": 1, "backbone": "resnet18"}
    cases = [
        (file("a", None), "was not written by"),
        (file("b", {"mgran_fast": "{"}), "not JSON"),
        (file("c", {"mgran_fast": "[]"}), "not a JSON object"),
        (file("d", {"mgran_fast": json.dumps({**good, "version": 9})}), "version 9"),
        (file("e", {"mgran_fast": json.dumps(good)}), "does not describe a MaskRCNN: 'arguments'"),
        (file("f", {"mgran_fast": json.dumps({**good, "arguments": {"size": None, "speed": 3}})}), "speed"),
        (
            file("g", {"mgran_fast": json.dumps({**good, "arguments": arguments, "eps": 0, "keypoint_eps": None})}),
            "Error\\(s\\) in loading",
        ),
        (tmp_path / "none", "no such file"),
    ]
    for path, message in cases:
        with pytest.raises(CheckpointError, match=message) as caught:
            MaskRCNN.from_file(path)
        assert str(path) in str(caught.value)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "estimator.safetensors"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write(path, {"weight": torch.zeros(3)}, {})
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1
