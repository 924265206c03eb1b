"""Batch norm with residual and ReLU on the GPU, forward and backward. Definition: mgran_fast/reference/batchnorm.py.

Row b of x [B, C, h, w] belongs to group b % G, whose M = B / G h w numbers of a channel have a mean and a variance of
their own. With scale = weight / sqrt(var + eps), shift = bias - mean scale, xhat = (x - mean) / sqrt(var + eps):

    z = x scale + shift + residual        y = max(z, 0)        dz = dy where z > 0
    dbias = sum(dz)        dweight = sum(dz xhat)        dx = scale (dz - dbias / M - xhat dweight / M)

x is channels_last, so that it is a matrix of rows (a cell of an image) and channels, and a program has a tile of rows
of one group. z is computed again where its sign is wanted: nothing but x and the residual need be kept for backward.

Sums are taken in two launches, in float32: some rows a program, then what the programs wrote, always in the same order.
They go through a tensor from its end to its beginning, the other kernels from its beginning: each finds in the cache
what the one before it touched last.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mgran_fast.kernels import tables
from mgran_fast.kernels.tables import RowBlocks

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Rows are counted in 32 bits, with room for a tile more; offsets have 64.
MOST_ROWS = 2**31 - 2**16
# Of the kernels that add up the programs' sums. 8 channels of float32 are a sector of memory.
COMBINE_CHANNELS, COMBINE_SPLITS = 8, 256


def statistics(x: torch.Tensor, groups: int, *, blocks: RowBlocks | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and biased variance of each group and channel.

    Args:
        x: [B, C, h, w] float32, float16 or bfloat16, contiguous as channels_last; B a multiple of ``groups``.
        groups: G, 1 or more.
        blocks: the tile to use in place of the table's.

    Returns:
        mean, var: float32 [G, C]; 0 where x has no rows.
    """
    channels = x.shape[1]
    rows, cells = _rows(x, groups)
    mean = torch.empty((groups, channels), dtype=torch.float32, device=x.device)
    var = torch.empty_like(mean)
    if rows == 0:
        return mean.zero_(), var.zero_()
    with tables.on(x.device):
        blocks = blocks or _choose("moments", x, rows)
        splits = _splits(rows, channels, groups, blocks)
        partial = mean.new_empty((splits, 2, groups, channels))
        sizes = (rows, cells, channels, groups, splits)
        _moments[_grid(splits, groups, channels, blocks.channels)](
            x, partial, *sizes, GROUPED=groups > 1, STAGES=blocks.num_stages, **_options(blocks)
        )
        _combine_moments[_grid(1, groups, channels, COMBINE_CHANNELS)](
            x,
            partial,
            mean,
            var,
            *sizes,
            blocks.rows,
            GROUPED=groups > 1,
            BLOCK_SPLITS=min(COMBINE_SPLITS, triton.next_power_of_2(splits)),
            BLOCK_CHANNELS=COMBINE_CHANNELS,
        )
    return mean, var


def apply(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    relu: bool,
    *,
    blocks: RowBlocks | None = None,
) -> torch.Tensor:
    """y = max(x scale + shift + residual, 0), or without the maximum.

    Args:
        x: as for :func:`statistics`. residual: as x, or None.
        scale, shift: float32 [G, C], contiguous.
        blocks: the tile to use in place of the table's.

    Returns:
        [B, C, h, w] in x's dtype, channels_last.
    """
    groups, channels = scale.shape
    rows, cells = _rows(x, groups)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    if rows == 0:
        return y
    with tables.on(x.device):
        blocks = blocks or _choose("apply", x, rows)
        _apply[_grid(triton.cdiv(rows, blocks.rows), groups, channels, blocks.channels)](
            x,
            x if residual is None else residual,
            scale,
            shift,
            y,
            rows,
            cells,
            channels,
            groups,
            GROUPED=groups > 1,
            RESIDUAL=residual is not None,
            RELU=relu,
            **_options(blocks),
        )
    return y


