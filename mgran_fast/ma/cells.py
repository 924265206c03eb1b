"""Distinct cells: which cells of a layer's feature maps must be equal, because they see the same pixels.

The background of aligned inputs is exactly 0, and a region's input shows a part of what the whole person's does. So
many cells of a batch see the same: the background at one place of all images, or the same skin and clothes in a
region's input and in the whole person's. In a network without chance what sees the same is the same, also with batch
statistics, which are those of the batch and not of a cell. Each of these need be computed only once, forward and
backward: a row of a matrix stands for all of them, and counts as often in the statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast.ops import rows

_SHOWN, _DIFFERS = 1, 2


@dataclass(frozen=True, eq=False)
class Sight:
    """What the cells of a layer see: of B images, P inputs of each person, whole person first.

    Attributes:
        bits: uint8 [B, h, w]: 1 where a cell sees anything but 0, plus 2 where it sees something else than the same
            cell of the person's first input.
        inputs: P.
    """

    bits: torch.Tensor
    inputs: int

    @staticmethod
    def of(images: torch.Tensor, inputs: int) -> Sight:
        """images [B, C, H, W], person after person: each pixel sees itself."""
        people = images.unflatten(0, (-1, inputs))
        differs = (people != people[:, :1]).flatten(0, 1)
        return Sight(_any(images != 0) * _SHOWN + _any(differs) * _DIFFERS, inputs)

    def through(self, kernel: int, stride: int = 1, padding: int = 0) -> Sight:
        """What the cells of the next layer see. Zeros around the images are the same for all."""
        bits = F.pad(self.bits, (padding,) * 4)
        # Row by row, then column by column.
        return Sight(_window_or(_window_or(bits, 2, kernel, stride), 1, kernel, stride), self.inputs)

    def cells(self) -> Cells:
        """The distinct cells of this layer."""
        hidden = (self.bits & _SHOWN) == 0
        own = self._own()
        # The first image that shows nothing at a place stands for all others there.
        stands = own | (hidden & (hidden.cumsum(0, dtype=torch.int32) == 1))
        number = (stands.flatten().cumsum(0, dtype=torch.int32) - 1).view(self.bits.shape)
        of_first = number.unflatten(0, (-1, self.inputs))[:, :1].expand(-1, self.inputs, -1, -1).flatten(0, 1)
        empty = number.gather(0, hidden.to(torch.uint8).argmax(0, keepdim=True))
        table = torch.where(stands, number, torch.where(hidden, empty, of_first))
        return Cells(table, stands.flatten().nonzero()[:, 0].int())

    @property
    def share(self) -> float:
        """About which share of the cells is distinct; those that show nothing are left out."""
        return float(self._own().float().mean())

    def _own(self) -> torch.Tensor:
        """bool [B, h, w]: what shows something that the person's first input does not, or is the first input's."""
        is_first = torch.arange(len(self.bits), device=self.bits.device) % self.inputs == 0
        wanted = torch.where(is_first, _SHOWN, _SHOWN | _DIFFERS).to(torch.uint8)[:, None, None]
        return (self.bits & wanted) == wanted


@dataclass(frozen=True, eq=False)
class Cells:
    """The distinct cells of a layer, R rows for the cells of B images.

    Attributes:
        table: int32 [B, h, w]: the row of each cell.
        places: int32 [R], rising: the first cell of each row, counted through all images.
    """

    table: torch.Tensor
    places: torch.Tensor

    def __len__(self) -> int:
        return len(self.places)

    @cached_property
    def counts(self) -> torch.Tensor:
        """float32 [1, R, 1]: how many cells each row stands for."""
        return torch.bincount(self.table.flatten(), minlength=len(self)).float()[None, :, None]

    @cached_property
    def spread(self) -> Index:
        """From rows to all cells."""
        return Index(self.table.flatten(), len(self))

    def windows(self, before: Cells, kernel: int, stride: int = 1, padding: int = 0) -> Index:
        """What each row reads of the layer before it: kernel * kernel rows of it; -1 outside of the image."""
        table = F.pad(before.table, (padding,) * 4, value=-1)
        steps = torch.arange(kernel, device=table.device, dtype=torch.int32)
        offsets = (steps[:, None] * table.shape[2] + steps).flatten()
        corners = self._corners(table.shape[1], table.shape[2], stride)
        return Index(table.flatten()[(corners[:, None] + offsets).flatten()], len(before))

    def pixel_windows(self, height: int, width: int, kernel: int, stride: int) -> Index:
        """What each row reads of images [height, width], border included: the first pixel of each row of the kernel."""
        steps = torch.arange(kernel, device=self.table.device, dtype=torch.int32) * width
        corners = self._corners(height, width, stride)
        return Index((corners[:, None] + steps).flatten(), self.table.shape[0] * height * width)

    def _corners(self, high: int, wide: int, stride: int) -> torch.Tensor:
        """int32 [R]: where each row's window begins, in images [high, wide], border included."""
        _, height, width = self.table.shape
        image, y, x = self.places // (height * width), self.places // width % height, self.places % width
        return (image * high + y * stride) * wide + x * stride


class Index:
    """An index int32 [M] of R rows, and, once it is asked for, its inverse."""

    def __init__(self, index: torch.Tensor, rows: int) -> None:
        self.index, self.rows = index, rows

    @cached_property
    def inverse(self) -> rows.Inverse:
        """Where each row stands in the index."""
        return rows.invert(self.index, self.rows)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """x [R, C] -> [M, C]."""
        return rows.gather(x, self.index)

    def total(self, values: torch.Tensor, base: torch.Tensor | None = None) -> torch.Tensor:
        """The transpose: values [M, C] -> [R, C], plus base."""
        return rows.total(values, self.inverse, base)


def _any(flags: torch.Tensor) -> torch.Tensor:
    """bool [B, C, H, W] -> uint8 [B, H, W]: whether any channel is set."""
    found = flags[:, 0]
    for channel in range(1, flags.shape[1]):
        found = found | flags[:, channel]
    return found.to(torch.uint8, memory_format=torch.contiguous_format)


def _window_or(bits: torch.Tensor, dim: int, kernel: int, stride: int) -> torch.Tensor:
    """All bits of each window along a dimension."""
    count = (bits.shape[dim] - kernel) // stride + 1
    found = bits
    # Windows of 1, 2, 4, ... neighbours, then two that overlap.
    width = 1
    while width < kernel:
        step = min(width, kernel - width)
        length = found.shape[dim] - step
        found = found.narrow(dim, 0, length) | found.narrow(dim, step, length)
        width += step
    places = torch.arange(count, device=bits.device) * stride if stride > 1 else None
    return found.narrow(dim, 0, count) if places is None else found.index_select(dim, places)
