"""Batch norm with a residual and ReLU in plain torch: statistics, application, and the gradient by its formulas.

Rows lie person after person: of B rows, row b belongs to group b % G, and each group has statistics of its own
(G = 1: joint; G = P inputs of a person: per input). With M = B / G * h * w, all sums over a group's rows and cells:

    mean = sum(x) / M, var = sum((x - mean)^2) / M, invstd = 1 / sqrt(var + eps)      (Ioffe and Szegedy 2015)
    scale = weight * invstd, shift = bias - mean * scale
    z = x * scale + shift + residual, y = max(z, 0)

and backwards, with dz = dy where not z <= 0, xhat = (x - mean) * invstd:

    dbias = sum(dz), dweight = sum(dz * xhat)
    dx = scale * (dz - dbias / M - xhat * dweight / M), dresidual = dz

A cell may stand for n equal ones (``counts``): it then counts n times in M and the sums over x; its dy and dx are the
sums of those of all n, so that dbias and dweight are as above, and

    dx = scale * (dz - n * (dbias / M + xhat * dweight / M))

Computed in float32, in float64 for float64 features.
"""

from __future__ import annotations

import torch


def statistics(x: torch.Tensor, groups: int, counts: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """x [B, C, h, w], B a multiple of ``groups``, counts [B, h, w] -> mean, biased variance [G, C]; zeros for B = 0."""
    parts = grouped(x.to(wide(x)), groups)
    if parts.shape[0] == 0:
        nothing = parts.new_zeros((groups, x.shape[1]))
        return nothing, nothing.clone()
    if counts is None:
        mean = parts.mean((0, 3, 4))
        return mean, (parts - _cells(mean)).square().mean((0, 3, 4))
    weights = grouped(counts[:, None].to(parts.dtype), groups)
    weights = weights / weights.sum((0, 3, 4), keepdim=True)
    mean = (parts * weights).sum((0, 3, 4))
    return mean, ((parts - _cells(mean)).square() * weights).sum((0, 3, 4))


def coefficients(
    mean: torch.Tensor, var: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """mean and var [G, C], weight and bias [C] -> invstd, scale, shift, [G, C]."""
    invstd = torch.rsqrt(var + eps)
    scale = weight.to(mean.dtype) * invstd
    return invstd, scale, bias.to(mean.dtype) - mean * scale


def apply(
    x: torch.Tensor, residual: torch.Tensor | None, scale: torch.Tensor, shift: torch.Tensor, relu: bool
) -> torch.Tensor:
    """y [B, C, h, w] in the dtype of x; residual like x, scale and shift [G, C]."""
    z = _before_relu(x, residual, scale, shift)
    return (z.relu() if relu else z).to(x.dtype)


def reduce(
    grad: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    relu: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dbias and dweight of each group, [G, C]."""
    dz = grouped(_passed(grad, x, residual, scale, shift, relu), len(scale))
    xhat = (grouped(x.to(dz.dtype), len(scale)) - _cells(mean)) * _cells(invstd)
    return dz.sum((0, 3, 4)), (dz * xhat).sum((0, 3, 4))


def grad(
    grad: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    dbias_mean: torch.Tensor,
    dweight_mean: torch.Tensor,
    relu: bool,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx and dresidual, like x; ``dbias_mean`` and ``dweight_mean`` are dbias / M and dweight / M, [G, C]."""
    passed = _passed(grad, x, residual, scale, shift, relu)
    dz, groups = grouped(passed, len(scale)), len(scale)
    xhat = (grouped(x.to(dz.dtype), groups) - _cells(mean)) * _cells(invstd)
    rest = _cells(dbias_mean) + xhat * _cells(dweight_mean)
    if counts is not None:
        rest = rest * grouped(counts[:, None].to(dz.dtype), groups)
    dx = _cells(scale) * (dz - rest)
    return dx.flatten(0, 1).to(x.dtype), passed.to(x.dtype)


def wide(x: torch.Tensor) -> torch.dtype:
    """What is computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def grouped(x: torch.Tensor, groups: int) -> torch.Tensor:
    """[B, C, h, w] -> [B / G, G, C, h, w]."""
    parts: torch.Tensor = x.unflatten(0, (x.shape[0] // groups, groups))
    return parts


def _cells(values: torch.Tensor) -> torch.Tensor:
    """[G, C] -> [1, G, C, 1, 1]."""
    return values[None, :, :, None, None]


def _before_relu(
    x: torch.Tensor, residual: torch.Tensor | None, scale: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    z: torch.Tensor = (grouped(x.to(wide(x)), len(scale)) * _cells(scale) + _cells(shift)).flatten(0, 1)
    if residual is not None:
        z = z + residual.to(z.dtype)
    return z


def _passed(
    grad: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    relu: bool,
) -> torch.Tensor:
    """The gradient that ReLU lets through."""
    dz = grad.to(wide(x))
    return torch.where(_before_relu(x, residual, scale, shift) <= 0, 0.0, dz) if relu else dz
