"""From crops and region map to the trunk's first stage on the GPU: aligned inputs, 7x7 convolution, ReLU, max pooling.
Definition: mgran_fast/reference/stem.py.

A library's 7x7 convolution of three channels reads them one by one. Here the aligned inputs are written with a fourth
channel and a border of zeros, so that what one output reads of one row, 7 pixels, lies in 28 neighbouring numbers: with
an eighth pixel, whose weights are 0, that is a row of 32 of a matrix product, which tensor cores take, 16 bytes a load.
Pixels are bytes, which 16-bit floats hold exactly; their normalisation is in the weights.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mgran_fast.kernels import tables
from mgran_fast.kernels.tables import Tile

DTYPES = (torch.float16, torch.bfloat16)
# As mgran_fast/reference/stem.py.
KERNEL, STRIDE, PADDING, WIDE, CHANNELS, INSIDE = 7, 2, 3, 8, 4, 255
_ROW = tl.constexpr(WIDE * CHANNELS)
_KERNEL, _STRIDE, _PADDING = tl.constexpr(KERNEL), tl.constexpr(STRIDE), tl.constexpr(PADDING)
_CHANNELS, _INSIDE = tl.constexpr(CHANNELS), tl.constexpr(float(INSIDE))
_POOL, _POOL_STRIDE = tl.constexpr(3), tl.constexpr(2)

BLOCK_PIXELS, BLOCK_MAP, BLOCK_CELLS = 256, 4096, 32
# Of the convolution; a product sums one row of the kernel at a time. One stage: the rows of neighbouring outputs
# overlap, and loads that wait go through the first-level cache, which asynchronous copies bypass (on an H200, 8 people,
# all four launches: 54.9 us, with four stages 61.7).
TILE = Tile(rows=128, outs=64, channels=WIDE * CHANNELS, num_warps=4, num_stages=1)


def forward(
    crops: torch.Tensor,
    region_map: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    first: int,
    inputs: int,
    *,
    tile: Tile = TILE,
) -> torch.Tensor:
    """The first stage.

    Args:
        crops: uint8 [N, H, W, 3], contiguous.
        region_map: uint8 [N, H, W], contiguous.
        weight: [D, 7 * 32] contiguous float16 or bfloat16, of :func:`mgran_fast.reference.stem.pack`.
        bias: float32 [D].
        first, inputs: the images of a person are those under the regions first to first + inputs - 1.

    Returns:
        [N * inputs, D, h, w] in the weights' dtype, channels_last.
    """
    people, height, width = region_map.shape
    outs, images = weight.shape[0], people * inputs
    grid = ((height - 1) // STRIDE + 1, (width - 1) // STRIDE + 1)
    pooled = ((grid[0] - 1) // 2 + 1, (grid[1] - 1) // 2 + 1)
    out = torch.empty((images, *pooled, outs), dtype=weight.dtype, device=crops.device)
    if out.numel() == 0:
        return out.permute(0, 3, 1, 2)
    # Rows of an even number of pixels: every second pixel begins 16 bytes.
    rows, pairs = height + 2 * PADDING, (width + WIDE + 1) // 2
    packed = torch.empty((images, rows, 2 * pairs, CHANNELS), dtype=weight.dtype, device=crops.device)
    whole = torch.empty(people, dtype=torch.int32, device=crops.device)
    made = torch.empty((images, *grid, outs), dtype=weight.dtype, device=crops.device)
    with tables.on(crops.device):
        _seen[(people,)](region_map, whole, height * width, BLOCK=BLOCK_MAP, num_warps=8)
        _pack[(people, triton.cdiv(rows * 2 * pairs, BLOCK_PIXELS))](
            crops,
            region_map,
            whole,
            packed,
            height,
            width,
            rows,
            pairs,
            first,
            inputs,
            BLOCK=BLOCK_PIXELS,
            num_warps=4,
        )
        positions = images * grid[0] * grid[1]
        _convolve[(triton.cdiv(positions, tile.rows), triton.cdiv(outs, tile.outs))](
            packed,
            weight,
            bias,
            made,
            positions,
            *grid,
            rows,
            pairs,
            outs,
            BLOCK_ROWS=tile.rows,
            BLOCK_OUTS=tile.outs,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        cells = images * pooled[0] * pooled[1]
        _largest[(triton.cdiv(cells, BLOCK_CELLS), triton.cdiv(outs, tile.outs))](
            made,
            out,
            cells,
            *grid,
            *pooled,
            outs,
            BLOCK_CELLS=BLOCK_CELLS,
            BLOCK_OUTS=tile.outs,
            num_warps=4,
        )
    return out.permute(0, 3, 1, 2)


@triton.jit
def _seen(
    region_map,  # uint8 [N, pixels]
    whole,  # int32 [N]: written
    pixels,
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Whether a person's map is empty: then the whole crop is the global input."""
    person = tl.program_id(0)
    region_map += person.to(tl.int64) * pixels
    most = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, pixels, BLOCK):
        at = start + tl.arange(0, BLOCK)
        most = tl.maximum(most, tl.load(region_map + at, mask=at < pixels, other=0).to(tl.int32))
    tl.store(whole + person, (tl.max(most, 0) == 0).to(tl.int32))


