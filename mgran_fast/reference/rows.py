"""Rows of a matrix, gathered by an index, and the transpose of that, in plain torch.

    gather:  y[m] = x[index[m]], or zeros where index[m] is -1
    total:   y[r] = base[r] + the sum of values[m] over all m with index[m] = r

Sums are computed in float32, in float64 for float64 values.
"""

from __future__ import annotations

import torch


def gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x [R, C], index [M] in -1 .. R - 1 -> [M, C]."""
    padded = torch.cat((x, x.new_zeros((1, x.shape[1]))))
    return padded[torch.where(index < 0, x.shape[0], index).long()]


def invert(index: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """index [M] in -1 .. R - 1 -> starts int32 [R + 1] and members int32 [M].

    ``members[starts[r] : starts[r + 1]]`` are the places of r in the index, rising; what is beyond ``starts[R]`` is 0.
    """
    order = index.long().sort(stable=True).indices
    held = order[index[order] >= 0]
    counts = torch.bincount(index[held].long(), minlength=rows)
    starts = torch.cat((counts.new_zeros(1), counts.cumsum(0))).int()
    return starts, torch.cat((held, held.new_zeros(len(index) - len(held)))).int()


def total(
    values: torch.Tensor, starts: torch.Tensor, members: torch.Tensor, base: torch.Tensor | None = None
) -> torch.Tensor:
    """values [M, C], starts [R + 1] and members of :func:`invert`, base [R, C] -> [R, C] in the dtype of values."""
    rows = starts.shape[0] - 1
    wide = torch.promote_types(values.dtype, torch.float32)
    sums = values.new_zeros((rows, values.shape[1]), dtype=wide) if base is None else base.to(wide)
    of_row = torch.repeat_interleave(torch.arange(rows, device=starts.device), starts.diff().long())
    held = members[: of_row.shape[0]].long()
    return sums.index_add(0, of_row, values[held].to(wide)).to(values.dtype)
