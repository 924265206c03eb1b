"""The fused convolution equals the separate steps, with and without oneDNN."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from mgran_fast.mra import convolution
from mgran_fast.mra.convolution import Convolution


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize(("stride", "groups", "bias"), [(1, 1, True), (2, 6, False)])
def test_it_is_the_separate_steps(
    monkeypatch: pytest.MonkeyPatch,
    public: bool,
    residual: bool,
    activation: str,
    stride: int,
    groups: int,
    bias: bool,
) -> None:
    if public:
        monkeypatch.setattr(convolution, "fusible", lambda *_: False)
    torch.manual_seed(0)
    module = nn.Conv2d(6, 12, 3, stride=stride, padding=1, groups=groups, bias=bias)
    fused = Convolution(module, activation=activation)
    act = {"none": lambda y: y, "relu": torch.relu, "relu6": functional.relu6}[activation]
    for people in (3, 0):
        x = 4 * torch.randn(people, 6, 9, 7)
        with torch.no_grad():
            y = module(x)
            other = 4 * torch.randn_like(y) if residual else None
            before = None if other is None else other.clone()
            want = act(y if other is None else y + other)
            torch.testing.assert_close(fused(x, other), want, atol=1e-4, rtol=1e-4)
        assert other is None or before is None or torch.equal(other, before)


def test_weights_of_its_own() -> None:
    module = nn.Conv2d(2, 2, 1)
    x = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    fused = Convolution(module, 2 * module.weight.double(), torch.tensor([1.0, -1.0]).double(), dtype=torch.float32)
    want = functional.conv2d(x, 2 * module.weight, torch.tensor([1.0, -1.0])).detach()
    torch.testing.assert_close(fused(x), want, atol=1e-5, rtol=1e-5)
    assert not fused(x).requires_grad
    assert fused.weight.dtype == torch.float32


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="activation must be one of none, relu, relu6"):
        Convolution(nn.Conv2d(1, 1, 1), activation="tanh")
    with pytest.raises(TypeError, match="padding must be numbers"):
        Convolution(nn.Conv2d(1, 1, 3, padding="same"))
