"""Masked region pooling on the GPU, forward and backward. Definition: mgran_fast/reference/pooling.py.

With w the share of a cell's pixels that lie in the row's region, x the cell's features:

    mean = sum(w x) / sum(w)        max = max(x where w > 0)        gem = (sum(w x^p) / sum(w))^(1/p)

A first, small kernel turns the region map into the shares [B, h w], in float32. Then one program pools a block of
channels of one row. The features are channels_last, so that the channels of a cell are neighbours in memory, and a
cell without weight is never loaded: the region kernels read about as much of the features as their regions cover.
Every sum is taken in float32, and nothing waits for the host.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mgran_fast.kernels import tables
from mgran_fast.kernels.tables import Blocks
from mgran_fast.reference.pooling import GEM_SMALLEST

MODES = ("mean", "max", "gem")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_SMALLEST = tl.constexpr(GEM_SMALLEST)
# The smallest normal float32: below it a logarithm may flush to -inf, and 0 * -inf is no power of 0.
_TINY = tl.constexpr(float(torch.finfo(torch.float32).tiny))
_INT32 = 2**31


def forward(
    features: torch.Tensor,
    region_map: torch.Tensor,
    region: torch.Tensor,
    mode: str,
    power: float,
    *,
    blocks: Blocks | None = None,
) -> torch.Tensor:
    """Pool each row's features over the cells of its own region.

    Args:
        features: [B, C, h, w] float32, float16 or bfloat16, contiguous as channels_last.
        region_map: uint8 [N, H, W], any strides; row b of the features belongs to person b // (B / N).
        region: int64 [B], any value; 0 is the whole person, or the whole crop of a person whose map is empty.
        mode: mean, max or gem.
        power: the p of gem, positive.
        blocks: the tile to use in place of the table's.

    Returns:
        [B, C] in the features' dtype; 0 where the row's region has no pixel.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, memory format or mode.
    """
    rows, channels, height, width = _check(features, region_map, region, mode)
    out = torch.empty((rows, channels), dtype=features.dtype, device=features.device)
    if out.numel() == 0:
        return out
    cells = height * width
    with tables.on(features.device):
        blocks = blocks or _choose("forward", mode, features)
        weights = shares(region_map, region, height, width)
        _pool[(rows * triton.cdiv(channels, blocks.channels),)](
            features,
            weights,
            region,
            out,
            region.stride(0),
            channels,
            cells,
            power,
            MODE=mode,
            BLOCK_CELLS=blocks.cells,
            BLOCK_CHANNELS=blocks.channels,
            **tables.options(blocks),
        )
    return out


def backward(
    grad: torch.Tensor,
    features: torch.Tensor,
    region_map: torch.Tensor,
    region: torch.Tensor,
    out: torch.Tensor,
    mode: str,
    power: float,
    *,
    blocks: Blocks | None = None,
) -> torch.Tensor:
    """The gradient of :func:`forward`'s features.

    Args:
        grad: [B, C], the gradient of ``out``, in the features' dtype; any strides, also expanded.
        out: [B, C], what :func:`forward` returned.
        features, region_map, region, mode, power, blocks: as they were given to :func:`forward`.

    Returns:
        [B, C, h, w] in the features' dtype, channels_last; exactly 0 in the cells outside of the row's region.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong shape, memory format or mode.
    """
    rows, channels, height, width = _check(features, region_map, region, mode)
    for name, tensor in (("grad", grad), ("out", out)):
        if tensor.dtype != features.dtype:
            raise TypeError(f"{name} must be {features.dtype} as the features, not {tensor.dtype}")
        if tensor.shape != (rows, channels):
            raise ValueError(f"{name} must have the shape {[rows, channels]}, not {list(tensor.shape)}")
    result = torch.empty_like(features, memory_format=torch.channels_last)
    if result.numel() == 0:
        return result
    cells = height * width
    # Rounded to 16 bits, `out` is too coarse for gem's power of x / out: such features are pooled again.
    reduce = mode == "max" or (mode == "gem" and features.dtype != torch.float32)
    with tables.on(features.device):
        blocks = blocks or _choose("backward", mode, features)
        weights = shares(region_map, region, height, width)
        _spread[(rows * triton.cdiv(channels, blocks.channels),)](
            grad,
            features,
            weights,
            region,
            out,
            result,
            grad.stride(0),
            grad.stride(1),
            out.stride(0),
            out.stride(1),
            region.stride(0),
            channels,
            cells,
            power,
            MODE=mode,
            REDUCE=reduce,
            BLOCK_CELLS=blocks.cells,
            BLOCK_CHANNELS=blocks.channels,
            **tables.options(blocks),
        )
    return result


def shares(region_map: torch.Tensor, region: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """float32 [B, height * width]: the share of each cell's pixels that lie in the row's region.

    All 0 for region 0 of a person whose map is empty: the kernels then take the whole crop.
    """
    rows, (people, map_height, map_width) = len(region), region_map.shape
    weights = torch.empty((rows, height * width), dtype=torch.float32, device=region_map.device)
    blocks = tables.share_blocks(height, width, map_height, map_width)
    _share[(rows, height, triton.cdiv(width, blocks.cells))](
        region_map,
        region,
        weights,
        *region_map.stride(),
        region.stride(0),
        rows // people,
        height,
        width,
        map_height,
        map_width,
        BLOCK_CELLS=blocks.cells,
        BLOCK_Y=blocks.y,
        BLOCK_X=blocks.x,
        **tables.options(blocks),
    )
    return weights


def _check(
    features: torch.Tensor, region_map: torch.Tensor, region: torch.Tensor, mode: str
) -> tuple[int, int, int, int]:
    if features.dtype not in DTYPES:
        raise TypeError(f"features must be float32, float16 or bfloat16, not {features.dtype}")
    if region_map.dtype != torch.uint8 or region.dtype != torch.int64:
        raise TypeError(f"region_map must be uint8 and region int64, not {region_map.dtype} and {region.dtype}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if features.dim() != 4 or region_map.dim() != 3 or region.shape != features.shape[:1]:
        shapes = " and ".join(str(list(t.shape)) for t in (features, region_map, region))
        raise ValueError(f"the shapes must be [B, C, h, w], [N, H, W] and [B], not {shapes}")
    rows, channels, height, width = features.shape
    people, map_height, map_width = region_map.shape
    if (people == 0) != (rows == 0) or (people and rows % people):
        raise ValueError(f"features has {rows} rows, which is no multiple of region_map's {people} people")
    if rows and 0 in (height, width, map_height, map_width):
        raise ValueError("features must have cells and region_map pixels")
    if not features.is_contiguous(memory_format=torch.channels_last):
        raise ValueError("features must be contiguous in the memory format channels_last")
    # Offsets within one row, or one person's map, have 32 bits in the kernels; the rows' own have 64.
    reach = region_map.stride(1) * map_height + region_map.stride(2) * map_width
    if max(channels * height * width, height * map_height, width * map_width, reach) >= _INT32:
        raise ValueError("features and region_map must stay below 2**31 elements a row and a person")
    return rows, channels, height, width


def _choose(kernel: str, mode: str, features: torch.Tensor) -> Blocks:
    cells = features.shape[2] * features.shape[3]
    return tables.choose(kernel, mode, features.dtype, features.shape[1], cells, tables.capability(features.device))


@triton.jit
def _share(
    region_map,  # uint8 [N, H, W]
    region,  # int64 [B]
    weights,  # float32 [B, h, w]: written
    stride_person,
    stride_y,
    stride_x,
    stride_region,
    rows_per_person,
    height,
    width,
    map_height,
    map_width,
    BLOCK_CELLS: tl.constexpr,  # noqa: N803
    BLOCK_Y: tl.constexpr,  # noqa: N803
    BLOCK_X: tl.constexpr,  # noqa: N803
):
    """weights[b, i, j] = (pixels of cell (i, j) in the row's region) / (pixels of the cell).

    Cell (i, j) covers the pixels floor(i H / h) to ceil((i + 1) H / h), exclusive, and columns alike; neighbours
    share pixels where H is no multiple of h. One program counts a block of cells of one row of the grid.
    """
    row = tl.program_id(0)
    i = tl.program_id(1)
    first = tl.program_id(2) * BLOCK_CELLS
    j = first + tl.arange(0, BLOCK_CELLS)
    top, bottom = i * map_height // height, ((i + 1) * map_height + height - 1) // height
    left, right = j * map_width // width, ((j + 1) * map_width + width - 1) // width
    # Cells past the grid's edge would count pixels past the map's.
    begin = first * map_width // width // 16 * 16  # a multiple of 16: 16 pixels a load, where the map allows it
    last = tl.minimum(first + BLOCK_CELLS, width)
    end = (last * map_width + width - 1) // width
    chosen = tl.load(region + row.to(tl.int64) * stride_region)
    # Compared as 32-bit numbers, so that neither 257 nor -255 is region 1.
    wanted = tl.where((chosen < 0) | (chosen > 255), -1, chosen).to(tl.int32)
    person = region_map + (row // rows_per_person).to(tl.int64) * stride_person
    count = tl.zeros((BLOCK_CELLS,), tl.int32)
    for x0 in range(begin, end, BLOCK_X):
        x = x0 + tl.arange(0, BLOCK_X)
        column = tl.zeros((BLOCK_X,), tl.int32)  # pixels of the region in each column of the map
        for y0 in range(top, bottom, BLOCK_Y):
            y = y0 + tl.arange(0, BLOCK_Y)
            valid = (y < bottom)[:, None] & (x < map_width)[None, :]
            pixel = tl.load(person + y[:, None] * stride_y + x[None, :] * stride_x, mask=valid, other=0).to(tl.int32)
            # What is not loaded is background, and that is in no region.
            column += tl.sum(tl.where(wanted == 0, pixel != 0, pixel == wanted).to(tl.int32), 0)
        covered = (x[None, :] >= left[:, None]) & (x[None, :] < right[:, None])
        count += tl.sum(tl.where(covered, column[None, :], 0), 1)
    pixels = (bottom - top) * (right - left)
    share = tl.div_rn(count.to(tl.float32), pixels.to(tl.float32))
    tl.store(weights + row.to(tl.int64) * height * width + i * width + j, share, mask=j < width)


@triton.jit
def _total(weights, chosen, cells, BLOCK: tl.constexpr):  # noqa: N803
    """weights [cells] -> (their sum, 1 where it is 0, whether it is 0; the least weight of a cell).

    The least weight is 1 where the row is pooled over the whole crop, and 0 elsewhere.
    """
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, cells, BLOCK):
        cell = start + tl.arange(0, BLOCK)
        total += tl.load(weights + cell, mask=cell < cells, other=0.0)
    total = tl.sum(total, 0)
    # Every pixel is in a cell, so a whole person without weight has an empty map.
    least = tl.where((total == 0) & (chosen == 0), 1.0, 0.0)
    total = tl.maximum(total, least * cells)
    return tl.where(total > 0, total, 1.0), total == 0, least


@triton.jit
def _weight(weights, cell, cells, least):
    """The weights of a block of cells; 0 past the last one."""
    weight = tl.load(weights + cell, mask=cell < cells, other=0.0)
    return tl.where(cell < cells, tl.maximum(weight, least), 0.0)


@triton.jit
def _load(features, cell, channel, channels, weight, other):
    """float32 [cells, channels]: the features of the cells with a weight, ``other`` elsewhere."""
    mask = (weight > 0)[:, None] & (channel < channels)[None, :]
    # Calculations in 16 bits would round, and the interpreter is wrong on bfloat16: float32 from here on.
    return tl.load(features + cell[:, None] * channels + channel[None, :], mask=mask, other=other).to(tl.float32)


@triton.jit
def _largest(x):
    """[cells, channels] -> [channels]; NaN where there is one, which a plain tl.max would drop."""
    broken = tl.max((x != x).to(tl.int32), 0)
    return tl.where(broken > 0, float("nan"), tl.max(tl.where(x != x, float("-inf"), x), 0))


@triton.jit
def _clamp(x, smallest: tl.constexpr):
    """max(x, smallest), but NaN stays NaN."""
    return tl.where(x < smallest, smallest, x)


@triton.jit
def _power(x, exponent):
    """x ** exponent of a positive x."""
    return tl.exp2(exponent * tl.log2(_clamp(x, _TINY)))


@triton.jit
def _pool(
    features,  # [B, h w, C]
    weights,  # float32 [B, h w]
    region,  # int64 [B]
    out,  # [B, C]: written
    stride_region,
    channels,
    cells,
    power,
    MODE: tl.constexpr,  # noqa: N803
    BLOCK_CELLS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """A block of channels of one row: mean, max or gem over the cells with a weight; 0 where there is none."""
    # Neighbouring programs take neighbouring channels of one row, which are neighbours in memory.
    blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    channel = (tl.program_id(0) % blocks) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    features += row * cells * channels
    weights += row * cells
    total, unseen, least = _total(weights, tl.load(region + row * stride_region), cells, 128)
    if MODE == "mean":
        acc = tl.zeros((BLOCK_CELLS, BLOCK_CHANNELS), tl.float32)
        for start in range(0, cells, BLOCK_CELLS):
            cell = start + tl.arange(0, BLOCK_CELLS)
            weight = _weight(weights, cell, cells, least)
            acc += _load(features, cell, channel, channels, weight, 0.0) * weight[:, None]
        pooled = tl.sum(acc, 0) / total
    else:
        best = tl.full((BLOCK_CELLS, BLOCK_CHANNELS), float("-inf"), tl.float32)
        for start in range(0, cells, BLOCK_CELLS):
            cell = start + tl.arange(0, BLOCK_CELLS)
            weight = _weight(weights, cell, cells, least)
            x = _load(features, cell, channel, channels, weight, float("-inf"))
            best = tl.maximum(best, x, propagate_nan=tl.PropagateNan.ALL)
        pooled = _largest(best)
        if MODE == "gem":
            # Powers of x / (the largest x of the region) neither over- nor underflow. The features are read once
            # more, mostly from the cache: a program's cells are a few kilobytes.
            largest = _clamp(pooled, _SMALLEST)
            inverse = tl.div_rn(tl.full((BLOCK_CHANNELS,), 1.0, tl.float32), largest)
            acc = tl.zeros((BLOCK_CELLS, BLOCK_CHANNELS), tl.float32)
            for start in range(0, cells, BLOCK_CELLS):
                cell = start + tl.arange(0, BLOCK_CELLS)
                weight = _weight(weights, cell, cells, least)
                x = _clamp(_load(features, cell, channel, channels, weight, 0.0), _SMALLEST)
                acc += _power(x * inverse[None, :], power) * weight[:, None]
            pooled = _power(tl.sum(acc, 0) / total, 1.0 / power) * largest
    pooled = tl.where(unseen, 0.0, pooled)
    tl.store(out + row * channels + channel, pooled.to(out.dtype.element_ty), mask=channel < channels)


@triton.jit
def _spread(
    grad,  # [B, C]
    features,  # [B, h w, C]
    weights,  # float32 [B, h w]
    region,  # int64 [B]
    out,  # [B, C]: what _pool wrote
    result,  # [B, h w, C]: written completely
    stride_grad_row,
    stride_grad_channel,
    stride_out_row,
    stride_out_channel,
    stride_region,
    channels,
    cells,
    power,
    MODE: tl.constexpr,  # noqa: N803
    REDUCE: tl.constexpr,  # noqa: N803
    BLOCK_CELLS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """A block of channels of one row of the gradient: 0 in cells without a weight, elsewhere

    mean: g w / sum(w)      max: g / (number of maxima) where x is one      gem: g w / sum(w) (x / pooled)^(p - 1)
    """
    blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    channel = (tl.program_id(0) % blocks) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    exists = channel < channels
    features += row * cells * channels
    result += row * cells * channels
    weights += row * cells
    total, _, least = _total(weights, tl.load(region + row * stride_region), cells, 128)
    g = tl.load(grad + row * stride_grad_row + channel.to(tl.int64) * stride_grad_channel, mask=exists, other=0.0)
    factor = g.to(tl.float32)
    if MODE != "mean":
        y = tl.load(out + row * stride_out_row + channel.to(tl.int64) * stride_out_channel, mask=exists, other=1.0)
        y = y.to(tl.float32)
    if MODE == "gem":
        inverse = tl.div_rn(tl.full((BLOCK_CHANNELS,), 1.0, tl.float32), _clamp(y, _SMALLEST))
    if REDUCE:
        acc = tl.zeros((BLOCK_CELLS, BLOCK_CHANNELS), tl.float32)
        for start in range(0, cells, BLOCK_CELLS):
            cell = start + tl.arange(0, BLOCK_CELLS)
            weight = _weight(weights, cell, cells, least)
            x = _load(features, cell, channel, channels, weight, 0.0)
            if MODE == "max":
                acc += ((x == y[None, :]) & (weight > 0)[:, None]).to(tl.float32)
            else:
                acc += _power(_clamp(x, _SMALLEST) * inverse[None, :], power) * weight[:, None]
        reduced = tl.sum(acc, 0)
        if MODE == "max":
            # NaN is no maximum of its region, and has no gradient either: it is NaN there, as torch.amax's.
            factor = tl.where(reduced > 0, factor / tl.maximum(reduced, 1.0), float("nan"))
        else:
            # (exact / rounded pooled feature)^(1 - p)
            factor *= _power(reduced / total, (1.0 - power) / power)
    if MODE != "max":
        factor = factor / total
    for start in range(0, cells, BLOCK_CELLS):
        cell = start + tl.arange(0, BLOCK_CELLS)
        weight = _weight(weights, cell, cells, least)
        if MODE == "mean":
            value = factor[None, :] * weight[:, None]
        else:
            x = _load(features, cell, channel, channels, weight, 0.0)
            if MODE == "max":
                value = tl.where((x == y[None, :]) | (factor != factor)[None, :], factor[None, :], 0.0)
            else:
                slope = _power(_clamp(x, _SMALLEST) * inverse[None, :], power - 1.0)
                # Below the clamp a feature has no gradient.
                slope = tl.where(x < _SMALLEST, 0.0, slope)
                value = factor[None, :] * weight[:, None] * slope
        # Chosen, not multiplied: a gradient that is infinite or NaN stays in its region.
        value = tl.where((weight > 0)[:, None], value, 0.0)
        at = cell[:, None] * channels + channel[None, :]
        tl.store(result + at, value.to(result.dtype.element_ty), mask=(cell < cells)[:, None] & exists[None, :])
