"""Are launches right where no emulator could run them? Sizes near and beyond every limit, launched into a hook.

The host code of the CUDA sources runs as it is; its launches come to a hook in place of the emulator, which looks at
the grid alone. Pointers are null or far away: nothing may touch them on the host.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import abi
import build

MOST_X, MOST_YZ, MOST_THREADS, MOST_THREADS_Z, MOST_SHARED = 2**31 - 1, 65535, 1024, 64, 48 << 10
FAR = 1 << 40  # an address that is a multiple of 16, and nobody's

# people, height, width
SIZES = (
    (1, 1, 1),
    (65535, 1, 1),
    (65536, 1, 1),
    (70000, 256, 128),
    (1, 65536 * 16 + 1, 1),
    (1, 1, 65536 * 16 + 1),
    (3, 32768, 32768),
    (200_000, 2048, 1024),
    (2**31 + 5, 1, 1),
    (40_000_000, 256, 128),
)


def check(library: Path) -> tuple[int, list[str]]:
    """The number of launches, and what is wrong with them: one line each."""
    loaded = ctypes.CDLL(str(library))
    launches: list[tuple[str, list[int], list[int], int]] = []

    def record(name, grid, block, shared, count, arguments, sizes) -> int:  # type: ignore[no-untyped-def]
        launches.append((name.decode(), grid[0:3], block[0:3], shared))
        return 0

    hook = build.HOOK(record)
    loaded.mgran_emulator_hook(hook)
    total, wrong = 0, []
    try:
        for op, label, image in _calls():
            function = getattr(loaded, abi.function(op, "cuda"), None)
            if function is None:
                continue
            launches.clear()
            status = function(ctypes.create_string_buffer(image), ctypes.c_void_p(None))
            words = [fault for launch in launches for fault in _faults(*launch)]
            if status not in (abi.OK, abi.UNSUPPORTED):
                words.append(f"status {status}")
            if status == abi.UNSUPPORTED and launches:
                words.append("refused after a launch")
            if status == abi.OK and not launches:
                words.append("nothing was launched")
            total += len(launches)
            wrong += [f"{op}, {label}: {word}" for word in words]
    finally:
        loaded.mgran_emulator_hook(build.HOOK())
    return total, wrong


def _faults(name: str, grid: list[int], block: list[int], shared: int) -> Iterator[str]:
    threads = block[0] * block[1] * block[2]
    if not 1 <= grid[0] <= MOST_X or not all(1 <= size <= MOST_YZ for size in grid[1:]):
        yield f"{name}: a grid of {grid}"
    if not 1 <= threads <= MOST_THREADS or block[2] > MOST_THREADS_Z:
        yield f"{name}: a block of {block}"
    if threads % 32:
        yield f"{name}: {threads} threads are not whole warps"
    if shared > MOST_SHARED:
        yield f"{name}: {shared} bytes of shared memory"


def _calls() -> Iterator[tuple[str, str, bytes]]:
    for people, height, width in SIZES:
        label = f"{people} x {height} x {width}"
        crops = abi.Crops(
            frame=FAR, boxes=FAR, out=FAR, count=people, row_stride=5760, frame_height=1080, frame_width=1920
        )
        crops.height, crops.width = height, width
        yield "crops", label, bytes(crops)
        inputs = abi.Inputs(crops=FAR, map=FAR, out=FAR, workspace=FAR, people=people, pixels=height * width, regions=3)
        for dtype in (abi.FLOAT32, abi.FLOAT16, abi.BFLOAT16):
            inputs.dtype = dtype
            yield "inputs", f"{label}, dtype {dtype}", bytes(inputs)
        for rectangles in (0, 1):
            for is_float in (0, 1):
                regions = abi.Regions(
                    mask=FAR, keypoints=FAR, map=FAR, workspace=FAR, people=people, mask_height=height, mask_width=width
                )
                regions.height, regions.width, regions.mask_is_float = height, width, is_float
                regions.limit = 0.5
                regions.layout = abi.Layout(rectangles=rectangles, regions=3)
                more = f"{label}, rectangles {rectangles}, float {is_float}"
                yield "regions", more, bytes(regions)
                yield "align", more, bytes(abi.Align(regions=regions, inputs=inputs))
