"""``rows``: rows of a matrix gathered by an index, and the sums that are its transpose.

What :mod:`mgran_fast.ma.fused` computes distinct cells with. No autograd: who calls these knows both directions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from mgran_fast.ops import backend, checks
from mgran_fast.ops.launch import DTYPES, launch
from mgran_fast.ops.library import register
from mgran_fast.reference import rows as reference

_FLOATS = (*DTYPES, torch.float64)


class Inverse(NamedTuple):
    """An index the other way round: ``members[starts[r] : starts[r + 1]]`` are the places of row r, rising.

    Attributes:
        starts: int32 [R + 1].
        members: int32 [M]; what is beyond ``starts[R]`` is not used.
    """

    starts: torch.Tensor
    members: torch.Tensor


def gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x floating point [R, C], index int32 [M] in -1 .. R - 1 -> [M, C]; -1 gives zeros.

    Rows of x may lie in memory as they like, and overlap (``as_strided``); where their numbers lie together, nothing is
    copied beforehand.

    Raises TypeError and ValueError; IndexError where the index names no row.
    """
    checks.tensor("x", x, (None, None), _FLOATS)
    checks.tensor("index", index, (None,), (torch.int32,))
    checks.same_device(x=x, index=index)
    y: torch.Tensor = _gather_op(x, index)
    return y


def invert(index: torch.Tensor, rows: int) -> Inverse:
    """Index int32 [M] in -1 .. rows - 1 -> where each row stands in it; -1 stands for none.

    Raises TypeError and ValueError; IndexError where the index names no row.
    """
    checks.tensor("index", index, (None,), (torch.int32,))
    if rows < 0:
        raise ValueError(f"rows must be 0 or more, not {rows}")
    return Inverse(*_invert_op(index, rows))


def total(values: torch.Tensor, inverse: Inverse, base: torch.Tensor | None = None) -> torch.Tensor:
    """values floating point [M, C], base [R, C] or None -> [R, C]: of each row the sum over its places, plus its base.

    Raises TypeError and ValueError; IndexError where ``inverse`` is none of M places.
    """
    checks.tensor("values", values, (None, None), _FLOATS)
    checks.tensor("starts", inverse.starts, (None,), (torch.int32,))
    checks.tensor("members", inverse.members, (values.shape[0],), (torch.int32,))
    checks.same_device(values=values, starts=inverse.starts, members=inverse.members)
    if inverse.starts.shape[0] == 0:
        raise ValueError("starts must have one number more than there are rows")
    if base is not None:
        checks.tensor("base", base, (inverse.starts.shape[0] - 1, values.shape[1]), (values.dtype,))
        checks.same_device(values=values, base=base)
    y: torch.Tensor = _total_op(values, inverse.starts, inverse.members, base)
    return y


def _launch(op: str, device: torch.device, **arguments: torch.Tensor | int | None) -> bool:
    """Whether a kernel ran. An index out of range is an IndexError, before anything is written."""
    module = backend.native(op, device.type)
    if module is None:
        return False
    nothing = dict.fromkeys(("x", "index", "starts", "members", "base", "out"))
    try:
        launch(module, op, device, **{**nothing, "channels": 0, "pitch": 0, "dtype": 0, **arguments})
    except RuntimeError as error:
        raise IndexError(f"{op}: an index is out of range") from error
    return True


def _check_range(op: str, index: torch.Tensor, rows: int) -> None:
    """For the reference, which would take -2 for a place from the end. On a GPU nobody waits for the answer."""
    if index.device.type == "cpu" and index.numel() and not -1 <= int(index.min()) <= int(index.max()) < rows:
        raise IndexError(f"{op}: an index is out of range")


def _gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    out = _gather_fake(x, index)
    held = x if x.stride(1) == 1 else x.contiguous()
    if x.dtype in DTYPES and _launch(
        "rows_gather", x.device, x=held, index=index.contiguous(), out=out, rows=x.shape[0], count=index.shape[0],
        channels=x.shape[1], pitch=held.stride(0), dtype=DTYPES[x.dtype],
    ):  # fmt: skip
        return out
    _check_range("rows_gather", index, x.shape[0])
    return reference.gather(x, index)


def _gather_fake(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return x.new_empty((index.shape[0], x.shape[1]))


def _invert(index: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    starts, members = _invert_fake(index, rows)
    if _launch(
        "rows_invert", index.device, index=index.contiguous(), starts=starts, members=members.zero_(), rows=rows,
        count=index.shape[0],
    ):  # fmt: skip
        return starts, members
    _check_range("rows_invert", index, rows)
    return reference.invert(index, rows)


def _invert_fake(index: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    return index.new_empty(rows + 1), index.new_empty(index.shape[0])


def _total(
    values: torch.Tensor, starts: torch.Tensor, members: torch.Tensor, base: torch.Tensor | None
) -> torch.Tensor:
    out = _total_fake(values, starts, members, base)
    if values.dtype in DTYPES and _launch(
        "rows_total", values.device, x=values.contiguous(), starts=starts.contiguous(), members=members.contiguous(),
        base=None if base is None else base.contiguous(), out=out, rows=starts.shape[0] - 1, count=values.shape[0],
        channels=values.shape[1], dtype=DTYPES[values.dtype],
    ):  # fmt: skip
        return out
    return reference.total(values, starts, members, base)


def _total_fake(
    values: torch.Tensor, starts: torch.Tensor, members: torch.Tensor, base: torch.Tensor | None
) -> torch.Tensor:
    return values.new_empty((starts.shape[0] - 1, values.shape[1]))


_gather_op = register("rows_gather(Tensor x, Tensor index) -> Tensor", _gather, _gather_fake)
_invert_op = register("rows_invert(Tensor index, int rows) -> (Tensor, Tensor)", _invert, _invert_fake)
_total_op = register(
    "rows_total(Tensor values, Tensor starts, Tensor members, Tensor? base) -> Tensor", _total, _total_fake
)
