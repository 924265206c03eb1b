"""``conv``: a convolution that computes chosen cells of images, and reads cells that images share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mgran_fast.ops import backend
from mgran_fast.ops.launch import launch
from mgran_fast.reference import conv as reference
from mgran_fast.reference.conv import Cells

# As in csrc/abi.h and csrc/conv.h.
_DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.uint8: 3}
# Output channels that are computed together, and bytes of input channels (csrc/cpu/conv_tile.h).
PANEL, GROUP = 32, 4


@dataclass(frozen=True)
class Tap:
    """The geometry of one source: a square kernel, its stride, and zeros around the grid."""

    kernel: int
    stride: int = 1
    padding: int = 0

    def grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """The grid (h, w) of the result for that of the source."""
        h, w = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in grid)
        return h, w


class PackedConv:
    """A convolution's weights in the order in which the kernel reads them; one or two sources, summed.

    Args:
        weights: of each source [D, C, k, k]: float32, bfloat16, or int8 for sources of bytes.
        taps: of each source.
        bias: float32 [D].
        scale: float32 [D], for bytes: what the integer sums are multiplied by.
        relu: whether ReLU follows.

    Raises:
        ValueError: sizes or dtypes do not fit.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        taps: Sequence[Tap],
        bias: torch.Tensor,
        *,
        scale: torch.Tensor | None = None,
        relu: bool = True,
    ) -> None:
        if not 1 <= len(weights) <= 2 or len(weights) != len(taps):
            raise ValueError(f"one or two sources with a tap each, not {len(weights)} weights and {len(taps)} taps")
        dtype = weights[0].dtype
        if dtype not in (torch.float32, torch.bfloat16, torch.int8):
            raise ValueError(f"weights must be float32, bfloat16 or int8, not {dtype}")
        channels = len(bias)
        group = GROUP // dtype.itemsize
        for weight, tap in zip(weights, taps, strict=True):
            if weight.dtype != dtype or weight.dim() != 4 or weight.shape[0] != channels:
                raise ValueError(f"weights must be {dtype} [{channels}, C, k, k], not {list(weight.shape)}")
            if tuple(weight.shape[2:]) != (tap.kernel, tap.kernel):
                raise ValueError(f"a kernel of {tap.kernel} does not fit weights {list(weight.shape)}")
            if weight.shape[1] % group:
                raise ValueError(f"{dtype} wants channels in multiples of {group}, not {weight.shape[1]}")
        if (scale is None) != (dtype != torch.int8):
            raise ValueError("int8 weights, and they alone, have a scale")
        self.taps, self.relu = tuple(taps), relu
        #: Of each source: its channels.
        self.inside = tuple(weight.shape[1] for weight in weights)
        self.channels, self.dtype = channels, torch.uint8 if dtype == torch.int8 else dtype
        padded = -(-channels // PANEL) * PANEL
        self.packed = torch.cat([_packed(weight, padded, group) for weight in weights], 1).contiguous()
        self.bias = torch.zeros(padded)
        self.bias[:channels] = bias
        self.scale = None if scale is None else self.padded(scale)

    def padded(self, values: torch.Tensor) -> torch.Tensor:
        """float32 [D] with zeros for the channels that the last panel has too many."""
        made = torch.zeros_like(self.bias)
        made[: self.channels] = values
        return made

    @property
    def weights(self) -> tuple[torch.Tensor, ...]:
        """Of each source [D, C, k, k], unpacked again: they are kept once."""
        rows = self.packed.transpose(1, 2).reshape(self.packed.shape[0] * PANEL, -1)[: self.channels]
        parts = rows.split([tap.kernel**2 * c for tap, c in zip(self.taps, self.inside, strict=True)], 1)
        return tuple(
            part.reshape(self.channels, tap.kernel, tap.kernel, c).permute(0, 3, 1, 2)
            for part, tap, c in zip(parts, self.taps, self.inside, strict=True)
        )


def _packed(weight: torch.Tensor, padded: int, group: int) -> torch.Tensor:
    """[D, C, k, k] -> [panels, k * k * C / group, PANEL, group], zeros for channels that there are not."""
    d, c, k, _ = weight.shape
    rows = weight.new_zeros(padded, k * k * c)
    rows[:d] = weight.detach().permute(0, 2, 3, 1).reshape(d, -1)
    return rows.view(padded // PANEL, PANEL, -1, group).transpose(1, 2)


def conv(
    packed: PackedConv,
    sources: Sequence[Cells],
    places: torch.Tensor,
    *,
    residual: Cells | None = None,
    residual_scale: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The cells at ``places`` of relu(convolution(sources) * scale + bias + residual * residual_scale).

    Args:
        sources: as many as ``packed`` has, of its dtype, of the same B images; contiguous, on the CPU.
        places: int32 [S]: (image * h + row) * w + column of each wanted cell on the result's grid.
        residual: of the result's grid and channels, and the sources' dtype.
        residual_scale: float32 [D], what it is multiplied by; None for 1.
        dtype: of the result: the sources' (default) or float32.
        out: [B, h, w, D], to be written at the places; by default the result is [S, D].

    Returns:
        The cells [S, D], or ``out``.

    Raises:
        ValueError: sizes, dtypes or devices do not fit, or a table or place is none.
    """
    dtype = packed.dtype if dtype is None else dtype
    if dtype not in (packed.dtype, torch.float32):
        raise ValueError(f"the result is {packed.dtype} or float32, not {dtype}")
    if len(sources) != len(packed.taps):
        raise ValueError(f"{len(packed.taps)} sources are wanted, not {len(sources)}")
    images = len(sources[0].kept)
    for source, inside in zip(sources, packed.inside, strict=True):
        _check("a source", source, images, inside, packed.dtype)
    grids = {tap.grid(source.grid) for tap, source in zip(packed.taps, sources, strict=True)}
    if len(grids) > 1:
        raise ValueError(f"the sources give grids of different sizes: {sorted(grids)}")
    grid = grids.pop()
    if residual is not None:
        _check("the residual", residual, images, packed.channels, packed.dtype)
        if residual.grid != grid:
            raise ValueError(f"the residual's grid is {residual.grid}, the result's {grid}")
    _check_numbers("places", places, 1, 0, images * grid[0] * grid[1])
    if out is None:
        data = torch.empty((len(places), packed.channels), dtype=dtype)
    else:
        data = out
        _check_data("out", out, (images, *grid, packed.channels), dtype)
    module = backend.native("conv", "cpu")
    if module is None:
        taps = zip(sources, packed.weights, packed.taps, strict=True)
        answer = reference.conv(
            [reference.Source(x, weight, tap.stride, tap.padding) for x, weight, tap in taps],
            places,
            packed.bias[: packed.channels],
            scale=None if packed.scale is None else packed.scale[: packed.channels],
            residual=residual,
            residual_scale=residual_scale,
            relu=packed.relu,
            dtype=dtype,
        )
        if out is None:
            return answer
        out.view(-1, packed.channels)[places.long()] = answer
        return out
    launch(
        module,
        "conv",
        data.device,
        sources=[
            (_layer(source), (tap.kernel, tap.stride, tap.padding))
            for source, tap in zip(sources, packed.taps, strict=True)
        ],
        out=(data.data_ptr(), places.data_ptr(), len(places), (*grid, packed.channels), out is not None),
        residual=[] if residual is None else [_layer(residual)],
        weights=packed.packed,
        scale=packed.scale,
        bias=packed.bias,
        residual_scale=None if residual_scale is None else packed.padded(residual_scale),
        dtype=_DTYPES[packed.dtype],
        out_dtype=_DTYPES[dtype],
        relu=packed.relu,
    )
    return data


def _check(name: str, cells: Cells, images: int, channels: int, dtype: torch.dtype) -> None:
    data, kept, ground = cells.data, cells.kept, cells.background
    _check_numbers(f"the table of {name}", kept, 3, -1, len(data))
    if len(kept) != images:
        raise ValueError(f"{name} must be of {images} images, not {len(kept)}")
    _check_data(name, data, (len(data), channels), dtype)
    if ground is not None:
        _check_data(f"the background of {name}", ground, (*cells.grid, channels), dtype)


def _check_data(name: str, data: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tuple(data.shape) != shape or data.dtype != dtype:
        raise ValueError(f"{name} must be {dtype} {list(shape)}, not {data.dtype} {list(data.shape)}")
    if data.device.type != "cpu" or not data.is_contiguous():
        raise ValueError(f"{name} must be contiguous and on the CPU")


def _check_numbers(name: str, numbers: torch.Tensor, dims: int, least: int, end: int) -> None:
    if numbers.dtype != torch.int32 or numbers.dim() != dims:
        raise ValueError(f"{name} must be int32 of {dims} dimensions, not {numbers.dtype} {list(numbers.shape)}")
    if numbers.device.type != "cpu" or not numbers.is_contiguous():
        raise ValueError(f"{name} must be contiguous and on the CPU")
    if numbers.numel() and not (int(numbers.min()) >= least and int(numbers.max()) < end):
        raise ValueError(f"{name} must be from {least} to {end - 1}")


def _layer(cells: Cells) -> tuple[int, int, int, tuple[int, int, int]]:
    ground = cells.background
    return (
        cells.data.data_ptr(),
        cells.kept.data_ptr(),
        0 if ground is None else ground.data_ptr(),
        (*cells.grid, cells.data.shape[1]),
    )
