"""Convolutions and their gradients outside of autograd: of images, and of distinct cells.

Distinct cells are R rows of a matrix, held as one image [1, C, R, 1] in channels_last, so that whatever works on each
cell by itself takes them as it takes images. A convolution reads rows by an index and is a product of matrices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast.ma.cells import Index

# From this many channels on, on either side, a 1x1 convolution is faster as a product of matrices (bfloat16, oneDNN).
_AS_PRODUCT = 2048
# What windows of cells are copied out into at a time: it should stay in a core's cache until the product reads it.
_COPIED_BYTES = 1 << 20


class Geometry(NamedTuple):
    """How a convolution goes over its source.

    Attributes:
        stride, padding, groups: of images.
        windows: of distinct cells: the rows that each row reads; None for images, and where it is a row's own 1x1.
        of_rows: whether the source is distinct cells.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    windows: Index | None = None
    of_rows: bool = False


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """channels_last [B, C, h, w] -> the same memory as [B h w, C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_image(rows: torch.Tensor) -> torch.Tensor:
    """[R, C] -> the same memory as channels_last [1, C, R, 1]."""
    return rows.t()[None, :, :, None]


def convolve(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Convolution without bias; x and weight of one dtype; the result is channels_last."""
    if geometry.of_rows:
        return as_image(_of_rows(as_rows(x), _matrix(weight), geometry.windows))
    if _is_product(x, weight, geometry):
        return _images(as_rows(x) @ weight.flatten(1).t(), x)
    y = F.conv2d(x, weight, None, geometry.stride, geometry.padding)
    return y.contiguous(memory_format=torch.channels_last)


def convolve_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, geometry: Geometry, wanted: tuple[bool, bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of x and weight, each where it is wanted."""
    if geometry.of_rows:
        given, matrix = as_rows(grad), _matrix(weight)
        grad_x = as_image(_of_rows_x(given, matrix, geometry.windows)) if wanted[0] else None
        grad_weight = _of_rows_weight(given, as_rows(x), geometry.windows).view(
            weight.shape[0], *weight.shape[2:], weight.shape[1]
        ).permute(0, 3, 1, 2) if wanted[1] else None  # fmt: skip
        return grad_x, grad_weight
    if _is_product(x, weight, geometry) and grad.is_contiguous(memory_format=torch.channels_last):
        given = as_rows(grad)
        grad_x = _images(given @ weight.flatten(1), grad) if wanted[0] else None
        grad_weight = (given.t() @ as_rows(x)).view(weight.shape) if wanted[1] else None
        return grad_x, grad_weight
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, geometry.stride, geometry.padding, [1, 1], False, [0, 0], 1, [*wanted, False]
    )
    return grad_x, grad_weight


def _is_product(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and tuple(weight.shape[2:]) == (1, 1)
        and set(geometry.stride) == {1}
        and max(weight.shape[:2]) >= _AS_PRODUCT
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _images(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return rows.view(like.shape[0], like.shape[2], like.shape[3], rows.shape[1]).permute(0, 3, 1, 2)


# --- distinct cells -------------------------------------------------------------------------------------------------


def _matrix(weight: torch.Tensor) -> torch.Tensor:
    """[D, C, k, k] -> [D, k k C], in the order in which windows are read."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _parts(windows: Index, taps: int, x: torch.Tensor) -> list[tuple[slice, Index]]:
    """Rows and what they read, a part of them at a time."""
    count = len(windows.index) // taps
    step = max(64, _COPIED_BYTES // (taps * x.shape[1] * x.element_size()))
    return [
        (slice(first, first + step), Index(windows.index[first * taps : (first + step) * taps], windows.rows))
        for first in range(0, count, step)
    ]


def _of_rows(x: torch.Tensor, matrix: torch.Tensor, windows: Index | None) -> torch.Tensor:
    if windows is None:
        return x @ matrix.t()
    taps = matrix.shape[1] // x.shape[1]
    y = x.new_empty((len(windows.index) // taps, matrix.shape[0]))
    for part, read in _parts(windows, taps, x):
        torch.mm(read.gather(x).view(-1, matrix.shape[1]), matrix.t(), out=y[part])
    return y


def _of_rows_x(grad: torch.Tensor, matrix: torch.Tensor, windows: Index | None) -> torch.Tensor:
    each = grad @ matrix
    if windows is None:
        return each
    taps = len(windows.index) // grad.shape[0]
    return windows.total(each.view(-1, matrix.shape[1] // taps))


def _of_rows_weight(grad: torch.Tensor, x: torch.Tensor, windows: Index | None) -> torch.Tensor:
    if windows is None:
        return grad.t() @ x
    taps = len(windows.index) // grad.shape[0]
    width = taps * x.shape[1]
    total = grad.new_zeros((grad.shape[1], width), dtype=torch.promote_types(grad.dtype, torch.float32))
    for part, read in _parts(windows, taps, x):
        total += grad[part].t() @ read.gather(x).view(-1, width)
    return total
