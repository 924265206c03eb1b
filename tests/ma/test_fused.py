"""The trunk's training step: equal to its modules one by one, with and without recomputation, and what it keeps."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from mgran_fast.ma.trunk import SharedBatchNorm2d, Trunk


def trunk_of(name: str, statistics: str) -> Trunk:
    torch.manual_seed(0)
    trunk = Trunk(name, inputs=4, statistics=statistics).double()
    for module in trunk.modules():
        if isinstance(module, SharedBatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return trunk.train()


def learn(trunk: Trunk, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The features, every gradient, and every buffer after the step."""
    images = images.clone().requires_grad_()
    features = trunk(images)
    slope = torch.randn(features.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (features * slope.to(features.dtype)).sum().backward()
    assert images.grad is not None
    grads = {f"grad {name}": value.grad for name, value in trunk.named_parameters() if value.grad is not None}
    assert len(grads) == len(list(trunk.parameters()))
    buffers = {name: value.double() for name, value in trunk.named_buffers()}
    return {"features": features.detach(), "grad of the images": images.grad, **grads, **buffers}


@pytest.mark.parametrize("statistics", ["joint", "per_input"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_the_modules_one_by_one(name: str, statistics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(8, 3, 32, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    plain = trunk_of(name, statistics)
    fused, again = copy.deepcopy(plain), copy.deepcopy(plain)
    again.recompute = True
    with monkeypatch.context() as patch:
        patch.setattr(Trunk, "_fuses", lambda self: False)
        want = learn(plain, images)
    got, recomputed = learn(fused, images), learn(again, images)
    assert got.keys() == want.keys() == recomputed.keys()
    for key, value in want.items():
        error = (got[key] - value).abs().max()
        assert error <= 1e-11 * value.abs().max().clamp(min=1e-3), (key, float(error))
        assert torch.equal(got[key], recomputed[key]), key


def test_bfloat16_recomputes_to_the_bit() -> None:
    images = torch.randn(8, 3, 64, 32, generator=torch.Generator().manual_seed(3))
    kept = trunk_of("resnet50", "joint").float()
    again = copy.deepcopy(kept)
    again.recompute = True
    with torch.autocast("cpu", torch.bfloat16):
        want, got = learn(kept, images), learn(again, images)
    assert want["features"].dtype == torch.bfloat16
    assert all(torch.equal(got[key], value) for key, value in want.items())


def saved(trunk: Trunk, images: torch.Tensor) -> int:
    """Bytes that the step keeps for its way back, parameters left out."""
    own = {parameter.data_ptr() for parameter in trunk.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            found[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = trunk(images)
    assert features.requires_grad
    return sum(found.values())


def test_gradients_that_others_hold_are_left_as_they_are() -> None:
    """Gradients of results within the trunk are overwritten; that of its features is not."""
    trunk = trunk_of("resnet18", "joint").float()
    features = trunk(torch.randn(4, 3, 32, 16))
    features.retain_grad()
    slope = torch.randn_like(features)
    given = slope.clone(memory_format=torch.preserve_format)
    features.backward(given, retain_graph=True)
    assert torch.equal(given, slope)
    assert features.grad is not None
    assert torch.equal(features.grad, slope)
    with pytest.raises(RuntimeError, match="backward once"):
        features.backward(given)


def test_what_is_kept() -> None:
    images = torch.randn(4, 3, 64, 32)
    trunk = trunk_of("resnet50", "joint").float()
    kept = saved(trunk, images)
    trunk.recompute = True
    assert saved(trunk, images) < 0.6 * kept


def frozen(trunk: Trunk) -> Iterator[SharedBatchNorm2d]:
    return (module for module in trunk.modules() if isinstance(module, SharedBatchNorm2d))


def test_frozen_statistics_take_the_plain_way() -> None:
    trunk = trunk_of("resnet18", "joint")
    for norm in frozen(trunk):
        norm.eval()
    before = {name: value.clone() for name, value in trunk.named_buffers()}
    trunk(torch.randn(4, 3, 32, 16, dtype=torch.float64)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in trunk.named_buffers())
    assert all(parameter.grad is not None for parameter in trunk.parameters())


def test_a_second_step_after_an_error_is_the_first() -> None:
    """A graph that was never walked leaves nothing behind."""
    images = torch.randn(4, 3, 32, 16, dtype=torch.float64)
    trunk = trunk_of("resnet18", "joint")
    trunk.recompute = True
    state = copy.deepcopy(trunk.state_dict())
    trunk(images)
    trunk.load_state_dict(state)
    first = learn(trunk, images)
    trunk.load_state_dict(state)
    trunk.zero_grad()
    second = learn(trunk, images)
    assert all(torch.equal(first[key], second[key]) for key in first)
