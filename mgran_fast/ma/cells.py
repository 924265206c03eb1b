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


@dataclass(frozen=True, eq=False)
class Sight:
    """What the cells of a layer see: of B images, P inputs of each person, whole person first.

    Attributes:
        shown: float32 [B, 1, h, w]: 1 where a cell sees anything but 0.
        differs: float32 [B, 1, h, w]: 1 where it sees something else than the same cell of the person's first input.
        inputs: P.
    """

    shown: torch.Tensor
    differs: torch.Tensor
    inputs: int

    @staticmethod
    def of(images: torch.Tensor, inputs: int) -> Sight:
        """images [B, C, H, W], person after person: each pixel sees itself."""
        first = images.unflatten(0, (-1, inputs))[:, :1]
        differs = (images.unflatten(0, (-1, inputs)) != first).flatten(0, 1)
        return Sight(_any(images != 0), _any(differs), inputs)

    def through(self, kernel: int, stride: int = 1, padding: int = 0) -> Sight:
        """What the cells of the next layer see. Zeros around the images are the same for all."""
        return Sight(
            _window_max(self.shown, kernel, stride, padding),
            _window_max(self.differs, kernel, stride, padding),
            self.inputs,
        )

    def cells(self) -> Cells:
        """The distinct cells of this layer."""
        shown, differs = self.shown[:, 0] > 0, self.differs[:, 0] > 0
        hidden = ~shown
        is_first = (torch.arange(len(shown), device=shown.device) % self.inputs == 0)[:, None, None]
        own = shown & (differs | is_first)
        # The first image that shows nothing at a place stands for all others there.
        stands = own | (hidden & (hidden.cumsum(0) == 1))
        number = (stands.flatten().cumsum(0) - 1).view_as(shown)
        of_first = number.unflatten(0, (-1, self.inputs))[:, :1].expand(-1, self.inputs, -1, -1).flatten(0, 1)
        empty = number.gather(0, hidden.int().argmax(0, keepdim=True))
        table = torch.where(stands, number, torch.where(hidden, empty, of_first))
        return Cells(table.int(), stands.flatten().nonzero()[:, 0].int())

    @property
    def share(self) -> float:
        """About which share of the cells is distinct; what no image shows at a place is left out."""
        is_first = (torch.arange(len(self.shown), device=self.shown.device) % self.inputs == 0)[:, None, None, None]
        return float((self.shown * (self.differs + is_first)).mean())


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

    @cached_property
    def collected(self) -> Index:
        """From all cells to rows."""
        return Index(self.places, self.table.numel())

    def windows(self, before: Cells, kernel: int, stride: int = 1, padding: int = 0) -> Index:
        """What each row reads of the layer before it: kernel * kernel rows of it; -1 outside of the image."""
        _, height, width = self.table.shape
        table = F.pad(before.table, (padding,) * 4, value=-1)
        _, high, wide = table.shape
        image, y, x = self.places // (height * width), self.places // width % height, self.places % width
        corner = (image * high + y * stride) * wide + x * stride
        steps = torch.arange(kernel, device=table.device, dtype=torch.int32)
        offsets = (steps[:, None] * wide + steps).flatten()
        return Index(table.flatten()[(corner[:, None] + offsets).flatten()], len(before))


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
    """bool [B, C, H, W] -> float32 [B, 1, H, W]: whether any channel is set."""
    found = flags[:, 0]
    for channel in range(1, flags.shape[1]):
        found = found | flags[:, channel]
    return found[:, None].float()


def _window_max(x: torch.Tensor, kernel: int, stride: int, padding: int) -> torch.Tensor:
    # Row by row, then column by column: 2 k comparisons in place of k * k.
    x = F.max_pool2d(x, (1, kernel), (1, stride), (0, padding))
    y: torch.Tensor = F.max_pool2d(x, (kernel, 1), (stride, 1), (padding, 0))
    return y
