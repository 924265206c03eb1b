"""A program's weights in the precision and order that the CPU's kernels read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mgran_fast.engine.program import Convolution, Program
from mgran_fast.ops.conv import PackedConv
from mgran_fast.ops.network import Conv, Pool

#: What the fourth channel of an input holds in its region (csrc/network.h).
INSIDE = 255


def steps(
    program: Program,
    dtype: torch.dtype,
    *,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    layer_scales: Sequence[float] | None = None,
) -> list[Conv | Pool]:
    """The steps of :class:`mgran_fast.ops.network.Network` for a program.

    Args:
        dtype: float32, bfloat16, or uint8 for activations of bytes and weights of signed bytes.
        scale, mean, std: of the normalisation (scale * pixel - mean) / std, which the first convolution takes in.
        layer_scales: for uint8, of each layer but the last: a byte q stands for q * scale; the input's is 1.
    """
    if (layer_scales is None) != (dtype != torch.uint8):
        raise ValueError("uint8, and it alone, wants the scales of the layers")
    if layer_scales is not None and (len(layer_scales) != len(program.steps) or not min(layer_scales) > 0):
        raise ValueError(
            f"layer_scales must be {len(program.steps)} positive numbers, of every layer but the last, for this trunk"
        )
    made: list[Conv | Pool] = []
    last = len(program.steps) - 1
    for i, step in enumerate(program.steps):
        if not isinstance(step, Convolution):
            made.append(Pool(step.layer, step.tap))
            continue
        weights = [source.weight.double() for source in step.sources]
        if step.sources[0].layer == 0:
            weights = [_normalising(weights[0], scale, mean, std)]
        taps, layers = [source.tap for source in step.sources], tuple(source.layer for source in step.sources)
        if layer_scales is None:
            packed = PackedConv([weight.to(dtype) for weight in weights], taps, step.bias)
            made.append(Conv(packed, layers, step.residual, 1.0, torch.float32 if i == last else dtype))
            continue
        # Integer sums are of q w, real ones of q * layer scale * weight; the result is in units of its own scale.
        unit = 1.0 if i == last else layer_scales[i + 1]
        weights = [weight * layer_scales[layer] for weight, layer in zip(weights, layers, strict=True)]
        steps_of = torch.stack([weight.abs().amax((1, 2, 3)) for weight in weights]).amax(0) / 127
        steps_of = steps_of.clamp(min=torch.finfo(torch.float32).tiny)
        whole = [(weight / steps_of[:, None, None, None]).round().to(torch.int8) for weight in weights]
        packed = PackedConv(whole, taps, step.bias / unit, scale=(steps_of / unit).float())
        residual_scale = 1.0 if step.residual is None else layer_scales[step.residual] / unit
        made.append(Conv(packed, layers, step.residual, residual_scale, torch.float32 if i == last else dtype))
    return made


def _normalising(weight: torch.Tensor, scale: float, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """[D, 3, k, k] for normalised pixels -> [D, 4, k, k] for bytes and :data:`INSIDE`: the same sums.

    sum of w (scale p - mean) / std over a region is sum of (w scale / std) p - sum of (w mean / std) over it.
    """
    shape = (1, 3, 1, 1)
    deviation = torch.tensor(std, dtype=torch.float64).view(shape)
    shift = -(weight * torch.tensor(mean, dtype=torch.float64).view(shape) / deviation).sum(1, keepdim=True)
    return torch.cat((weight * scale / deviation, shift / INSIDE), 1)
