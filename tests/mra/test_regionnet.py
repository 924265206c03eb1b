"""RegionNet: the contract of an estimator, its files, and what its weights may come from; not its accuracy."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import mobilenet_v2

import mgran_fast
from mgran_fast.errors import CheckpointError
from mgran_fast.layouts import KEYPOINT_FLIP
from mgran_fast.mra import Estimator, regionnet
from mgran_fast.mra.regionnet import VERSION, Maps, RegionNet

SIZE = (64, 32)


def random_crops(n: int, height: int = 64, width: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (n, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


@pytest.fixture(scope="module")
def net() -> RegionNet:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        net = RegionNet(size=SIZE, channels=16)
        for parameter in net.parameters():
            # Louder than torchvision's start, so that the answer depends on the crop.
            if parameter.dim() == 4:
                nn.init.kaiming_normal_(parameter)
        # Statistics of their own, so that a wrong folding shows.
        net.train()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.9
        net.logits(random_crops(8, seed=9))
        net.eval()
    return net


@pytest.mark.parametrize("shape", [(64, 32), (61, 33), (1, 1), (5, 200)])
def test_what_it_answers(net: RegionNet, shape: tuple[int, int]) -> None:
    assert isinstance(net, Estimator)
    crops = random_crops(3, *shape)
    before = crops.clone()
    estimate = net(crops, keypoint_masks=True)
    assert torch.equal(crops, before)
    assert estimate.mask.shape == (3, *shape)
    assert estimate.keypoints.shape == (3, 17, 3)
    assert estimate.presence.shape == (3,)
    assert estimate.keypoint_masks is not None
    assert estimate.keypoint_masks.shape == (3, 17, 16, 8)
    for part in (estimate.mask, estimate.keypoints[..., 2], estimate.presence, estimate.keypoint_masks):
        assert part.dtype == torch.float32
        assert not part.requires_grad
        assert ((part >= 0) & (part <= 1)).all()
    x, y = estimate.keypoints[..., 0], estimate.keypoints[..., 1]
    assert ((x >= 0) & (x <= shape[1]) & (y >= 0) & (y <= shape[0])).all()
    assert (estimate.keypoint_masks.amax((2, 3)) == 1).all()


def test_one_by_one_is_the_same_as_together(net: RegionNet, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = random_crops(5, 80, 50)
    together = net(crops, keypoint_masks=True)
    alone = [net(crop[None], keypoint_masks=True) for crop in crops]
    monkeypatch.setattr(regionnet, "_CHUNK_PIXELS", 80 * 50 * 2)
    chunked = net(crops, keypoint_masks=True)
    for name in ("mask", "keypoints", "presence", "keypoint_masks"):
        want = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(together, name), want, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(getattr(chunked, name), want, atol=1e-4, rtol=1e-4)


def test_nobody(net: RegionNet) -> None:
    estimate = net(random_crops(0), keypoint_masks=True)
    assert estimate.mask.shape == (0, 64, 32)
    assert estimate.keypoints.shape == (0, 17, 3)
    assert estimate.presence.shape == (0,)
    assert estimate.keypoint_masks is not None
    assert estimate.keypoint_masks.shape == (0, 17, 16, 8)


def test_any_strides(net: RegionNet) -> None:
    crops = random_crops(2, 64, 64)
    want = net(crops[:, :, ::2].contiguous())
    torch.testing.assert_close(net(crops[:, :, ::2]).mask, want.mask)
    planes = crops[:, :, ::2].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    torch.testing.assert_close(net(planes).mask, want.mask)


@pytest.mark.parametrize(
    ("crops", "error", "words"),
    [
        (torch.zeros(1, 64, 32, 3), TypeError, "must be a uint8 tensor"),
        ([1], TypeError, "not list"),
        (torch.zeros(1, 3, 64, 32, dtype=torch.uint8), ValueError, r"\[N, H, W, 3\]"),
        (torch.zeros(1, 0, 32, 3, dtype=torch.uint8), ValueError, "at least 1"),
        (torch.zeros(1, 64, 32, 3, dtype=torch.uint8, device="meta"), ValueError, "move one of them"),
    ],
)
def test_wrong_crops(net: RegionNet, crops: torch.Tensor, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        net(crops)


def test_not_in_training_mode(net: RegionNet) -> None:
    training = copy.deepcopy(net).train()
    with pytest.raises(RuntimeError, match="eval"):
        training(random_crops(1))


@pytest.mark.parametrize(
    "wrong",
    [{"size": (100, 32)}, {"size": (0, 32)}, {"size": (64.0, 32)}, {"size": (64,)}, {"channels": 4}, {"context": -1}],
)
def test_wrong_arguments(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RegionNet(**wrong)  # type: ignore[arg-type]


def test_inference_answers_what_the_network_with_batch_norm_does(net: RegionNet) -> None:
    crops = random_crops(4)
    with torch.no_grad():
        want = net.logits(crops)
    estimate = net(crops)
    torch.testing.assert_close(estimate.presence, want.presence.sigmoid(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(estimate.keypoints[..., 2], want.visibility.sigmoid(), atol=1e-5, rtol=1e-4)
    logits = nn.functional.interpolate(want.mask, size=SIZE, mode="bilinear")[:, 0]
    torch.testing.assert_close(estimate.mask, logits.sigmoid(), atol=1e-5, rtol=1e-4)


def test_new_weights_are_noticed(net: RegionNet) -> None:
    crops, changed = random_crops(2), copy.deepcopy(net)
    before = changed(crops).presence
    with torch.no_grad():
        changed.network.facts.bias[-1] += 1.0
    after = changed(crops).presence
    torch.testing.assert_close(after.logit(), before.logit() + 1, atol=1e-4, rtol=1e-4)
    changed.load_state_dict(net.state_dict())
    assert torch.equal(changed(crops).presence, before)


def test_autocast_does_not_reach_inside(net: RegionNet) -> None:
    crops = random_crops(4)
    want = net(crops)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = net(crops)
    for name in ("mask", "keypoints", "presence"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name


def test_flip(net: RegionNet) -> None:
    crops = random_crops(3)
    plain = net(crops)
    flip = RegionNet.from_arguments({**net.arguments, "flip": True})
    flip.load_state_dict(net.state_dict())
    straight, mirrored = flip(crops), flip(crops.flip(2))
    # With both ways averaged, the mirrored crop has the mirrored answer.
    torch.testing.assert_close(mirrored.mask.flip(2), straight.mask, atol=1e-4, rtol=1e-3)
    swapped = mirrored.keypoints[:, list(KEYPOINT_FLIP)]
    torch.testing.assert_close(SIZE[1] - swapped[..., 0], straight.keypoints[..., 0], atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(swapped[..., 1:], straight.keypoints[..., 1:], atol=1e-2, rtol=1e-3)
    assert (net(crops.flip(2)).mask.flip(2) - plain.mask).abs().max() > 1e-5


@pytest.mark.parametrize("half", [False, True])
def test_a_file_keeps_it(net: RegionNet, tmp_path: Path, half: bool) -> None:
    net.save(tmp_path / "net.safetensors", half=half)
    again = RegionNet.from_file(tmp_path / "net.safetensors")
    assert again.arguments == net.arguments
    assert not again.training
    crops = random_crops(2)
    tolerance = 0.05 if half else 1e-6
    assert (again(crops).mask - net(crops).mask).abs().max() <= tolerance
    assert RegionNet.from_file(tmp_path / "net.safetensors", flip=True).flip
    with pytest.raises(TypeError, match="channels"):
        RegionNet.from_file(tmp_path / "net.safetensors", channels=8)  # type: ignore[call-arg]
    sizes = [len((tmp_path / "net.safetensors").read_bytes()), sum(p.numel() * 4 for p in net.parameters())]
    assert sizes[0] < sizes[1] * (0.6 if half else 1.2)


def test_half_that_would_lose_a_number_is_refused(net: RegionNet, tmp_path: Path) -> None:
    large = copy.deepcopy(net)
    large.network.trunk[0][1].running_var[2] = 1e5
    with pytest.raises(ValueError, match=r"trunk\.0\.1\.running_var"):
        large.save(tmp_path / "net.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_it_can_be_copied_and_pickled(net: RegionNet) -> None:
    crops = random_crops(2)
    want = net(crops).mask
    assert torch.equal(copy.deepcopy(net)(crops).mask, want)
    assert torch.equal(pickle.loads(pickle.dumps(net))(crops).mask, want)


def test_files_of_others(net: RegionNet, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    with pytest.raises(CheckpointError, match="no such file"):
        RegionNet.from_file(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"not written by RegionNet\.save"):
        RegionNet.from_file(path)
    mgran_fast.MGRAN(trunk="resnet18", size=SIZE).save(path)
    with pytest.raises(CheckpointError, match=r"not written by RegionNet\.save"):
        RegionNet.from_file(path)
    net.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        RegionNet.from_file(path)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "version", "arguments"])
def test_a_file_that_does_not_fit(net: RegionNet, tmp_path: Path, change: str) -> None:
    path = tmp_path / "net.safetensors"
    net.save(path)
    tensors = load_file(path)
    arguments: dict[str, object] = dict(net.arguments)
    version = VERSION
    if change == "missing":
        del tensors["network.facts.bias"]
    elif change == "unknown":
        tensors["network.other"] = torch.zeros(1)
    elif change == "shape":
        tensors["network.facts.bias"] = torch.zeros(3)
    elif change == "version":
        version = 99
    else:
        arguments["colour"] = "red"
    said = {"format": "mgran_fast.RegionNet", "version": version, "arguments": arguments}
    save_file(tensors, path, metadata={"mgran_fast": json.dumps(said)})
    with pytest.raises(CheckpointError, match="version 99" if change == "version" else "does not describe a RegionNet"):
        RegionNet.from_file(path)


def test_it_starts_from_imagenet_weights_of_any_mobilenet_v2() -> None:
    source = mobilenet_v2(weights=None)
    net = RegionNet(size=SIZE, channels=16)
    state = source.state_dict()
    net.load_imagenet(state)
    mine = net.network.trunk.state_dict()
    assert len(mine) > 200
    assert all(torch.equal(value, state[f"features.{key}"]) for key, value in mine.items())
    # Other names, same order.
    other = RegionNet(size=SIZE, channels=16)
    other.load_imagenet({f"layer{place}": value for place, value in enumerate(state.values())})
    assert torch.equal(other.network.trunk[16].conv[2].weight, source.features[16].conv[2].weight)
    with pytest.raises(CheckpointError, match="not a MobileNetV2"):
        net.load_imagenet({"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="of width 1"):
        net.load_imagenet(mobilenet_v2(weights=None, width_mult=0.5).state_dict())
    assert torch.equal(net.network.trunk[0][0].weight, source.features[0][0].weight)


def test_flips_are_averaged_where_they_belong() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = Maps(
        torch.rand(1, 1, 4, 2, generator=generator),
        torch.rand(1, 17, 4, 2, generator=generator),
        torch.rand(1, 17, generator=generator),
        torch.rand(1, generator=generator),
    )
    swap = list(KEYPOINT_FLIP)
    mirrored = Maps(maps.mask.flip(3), maps.heatmaps[:, swap].flip(3), maps.visibility[:, swap], maps.presence)
    for got, want in zip(regionnet.mean_of_flips(maps, mirrored), maps, strict=True):
        torch.testing.assert_close(got, want)
