"""Rung f for Triton: compiles the kernels exactly as the package launches them, for every GPU, on none.

    python tests/ladder/triton_gate.py            all architectures, then the injected bugs
    python tests/ladder/triton_gate.py 80 90      these architectures alone, without the bugs
    python tests/ladder/triton_gate.py bugs WORD  the injected bugs alone, those whose name holds WORD

The package's own functions run on meta tensors under a driver that only names an architecture. So each kernel is
compiled with the tile, the alignments and the constants of a real launch, and nothing is executed. From the machine
code come registers, spills, shared memory and the widths of the memory accesses. What is asked of pooling stands
here, of batch norm in triton_batchnorm.py, of the engine's kernels in triton_products.py.
"""

from __future__ import annotations

import itertools
import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton

import occupancy
import triton_batchnorm
import triton_products
from build import JOBS
from mgran_fast.kernels import tables
from mutations import Mutation, for_rung, mutated_tree
from triton_dry import dry_launches, figures, load, never

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
# A training batch of ResNet-50 without its last stride: 4 inputs of 32 people, crops of 256 x 128.
PEOPLE, INPUTS, CHANNELS, GRID, CROP = 32, 4, 2048, (16, 8), (256, 128)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# With fewer warps, too few loads are in flight to fill the memory's bandwidth. The map, which ``share`` reads, is a
# few percent of the bytes.
LEAST_OCCUPANCY = {"share": 1 / 3, "pool": 1 / 2, "spread": 1 / 2}
# Of 4 or 8 bytes and less: the shares, the region, the gradient of a row. More means features or pixels.
MOST_NARROW_LOADS = 20
# What prints the figures of other files than pooling's.
PARTS = {"batchnorm.py": triton_batchnorm, "pointwise.py": triton_products, "stem.py": triton_products}


def kernels(
    architectures: tuple[int, ...] = ARCHITECTURES,
    dtypes: tuple[str, ...] = tuple(DTYPES),
    modes: tuple[str, ...] = ("mean", "max", "gem"),
    module: ModuleType | None = None,
) -> list[dict[str, Any]]:
    """The figures of pooling, forward and backward; the kernel of the shares has neither dtype nor mode."""
    module = module or load()
    meta = torch.device("meta")
    region_map = torch.empty((PEOPLE, *CROP), dtype=torch.uint8, device=meta)
    region = torch.empty(PEOPLE * INPUTS, dtype=torch.int64, device=meta)
    result: list[dict[str, Any]] = []
    for arch in architectures:
        with dry_launches(arch) as launches:
            module.shares(region_map, region, *GRID)
            (grid, kernel) = launches[-1]
            result.append(figures(kernel, grid, arch, "", ""))
            for dtype in dtypes:
                features = torch.empty((PEOPLE * INPUTS, CHANNELS, *GRID), dtype=DTYPES[dtype], device=meta)
                features = features.to(memory_format=torch.channels_last)
                for mode in modes:
                    launches.clear()
                    out = module.forward(features, region_map, region, mode, 3.0)
                    module.backward(torch.empty_like(out), features, region_map, region, out, mode, 3.0)
                    # Forward and backward each start with the shares.
                    result += [figures(kernel, grid, arch, dtype, mode) for grid, kernel in launches[1::2]]
    return result


def odd_faults(arch: int, module: ModuleType) -> list[str]:
    """Spills of sizes that give other code: 1, which Triton makes a constant, and what 16 does not divide."""
    meta, found = torch.device("meta"), []
    for rows, channels, grid, crop in ((1, 1, (1, 1), (1, 1)), (6, 70, (5, 3), (13, 11))):
        region_map = torch.empty((1, *crop), dtype=torch.uint8, device=meta)
        region = torch.empty(rows, dtype=torch.int64, device=meta)
        for dtype, mode in itertools.product(("float32", "bfloat16"), module.MODES):
            features = torch.empty((rows, channels, *grid), dtype=DTYPES[dtype], device=meta)
            features = features.to(memory_format=torch.channels_last)
            with dry_launches(arch) as launches:
                out = module.forward(features, region_map, region, mode, 3.0)
                module.backward(torch.empty_like(out), features, region_map, region, out, mode, 3.0)
            for launched, kernel in launches[1:]:  # the shares of the backward are those of the forward
                entry = figures(kernel, launched, arch, dtype, mode)
                if entry["stack"] or entry["spill_accesses"]:
                    found.append(f"{name_of(entry)}, {channels} channels: spills")
    return found


def wide_accesses(entry: dict[str, Any]) -> tuple[int, int]:
    """16-byte loads and stores that a kernel needs if every feature, or pixel, is moved in them."""
    if entry["kernel"] == "share":
        return 1, 0
    kernel = "forward" if entry["kernel"] == "pool" else "backward"
    mode, dtype = entry["mode"], DTYPES[entry["dtype"]]
    blocks = tables.choose(kernel, mode, dtype, CHANNELS, GRID[0] * GRID[1], entry["arch"])
    tile = blocks.cells * blocks.channels * dtype.itemsize // (16 * entry["threads"])
    if kernel == "forward":
        return tile * (2 if mode == "gem" else 1), 0
    # The gradient of the mean needs no features; gem's of float32 needs no sum over them.
    passes = 0 if mode == "mean" else 1 if mode == "gem" and dtype == torch.float32 else 2
    return tile * passes, tile


