"""1x1 convolutions as one matrix product on the GPU. Definition: mgran_fast/reference/pointwise.py.

    out = relu(x W + shortcut V + bias + residual)

A 1x1 convolution of a channels_last tensor is a product of [cells, channels] with [channels, outs]: no data moves. What
a library does apart is done while the sums are in registers: the bias, the block's residual, ReLU, and a block's
shortcut, which is a second product with the same result. Sums are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mgran_fast.kernels import tables
from mgran_fast.kernels.tables import Tile

DTYPES = (torch.float16, torch.bfloat16)
# Before, Triton multiplies matrices of 16-bit floats without tensor cores, and spills registers.
LEAST_CAPABILITY = 80


def runs_on(device: torch.device) -> bool:
    """Whether the device has what the kernel wants."""
    with tables.on(device):
        return tables.capability(device) >= LEAST_CAPABILITY


def faster(x: torch.Tensor, outs: int, residual: bool, shortcut: int) -> bool:
    """Whether the kernel was faster than cuDNN in the nearest case that was measured.

    True where nothing near was measured on a GPU of this kind.

    Args:
        x: [B, C, h, w]. outs: D. residual: whether there is one. shortcut: its channels, 0 without one.
    """
    images, channels, height, width = x.shape
    with tables.on(x.device):
        capability = tables.capability(x.device)
    entry = tables.product(images * height * width, channels + shortcut, outs, residual, shortcut > 0, capability)
    return bool(entry.get("microseconds", 0.0) <= entry.get("library", 0.0))


def forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None = None,
    shortcut: torch.Tensor | None = None,
    shortcut_weight: torch.Tensor | None = None,
    stride: int = 1,
    relu: bool = True,
    *,
    tile: Tile | None = None,
) -> torch.Tensor:
    """The product.

    Args:
        x: [B, C, h, w] float16 or bfloat16, contiguous as channels_last.
        weight: [D, C] contiguous, in x's dtype.
        bias: float32 [D].
        residual: [B, D, h, w] as x, or None.
        shortcut: [B, E, h', w'] as x, of whose grid every ``stride``-th row and column is taken, or None.
        shortcut_weight: [D, E].
        tile: the tile to use in place of the table's.

    Returns:
        [B, D, h, w] in x's dtype, channels_last.
    """
    images, channels, height, width = x.shape
    outs, rows = weight.shape[0], images * height * width
    out = torch.empty((images, outs, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    second = 0 if shortcut is None else shortcut.shape[1]
    with tables.on(x.device):
        tile = tile or tables.pointwise(
            rows, channels + second, outs, residual is not None, second > 0, tables.capability(x.device)
        )
        _product[(triton.cdiv(rows, tile.rows) * triton.cdiv(outs, tile.outs),)](
            x,
            weight,
            bias,
            out if residual is None else residual,
            x if shortcut is None else shortcut,
            weight if shortcut_weight is None else shortcut_weight,
            out,
            rows,
            channels,
            outs,
            second,
            height * width,
            width,
            1 if shortcut is None else shortcut.shape[2],
            1 if shortcut is None else shortcut.shape[3],
            stride,
            RESIDUAL=residual is not None,
            SHORTCUT=shortcut is not None,
            RELU=relu,
            # What divides needs no masks.
            EVEN=channels % tile.channels == 0 and second % tile.channels == 0,
            BLOCK_ROWS=tile.rows,
            BLOCK_OUTS=tile.outs,
            BLOCK_CHANNELS=tile.channels,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    return out


@triton.jit
def _sum(
    acc,
    rows_at,  # [BLOCK_ROWS] pointers to the first channel of each row
    weights_at,  # [BLOCK_OUTS] pointers to the first channel of each output
    channels,
    EVEN: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """acc + rows @ weights, in float32."""
    channel = tl.arange(0, BLOCK_CHANNELS)
    for start in range(0, channels, BLOCK_CHANNELS):
        if EVEN:
            a = tl.load(rows_at[:, None] + (start + channel)[None, :])
            b = tl.load(weights_at[None, :] + (start + channel)[:, None])
        else:
            inside = start + channel < channels
            a = tl.load(rows_at[:, None] + (start + channel)[None, :], mask=inside[None, :], other=0.0)
            b = tl.load(weights_at[None, :] + (start + channel)[:, None], mask=inside[:, None], other=0.0)
        acc = tl.dot(a, b, acc)
    return acc


@triton.jit
def _product(
    x,  # [rows, channels]
    weight,  # [outs, channels]
    bias,  # float32 [outs]
    residual,  # [rows, outs]
    shortcut,  # [images, shortcut_height, shortcut_width, second]
    shortcut_weight,  # [outs, second]
    out,  # [rows, outs]: written
    rows,
    channels,
    outs,
    second,
    cells,
    width,
    shortcut_height,
    shortcut_width,
    stride,
    RESIDUAL: tl.constexpr,  # noqa: N803
    SHORTCUT: tl.constexpr,  # noqa: N803
    RELU: tl.constexpr,  # noqa: N803
    EVEN: tl.constexpr,  # noqa: N803
    BLOCK_ROWS: tl.constexpr,  # noqa: N803
    BLOCK_OUTS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """A tile of rows x outputs."""
    # Neighbouring programs share their rows, which are large, and not their weights, which stay in the cache.
    blocks = tl.cdiv(outs, BLOCK_OUTS)
    row = (tl.program_id(0) // blocks) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    output = (tl.program_id(0) % blocks) * BLOCK_OUTS + tl.arange(0, BLOCK_OUTS)
    # Past the end the last row and output stand in: nothing is masked but what is written.
    from_row, from_output = tl.minimum(row, rows - 1), tl.minimum(output, outs - 1)
    at = row.to(tl.int64)[:, None] * outs + output[None, :]
    inside = (row < rows)[:, None] & (output < outs)[None, :]
    acc = tl.zeros((BLOCK_ROWS, BLOCK_OUTS), tl.float32) + tl.load(bias + from_output)[None, :]
    if RESIDUAL:
        # First of all: it is on its way while the products' first operands are.
        acc += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    acc = _sum(
        acc, x + from_row.to(tl.int64) * channels, weight + from_output * channels, channels, EVEN, BLOCK_CHANNELS
    )
    if SHORTCUT:
        image, cell = from_row // cells, from_row % cells
        line = image * shortcut_height + (cell // width) * stride
        place = line.to(tl.int64) * shortcut_width + (cell % width) * stride
        acc = _sum(acc, shortcut + place * second, shortcut_weight + from_output * second, second, EVEN, BLOCK_CHANNELS)
    if RELU:
        # NaN stays NaN, as torch.relu has it.
        acc = tl.where(acc < 0, 0.0, acc)
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside)
