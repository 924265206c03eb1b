"""Times the tiles of the pooling kernels on the GPU at hand and adds the fastest to the table.

    python -m mgran_fast.kernels.tune             prints the entries, as JSON
    python -m mgran_fast.kernels.tune --write     adds them to pooling.json, in place of those of the same case

Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from triton.testing import do_bench

from mgran_fast.kernels import pooling, tables
from mgran_fast.kernels.tables import Blocks

# Inputs of 32 people, and the feature maps of crops of 256 x 128 at the strides 16 and 32.
PEOPLE, INPUTS, CROP = 32, 4, (256, 128)
SHAPES = ((2048, (16, 8)), (2048, (8, 4)), (512, (16, 8)))
DTYPES = (torch.float32, torch.bfloat16)
TILES = [
    Blocks(cells, channels, warps)
    for cells, channels, warps in itertools.product((4, 8, 16, 32, 64), (64, 128, 256), (2, 4, 8))
    # 4 to 64 features a thread: from one load of 16 bytes to what still fits the registers.
    if 128 * warps <= cells * channels <= 2048 * warps
]


def fastest(run: Callable[[Blocks], object]) -> tuple[Blocks, float]:
    """The tile with the lowest median time, and that time in milliseconds."""
    timed = [(do_bench(lambda blocks=blocks: run(blocks), quantiles=[0.5]), i) for i, blocks in enumerate(TILES)]
    milliseconds, best = min(timed)
    return TILES[best], milliseconds


def measure(device: torch.device) -> Iterator[dict[str, Any]]:
    """Table entries, one for each kernel, mode, element size and shape."""
    # Regions as bands, so that a row pools a part of its cells as it does with real people.
    region_map = (torch.arange(CROP[0], device=device) * 5 // CROP[0] % 4).to(torch.uint8)
    region_map = region_map[None, :, None].repeat(PEOPLE, 1, CROP[1])
    region = torch.arange(INPUTS, device=device).repeat(PEOPLE)
    for (channels, grid), dtype, mode in itertools.product(SHAPES, DTYPES, pooling.MODES):
        features = torch.rand((PEOPLE * INPUTS, channels, *grid), dtype=dtype, device=device)
        features = features.to(memory_format=torch.channels_last)
        out = pooling.forward(features, region_map, region, mode, 3.0)
        runs: dict[str, Callable[[Blocks], object]] = {
            "forward": lambda blocks, x=features, m=mode: pooling.forward(x, region_map, region, m, 3.0, blocks=blocks),
            "backward": lambda blocks, x=features, m=mode, y=out: pooling.backward(
                y, x, region_map, region, y, m, 3.0, blocks=blocks
            ),
        }
        for kernel, run in runs.items():
            blocks, milliseconds = fastest(run)
            yield {
                "kernel": kernel,
                "mode": mode,
                "bytes": dtype.itemsize,
                "capability": tables.capability(device),
                "channels": channels,
                "cells": grid[0] * grid[1],
                "block_cells": blocks.cells,
                "block_channels": blocks.channels,
                "num_warps": blocks.num_warps,
                "num_stages": blocks.num_stages,
                "measured": f"{milliseconds:.4f} ms on {torch.cuda.get_device_name(device)}",
            }


def merge(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of both, the new one where both have the same case."""

    def case(entry: dict[str, Any]) -> tuple[object, ...]:
        return tuple(entry[key] for key in ("kernel", "mode", "bytes", "capability", "channels", "cells"))

    return list(({case(entry): entry for entry in old} | {case(entry): entry for entry in new}).values())


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description="time the tiles of the pooling kernels on this GPU")
    parser.add_argument("--write", action="store_true", help=f"add the fastest to {tables.TABLE.name}")
    options = parser.parse_args(words)
    if not torch.cuda.is_available():
        parser.error("there is no GPU to tune on")
    found = list(measure(torch.device("cuda", torch.cuda.current_device())))
    table = json.loads(tables.TABLE.read_text(encoding="utf-8"))
    table["entries"] = merge(table["entries"], found) if options.write else found
    lines = ",\n".join(f"    {json.dumps(entry)}" for entry in table["entries"])
    text = f'{{\n  "about": {json.dumps(table["about"])},\n  "entries": [\n{lines}\n  ]\n}}\n'
    if options.write:
        tables.TABLE.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
