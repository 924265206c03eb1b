"""A program's weights in the precision and order that the CPU's kernels read."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mgran_fast.engine.program import Convolution, Program
from mgran_fast.ops.conv import PackedConv
from mgran_fast.ops.network import Conv, Pool

#: What the fourth channel of an input holds in its region (csrc/network.h).
INSIDE = 255


def float_steps(
    program: Program, dtype: torch.dtype, *, scale: float, mean: Sequence[float], std: Sequence[float]
) -> list[Conv | Pool]:
    """The steps of :class:`mgran_fast.ops.network.Network` for a program, in float32 or bfloat16.

    Args:
        scale, mean, std: of the normalisation (scale * pixel - mean) / std, which the first convolution takes in.
    """
    made: list[Conv | Pool] = []
    for i, step in enumerate(program.steps):
        if isinstance(step, Convolution):
            weights = [weight.to(dtype) for weight in _weights(step, scale, mean, std)]
            packed = PackedConv(weights, [source.tap for source in step.sources], step.bias)
            kept = torch.float32 if i == len(program.steps) - 1 else dtype
            made.append(Conv(packed, tuple(source.layer for source in step.sources), step.residual, None, kept))
        else:
            made.append(Pool(step.layer, step.tap))
    return made


def byte_steps(
    program: Program,
    scales: Sequence[torch.Tensor],
    means: Sequence[torch.Tensor],
    *,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> list[Conv | Pool]:
    """The same with activations of bytes and weights of signed bytes, a scale for each output channel.

    With s the scales of a layer that is read and W the weights, sums are of bytes q and the integers nearest to
    W s / m, where m is the largest |W s| of the output channel over 127. What rounding the weights adds on the average,
    (rounded m - W s) times the mean of q, is taken off the bias (Nagel et al. 2019, "Data-Free Quantization").

    Args:
        scales, means: of :class:`mgran_fast.engine.calibration.Calibration`.

    Raises:
        ValueError: not as many as there are layers, or another number of channels.
    """
    shapes = [4, *(step.channels if isinstance(step, Convolution) else None for step in program.steps[:-1])]
    sizes = [[None if wanted is None else len(one) for one, wanted in zip(of, shapes, strict=False)]
             for of in (scales, means)]  # fmt: skip
    if any(len(of) != len(shapes) for of in (scales, means)) or any(found != shapes for found in sizes):
        raise ValueError("the calibration is of another trunk: its layers or channels are not this one's")
    made: list[Conv | Pool] = []
    for i, step in enumerate(program.steps):
        if not isinstance(step, Convolution):
            made.append(Pool(step.layer, step.tap))
            continue
        last = i == len(program.steps) - 1
        layers = tuple(source.layer for source in step.sources)
        units = [scales[layer].double() for layer in layers]
        weights = [
            weight * unit[:, None, None] for weight, unit in zip(_weights(step, scale, mean, std), units, strict=True)
        ]
        largest = torch.stack([weight.abs().amax((1, 2, 3)) for weight in weights]).amax(0)
        m = (largest / 127).clamp(min=torch.finfo(torch.float32).tiny)
        rounded = [(weight / m[:, None, None, None]).round() for weight in weights]
        bias = step.bias.double()
        for weight, whole, layer, unit in zip(weights, rounded, layers, units, strict=True):
            bias = bias - (whole * m[:, None, None, None] - weight).sum((2, 3)) @ (means[layer].double() / unit)
        unit = torch.ones_like(m) if last else scales[i + 1].double()
        packed = PackedConv(
            [whole.to(torch.int8) for whole in rounded],
            [source.tap for source in step.sources],
            (bias / unit).float(),
            scale=(m / unit).float(),
        )
        factor = None if step.residual is None else packed.padded((scales[step.residual].double() / unit).float())
        made.append(Conv(packed, layers, step.residual, factor, torch.float32 if last else torch.uint8))
    return made


def _weights(step: Convolution, scale: float, mean: Sequence[float], std: Sequence[float]) -> list[torch.Tensor]:
    """Of each source in float64; the first convolution takes the normalisation in."""
    weights = [source.weight.double() for source in step.sources]
    return [normalising(weights[0], scale, mean, std)] if step.sources[0].layer == 0 else weights


def normalising(weight: torch.Tensor, scale: float, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """[D, 3, k, k] for normalised pixels -> [D, 4, k, k] for bytes and :data:`INSIDE`: the same sums.

    sum of w (scale p - mean) / std over a region is sum of (w scale / std) p - sum of (w mean / std) over it.
    """
    shape = (1, 3, 1, 1)
    deviation = torch.tensor(std, dtype=torch.float64).view(shape)
    shift = -(weight * torch.tensor(mean, dtype=torch.float64).view(shape) / deviation).sum(1, keepdim=True)
    return torch.cat((weight * scale / deviation, shift / INSIDE), 1)
