"""What a machine can do at best, measured: what figures of races are held against."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch

from mgran_fast.bench.paired import Clock, clock_of
from mgran_fast.mra.inference import computes

#: Rows and columns of square products.
SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
#: Bytes of a tensor that no cache holds.
LARGE = {"cpu": 256 << 20, "cuda": 1 << 30}
LEAST, MOST = 3, 15


def measure(device: torch.device, seconds: float = 5.0) -> dict[str, float]:
    """Measured ceilings by what they are: "GFLOP/s, float32" (and bfloat16, int8), "GB/s, copy", "GB/s, sum".

    Products of square matrices, plain and with a transposed right side: the best of all sizes; 2 operations for each
    multiply-add. A copy counts bytes read and written, a sum what it reads. bfloat16 is left out where the device has
    no instructions for it, int8 where torch has no product for it, or a slower one than of float32. On the CPU by
    torch's number of threads.

    Args:
        device: what is measured.
        seconds: about so long in all.
    """
    kind = "cuda" if device.type == "cuda" else "cpu"
    # Five measurements; what is drawn and warmed takes as long again.
    share, clock = seconds / 10, clock_of(device)
    found = {}
    for dtype in (torch.float32, torch.bfloat16) if computes(torch.bfloat16, device) else (torch.float32,):
        found[_operations(dtype)] = _products(device, clock, dtype, SIZES[kind], share, torch.matmul)
    integer = getattr(torch, "_int_mm", None)
    if integer is not None:
        try:
            speed = _products(device, clock, torch.int8, SIZES[kind], share, integer)
        except (RuntimeError, NotImplementedError):  # not on this device
            speed = 0.0
        if speed > found[_operations(torch.float32)]:
            found[_operations(torch.int8)] = speed
    source = torch.ones(LARGE[kind] // 4, device=device)
    target = torch.empty_like(source).zero_()
    found["GB/s, copy"] = 2e-9 * LARGE[kind] / _median(clock, lambda: target.copy_(source), share)
    found["GB/s, sum"] = 1e-9 * LARGE[kind] / _median(clock, source.sum, share)
    return found


def _operations(dtype: torch.dtype) -> str:
    return f"GFLOP/s, {str(dtype).removeprefix('torch.')}"


def _products(
    device: torch.device,
    clock: Clock,
    dtype: torch.dtype,
    sizes: tuple[int, ...],
    seconds: float,
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> float:
    """The best 1e9 operations a second; a size that one call of would take the whole time is not tried."""
    best = 0.0
    for size in sizes:
        work = 2e-9 * size**3
        if best and work / best > seconds:
            break
        left, right = (torch.randint(-3, 4, (size, size), device=device).to(dtype) for _ in range(2))
        for other in (right, right.t()):
            run = functools.partial(product, left, other)
            best = max(best, work / _median(clock, run, seconds / 2 / len(sizes)))
    return best


def _median(clock: Clock, run: Callable[[], object], seconds: float) -> float:
    run()
    clock(run)
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < LEAST or (time.perf_counter() - start < seconds and len(taken) < MOST):
        taken.append(clock(run))
    return statistics.median(taken)
