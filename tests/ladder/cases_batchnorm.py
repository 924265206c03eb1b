"""Cases of batch norm on the CPU, forward and backward, by phases; expected values are the reference's in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from abi import UNSUPPORTED, Buffer
from cases import DTYPES, Case, bits_of, garbage, seed_of
from mgran_fast.reference import batchnorm as reference

SUM, WRITE = 1, 2
EPS = 1e-5
# Relative to the output's numbers: rounding of the result to its type, and of sums in float32.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SUMS = 5e-5
# Of terms that cancel, each rounded to float32.
ROUNDING = 4 * 2.0**-24
BOTH_BLOCKS = "two blocks of channels"


@dataclass(frozen=True)
class _Shape:
    """x is [rows, cells, channels] of a dtype, normal about ``mean``; ``offset`` is in elements."""

    name: str
    rows: int
    groups: int
    channels: int
    cells: int
    dtype: int = 0
    relu: bool = True
    residual: bool = True
    out_residual: bool = True
    mean: float = 0.3
    std: float = 1.0
    offset: int = 0
    nan: bool = False
    counts: bool = False


_SHAPES = (
    _Shape("one cell", 1, 1, 1, 1, relu=False, residual=False, out_residual=False),
    _Shape("one cell each", 8, 4, 3, 1, offset=1),
    _Shape("plain", 4, 1, 70, 12, relu=False, residual=False, out_residual=False),
    _Shape("relu", 4, 4, 64, 33, residual=False, out_residual=False),
    _Shape("relu, gradient twice", 4, 1, 130, 9, residual=False, offset=3),
    _Shape("residual", 8, 4, 130, 17, relu=False),
    _Shape("residual and relu", 8, 4, 70, 17, offset=1),
    _Shape("residual without a gradient", 4, 1, 128, 20, out_residual=False),
    _Shape("f16", 8, 4, 130, 19, 1),
    _Shape("f16, plain", 3, 1, 3, 40, 1, relu=False, residual=False, out_residual=False, offset=1),
    _Shape("bf16", 8, 4, 70, 19, 2, offset=3),
    _Shape("bf16, relu", 4, 1, 192, 25, 2, residual=False, out_residual=False),
    _Shape("big mean", 4, 1, 70, 40, relu=False, residual=False, out_residual=False, mean=300.0, std=0.05),
    _Shape("big mean, relu", 4, 4, 37, 300, mean=-300.0, std=0.2),
    _Shape("big mean, f16", 8, 4, 35, 60, 1, mean=60.0, std=0.3),
    _Shape("NaN", 4, 4, 35, 12, nan=True),
    _Shape("pieces of a row", 4, 4, 130, 601, residual=False),
    _Shape("counts", 1, 1, 70, 33, counts=True),
    _Shape("counts, groups, bf16", 8, 4, 130, 19, 2, counts=True, offset=1),
    _Shape("counts, four groups, f16", 8, 4, 66, 23, 1, counts=True, offset=1),
    _Shape("counts, pieces, big mean", 1, 1, 67, 2100, relu=False, residual=False, mean=200.0, std=0.5, counts=True),
)
# Both passes over one block of channels, then over the next: a block's tensors take more than the cache.
_FORWARD_BLOCKS = (_Shape(BOTH_BLOCKS, 4, 4, 66, 4104, residual=False, counts=True),)
_BACKWARD_BLOCKS = (_Shape(BOTH_BLOCKS, 4, 4, 66, 1376, counts=True),)


@dataclass
class _Setup:
    """Tensors of the dtype [rows, channels, cells, 1], and of float32 [groups, channels]."""

    x: torch.Tensor
    residual: torch.Tensor | None
    weight: torch.Tensor
    bias: torch.Tensor
    counts: torch.Tensor | None
    arguments: dict[str, Any]


def forward_cases() -> Iterator[Case]:
    for shape in (*_SHAPES, *_FORWARD_BLOCKS):
        setup = _setup(shape)
        x, residual = setup.x.double(), _double(setup.residual)
        mean, var = reference.statistics(x, shape.groups, setup.counts)
        invstd, scale, shift = reference.coefficients(mean, var, setup.weight.double(), setup.bias.double(), EPS)
        statistics = {"mean": mean, "var": var}
        found = statistics | {"invstd": invstd, "scale": scale, "shift": shift}
        # The means of pieces are float32: of a large mean's rounding, something comes into the variance.
        share = ROUNDING * float((mean.abs() * invstd).nan_to_num().max())
        floor = {path: share * float(found[path].abs().nan_to_num().max()) for path in found if path != "mean"}
        floor["out"] = _rounding(x, scale)
        yield _case(shape, "batchnorm", SUM, setup, {}, statistics, floor)
        given = {"scale": scale.float(), "shift": shift.float()}
        y = reference.apply(x, residual, given["scale"].double(), given["shift"].double(), shape.relu)
        yield _case(shape, "batchnorm", WRITE, setup, given, {"out": y}, floor)
        y = reference.apply(x, residual, scale, shift, shape.relu)
        given = {"weight": setup.weight, "bias": setup.bias}
        yield _case(shape, "batchnorm", SUM | WRITE, setup, given, found | {"out": y}, floor)
    yield from _odd("batchnorm")


def backward_cases() -> Iterator[Case]:
    for shape in (*_SHAPES, *_BACKWARD_BLOCKS):
        setup = _setup(shape)
        x, residual = setup.x.double(), _double(setup.residual)
        mean, var = reference.statistics(x, shape.groups, setup.counts)
        weight, bias = setup.weight.double(), setup.bias.double()
        invstd, scale, shift = reference.coefficients(mean, var, weight, bias, EPS)
        # What the kernel is given: rounded.
        rounded = [part.float() for part in (scale, shift, mean, invstd)]
        scale, shift, mean, invstd = (part.double() for part in rounded)
        normed = dict(zip(("scale", "shift", "mean", "invstd"), rounded, strict=True))
        normed["grad"] = _gradient(shape, x, residual, scale, shift)
        grad = normed["grad"].double()
        dbias, dweight = reference.reduce(grad, x, residual, scale, shift, mean, invstd, shape.relu)
        sums = {"grad_bias": dbias, "grad_weight": dweight}
        count = _count(shape, setup)
        apart = reference.grouped(x, shape.groups).sub(mean[None, :, :, None, None]).abs().amax((0, 3, 4))
        size = float(count.max()) * float(grad.abs().max())
        floor = {
            "grad_bias": ROUNDING * size,
            "grad_weight": ROUNDING * size * float((apart * invstd).nan_to_num().max()),
            "out": 2 * ROUNDING * float(grad.abs().max() * scale.abs().nan_to_num().max()),
        }
        yield _case(shape, "batchnorm_backward", SUM, setup, normed, sums, floor)
        generator = np.random.default_rng(seed_of(shape.name) + 3)
        means = [torch.from_numpy(generator.normal(0, 0.3, (2, *mean.shape))[i]).float() for i in range(2)]
        for phases, (dbias_mean, dweight_mean) in (
            (WRITE, means),
            (SUM | WRITE, (dbias / count[:, None], dweight / count[:, None])),
        ):
            dx, dresidual = reference.grad(
                grad,
                x,
                residual,
                scale,
                shift,
                mean,
                invstd,
                dbias_mean.double(),
                dweight_mean.double(),
                shape.relu,
                setup.counts,
            )
            want = {"out": dx} | ({"out_residual": dresidual} if shape.out_residual else {})
            given = normed
            if phases == WRITE:
                given = normed | {"grad_bias_mean": means[0], "grad_weight_mean": means[1]}
            else:
                want |= sums
            yield _case(shape, "batchnorm_backward", phases, setup, given, want, floor)
    yield from _odd("batchnorm_backward")


def _setup(shape: _Shape) -> _Setup:
    generator = np.random.default_rng(seed_of(shape.name))
    dtype, size = DTYPES[shape.dtype], (shape.rows, shape.channels, shape.cells, 1)
    # Every row and channel has a mean of its own: pieces, rows and groups are not to be taken for one another.
    away = generator.normal(0.0, 0.5 * shape.std, (shape.rows, shape.channels, 1, 1))
    values = generator.normal(shape.mean, shape.std, size) + away
    if shape.nan:
        values[0, shape.channels // 2, 3] = np.nan
    x = torch.from_numpy(values).to(dtype)
    residual = torch.from_numpy(generator.normal(0.0, 1.0, size)).to(dtype) if shape.residual else None
    weight = torch.from_numpy(generator.uniform(0.5, 1.5, shape.channels)).float()
    weight[::7] *= -1
    bias = torch.from_numpy(generator.normal(0.0, 0.5, shape.channels)).float()
    counts = torch.from_numpy(generator.integers(1, 9, (shape.rows, shape.cells, 1))).double() if shape.counts else None
    arguments = {
        "x": _cells(x, shape),
        "rows": shape.rows,
        "cells": shape.cells,
        "channels": shape.channels,
        "groups": shape.groups,
        "dtype": shape.dtype,
        "relu": int(shape.relu),
        "eps": EPS,
    }
    if residual is not None:
        arguments["residual"] = _cells(residual, shape)
    if counts is not None:
        arguments["counts"] = Buffer(bits_of(counts.float()), "in", 4)
    return _Setup(x, residual, weight, bias, counts, arguments)


def _count(shape: _Shape, setup: _Setup) -> torch.Tensor:
    """float64 [G]: the cells of each group."""
    cells = torch.ones(shape.rows, shape.cells) if setup.counts is None else setup.counts[..., 0]
    return cells.double().view(-1, shape.groups, shape.cells).sum((0, 2))


def _gradient(
    shape: _Shape, x: torch.Tensor, residual: torch.Tensor | None, scale: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """A gradient of y; 0 where z is so near to 0 that its sign is a matter of rounding."""
    generator = np.random.default_rng(seed_of(shape.name) + 1)
    grad = torch.from_numpy(generator.normal(0.1, 1.0, tuple(x.shape)))
    z = reference.apply(x, residual, scale, shift, relu=False)
    near = z.abs() < 1e-5 + 4 * _rounding(x, scale)
    return torch.where(near, 0.0, grad).to(DTYPES[shape.dtype])


def _case(
    shape: _Shape,
    op: str,
    phases: int,
    setup: _Setup,
    given: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    floor: dict[str, float] | None = None,
) -> Case:
    dtype, item = DTYPES[shape.dtype], DTYPES[shape.dtype].itemsize
    arguments = setup.arguments | {"phases": phases}
    for path, tensor in given.items():
        arguments[path] = _cells(tensor, shape) if tensor.ndim == 4 else Buffer(bits_of(tensor), "in", 4)
    kinds, want, tolerance = {}, {}, {}
    for path, tensor in expected.items():
        wide = tensor.ndim == 2
        kinds[path] = torch.float32 if wide else dtype
        tolerance[path] = SUMS if wide else TOLERANCE[dtype]
        want[path] = (tensor if wide else tensor.permute(0, 2, 3, 1)).contiguous().numpy()
        seed, width = seed_of(shape.name + path), 4 if wide else item
        arguments[path] = garbage(tensor.numel() * width, np.uint8, seed, "out", 4 if wide else shape.offset * item)
    name = f"{shape.name}, phases {phases}"
    # Of the large ones the sanitizers' slow half sees nothing new.
    heavy = shape.name == BOTH_BLOCKS
    return Case(name, op, arguments, want, heavy=heavy, dtype=kinds, tolerance=tolerance, floor=floor or {})


def _odd(op: str) -> Iterator[Case]:
    """Nothing to do, and what the kernel refuses: no pointer is followed."""
    numbers = {"rows": 4, "cells": 2, "channels": 3, "groups": 2, "dtype": 0, "relu": 0, "phases": 3, "eps": EPS}
    for path in ("rows", "cells", "channels"):
        yield Case(f"no {path}", op, numbers | {path: 0}, {})
    for path, value in (("groups", 0), ("groups", 3), ("dtype", 3)):
        yield Case(f"{path} {value}", op, numbers | {path: value}, {}, status=UNSUPPORTED)


def _cells(tensor: torch.Tensor, shape: _Shape) -> Buffer:
    return Buffer(bits_of(tensor.permute(0, 2, 3, 1)), "in", shape.offset * tensor.element_size())


def _double(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.double()


def _rounding(x: torch.Tensor, scale: torch.Tensor) -> float:
    """What x * scale + shift may be off by where its terms are large and cancel."""
    return ROUNDING * float(x.nan_to_num().abs().max() * scale.nan_to_num().abs().max())
