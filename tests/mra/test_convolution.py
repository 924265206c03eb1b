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


def conv_relu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: list[int], padding: list[int],
              dilation: list[int], groups: int) -> torch.Tensor:  # fmt: skip
    """torch.cudnn_convolution_relu's arguments, by public functions."""
    return functional.conv2d(x, weight, bias, stride, padding, dilation, groups).relu()


def conv_add_relu(x: torch.Tensor, weight: torch.Tensor, z: torch.Tensor, alpha: float, bias: torch.Tensor | None,
                  stride: list[int], padding: list[int], dilation: list[int], groups: int) -> torch.Tensor:  # fmt: skip
    """torch.cudnn_convolution_add_relu's, likewise."""
    return (functional.conv2d(x, weight, bias, stride, padding, dilation, groups) + alpha * z).relu()


def test_bfloat16_where_onednn_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with AVX2 alone: torch's own convolution answers."""
    module = nn.Conv2d(8, 16, 3, padding=1).bfloat16()
    x = torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(1)).bfloat16()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not convolution.fusible(x.device, torch.bfloat16)
    assert convolution.fusible(x.device, torch.float32) == torch.backends.mkldnn.is_available()
    monkeypatch.setattr(torch.ops.mkldnn, "_convolution_pointwise", None)
    torch.testing.assert_close(Convolution(module, activation="relu")(x), functional.relu(module(x)))


@pytest.mark.parametrize("residual", [False, True])
def test_cudnn_is_called_as_it_wants(monkeypatch: pytest.MonkeyPatch, residual: bool) -> None:
    """With stand-ins of cuDNN's two functions: the arguments and the answer."""
    module = nn.Conv2d(8, 16, 3, stride=2, padding=1)
    x = torch.randn(2, 8, 9, 7, generator=torch.Generator().manual_seed(1))
    other = torch.randn(2, 16, 5, 4, generator=torch.Generator().manual_seed(2)) if residual else None
    want = Convolution(module, activation="relu")(x, other)
    called = []
    monkeypatch.setattr(convolution, "fusible", lambda *_: False)
    monkeypatch.setattr(convolution, "cudnn_fuses", lambda *_: True)
    for name, stand_in in (("cudnn_convolution_relu", conv_relu), ("cudnn_convolution_add_relu", conv_add_relu)):
        # Bound now, for the loop goes on.
        monkeypatch.setattr(torch, name, lambda *a, f=stand_in, n=name: called.append(n) or f(*a), raising=False)
    torch.testing.assert_close(Convolution(module, activation="relu")(x, other), want, atol=1e-5, rtol=1e-5)
    assert called == ["cudnn_convolution_add_relu" if residual else "cudnn_convolution_relu"]
    for activation in ("none", "relu6"):
        Convolution(module, activation=activation)(x, other)
    assert len(called) == 1, "cuDNN has no such activation"


def test_when_cudnn_fuses(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, wide = torch.device("cuda"), torch.empty(16, 8, 3, 3)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    for name in ("cudnn_convolution_relu", "cudnn_convolution_add_relu"):
        monkeypatch.setattr(torch, name, conv_relu, raising=False)
    assert convolution.cudnn_fuses(cuda, wide)
    assert not convolution.cudnn_fuses(torch.device("cpu"), wide)
    assert not convolution.cudnn_fuses(cuda, torch.empty(64, 3, 7, 7))
    with monkeypatch.context() as other:
        other.delattr(torch, "cudnn_convolution_add_relu")
        assert not convolution.cudnn_fuses(cuda, wide)
    with monkeypatch.context() as other:
        other.setattr(torch.version, "cuda", None)
        assert not convolution.cudnn_fuses(cuda, wide), "ROCm has no cuDNN"