def reduce(
    grad: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    relu: bool,
    *,
    blocks: RowBlocks | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of bias and weight, of each group apart.

    Args:
        grad: [B, C, h, w], the gradient of :func:`apply`'s y, in x's dtype and layout.
        x, residual, scale, shift, relu: as they were given to :func:`apply`.
        mean, invstd: float32 [G, C], contiguous.
        blocks: the tile to use in place of the table's.

    Returns:
        dbias = sum(dz), dweight = sum(dz xhat): float32 [G, C]; 0 where x has no rows.
    """
    groups, channels = scale.shape
    rows, cells = _rows(x, groups)
    dbias, dweight = torch.empty_like(mean), torch.empty_like(mean)
    if rows == 0:
        return dbias.zero_(), dweight.zero_()
    with tables.on(x.device):
        blocks = blocks or _choose("reduce", x, rows)
        splits = _splits(rows, channels, groups, blocks)
        partial = mean.new_empty((splits, 2, groups, channels))
        _reduce[_grid(splits, groups, channels, blocks.channels)](
            grad,
            x,
            x if residual is None else residual,
            scale,
            shift,
            mean,
            invstd,
            partial,
            rows,
            cells,
            channels,
            groups,
            splits,
            GROUPED=groups > 1,
            RESIDUAL=residual is not None,
            RELU=relu,
            STAGES=blocks.num_stages,
            **_options(blocks),
        )
        _combine_sums[_grid(1, 1, groups * channels, COMBINE_CHANNELS)](
            partial,
            dbias,
            dweight,
            groups * channels,
            splits,
            BLOCK_SPLITS=min(COMBINE_SPLITS, triton.next_power_of_2(splits)),
            BLOCK_CHANNELS=COMBINE_CHANNELS,
        )
    return dbias, dweight


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
    want_residual: bool,
    *,
    blocks: RowBlocks | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The gradients of x and of the residual.

    Args:
        grad, x, residual, scale, shift, mean, invstd, relu: as they were given to :func:`reduce`.
        dbias_mean, dweight_mean: float32 [G, C], contiguous: dbias / M and dweight / M, of all ranks together; zeros
            where mean and invstd are constants.
        want_residual: whether the residual's gradient is wanted.
        blocks: the tile to use in place of the table's.

    Returns:
        dx, and dz or None: [B, C, h, w] in x's dtype, channels_last.
    """
    groups, channels = scale.shape
    rows, cells = _rows(x, groups)
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    dresidual = torch.empty_like(dx) if want_residual else None
    if rows == 0:
        return dx, dresidual
    with tables.on(x.device):
        blocks = blocks or _choose("grad", x, rows)
        _grad[_grid(triton.cdiv(rows, blocks.rows), groups, channels, blocks.channels)](
            grad,
            x,
            x if residual is None else residual,
            scale,
            shift,
            mean,
            invstd,
            dbias_mean,
            dweight_mean,
            dx,
            dx if dresidual is None else dresidual,
            rows,
            cells,
            channels,
            groups,
            GROUPED=groups > 1,
            RESIDUAL=residual is not None,
            RELU=relu,
            WANT_RESIDUAL=want_residual,
            **_options(blocks),
        )
    return dx, dresidual


def _rows(x: torch.Tensor, groups: int) -> tuple[int, int]:
    """(rows of a group, cells of an image). ValueError: too many rows for a 32-bit count."""
    cells = x.shape[2] * x.shape[3]
    if x.shape[0] * cells > MOST_ROWS:
        raise ValueError(f"x must have no more than {MOST_ROWS} cells, not {x.shape[0] * cells}")
    return x.shape[0] // groups * cells, cells


def _choose(kernel: str, x: torch.Tensor, rows: int) -> RowBlocks:
    return tables.batchnorm(kernel, x.dtype, x.shape[1], rows, tables.capability(x.device))


def _splits(rows: int, channels: int, groups: int, blocks: RowBlocks) -> int:
    """How many programs share the rows of a group and a block of channels: each has a tile or more."""
    others = groups * triton.cdiv(channels, blocks.channels)
    return min(triton.cdiv(rows, blocks.rows), max(1, blocks.programs // others))


def _grid(parts: int, groups: int, channels: int, block_channels: int) -> tuple[int]:
    """One program for each part of each group's rows and each block of channels; see _split."""
    return (parts * groups * triton.cdiv(channels, block_channels),)


def _options(blocks: RowBlocks) -> dict[str, int | bool]:
    return {"BLOCK_ROWS": blocks.rows, "BLOCK_CHANNELS": blocks.channels, **tables.options(blocks)}


@triton.jit
def _split(channels, groups, BLOCK_CHANNELS: tl.constexpr):  # noqa: N803
    """The program's (place among the rows, group, channels): neighbours have other channels of the same rows."""
    blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    other = tl.program_id(0) // blocks
    channel = (tl.program_id(0) % blocks) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    return other // groups, other % groups, channel


@triton.jit
def _at(place, group, cells, groups, channel, channels, GROUPED: tl.constexpr):  # noqa: N803
    """Offsets [places, channels] of the place-th rows of a group: those of its images place // cells."""
    row = place.to(tl.int64)
    if GROUPED:
        row = ((place // cells) * groups + group).to(tl.int64) * cells + place % cells
    return row[:, None] * channels + channel[None, :]


@triton.jit
def _dz(
    grad,
    x,  # float32 [rows, channels], loaded
    residual,
    at,
    inside,
    scale,
    shift,
    RESIDUAL: tl.constexpr,  # noqa: N803
    RELU: tl.constexpr,  # noqa: N803
):
    """dz = dy where z > 0, with the z of _z; a z that is NaN lets the gradient through, as torch.relu's."""
    dz = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        dz = tl.where(_z(x, residual, at, inside, scale, shift, RESIDUAL) <= 0, 0.0, dz)
    return dz


@triton.jit
def _z(x, residual, at, inside, scale, shift, RESIDUAL: tl.constexpr):  # noqa: N803
    """z = x scale + shift + residual."""
    # One rounding, asked for by name: a z must have the same sign in every kernel.
    z = tl.fma(x, scale[None, :], shift[None, :])
    if RESIDUAL:
        z += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    return z


@triton.jit
def _moments(
    x,  # [B, h w, C]
    partial,  # float32 [splits, 2, G, C]: written
    rows,
    cells,
    channels,
    groups,
    splits,
    GROUPED: tl.constexpr,  # noqa: N803
    STAGES: tl.constexpr,  # noqa: N803
    BLOCK_ROWS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """Mean and M2 = sum((x - mean)^2) of every ``splits``-th tile, by Welford (1962): with the n-th number

    d = x - mean        mean += d / n        M2 += d (x - mean)

    of each row of the tile apart. What is x here is what it is more than the group's last row: where a mean is large
    and a variance small, a rounded mean would cost more than the variance.
    """
    split, group, channel = _split(channels, groups, BLOCK_CHANNELS)
    exists = channel < channels
    last = _at(rows - 1 + tl.zeros((1,), tl.int32), group, cells, groups, channel, channels, GROUPED)
    origin = tl.load(x + last, mask=exists[None, :], other=0.0).to(tl.float32)
    step = splits * BLOCK_ROWS
    # Counted from the end.
    first = split * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    mean = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    m2 = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for k in tl.range(0, tl.cdiv(rows - split * BLOCK_ROWS, step), num_stages=STAGES):
        place = first + k * step
        inside = (place < rows)[:, None] & exists[None, :]
        at = _at(rows - 1 - place, group, cells, groups, channel, channels, GROUPED)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) - origin
        delta = tl.where(inside, value - mean, 0.0)
        mean += delta * (1.0 / (k + 1))
        m2 += delta * (value - mean)
    # Rows of the tile saw the same numbers of rows, or one less.
    seen = tl.maximum(rows - first + step - 1, 0) // step
    count = seen.to(tl.float32)[:, None]
    whole = tl.sum(mean * count, 0) / tl.sum(seen, 0).to(tl.float32)
    apart = mean - whole[None, :]
    m2 = tl.sum(m2 + apart * apart * count, 0)
    out = partial + (split.to(tl.int64) * 2 * groups + group) * channels + channel
    tl.store(out, whole, mask=exists)
    tl.store(out + groups * channels, m2, mask=exists)


@triton.jit
def _combine_moments(
    x,  # [B, h w, C]
    partial,  # float32 [splits, 2, G, C]
    mean,  # float32 [G, C]: written
    var,  # float32 [G, C]: written
    rows,
    cells,
    channels,
    groups,
    splits,
    tile_rows,
    GROUPED: tl.constexpr,  # noqa: N803
    BLOCK_SPLITS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """Of n_i numbers with the mean m_i and M2_i (Chan, Golub and LeVeque 1979):

    mean = sum(n_i m_i) / M        var = (sum(M2_i) + sum(n_i (m_i - mean)^2)) / M
    """
    _, group, channel = _split(channels, groups, BLOCK_CHANNELS)
    exists = channel < channels
    tiles = tl.cdiv(rows, tile_rows)
    partial += group * channels + channel[None, :]
    whole = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    for start in range(0, splits, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        inside = (split < splits)[:, None] & exists[None, :]
        m = tl.load(partial + split.to(tl.int64)[:, None] * 2 * groups * channels, mask=inside, other=0.0)
        whole += tl.sum(m * _count(split, splits, tiles, rows, tile_rows)[:, None], 0)
    whole = whole / rows
    m2 = tl.zeros((BLOCK_CHANNELS,), tl.float32)
    for start in range(0, splits, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        inside = (split < splits)[:, None] & exists[None, :]
        at = split.to(tl.int64)[:, None] * 2 * groups * channels
        apart = tl.load(partial + at, mask=inside, other=0.0) - whole[None, :]
        more = tl.load(partial + at + groups * channels, mask=inside, other=0.0)
        m2 += tl.sum(more + apart * apart * _count(split, splits, tiles, rows, tile_rows)[:, None], 0)
    last = _at(rows - 1 + tl.zeros((1,), tl.int32), group, cells, groups, channel, channels, GROUPED)
    origin = tl.sum(tl.load(x + last, mask=exists[None, :], other=0.0).to(tl.float32), 0)
    tl.store(mean + group * channels + channel, origin + whole, mask=exists)
    tl.store(var + group * channels + channel, m2 / rows, mask=exists)


@triton.jit
def _count(split, splits, tiles, rows, tile_rows):
    """Rows of every ``splits``-th tile from the split-th on, as float32; 0 past the last split."""
    missing = tl.where((tiles - 1) % splits == split, tiles * tile_rows - rows, 0)
    count = (tiles - split + splits - 1) // splits * tile_rows - missing
    return tl.where(split < splits, count, 0).to(tl.float32)


@triton.jit
def _apply(
    x,  # [B, h w, C]
    residual,  # [B, h w, C]
    scale,  # float32 [G, C]
    shift,  # float32 [G, C]
    y,  # [B, h w, C]: written completely
    rows,
    cells,
    channels,
    groups,
    GROUPED: tl.constexpr,  # noqa: N803
    RESIDUAL: tl.constexpr,  # noqa: N803
    RELU: tl.constexpr,  # noqa: N803
    BLOCK_ROWS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """A tile of y = max(x scale + shift + residual, 0)."""
    block, group, channel = _split(channels, groups, BLOCK_CHANNELS)
    exists = channel < channels
    place = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = (place < rows)[:, None] & exists[None, :]
    at = _at(place, group, cells, groups, channel, channels, GROUPED)
    own = group * channels + channel
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    a, b = tl.load(scale + own, mask=exists, other=0.0), tl.load(shift + own, mask=exists, other=0.0)
    z = _z(value, residual, at, inside, a, b, RESIDUAL)
    if RELU:
        # NaN stays NaN, as torch.relu has it.
        z = tl.where(z <= 0, 0.0, z)
    tl.store(y + at, z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _reduce(
    grad,  # [B, h w, C]
    x,  # [B, h w, C]
    residual,  # [B, h w, C]
    scale,  # float32 [G, C]
    shift,  # float32 [G, C]
    mean,  # float32 [G, C]
    invstd,  # float32 [G, C]
    partial,  # float32 [splits, 2, G, C]: written
    rows,
    cells,
    channels,
    groups,
    splits,
    GROUPED: tl.constexpr,  # noqa: N803
    RESIDUAL: tl.constexpr,  # noqa: N803
    RELU: tl.constexpr,  # noqa: N803
    STAGES: tl.constexpr,  # noqa: N803
    BLOCK_ROWS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """sum(dz) and sum(dz xhat) of every ``splits``-th tile, with dz = dy where z > 0."""
    split, group, channel = _split(channels, groups, BLOCK_CHANNELS)
    exists = channel < channels
    own = group * channels + channel
    a, b = tl.load(scale + own, mask=exists, other=0.0), tl.load(shift + own, mask=exists, other=0.0)
    m = tl.load(mean + own, mask=exists, other=0.0)
    step = splits * BLOCK_ROWS
    # Counted from the end.
    first = split * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    plain = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    weighted = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for k in tl.range(0, tl.cdiv(rows - split * BLOCK_ROWS, step), num_stages=STAGES):
        place = first + k * step
        inside = (place < rows)[:, None] & exists[None, :]
        at = _at(rows - 1 - place, group, cells, groups, channel, channels, GROUPED)
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        # 0 outside, where no gradient is loaded.
        dz = _dz(grad, value, residual, at, inside, a, b, RESIDUAL, RELU)
        plain += dz
        weighted += dz * (value - m[None, :])
    out = partial + (split.to(tl.int64) * 2 * groups + group) * channels + channel
    tl.store(out, tl.sum(plain, 0), mask=exists)
    r = tl.load(invstd + own, mask=exists, other=0.0)
    tl.store(out + groups * channels, tl.sum(weighted, 0) * r, mask=exists)


@triton.jit
def _combine_sums(
    partial,  # float32 [splits, 2, G C]
    dbias,  # float32 [G C]: written
    dweight,  # float32 [G C]: written
    channels,
    splits,
    BLOCK_SPLITS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """The splits' sums added up; channels are those of all groups."""
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    exists = channel < channels
    partial += channel[None, :]
    plain = tl.zeros((BLOCK_SPLITS, BLOCK_CHANNELS), tl.float32)
    weighted = tl.zeros((BLOCK_SPLITS, BLOCK_CHANNELS), tl.float32)
    for start in range(0, splits, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        inside = (split < splits)[:, None] & exists[None, :]
        at = split.to(tl.int64)[:, None] * 2 * channels
        plain += tl.load(partial + at, mask=inside, other=0.0)
        weighted += tl.load(partial + at + channels, mask=inside, other=0.0)
    tl.store(dbias + channel, tl.sum(plain, 0), mask=exists)
    tl.store(dweight + channel, tl.sum(weighted, 0), mask=exists)


@triton.jit
def _grad(
    grad,  # [B, h w, C]
    x,  # [B, h w, C]
    residual,  # [B, h w, C]
    scale,  # float32 [G, C]
    shift,  # float32 [G, C]
    mean,  # float32 [G, C]
    invstd,  # float32 [G, C]
    dbias_mean,  # float32 [G, C]
    dweight_mean,  # float32 [G, C]
    dx,  # [B, h w, C]: written completely
    dresidual,  # [B, h w, C]: written completely
    rows,
    cells,
    channels,
    groups,
    GROUPED: tl.constexpr,  # noqa: N803
    RESIDUAL: tl.constexpr,  # noqa: N803
    RELU: tl.constexpr,  # noqa: N803
    WANT_RESIDUAL: tl.constexpr,  # noqa: N803
    BLOCK_ROWS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    """A tile of dx = scale (dz - dbias / M - xhat dweight / M) and of dresidual = dz, with dz = dy where z > 0."""
    block, group, channel = _split(channels, groups, BLOCK_CHANNELS)
    exists = channel < channels
    place = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    inside = (place < rows)[:, None] & exists[None, :]
    at = _at(place, group, cells, groups, channel, channels, GROUPED)
    own = group * channels + channel
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    a, b = tl.load(scale + own, mask=exists, other=0.0), tl.load(shift + own, mask=exists, other=0.0)
    dz = _dz(grad, value, residual, at, inside, a, b, RESIDUAL, RELU)
    m, r = tl.load(mean + own, mask=exists, other=0.0), tl.load(invstd + own, mask=exists, other=0.0)
    db = tl.load(dbias_mean + own, mask=exists, other=0.0)
    dw = tl.load(dweight_mean + own, mask=exists, other=0.0)
    slope = a[None, :] * (dz - db[None, :] - (value - m[None, :]) * (r * dw)[None, :])
    tl.store(dx + at, slope.to(dx.dtype.element_ty), mask=inside)
    if WANT_RESIDUAL:
        tl.store(dresidual + at, dz.to(dresidual.dtype.element_ty), mask=inside)
