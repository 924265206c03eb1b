"""``pointwise``: a 1x1 convolution with everything that a block sums with it, for inference."""

from __future__ import annotations

import torch

from mgran_fast.ops import backend, checks
from mgran_fast.ops.library import register
from mgran_fast.reference import pointwise as reference

#: What the kernel computes in; the reference takes float32 and float64 as well.
KERNEL_DTYPES = (torch.float16, torch.bfloat16)
DTYPES = (*KERNEL_DTYPES, torch.float32, torch.float64)


def pointwise(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None = None,
    shortcut: torch.Tensor | None = None,
    shortcut_weight: torch.Tensor | None = None,
    *,
    stride: int = 1,
    relu: bool = True,
) -> torch.Tensor:
    """relu(x W + shortcut V + bias + residual), without gradients.

    Args:
        x: [B, C, h, w], floating point; channels_last is the fast layout.
        weight: [D, C] in x's dtype.
        bias: float32 [D].
        residual: [B, D, h, w] in x's dtype, or None.
        shortcut: [B, E, h', w'] in x's dtype, or None: of its grid every ``stride``-th row and column is taken, which
            must give (h, w).
        shortcut_weight: [D, E], with a shortcut.
        relu: whether ReLU follows.

    Returns:
        [B, D, h, w] in x's dtype, channels_last; summed in float32 (float64 for float64), rounded once.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device or stride.
    """
    checks.tensor("x", x, (None, None, None, None), DTYPES)
    checks.tensor("weight", weight, (None, x.shape[1]), (x.dtype,))
    checks.tensor("bias", bias, (weight.shape[0],), (torch.float32,))
    given = {"x": x, "weight": weight, "bias": bias}
    shape = (x.shape[0], weight.shape[0], x.shape[2], x.shape[3])
    if residual is not None:
        given["residual"] = checks.tensor("residual", residual, shape, (x.dtype,))
    if (shortcut is None) != (shortcut_weight is None):
        raise ValueError("a shortcut comes with shortcut_weight, and neither alone")
    if shortcut is not None and shortcut_weight is not None:
        checks.tensor("shortcut", shortcut, (x.shape[0], None, None, None), (x.dtype,))
        checks.tensor("shortcut_weight", shortcut_weight, (weight.shape[0], shortcut.shape[1]), (x.dtype,))
        if stride < 1:
            raise ValueError(f"stride must be at least 1, not {stride}")
        grid = tuple((side - 1) // stride + 1 for side in shortcut.shape[2:])
        if grid != tuple(x.shape[2:]):
            raise ValueError(f"a shortcut of {list(shortcut.shape)} with stride {stride} does not give {list(shape)}")
        given |= {"shortcut": shortcut, "shortcut_weight": shortcut_weight}
    checks.same_device(**given)
    result: torch.Tensor = _op(x, weight, bias, residual, shortcut, shortcut_weight, stride, relu)
    return result


def _implementation(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    shortcut: torch.Tensor | None,
    shortcut_weight: torch.Tensor | None,
    stride: int,
    relu: bool,
) -> torch.Tensor:
    # Another dtype is no reason to complain: no kernel is there for it.
    module = backend.native("pointwise", x.device.type) if x.dtype in KERNEL_DTYPES else None
    if module is None:
        return reference.pointwise(x, weight, bias, residual, shortcut, shortcut_weight, stride, relu)
    last = torch.channels_last
    out: torch.Tensor = module.forward(
        x.contiguous(memory_format=last),
        weight.contiguous(),
        bias.contiguous(),
        None if residual is None else residual.contiguous(memory_format=last),
        None if shortcut is None else shortcut.contiguous(memory_format=last),
        None if shortcut_weight is None else shortcut_weight.contiguous(),
        stride,
        relu,
    )
    return out


def _fake(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    shortcut: torch.Tensor | None,
    shortcut_weight: torch.Tensor | None,
    stride: int,
    relu: bool,
) -> torch.Tensor:
    images, _, height, width = x.shape
    memory = x.new_empty((images, height, width, weight.shape[0]))
    return memory.permute(0, 3, 1, 2)


_op = register(
    "pointwise(Tensor x, Tensor weight, Tensor bias, Tensor? residual, Tensor? shortcut, Tensor? shortcut_weight,"
    " int stride, bool relu) -> Tensor",
    _implementation,
    _fake,
)