def faults(entry: dict[str, Any]) -> list[str]:
    """What is wrong with a kernel's figures; empty when nothing is."""
    device = occupancy.BY_ARCH[entry["arch"]]
    found = never(entry)
    loads, stores = wide_accesses(entry)
    # Exactly, and few narrow ones: where features are loaded narrowly, the shares may be loaded widely instead.
    if (entry["ld128"], entry["st128"]) != (loads, stores):
        found.append(f"{entry['ld128']} wide loads and {entry['st128']} wide stores, not {loads} and {stores}")
    if entry["ld_narrow"] > MOST_NARROW_LOADS:
        found.append(f"{entry['ld_narrow']} narrow loads")
    held = occupancy.resident(device, entry["threads"], entry["registers"], entry["shared_bytes"])
    if not held.occupancy >= LEAST_OCCUPANCY[entry["kernel"]]:
        found.append(f"occupancy {held.occupancy:.0%} of {device.name}, limited by {held.limit}")
    return found


def name_of(entry: dict[str, Any]) -> str:
    return " ".join(str(entry[key]) for key in ("kernel", "mode", "dtype") if entry[key]) + f" sm_{entry['arch']}"


def line(entry: dict[str, Any]) -> str:
    """A kernel's figures for people."""
    held = occupancy.resident(
        occupancy.BY_ARCH[entry["arch"]], entry["threads"], entry["registers"], entry["shared_bytes"]
    )
    return (
        f"{name_of(entry):32} registers {entry['registers']:3} threads {entry['threads']:3} "
        f"shared {entry['shared_bytes']:5} occupancy {held.occupancy:4.0%} "
        f"ld128 {entry['ld128']:2} st128 {entry['st128']:2} narrow {entry['ld_narrow']:2} grid {entry['grid']}"
    )


def gate(entries: list[dict[str, Any]]) -> list[str]:
    """Every fault of every kernel."""
    return [f"{name_of(entry)}: {fault}" for entry in entries for fault in faults(entry)]


def everything(architectures: tuple[int, ...] = ARCHITECTURES) -> tuple[list[dict[str, Any]], list[str]]:
    """The figures of all kernels, and what is wrong with them."""
    pooling, norms = kernels(architectures), triton_batchnorm.kernels(architectures)
    products = triton_products.kernels(architectures)
    found = gate(pooling) + triton_batchnorm.gate(norms) + triton_products.gate(products)
    return pooling + norms + products, found


def faults_of(tree: Path, file: str) -> list[str]:
    """What is wrong with the kernels of one file of a tree, on few architectures."""
    if "pooling" in file:
        return gate(kernels((80, 90), ("float32", "bfloat16"), ("mean", "gem"), load(tree)))
    if "batchnorm" in file:
        residual = triton_batchnorm.CASES[:1]
        return triton_batchnorm.gate(triton_batchnorm.kernels((90,), residual, load(tree, "batchnorm")))
    modules = [load(tree, name) for name in ("pointwise", "stem")]
    return triton_products.gate(triton_products.kernels((80,), ("bfloat16",), *modules))


def hunt(mutation: Mutation) -> str:
    """What the gate says of a bug; empty when it is missed."""
    with tempfile.TemporaryDirectory() as folder:
        tree = mutated_tree(mutation, Path(folder) / "tree")
        try:
            found = faults_of(tree, mutation.file)
        except Exception as error:  # a kernel that no longer compiles is caught as well
            found = [f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"]
    return found[0] if found else ""


def check_mutations(only: str | None = None) -> bool:
    """Whether each injected bug of the rung ``triton`` is caught; ``only``: those whose name or file holds this."""
    bugs = list(for_rung("triton", only))
    caught = True
    # Processes that are started anew: what a dry launch puts in the driver's place is one for a process.
    with ProcessPoolExecutor(JOBS, mp_context=multiprocessing.get_context("spawn")) as pool:
        for bug, words in zip(bugs, pool.map(hunt, bugs), strict=True):
            print(f"caught {bug.name}: {words}" if words else f"MISSED {bug.name}", flush=True)
            caught &= bool(words)
    return caught


def main(words: list[str]) -> int:
    if words[:1] == ["bugs"]:
        return 0 if check_mutations(*words[1:2]) else 1
    architectures = tuple(int(word) for word in words) or ARCHITECTURES
    entries, found = everything(architectures)
    print(f"Triton {triton.__version__}, pooling [{PEOPLE * INPUTS}, {CHANNELS}, {GRID[0]}, {GRID[1]}]")
    for entry in entries:
        part = PARTS.get(entry.get("file", ""))
        print(part.line(entry) if part else line(entry))
    found += odd_faults(architectures[0], load())
    found += triton_batchnorm.odd_faults(architectures[0], load(name="batchnorm"))
    for fault in found:
        print(f"FAILED {fault}")
    passed = not found and (bool(words) or check_mutations())
    print(f"{len(entries)} kernels, {len(found)} faults")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