@triton.jit
def _pack(
    crops,  # uint8 [N, H, W, 3]
    region_map,  # uint8 [N, H, W]
    whole,  # int32 [N]
    packed,  # [N, inputs, rows, 2 pairs, 4]: written completely
    height,
    width,
    rows,
    pairs,
    first,
    inputs,
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Pixels of a person, in every input: red, green, blue and 255 in the input's region, 0 elsewhere."""
    person = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y, x = at // (2 * pairs) - _PADDING, at % (2 * pairs) - _PADDING
    pictured = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    pixel = person * height * width + y * width + x
    region = tl.load(region_map + pixel, mask=pictured, other=0).to(tl.int32)
    crop = tl.load(whole + person) != 0
    channel = tl.arange(0, _CHANNELS)
    colour = tl.load(
        crops + pixel[:, None] * 3 + channel[None, :], mask=pictured[:, None] & (channel < 3)[None, :], other=0
    )
    value = tl.where((channel < 3)[None, :], colour.to(tl.float32), _INSIDE)
    to = packed + (person * inputs * rows * 2 * pairs + at)[:, None] * _CHANNELS + channel[None, :]
    for i in range(inputs):
        wanted = first + i
        inside = pictured & tl.where(wanted == 0, (region != 0) | crop, region == wanted)
        chosen = tl.where(inside[:, None], value, 0.0)
        tl.store(
            to + i * rows * 2 * pairs * _CHANNELS,
            chosen.to(packed.dtype.element_ty),
            mask=(at < rows * 2 * pairs)[:, None],
        )


@triton.jit
def _convolve(
    packed,  # [images, rows, 2 pairs, 4]
    weight,  # [outs, 7, 32]
    bias,  # float32 [outs]
    made,  # [positions, outs]: written
    positions,
    grid_height,
    grid_width,
    rows,
    pairs,
    outs,
    BLOCK_ROWS: tl.constexpr,  # noqa: N803
    BLOCK_OUTS: tl.constexpr,  # noqa: N803
):
    """relu of a tile of the convolution: seven products, one for each row of the kernel."""
    position = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    output = tl.program_id(1) * BLOCK_OUTS + tl.arange(0, BLOCK_OUTS)
    # Past the end the last one stands in.
    here, column = tl.minimum(position, positions - 1), tl.minimum(output, outs - 1)
    image, cell = here // (grid_height * grid_width), here % (grid_height * grid_width)
    line = image.to(tl.int64) * rows + (cell // grid_width) * _STRIDE
    k = tl.arange(0, _ROW)
    # A pair of pixels is 8 numbers, and an output begins _STRIDE = 2 pixels after its neighbour.
    from_row = packed + ((line * pairs + cell % grid_width) * 8)[:, None] + k[None, :]
    from_weight = weight + (column * (_KERNEL * _ROW))[None, :] + k[:, None]
    acc = tl.zeros((BLOCK_ROWS, BLOCK_OUTS), tl.float32)
    for dy in range(_KERNEL):
        acc = tl.dot(tl.load(from_row + dy * pairs * 8), tl.load(from_weight + dy * _ROW), acc)
    acc += tl.load(bias + column)[None, :]
    # NaN stays NaN, as torch.relu has it.
    acc = tl.where(acc < 0, 0.0, acc)
    at = position.to(tl.int64)[:, None] * outs + output[None, :]
    tl.store(made + at, acc.to(made.dtype.element_ty), mask=(position < positions)[:, None] & (output < outs)[None, :])


@triton.jit
def _largest(
    made,  # [images, grid, outs], not negative
    out,  # [images, pooled, outs]: written
    cells,
    grid_height,
    grid_width,
    pooled_height,
    pooled_width,
    outs,
    BLOCK_CELLS: tl.constexpr,  # noqa: N803
    BLOCK_OUTS: tl.constexpr,  # noqa: N803
):
    """The largest of 3 x 3 cells, of every second one."""
    at = tl.program_id(0) * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)
    output = tl.program_id(1) * BLOCK_OUTS + tl.arange(0, BLOCK_OUTS)
    image, cell = at // (pooled_height * pooled_width), at % (pooled_height * pooled_width)
    top, left = (cell // pooled_width) * _POOL_STRIDE - 1, (cell % pooled_width) * _POOL_STRIDE - 1
    most = tl.zeros((BLOCK_CELLS, BLOCK_OUTS), tl.float32)
    for i in tl.static_range(_POOL):
        for j in tl.static_range(_POOL):
            y, x = top + i, left + j
            inside = (at < cells) & (y >= 0) & (y < grid_height) & (x >= 0) & (x < grid_width)
            place = (image.to(tl.int64) * grid_height + y) * grid_width + x
            mask = inside[:, None] & (output < outs)[None, :]
            value = tl.load(made + place[:, None] * outs + output[None, :], mask=mask, other=0.0)
            most = tl.maximum(most, value.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)
    to = out + at.to(tl.int64)[:, None] * outs + output[None, :]
    tl.store(to, most.to(out.dtype.element_ty), mask=(at < cells)[:, None] & (output < outs)[None, :])
