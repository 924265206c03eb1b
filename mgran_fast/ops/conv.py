"""``conv``: a convolution that computes windows of images and takes the rest from a background."""

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
    windows: torch.Tensor,
    *,
    residual: Cells | None = None,
    residual_scale: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    out: torch.Tensor | None = None,
) -> Cells:
    """The cells of ``windows`` of relu(convolution(sources) * scale + bias + residual * residual_scale).

    The background of the result is not computed: the caller knows it, or asks for it with windows of the whole grid.

    Args:
        sources: as many as ``packed`` has, of its dtype, of the same B images; contiguous, on the CPU.
        windows: int32 [B, 4]: top, left, height, width inside of the result's grid.
        residual: of the result's grid and channels, and the sources' dtype.
        residual_scale: float32 [D], what it is multiplied by; None for 1.
        dtype: of the result: the sources' (default) or float32.
        out: [B, h, w, D], to be written at the windows; by default the result is packed.

    Raises:
        ValueError: sizes, dtypes or devices do not fit, or a window leaves the grid.
    """
    dtype = packed.dtype if dtype is None else dtype
    if dtype not in (packed.dtype, torch.float32):
        raise ValueError(f"the result is {packed.dtype} or float32, not {dtype}")
    if len(sources) != len(packed.taps):
        raise ValueError(f"{len(packed.taps)} sources are wanted, not {len(sources)}")
    images = len(windows)
    grids = {tap.grid(source.grid) for tap, source in zip(packed.taps, sources, strict=True)}
    if len(grids) > 1:
        raise ValueError(f"the sources give grids of different sizes: {sorted(grids)}")
    grid = grids.pop()
    for source, inside in zip(sources, packed.inside, strict=True):
        _check("a source", source, images, inside, packed.dtype)
    if residual is not None:
        _check("the residual", residual, images, packed.channels, packed.dtype)
        if residual.grid != grid:
            raise ValueError(f"the residual's grid is {residual.grid}, the result's {grid}")
    total = check_windows(windows, grid)
    if out is None:
        data = torch.empty((total, packed.channels), dtype=dtype)
    else:
        data = out
        _check("out", Cells(out, windows, grid), images, packed.channels, dtype)
    result = Cells(data, windows, grid)
    module = backend.native("conv", "cpu")
    if module is None:
        taps = zip(sources, packed.weights, packed.taps, strict=True)
        answer = reference.conv(
            [reference.Source(x, weight, tap.stride, tap.padding) for x, weight, tap in taps],
            windows,
            packed.bias[: packed.channels],
            scale=None if packed.scale is None else packed.scale[: packed.channels],
            residual=residual,
            residual_scale=residual_scale,
            relu=packed.relu,
            dtype=dtype,
        )
        if out is None:
            return Cells(answer, windows, grid)
        first = 0
        for image, (top, left, height, width) in enumerate(windows.tolist()):
            part = answer[first : first + height * width].view(height, width, packed.channels)
            out[image, top : top + height, left : left + width] = part
            first += height * width
        return result
    launch(
        module,
        "conv",
        data.device,
        sources=[
            (_layer(source), (tap.kernel, tap.stride, tap.padding))
            for source, tap in zip(sources, packed.taps, strict=True)
        ],
        out=_layer(result),
        residual=[] if residual is None else [_layer(residual)],
        weights=packed.packed,
        scale=packed.scale,
        bias=packed.bias,
        residual_scale=None if residual_scale is None else packed.padded(residual_scale),
        images=images,
        dtype=_DTYPES[packed.dtype],
        out_dtype=_DTYPES[dtype],
        relu=packed.relu,
    )
    return result


def check_windows(windows: torch.Tensor, grid: tuple[int, int]) -> int:
    """The cells of all windows together. Raises ValueError where one is not inside of the grid."""
    if windows.dtype != torch.int32 or windows.dim() != 2 or windows.shape[1] != 4 or windows.device.type != "cpu":
        raise ValueError(f"windows must be int32 [B, 4] on the CPU, not {windows.dtype} {list(windows.shape)}")
    wide = windows.long()
    corner, size = wide[:, :2], wide[:, 2:]
    if len(wide) and (bool((wide < 0).any()) or bool((corner + size > torch.tensor(grid)).any())):
        raise ValueError(f"a window leaves the grid of {grid[0]} x {grid[1]} cells")
    return int((size[:, 0] * size[:, 1]).sum())


def _check(name: str, cells: Cells, images: int, channels: int, dtype: torch.dtype) -> None:
    data, (h, w) = cells.data, cells.grid
    total = check_windows(cells.windows, cells.grid)
    wanted = (images, h, w, channels) if data.dim() == 4 else (total, channels)
    if len(cells.windows) != images or tuple(data.shape) != wanted or data.dtype != dtype:
        raise ValueError(f"{name} must be {dtype} {list(wanted)}, not {data.dtype} {list(data.shape)}")
    if data.device.type != "cpu" or not data.is_contiguous() or not cells.windows.is_contiguous():
        raise ValueError(f"{name} must be contiguous and on the CPU")
    ground = cells.background
    if ground is not None and (
        tuple(ground.shape) != (h, w, channels)
        or ground.dtype != dtype
        or not ground.is_contiguous()
        or ground.device.type != "cpu"
    ):
        raise ValueError(f"the background of {name} must be {dtype} {[h, w, channels]}, contiguous and on the CPU")


def _layer(cells: Cells) -> tuple[int, int, int, tuple[int, int, int], bool]:
    ground = cells.background
    return (
        cells.data.data_ptr(),
        cells.windows.data_ptr(),
        0 if ground is None else ground.data_ptr(),
        (*cells.grid, cells.data.shape[-1]),
        cells.data.dim() == 4,
    )
