"""One batched pass over N * P inputs is P calls of one shared network: outputs, statistics and gradients.

The yardstick is torchvision's own network with plain batch norm, called once for each input.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from mgran_fast import layouts
from mgran_fast.ma import MA, Trunk
from mgran_fast.reference.pooling import pooling

P = 4


def people(n: int, size: tuple[int, int], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """[N, P, 3, H, W]; each input has statistics of its own, like a head and a pair of legs."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(n, P, 3, *size, generator=generator, dtype=torch.float64)
    return (x * torch.linspace(0.5, 2, P)[:, None, None, None] + torch.arange(P)[:, None, None, None]).to(dtype)


def pair(
    name: str, statistics: str, *, last_stride: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[Trunk, nn.Module]:
    """A trunk, and torchvision's network with the same weights; batch norm as after training."""
    torch.manual_seed(0)
    trunk = Trunk(name, last_stride=last_stride, inputs=P, statistics=statistics)
    generator = torch.Generator().manual_seed(1)
    for layer in trunk.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value in (layer.weight, layer.running_var):
                value.data.copy_(torch.rand(value.shape, generator=generator) + 0.5)  # type: ignore[union-attr]
            for value in (layer.bias, layer.running_mean):
                value.data.copy_(torch.rand(value.shape, generator=generator) - 0.5)  # type: ignore[union-attr]
    resnet = getattr(torchvision.models, name)(weights=None)
    assert {type(layer) for layer in resnet.modules() if "Norm" in type(layer).__name__} == {nn.BatchNorm2d}
    answer = resnet.load_state_dict(trunk.state_dict(), strict=False)
    assert answer.missing_keys == ["fc.weight", "fc.bias"]
    assert not answer.unexpected_keys
    if last_stride == 1:
        first = resnet.layer4[0]
        first.downsample[0].stride = (1, 1)
        (first.conv2 if name == "resnet50" else first.conv1).stride = (1, 1)
    return trunk.to(dtype), resnet.to(dtype)


def features(resnet: Any, images: torch.Tensor) -> torch.Tensor:
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    answer: torch.Tensor = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(x))))
    return answer


def called(network: Any, x: torch.Tensor) -> torch.Tensor:
    """[N, P, D, h, w]: one call of the network for each input, the first input first."""
    return torch.stack([features(network, x[:, p].contiguous()) for p in range(x.shape[1])], 1)


