"""One batch on several processes: sums and rows of all ranks, with gradients.

The rule behind the gradients: every rank computes the same loss of the whole batch, and what flows backward is the
gradient of the *sum* of all ranks' losses, W times that of one. Averaging the parameters' gradients over the W ranks,
as ``DistributedDataParallel`` does, then gives what one process computes of the whole batch.

Without a process group, or alone in it, everything here returns its argument. Every rank must make the same calls in
the same order; one without rows takes part with none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def world() -> int:
    """The number of processes that train together; 1 without an initialised process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_sum(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks of a tensor that has the same shape on each, in its own dtype; differentiable.

    float16 and bfloat16 are summed in float32.
    """
    if world() == 1:
        return tensor
    result: torch.Tensor = _AllSum.apply(_learning(tensor))
    return result


def counts(rows: int) -> list[int]:
    """How many rows each rank has, by rank."""
    return [values[0] for values in exchange([rows])]


def gather(tensor: torch.Tensor, sizes: Sequence[int] | None = None) -> torch.Tensor:
    """The rows of all ranks in rank order, [n, ...] -> [sum of n, ...]; differentiable.

    Args:
        tensor: of any dtype, with the same shape but for the rows on each rank.
        sizes: the rows of each rank, of :func:`counts`, where they are known; the ranks ask each other otherwise.
    """
    if world() == 1:
        return tensor
    sizes = counts(len(tensor)) if sizes is None else list(sizes)
    if not tensor.is_floating_point():
        return _rows(tensor, sizes)
    result: torch.Tensor = _Gather.apply(_learning(tensor), sizes)
    return result


def exchange(values: Sequence[int]) -> list[list[int]]:
    """As many whole numbers of each rank, by rank. Does not wait for a GPU where the group also knows the CPU."""
    if world() == 1:
        return [list(values)]
    mine = torch.tensor(values, dtype=torch.int64, device=_device())
    found = [torch.empty_like(mine) for _ in range(world())]
    dist.all_gather(found, mine)
    return [[int(value) for value in one.tolist()] for one in found]


def gather_objects(value: Any) -> list[Any]:
    """Any picklable object of each rank, by rank. For the processes of one run, which trust each other."""
    if world() == 1:
        return [value]
    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def _device() -> torch.device:
    """Where small numbers travel: on the CPU, if the process group has a backend for it."""
    backends = str(dist.get_backend_config())
    return torch.device("cpu" if "cpu:" in backends or "gloo" in backends else "cuda")


def _learning(tensor: torch.Tensor) -> torch.Tensor:
    """Make sure that all ranks go backward: one whose rows need no gradient would let the others wait for ever."""
    if torch.is_grad_enabled() and tensor.is_floating_point() and not tensor.requires_grad:
        return tensor.detach().requires_grad_()
    return tensor


def _summed(tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    total = tensor.float().contiguous() if half else tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total.to(tensor.dtype)


def _rows(tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    # As bytes: not every backend knows every dtype, and all rows padded to the longest, which every backend can.
    flat = tensor.detach().contiguous().flatten(1) if tensor.ndim > 1 else tensor.detach().contiguous()[:, None]
    mine = flat.view(torch.uint8)
    padded = mine.new_zeros((max(sizes), mine.shape[1]))
    padded[: len(mine)] = mine
    found = [torch.empty_like(padded) for _ in sizes]
    if padded.numel():
        dist.all_gather(found, padded)
    rows = torch.cat([one[:size] for one, size in zip(found, sizes, strict=True)])
    return rows.view(tensor.dtype).view(-1, *tensor.shape[1:]) if len(rows) else tensor.detach().clone()


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return _summed(grads[0])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        ctx.sizes = sizes
        return _rows(tensor, sizes)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        start = sum(ctx.sizes[: rank()])
        return _summed(grads[0])[start : start + ctx.sizes[rank()]], None
