"""One convolution of inference: bias, residual sum and activation done in the same pass over memory.

On a CPU the call goes to oneDNN with the rest as its post-operations, through two private functions of torch's; on a
GPU to cuDNN's fused convolutions, where ReLU follows, through two more; where a build of torch has no such functions,
and on other devices, torch's public ones answer the same.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

#: What oneDNN calls the activations, with their numbers.
_ACTIVATIONS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}
#: cuDNN's fused convolutions want channels in multiples of this; with fewer, as in a first convolution, they were no
#: faster than convolution, bias and ReLU apart (measured on an H200, docs/results.md).
_CUDNN_CHANNELS = 8


class Convolution(nn.Module):
    """act(convolution(x) + bias + residual), without gradients.

    Args:
        module: the convolution whose geometry it takes, and the weights, which may stay shared; padding in numbers.
        weight, bias: in place of the module's own: folded ones.
        activation: "none", "relu" or "relu6".
        dtype: what it computes in; None for the weight's own.
    """

    def __init__(
        self,
        module: nn.Conv2d,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        *,
        activation: str = "none",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(_ACTIVATIONS)}, not {activation!r}")
        if isinstance(module.padding, str):
            raise TypeError(f"padding must be numbers, not {module.padding!r}")
        weight = module.weight if weight is None else weight
        bias = module.bias if bias is None else bias
        dtype = weight.dtype if dtype is None else dtype
        # Not copied where nothing changes: the heads of a detector are large.
        self.register_buffer("weight", weight.detach().to(dtype, memory_format=torch.channels_last))
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        self.padding, self.stride, self.dilation = list(module.padding), list(module.stride), list(module.dilation)
        self.groups, self.activation = module.groups, activation

    weight: torch.Tensor
    bias: torch.Tensor | None

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """x [B, C, h, w], residual of the result's shape -> [B, D, h', w']; channels_last is fastest."""
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        y: torch.Tensor
        if len(x) and fusible(x.device, self.weight.dtype):
            fused = torch.ops.mkldnn._convolution_pointwise
            x = x.contiguous(memory_format=torch.channels_last)
            name, numbers = _ACTIVATIONS[self.activation]
            if residual is None:
                y = fused(x, self.weight, self.bias, *geometry, name, numbers, "")
                return y
            # oneDNN's sum knows no activation but this one.
            unary = "relu" if name == "relu" else None
            y = fused.binary(x, residual, self.weight, self.bias, *geometry, "add", 1.0, unary, [], "")
            return functional.relu6(y, inplace=True) if self.activation == "relu6" else y
        if len(x) and self.activation == "relu" and self.groups == 1 and cudnn_fuses(x.device, self.weight):
            x = x.contiguous(memory_format=torch.channels_last)
            places = (self.stride, self.padding, self.dilation, self.groups)
            if residual is None:
                y = torch.cudnn_convolution_relu(x, self.weight, self.bias, *places)
            else:
                residual = residual.contiguous(memory_format=torch.channels_last)
                y = torch.cudnn_convolution_add_relu(x, self.weight, residual, 1.0, self.bias, *places)
            return y
        y = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if residual is not None:
            y += residual
        if self.activation == "relu":
            return y.relu_()
        return functional.relu6(y, inplace=True) if self.activation == "relu6" else y


def fusible(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN's convolutions with post-operations are there for this device and dtype.

    In bfloat16 they want a processor with AVX-512, or one with instructions for it.
    """
    return (
        device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and (dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
    )


def cudnn_fuses(device: torch.device, weight: torch.Tensor) -> bool:
    """Whether cuDNN's convolutions with bias, residual and ReLU are there for this device and weight [D, C, k, k]."""
    return (
        device.type == "cuda"
        and torch.version.cuda is not None
        and torch.backends.cudnn.enabled
        and torch.backends.cudnn.is_available()
        and hasattr(torch, "cudnn_convolution_relu")
        and hasattr(torch, "cudnn_convolution_add_relu")
        and weight.shape[0] % _CUDNN_CHANNELS == 0
        and weight.shape[1] % _CUDNN_CHANNELS == 0
    )