def largest_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative to the largest value."""
    return float((got.detach() - want.detach()).abs().max() / want.detach().abs().max())


@pytest.mark.parametrize(
    ("name", "statistics"), [("resnet18", "joint"), ("resnet18", "per_input"), ("resnet50", "joint")]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_eval(name: str, statistics: str, dtype: torch.dtype, tolerance: float) -> None:
    trunk, resnet = pair(name, statistics, dtype=dtype)
    trunk.eval()
    resnet.eval()
    x = people(3, (32, 16), dtype)
    with torch.no_grad():
        batched = trunk(x.flatten(0, 1)).unflatten(0, (3, P))
        # Not to the bit: torchvision's weights lie in memory in another order, and so are added up in another order.
        assert largest_error(batched, called(resnet, x)) <= tolerance
        own = called(trunk, x)
        assert largest_error(batched, own) <= tolerance
        if dtype == torch.float64:
            # In float64 a CPU convolves picture by picture: there the batch makes no difference at all.
            assert torch.equal(batched, own)


def test_nothing_of_one_person_reaches_another_in_eval_mode() -> None:
    trunk, _ = pair("resnet18", "per_input")
    trunk.eval()
    x = people(3, (32, 16))
    with torch.no_grad():
        batched = trunk(x.flatten(0, 1)).unflatten(0, (3, P))
        for person in range(3):
            alone = trunk(x[person]).unflatten(0, (1, P))
            assert largest_error(batched[person], alone[0]) <= 1e-12


# Each layer's statistics need a dozen values or so: with fewer, the variance of some channel is next to nothing, and
# dividing by it makes rounding errors large.
@pytest.mark.parametrize(
    ("name", "n", "size", "last_stride", "steps"),
    [
        ("resnet18", 3, (48, 16), 1, 2),
        ("resnet18", 3, (64, 32), 2, 1),
        ("resnet50", 3, (32, 32), 1, 1),
    ],
)
def test_train_per_input(name: str, n: int, size: tuple[int, int], last_stride: int, steps: int) -> None:
    x = people(n, size)
    trunk, resnet = pair(name, "per_input", last_stride=last_stride)
    trunk.train()
    resnet.train()
    pull: torch.Tensor | None = None
    for _ in range(steps):  # running averages build on running averages
        got = trunk(x.flatten(0, 1)).unflatten(0, (n, P))
        want = called(resnet, x)
        assert largest_error(got, want) <= 1e-10
        if pull is None:
            pull = torch.randn(want.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        (got * pull).sum().backward()
        (want * pull).sum().backward()
    theirs, counters = dict(resnet.named_buffers()), 0
    for key, buffer in trunk.named_buffers():
        if key.endswith("num_batches_tracked"):
            assert buffer.item() == theirs[key].item() == steps * P
            counters += 1
        else:
            torch.testing.assert_close(buffer, theirs[key], rtol=1e-9, atol=1e-12)
    assert counters == sum(isinstance(layer, nn.BatchNorm2d) for layer in resnet.modules())
    others = dict(resnet.named_parameters())
    for key, parameter in trunk.named_parameters():
        assert parameter.grad is not None
        grad = others[key].grad
        assert grad is not None
        assert bool(grad.any())
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-9 * float(grad.abs().max()), msg=key)


def test_joint_is_one_call_on_all_inputs() -> None:
    trunk, resnet = pair("resnet18", "joint")
    x = people(3, (32, 16))
    got, want = trunk.train()(x.flatten(0, 1)), features(resnet.train(), x.flatten(0, 1))
    assert largest_error(got, want) <= 1e-10
    theirs = dict(resnet.named_buffers())
    for key, buffer in trunk.named_buffers():
        torch.testing.assert_close(buffer, theirs[key], rtol=1e-9, atol=1e-12)


def test_joint_differs_from_calls_in_training() -> None:
    # The comparison above can fail: these are other outputs, other averages, other counts and other gradients.
    trunk, resnet = pair("resnet18", "joint")
    x = people(3, (32, 16))
    got, want = trunk.train()(x.flatten(0, 1)).unflatten(0, (3, P)), called(resnet.train(), x)
    assert largest_error(got, want) > 0.05
    norm, plain = trunk.bn1, resnet.bn1
    assert largest_error(norm.running_var, plain.running_var) > 0.05  # type: ignore[arg-type,union-attr]
    assert (norm.num_batches_tracked, plain.num_batches_tracked) == (1, P)  # type: ignore[union-attr]
    got.square().sum().backward()
    want.square().sum().backward()
    assert largest_error(trunk.conv1.weight.grad, resnet.conv1.weight.grad) > 0.05  # type: ignore[arg-type,union-attr]


def test_the_order_of_the_inputs_is_the_order_of_the_calls() -> None:
    trunk, resnet = pair("resnet18", "per_input")
    x = people(3, (32, 16))
    trunk.train()(x.flatten(0, 1))
    called(resnet.train(), x.flip(1))
    # The last call weighs most in a running average.
    assert largest_error(trunk.bn1.running_mean, resnet.bn1.running_mean) > 1e-3  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize("training", [False, True])
def test_the_whole_of_ma(training: bool) -> None:
    trunk, resnet = pair("resnet18", "per_input")
    ma = MA(layouts.REGION, trunk="resnet18", statistics="per_input").double()
    ma.trunk.load_state_dict(trunk.state_dict())
    ma.train(training)
    resnet.train(training)
    x = people(3, (32, 16))
    region_map = torch.randint(0, 4, (3, 32, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    region_map[1, 8:] = 2
    region_map[2][region_map[2] == 1] = 0
    output = ma(x, region_map)
    maps = called(resnet, x)
    calls = [pooling(maps[:, p], region_map, torch.full((3,), p), "mean", 3.0) for p in range(P)]
    want = torch.stack(calls, 1)
    assert largest_error(output.features, want) <= 1e-10
    assert not output.features[2, 1].any()
    if training:
        pull = torch.randn(want.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        (output.features * pull).sum().backward()
        (want * pull).sum().backward()
        for key, parameter in resnet.named_parameters():
            if not key.startswith("fc."):
                grad, own = parameter.grad, ma.trunk.get_parameter(key).grad
                assert grad is not None
                assert own is not None
                torch.testing.assert_close(own, grad, rtol=1e-9, atol=1e-9 * float(grad.abs().max()), msg=key)
