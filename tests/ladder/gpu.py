"""Rung "gpu": ``python tests/ladder/gpu.py``: everything that needs a CUDA device, in one command.

1. ``pytest -m gpu``: the tests of the ops on the device, by their kernels;
2. the same under compute-sanitizer: memcheck, racecheck, initcheck, synccheck;
3. timings of each kernel, written to a JSON file; docs/kernels.md computes what each must move.

Without a CUDA device it says so and ends well.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mgran_fast.bench import record
from mgran_fast.bench.paired import clock_of, race

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PEOPLE, SIZE, CHANNELS, GRID = 64, (256, 128), 2048, (16, 8)
TESTS = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:xdist", "tests"]
# What compute-sanitizer sees: our own kernels. The engine is cuDNN's for the most part.
OURS = "tests/ops"


def run_tests(prefix: list[str], *more: str) -> bool:
    environment = {**os.environ, "MGRAN_EXPECT_NATIVE": "1"}
    return subprocess.run([*prefix, *TESTS[:-1], *more], cwd=ROOT, env=environment, check=False).returncode == 0


def sanitize() -> bool:
    program = shutil.which("compute-sanitizer")
    if program is None:
        print("compute-sanitizer is not on the PATH: it comes with the CUDA toolkit")
        return False
    passed = True
    for tool in TOOLS:
        print(f"compute-sanitizer --tool {tool}", flush=True)
        # Freed memory must be seen: torch's caching allocator would hide it.
        os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        passed &= run_tests([program, "--tool", tool, "--error-exitcode", "1", "--target-processes", "all"], "-x", OURS)
    os.environ.pop("PYTORCH_NO_CUDA_MEMORY_CACHING", None)
    return passed


def milliseconds(call: Callable[[], object], rounds: int = 50) -> dict[str, float]:
    """Median and quantiles of one call in a CUDA graph, by events, the L2 cache flushed before each.

    In a graph: the device's time, not the host's, which launches more slowly than these kernels run.
    """
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    clock = clock_of(torch.device("cuda"))
    found = race({"ours": graph.replay}, least=rounds, most=rounds, warm_up=5, clock=clock)
    times: dict[str, float] = record.row("", 0, found)["milliseconds"]["ours"]
    return times


def timings() -> dict[str, dict[str, float]]:
    from mgran_fast import ops

    generator = torch.Generator(device="cuda").manual_seed(0)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device="cuda")

    extent = torch.tensor([float(SIZE[1]), float(SIZE[0]), 1.0], device="cuda")
    crops = (rand(PEOPLE, *SIZE, 3) * 255).to(torch.uint8)
    # People as ellipses; with noise for a mask no tile of a kernel would be spared.
    y, x = (torch.linspace(-1, 1, side, device="cuda") for side in SIZE)
    person = ((y[:, None] / 0.95) ** 2 + (x[None, :] / 0.6) ** 2 < 1).float()
    mask, keypoints = person.repeat(PEOPLE, 1, 1) * (0.6 + 0.4 * rand(PEOPLE, 1, 1)), rand(PEOPLE, 17, 3) * extent
    frame = (rand(1080, 1920, 3) * 255).to(torch.uint8)
    corner = rand(PEOPLE, 2) * torch.tensor([1780.0, 660.0], device="cuda")
    boxes = torch.cat([corner, corner + torch.tensor([100.0, 300.0], device="cuda")], 1)
    map_ = ops.regions(mask, keypoints, SIZE)
    region = torch.arange(4, device="cuda").repeat(PEOPLE)
    found = {
        "crops": milliseconds(lambda: ops.crops(frame, boxes, SIZE)),
        "regions": milliseconds(lambda: ops.regions(mask, keypoints, SIZE)),
    }
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        found[f"inputs, {name}"] = milliseconds(lambda dtype=dtype: ops.inputs(crops, map_, dtype=dtype))
        found[f"align, {name}"] = milliseconds(
            lambda dtype=dtype: ops.align(crops, mask, keypoints, dtype=dtype, region_map=False)
        )
        features = rand(4 * PEOPLE, CHANNELS, *GRID).to(dtype).to(memory_format=torch.channels_last)
        for mode in ops.POOLING_MODES:
            found[f"pooling, {mode}, {name}"] = milliseconds(
                lambda features=features, mode=mode: ops.pooling(features, map_, region, mode)
            )
            pooled = ops.pooling(features, map_, region, mode)
            given = (torch.rand_like(pooled), features, map_, region, pooled, mode, 3.0)
            found[f"pooling backward, {mode}, {name}"] = milliseconds(
                lambda given=given: torch.ops.mgran_fast.pooling_backward(*given)
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, default=Path("gpu.json"), help="where the timings go")
    words = parser.parse_args()
    if not torch.cuda.is_available():
        print("rung gpu: skipped, there is no CUDA device")
        return 0
    start = time.monotonic()
    passed = run_tests([], TESTS[-1]) and sanitize()
    found = timings()
    at = {"people": PEOPLE}
    rows = [{"name": name, "at": at, "milliseconds": {"ours": times}} for name, times in found.items()]
    record.save(words.record, record.record(rows))
    for name, times in found.items():
        low, middle, high = (1e3 * times[key] for key in ("10 %", "median", "90 %"))
        print(f"{name:40} {middle:9.1f} us ({low:.1f} to {high:.1f})")
    print(
        f"rung gpu: {'passed' if passed else 'FAILED'} in {time.monotonic() - start:.0f} s; timings in {words.record}"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
