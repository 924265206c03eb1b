"""Convolutions and their gradients outside of autograd: of images, and of distinct cells.

Distinct cells are R rows of a matrix, held as one image [1, C, R, 1] in channels_last, so that whatever works on each
cell by itself takes them as it takes images. A convolution reads rows by an index and is a product of matrices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast.ma.cells import Index

# From so many channels on, on either side, a 1x1 convolution is faster as a product of matrices (bfloat16, oneDNN), and
# the gradient of its weights.
_AS_PRODUCT, _WEIGHT_AS_PRODUCT = 2048, 1024
# What windows of cells are copied out into at a time: it stays near until the product reads it.
_COPIED_BYTES = 2 << 20


class Geometry(NamedTuple):
    """How a convolution goes over its source.

    Attributes:
        stride, padding, groups: of images.
        windows: of distinct cells: the rows that each row reads; None for images, and where it is a row's own 1x1.
        of_rows: whether the source is distinct cells.
        of_pixels: whether it is images of few channels, with their border of zeros, and the result distinct cells: the
            windows are then of this many pixels that lie together, a row of the kernel.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    windows: Index | None = None
    of_rows: bool = False
    of_pixels: int = 0


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """channels_last [B, C, h, w] -> the same memory as [B h w, C]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_image(rows: torch.Tensor) -> torch.Tensor:
    """[R, C] -> the same memory as channels_last [1, C, R, 1]."""
    return rows.t()[None, :, :, None]


def convolve(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Convolution without bias; x and weight of one dtype; the result is channels_last."""
    if geometry.of_rows or geometry.of_pixels:
        return as_image(_of_rows(_source(x, geometry), _matrix(weight), geometry.windows))
    if _is_product(x, weight, geometry):
        return _images(as_rows(x) @ weight.flatten(1).t(), x)
    y = F.conv2d(x, weight, None, geometry.stride, geometry.padding)
    return y.contiguous(memory_format=torch.channels_last)


def convolve_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, geometry: Geometry, wanted: tuple[bool, bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """The gradients of x and weight, each where it is wanted."""
    if geometry.of_rows or geometry.of_pixels:
        given, matrix = as_rows(grad), _matrix(weight)
        grad_x = as_image(_of_rows_x(given, matrix, geometry.windows)) if wanted[0] else None
        grad_weight = _of_rows_weight(given, _source(x, geometry), geometry.windows).view(
            weight.shape[0], *weight.shape[2:], weight.shape[1]
        ).permute(0, 3, 1, 2) if wanted[1] else None  # fmt: skip
        return grad_x, grad_weight
    grad_x = grad_weight = None
    dense = grad.is_contiguous(memory_format=torch.channels_last)
    if wanted[0] and dense and _is_product(x, weight, geometry):
        grad_x = _images(as_rows(grad) @ weight.flatten(1), grad)
    if wanted[1] and dense and _is_product(x, weight, geometry, _WEIGHT_AS_PRODUCT):
        grad_weight = (as_rows(grad).t() @ as_rows(x)).view(weight.shape)
    left = [wanted[0] and grad_x is None, wanted[1] and grad_weight is None, False]
    if any(left):
        found = torch.ops.aten.convolution_backward(
            grad, x, weight, None, geometry.stride, geometry.padding, [1, 1], False, [0, 0], 1, left
        )
        grad_x, grad_weight = found[0] if left[0] else grad_x, found[1] if left[1] else grad_weight
    return grad_x, grad_weight


def _is_product(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry, least: int = _AS_PRODUCT) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and tuple(weight.shape[2:]) == (1, 1)
        and set(geometry.stride) == {1}
        and max(weight.shape[:2]) >= least
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _images(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return rows.view(like.shape[0], like.shape[2], like.shape[3], rows.shape[1]).permute(0, 3, 1, 2)


# --- distinct cells -------------------------------------------------------------------------------------------------


def _source(x: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """The matrix that the windows are rows of."""
    rows = as_rows(x)
    if not geometry.of_pixels:
        return rows
    # Overlapping rows of neighbouring pixels: as many numbers together as there are.
    count, channels = rows.shape
    pixels = geometry.of_pixels
    return rows.as_strided((max(count - pixels + 1, 0), pixels * channels), (channels, 1))


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
