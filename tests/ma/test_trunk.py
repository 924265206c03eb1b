"""The trunk: torchvision's network and keys, the stride of the last stage, and its batch norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from mgran_fast.errors import CheckpointError
from mgran_fast.ma import TRUNKS, Trunk
from mgran_fast.ma.trunk import SharedBatchNorm2d


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Batch norm as after training: a fresh one hides mistakes behind ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low in ((layer.weight, 0.5), (layer.bias, -0.5), (layer.running_var, 0.5)):
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + low)
            layer.running_mean.copy_(torch.rand(layer.running_mean.shape, generator=generator) - 0.5)  # type: ignore[union-attr,operator]
    return module


def torchvision_features(resnet: Any, images: torch.Tensor) -> torch.Tensor:
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    features: torch.Tensor = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(x))))
    return features


def images(n: int, height: int = 64, width: int = 32) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvisions_network_and_weights(name: str) -> None:
    torch.manual_seed(0)
    resnet = randomized(getattr(torchvision.models, name)(weights=None)).eval()
    trunk = Trunk(name, last_stride=2).eval()
    # The state dict as it is, classifier included.
    trunk.load_torchvision(resnet.state_dict())
    assert trunk.dim == resnet.fc.in_features == {"resnet18": 512, "resnet50": 2048}[name]
    with torch.no_grad():
        got, want = trunk(images(2)), torchvision_features(resnet, images(2))
    assert got.shape == (2, trunk.dim, 2, 1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


@pytest.mark.parametrize("name", TRUNKS)
def test_keys_are_torchvisions_without_the_classifier(name: str) -> None:
    with torch.device("meta"):
        own = Trunk(name).state_dict()
        theirs = getattr(torchvision.models, name)(weights=None).state_dict()
    assert {key: tensor.shape for key, tensor in own.items()} == {
        key: tensor.shape for key, tensor in theirs.items() if not key.startswith("fc.")
    }


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_last_stride(name: str) -> None:
    torch.manual_seed(0)
    fine, coarse = Trunk(name, last_stride=1).eval(), Trunk(name, last_stride=2).eval()
    coarse.load_state_dict(randomized(fine).state_dict())
    with torch.no_grad():
        assert fine(images(1)).shape[2:] == (4, 2)
        assert coarse(images(1)).shape[2:] == (2, 1)
        # The same weights serve torchvision's network with its strides changed by hand.
        resnet = getattr(torchvision.models, name)(weights=None).eval()
        resnet.load_state_dict(fine.state_dict(), strict=False)
        first = resnet.layer4[0]
        first.downsample[0].stride = (1, 1)
        (first.conv1 if name == "resnet18" else first.conv2).stride = (1, 1)
        got, want = fine(images(1)), torchvision_features(resnet, images(1))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_weights_and_features_are_channels_last() -> None:
    trunk = Trunk("resnet18", inputs=2, statistics="per_input")
    assert trunk.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    batch = images(4).to(memory_format=torch.channels_last)
    for mode in (True, False):
        assert trunk.train(mode)(batch).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("last", [False, True])
def test_per_input_statistics_by_hand(last: bool) -> None:
    norm = SharedBatchNorm2d(5).double()
    norm.inputs, norm.statistics = 3, "per_input"
    randomized(norm)
    mean, var = norm.running_mean.clone(), norm.running_var.clone()  # type: ignore[union-attr]
    x = torch.randn(12, 5, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = x.to(memory_format=torch.channels_last) if last else x
    got = norm(x)
    for i in range(3):
        rows = x[i::3]
        center = rows.mean((0, 2, 3), keepdim=True)
        spread = rows.var((0, 2, 3), unbiased=False, keepdim=True)
        want = (rows - center) / (spread + norm.eps).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(
            1, -1, 1, 1
        )
        torch.testing.assert_close(got[i::3], want, rtol=1e-10, atol=1e-10)
        mean = 0.9 * mean + 0.1 * center.flatten()
        var = 0.9 * var + 0.1 * rows.var((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-12, atol=1e-12)
    assert norm.num_batches_tracked.item() == 3  # type: ignore[union-attr]
    # The trunk's memory format, whatever came in: convolutions after it need not convert.
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_joint_statistics_and_eval_mode_are_plain_batch_norm() -> None:
    x = torch.randn(12, 5, 4, 3, generator=torch.Generator().manual_seed(2))
    for statistics, training in (("joint", True), ("joint", False), ("per_input", False)):
        norm, plain = randomized(SharedBatchNorm2d(5)), randomized(nn.BatchNorm2d(5))
        norm.inputs, norm.statistics = 3, statistics  # type: ignore[assignment]
        assert torch.equal(norm.train(training)(x), plain.train(training)(x))
        assert norm.num_batches_tracked == plain.num_batches_tracked == int(training)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "resnet9"}, "trunk must be one of resnet18, .*, not 'resnet9'"),
        ({"name": "vgg16"}, "trunk must be one of"),
        ({"last_stride": 4}, "last_stride must be 1 or 2, not 4"),
        ({"statistics": "both"}, "statistics must be one of joint, per_input, not 'both'"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Trunk(**{"name": "resnet18", **change})


def changed(**changes: Any) -> dict[str, Any]:
    state = {**torchvision.models.resnet18(weights=None).state_dict(), **changes}
    return {key: value for key, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conv1.weight": None}, r"the checkpoint lacks conv1\.weight \(1 so\)"),
        ({"conv9.weight": torch.zeros(1)}, r"the checkpoint has the unknown key conv9\.weight \(1 so\)"),
        ({"bn1.bias": torch.zeros(65)}, r"the checkpoint has another shape in bn1\.bias \(1 so\)"),
        ({"epoch": 3}, "not a state dict: 'epoch' is a int"),
        ({"state_dict": {}}, "not a state dict: 'state_dict' is a dict"),
    ],
)
def test_a_state_dict_that_does_not_fit_changes_nothing(changes: dict[str, Any], words: str) -> None:
    trunk = Trunk("resnet18")
    before = {key: tensor.clone() for key, tensor in trunk.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        trunk.load_torchvision(changed(**changes))
    assert all(torch.equal(tensor, before[key]) for key, tensor in trunk.state_dict().items())


def test_weights_of_another_trunk_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not weights of this trunk"):
        Trunk("resnet34").load_torchvision(torchvision.models.resnet18(weights=None).state_dict())


def test_old_checkpoints_without_counters_load() -> None:
    state = {key: value for key, value in changed().items() if not key.endswith("num_batches_tracked")}
    trunk = Trunk("resnet18")
    trunk.load_torchvision(state)
    assert torch.equal(trunk.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
