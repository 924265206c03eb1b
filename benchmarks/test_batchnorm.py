"""batchnorm in training, forward and backward: against torch's modules in a row, and against compiling them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast import ops

ROWS = 32
# As they come in a ResNet-50 on 8 people of 256x128, four inputs each: after 1x1 or 3x3 convolutions, at blocks' ends.
PLACES = pytest.mark.parametrize(
    ("channels", "grid", "residual"),
    [(64, (64, 32), False), (256, (64, 32), True), (256, (16, 8), False), (2048, (16, 8), True)],
    ids=["64", "256 residual", "256", "2048 residual"],
)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def eager(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
    y = F.batch_norm(x, None, None, weight, bias, training=True)
    return F.relu_(y if residual is None else y + residual)


@DTYPES
@PLACES
def test_both(
    compare: Callable[..., None],
    memory: str,
    dtype: torch.dtype,
    channels: int,
    grid: tuple[int, int],
    residual: bool,
) -> None:
    generator = torch.Generator().manual_seed(0)

    def features() -> torch.Tensor:
        made = torch.randn(ROWS, channels, *grid, generator=generator).to(dtype)
        return made.to(memory_format=torch.channels_last).requires_grad_()

    x, other, grad = features(), features() if residual else None, features().detach()
    weight, bias = torch.ones(channels, requires_grad=True), torch.zeros(channels, requires_grad=True)
    mean, var = torch.zeros(channels), torch.ones(channels)
    wanted = [x, weight, bias] + ([] if other is None else [other])
    # Compiled anew for each number of threads; after several it would give up otherwise.
    torch.compiler.reset()
    compiled = torch.compile(eager)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "ours": lambda: ops.batchnorm(x, weight, bias, mean, var, other, training=True, relu=True),
        "eager": lambda: eager(x, weight, bias, other),
        "torch.compile": lambda: compiled(x, weight, bias, other),
    }

    def both(way: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(way(), wanted, grad)

    kind = f"{ROWS} x {channels} x {grid[0]} x {grid[1]}{', residual' if residual else ''}"
    compare(
        f"batchnorm and ReLU, forward and backward, {kind}, {str(dtype).removeprefix('torch.')}, {memory}",
        {name: both(way) for name, way in ways.items()},
        bars={"eager|torch.compile": 1.2},
    )
