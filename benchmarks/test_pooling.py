"""pooling, forward and backward: against the best that plain torch can do, and against reading the features."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mgran_fast import ops
from mgran_fast.reference import pooling as reference

PEOPLE, INPUTS, CHANNELS, GRID, SIZE = 32, 4, 2048, (16, 8), (256, 128)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
MODES = pytest.mark.parametrize("mode", ops.POOLING_MODES)
SEEN = pytest.mark.parametrize("seen", ["people", "everything"])


def batch(dtype: torch.dtype, seen: str = "people") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of whole people and their regions; or rows that all see every cell, the most work that there can be."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(PEOPLE * INPUTS, CHANNELS, *GRID, generator=generator)
    features = features.to(dtype).to(memory_format=torch.channels_last)
    map_ = torch.zeros(PEOPLE, *SIZE, dtype=torch.uint8)
    map_[:, 16:60, 40:88], map_[:, 60:130, 24:104], map_[:, 130:248, 32:96] = 1, 2, 3
    region = torch.arange(INPUTS).repeat(PEOPLE)
    if seen == "everything":
        map_.fill_(1)
        region.fill_(0)
    return features, map_, region


def product(features: torch.Tensor, map_: torch.Tensor, region: torch.Tensor, mode: str) -> torch.Tensor:
    """One batched matrix product over the cells, channels innermost; a maximum has no such form."""
    weights = reference.shares(map_, region, *GRID).flatten(1)
    weights = (weights / weights.sum(1, keepdim=True).clamp(min=1e-12)).to(features.dtype)
    x = features.flatten(2).transpose(1, 2)
    if mode == "max":
        return x.masked_fill(weights[:, :, None] <= 0, -torch.inf).amax(1)
    if mode == "gem":
        x = x.clamp(min=1e-6).pow(3)
    pooled = torch.bmm(weights[:, None], x)[:, 0]
    return pooled.pow(1 / 3) if mode == "gem" else pooled


def sums(features: torch.Tensor, map_: torch.Tensor, region: torch.Tensor, mode: str) -> torch.Tensor:
    """Weights and features multiplied one by one."""
    weights = reference.shares(map_, region, *GRID)[:, None].to(features.dtype)
    if mode == "max":
        return torch.where(weights > 0, features, -torch.inf).amax((2, 3))
    x = features if mode == "mean" else features.clamp(min=1e-6).pow(3)
    pooled = (x * weights).sum((2, 3)) / weights.sum((2, 3)).clamp(min=1e-6)
    return pooled.pow(1 / 3) if mode == "gem" else pooled


def readers(features: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Several ways to read all features once; the fastest of them counts."""
    flat = features.permute(0, 2, 3, 1).reshape(-1)
    return {
        "read: sum": flat.sum,
        "read: maximum": flat.view(torch.float32).amax,
        "read: integers": flat.view(torch.int64).sum,
    }


EAGER = "plain torch|plain torch, product|plain torch, sums"
READ = "read: sum|read: maximum|read: integers"


@DTYPES
@MODES
@SEEN
def test_forward(compare: Callable[..., None], memory: str, dtype: torch.dtype, mode: str, seen: str) -> None:
    features, map_, region = batch(dtype, seen)
    compare(
        f"pooling, forward, {mode}, {PEOPLE * INPUTS} rows of {seen}, {str(dtype).removeprefix('torch.')}, {memory}",
        {
            "ours": lambda: ops.pooling(features, map_, region, mode),
            "plain torch": lambda: reference.pooling(features, map_, region, mode, 3.0),
            "plain torch, product": lambda: product(features, map_, region, mode),
            "plain torch, sums": lambda: sums(features, map_, region, mode),
            **readers(features),
        },
        bars={EAGER: 2.0, READ: 1 / 1.5},
        count=PEOPLE,
    )


@DTYPES
@MODES
@SEEN
def test_backward(compare: Callable[..., None], memory: str, dtype: torch.dtype, mode: str, seen: str) -> None:
    features, map_, region = batch(dtype, seen)
    features.requires_grad_()
    pooled = {
        "ours": ops.pooling(features, map_, region, mode),
        "plain torch": reference.pooling(features, map_, region, mode, 3.0),
        "plain torch, product": product(features, map_, region, mode),
        "plain torch, sums": sums(features, map_, region, mode),
    }
    grad = torch.rand_like(pooled["ours"])

    def backward(name: str) -> Callable[[], object]:
        return lambda: torch.autograd.grad(pooled[name], features, grad, retain_graph=True)

    target = torch.empty_like(features.detach())
    compare(
        f"pooling, backward, {mode}, {PEOPLE * INPUTS} rows of {seen}, {str(dtype).removeprefix('torch.')}, {memory}",
        {
            **{name: backward(name) for name in pooled},
            **readers(features.detach()),
            "write: zeros into one place": target.zero_,
            "write: zeros": lambda: torch.zeros_like(target),
        },
        bars={EAGER: 2.0, READ: 1 / 1.5},
        count=PEOPLE,
    )


@DTYPES
@MODES
def test_both(compare: Callable[..., None], memory: str, dtype: torch.dtype, mode: str) -> None:
    """A training step's share: forward, then backward. To be read and written: the features, and their gradient."""
    features, map_, region = batch(dtype)
    features.requires_grad_()
    ways: dict[str, Callable[..., torch.Tensor]] = {
        "ours": lambda *arguments: ops.pooling(*arguments),
        "plain torch": lambda *arguments: reference.pooling(*arguments, 3.0),
        "plain torch, product": product,
        "plain torch, sums": sums,
    }
    grad = torch.rand(PEOPLE * INPUTS, CHANNELS).to(dtype)

    def both(way: Callable[..., torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(way(features, map_, region, mode), features, grad)

    copy, kind = features.detach().clone, str(dtype).removeprefix("torch.")
    compare(
        f"pooling, forward and backward, {mode}, {PEOPLE * INPUTS} rows of people, {kind}, {memory}",
        {**{name: both(way) for name, way in ways.items()}, "copy of the features": copy},
        bars={EAGER: 2.0},
        count=PEOPLE,
    )
