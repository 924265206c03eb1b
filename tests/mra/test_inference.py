"""The prepared network: equal to the modules it is made from, made anew when they change, and in which precision."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from mgran_fast.mra import inference, people
from mgran_fast.mra.inference import LEVELS, POOL, Network, conv
from mgran_fast.mra.maskrcnn import MaskRCNN


def random_crops(n, height=64, width=32, seed=0):
    return torch.randint(
        0, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def lively(model):
    """Batch norm does something, and activations stay near 1."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)
            module.eps = 1e-3
    model.calibrate(random_crops(4, seed=1))
    return model


@pytest.fixture(scope="module")
def model(narrow):
    torch.manual_seed(0)
    return lively(narrow(MaskRCNN(backbone="resnet18", num_classes=3, person_label=2)))


def relative(answer, expected):
    return float((answer - expected).abs().max() / expected.abs().max())


def check_equals_the_modules(model, network, tolerance=1e-4):
    images = people.normalised(random_crops(2), (64, 32), torch.float32)
    with torch.no_grad():
        expected = model.backbone(images)
        found, same = network.features(images, (*LEVELS, POOL))
        assert same is found
        assert list(found) == list(expected)
        for level, value in expected.items():
            assert not (relative(found[level], value) > tolerance), level
        heads = model.roi_heads
        pooled = people.pool(found, torch.tensor([[0.0, 0, 0, 32, 64], [1, 3, 5, 20, 60], [1, 0, 0, 9, 9]]), 14)
        mask = heads.mask_predictor(heads.mask_head(pooled))[:, model.person_label]
        assert not (relative(network.mask(pooled), mask) > tolerance)
        heatmaps = heads.keypoint_predictor(heads.keypoint_head(pooled))
        assert not (relative(network.heatmaps(pooled), heatmaps) > tolerance)
        few = people.pool(found, torch.tensor([[0.0, 0, 0, 32, 64]]), 7)
        for one, other in zip(network.box(few), heads.box_predictor(heads.box_head(few)), strict=True):
            assert not (relative(one, other) > tolerance)
        proposed, expected_proposals = network.proposals(found), model.rpn.head(list(expected.values()))
        for ours, theirs in zip(proposed, expected_proposals, strict=True):
            for one, other in zip(ours, theirs, strict=True):
                assert not (relative(one, other) > tolerance)


def test_equals_the_modules(model):
    check_equals_the_modules(model, Network(model))


def test_equals_the_modules_as_published():
    torch.manual_seed(0)
    model = lively(MaskRCNN(num_classes=3, person_label=2))
    check_equals_the_modules(model, Network(model))


def test_equals_the_modules_without_fused_convolutions(model, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    check_equals_the_modules(model, Network(model))


def test_only_the_levels_asked_for(model):
    network = Network(model)
    images = people.normalised(random_crops(1), (64, 32), torch.float32)
    all_, _ = network.features(images, (*LEVELS, POOL))
    for levels in (("2",), ("0",), ("3", "1"), (POOL, "3")):
        some, _ = network.features(images, levels)
        assert set(some) == set(levels)
        assert all(torch.equal(some[level], all_[level]) for level in levels)


def test_pooling_equals_torchvision(model):
    generator = torch.Generator().manual_seed(3)
    sizes = {"0": (64, 48), "1": (32, 24), "2": (16, 12), "3": (8, 6)}
    features = {name: torch.randn(2, 256, *size, generator=generator) for name, size in sizes.items()}
    boxes = [
        torch.tensor([[0.0, 0, 20, 30], [10, 20, 180, 250], [-20, -9, 100, 300]]),
        torch.tensor([[0.0, 0, 192, 256], [150, 3, 700, 800], [5, 5, 5.5, 6]]),
    ]
    expected = model.roi_heads.mask_roi_pool(features, boxes, [(256, 192)] * 2)
    rois = people.as_rois(torch.cat(boxes), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert people.levels_of(rois).unique().tolist() == [0, 1, 3]
    torch.testing.assert_close(people.pool(features, rois, 14), expected)
    # A level that no box lies on is not needed.
    fewer = {name: value for name, value in features.items() if name != "2"}
    torch.testing.assert_close(people.pool(fewer, rois, 14), expected)
    assert people.level_of(250, 180) == LEVELS[int(people.levels_of(torch.tensor([[0.0, 0, 0, 180, 250]]))[0])]


def test_only_frozen_batch_norm_is_folded():
    with pytest.raises(TypeError, match="BatchNorm2d"):
        conv(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), relu=True, dtype=torch.float32)


# Made anew


def test_changed_weights_are_seen(model):
    model = copy.deepcopy(model)
    crops = random_crops(1)
    network = model._prepared.network(model)
    assert model._prepared.network(model) is network
    first = model(crops)
    assert model._prepared.network(model) is network

    def changed():
        nonlocal network
        before, network = network, model._prepared.network(model)
        return network is not before

    with torch.no_grad():
        model.roi_heads.mask_predictor.mask_fcn_logits.bias += 1
    assert changed()
    assert not torch.equal(model(crops).mask, first.mask)
    with torch.no_grad():
        model.roi_heads.mask_predictor.mask_fcn_logits.bias -= 1
    assert changed()
    model.load_state_dict({key: 1.1 * value for key, value in model.state_dict().items()})
    assert changed()
    assert not torch.equal(model(crops).mask, first.mask)
    model.backbone.body.bn1.eps = 0.1
    assert changed()
    model.person_label = 1
    assert changed()
    model.double()
    assert changed()
    model.train().eval()
    assert changed()
    assert not changed()


def test_a_training_step_is_seen(model):
    model = copy.deepcopy(model)
    before = model(random_crops(1)).mask
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not torch.equal(model(random_crops(1)).mask, before)


def test_weights_made_in_inference_mode(model):
    with torch.inference_mode():
        copied = copy.deepcopy(model)
    assert torch.equal(copied(random_crops(1)).mask, model(random_crops(1)).mask)


def test_copies_and_files_are_without_it(model, narrow):
    model(random_crops(1))
    assert model._prepared._network is not None
    with torch.device("meta"):
        never_run = narrow(MaskRCNN(backbone="resnet18", num_classes=3))
    assert set(model.state_dict()) == set(never_run.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other._prepared._network is None
        assert torch.equal(other(random_crops(1)).mask, model(random_crops(1)).mask)


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["box", "detect"])
def test_without_instructions_half_weights_compute_in_float32(model, monkeypatch, dtype, mode):
    monkeypatch.setattr(inference, "computes", lambda dtype, device: dtype == torch.float32)
    half = copy.deepcopy(model).to(dtype)
    half.mode, half.size = mode, (64, 32)
    exact = copy.deepcopy(half).float()
    answer, expected = half(random_crops(2), keypoint_masks=True), exact(random_crops(2), keypoint_masks=True)
    assert next(half.parameters()).dtype == dtype
    assert half._prepared.network(half).dtype == torch.float32
    for name in ("mask", "keypoints", "presence", "keypoint_masks"):
        assert getattr(answer, name).dtype == torch.float32
        torch.testing.assert_close(getattr(answer, name), getattr(expected, name))


@pytest.mark.parametrize("mode", ["box", "detect"])
def test_bfloat16_all_through(model, monkeypatch, mode):
    """As on a device with the instructions; here they are emulated, with the same result."""
    monkeypatch.setattr(inference, "computes", lambda dtype, device: True)
    half = copy.deepcopy(model).bfloat16()
    half.mode, half.size = mode, (64, 32)
    answer, expected = half(random_crops(2)), copy.deepcopy(half).float()(random_crops(2))
    assert half._prepared.network(half).dtype == torch.bfloat16
    for name in ("mask", "keypoints", "presence"):
        assert getattr(answer, name).dtype == torch.float32
    if mode == "box":
        # A mean: random logits are steep, and 8 bits of precision through twenty layers leave a few cells far off.
        assert not ((answer.mask - expected.mask).abs().mean() > 0.03)
        assert not ((answer.presence - expected.presence).abs().max() > 0.05)
        assert answer.mask.std() > 0.1


def test_computes(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert inference.computes(torch.float32, cpu)
    assert not inference.computes(torch.float16, cpu)
    assert inference.computes(torch.bfloat16, cuda)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for instructions, tiles in ((False, False), (True, False), (False, True)):
        # AVX-512 alone, which emulates, is not enough.
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=instructions: answer)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda answer=tiles: answer)
        assert inference.computes(torch.bfloat16, cpu) is (instructions or tiles)


def test_autocast_does_not_reach_inside(model):
    expected = model(random_crops(1)).mask
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = model(random_crops(1)).mask
    assert torch.equal(answer, expected)
