"""The part of triton_gate.py for batch norm.

What is compiled are layers of a ResNet-50 in four groups, with the tiles that the table gives them. In place of an
occupancy, bytes under way are asked for: of what memory sends in the time that it takes to answer (Little's law), the
programs that can be resident must have asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch

import occupancy
from mgran_fast.kernels import tables
from triton_dry import dry_launches, figures, load, never

FILE = "batchnorm.py"
PEOPLE, GROUPS = 32, 4  # of a training batch
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Channels, grid, whether there is a residual: most of the bytes and no residual; most registers.
PLAIN, RESIDUAL = (64, (64, 32), False), (2048, (16, 8), True)
EVERY = (75, 80, 86, 89, 90, 100, 120)
# Not every type on every architecture, which would take minutes: bfloat16 is what trains, float16 does where a GPU has
# no bfloat16, and the code for float32 differs by its loads alone.
CASES: tuple[Case, ...] = (
    ("bfloat16", RESIDUAL, EVERY),
    ("bfloat16", PLAIN, (90,)),
    ("float32", RESIDUAL, (80, 90)),
    ("float16", RESIDUAL, (75,)),
)
LATENCY = 0.6e-6  # seconds that the GPUs' memory needs to answer
VECTOR = 16  # bytes of the widest access of a thread
# Tensors of x's size that a kernel reads and writes, with no residual; one more of each where there is one.
READS = {"moments": 1, "apply": 1, "reduce": 2, "grad": 2}
WRITES = {"moments": 0, "apply": 1, "reduce": 0, "grad": 1}
HAS_RESIDUAL = {"apply": (1, 0), "reduce": (1, 0), "grad": (1, 1)}
# Of a group's numbers of a channel: up to 6, by threads that have one channel each.
MOST_NARROW_LOADS = 6

# The type, the layer, the architectures.
Case = tuple[str, tuple[int, tuple[int, int], bool], tuple[int, ...]]


def launch(module: ModuleType, x: torch.Tensor, groups: int, residual: bool, relu: bool) -> None:
    """Every kernel of a layer's training step."""
    r, some = x if residual else None, torch.empty((groups, x.shape[1]), dtype=torch.float32, device=x.device)
    module.statistics(x, groups)
    module.apply(x, r, some, some, relu)
    module.reduce(x, x, r, some, some, some, some, relu)
    module.grad(x, x, r, some, some, some, some, some, some, relu, residual)


def made(images: int, channels: int, grid: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    x = torch.empty((images, channels, *grid), dtype=dtype, device="meta")
    return x.to(memory_format=torch.channels_last)


def kernels(
    architectures: tuple[int, ...], cases: tuple[Case, ...] = CASES, module: ModuleType | None = None
) -> list[dict[str, Any]]:
    """The figures of every kernel."""
    module = module or load(name="batchnorm")
    result: list[dict[str, Any]] = []
    for arch in architectures:
        for dtype, (channels, grid, residual), wanted in cases:
            if arch not in wanted:
                continue
            with dry_launches(arch) as launches:
                launch(module, made(PEOPLE * GROUPS, channels, grid, DTYPES[dtype]), GROUPS, residual, True)
            for programs, kernel in launches:
                name = kernel.metadata.name.removeprefix("_")
                mode = ("residual" if residual else "plain") if name in HAS_RESIDUAL else ""
                row = figures(kernel, programs, arch, "" if name == "combine_sums" else dtype, mode) | {"file": FILE}
                if name in READS:
                    blocks = tables.batchnorm(name, DTYPES[dtype], channels, PEOPLE * grid[0] * grid[1], arch)
                    tile = [blocks.rows, blocks.channels, blocks.num_warps, blocks.num_stages]
                    row |= {"tile": tile, "residual": residual}
                result.append(row)
    return result


def odd_faults(arch: int, module: ModuleType) -> list[str]:
    """Spills of sizes that give other code: one group, 1 of anything, and what 16 does not divide."""
    found = []
    for images, channels, grid, dtype in ((1, 1, (1, 1), "bfloat16"), (6, 70, (5, 3), "float32")):
        with dry_launches(arch) as launches:
            launch(module, made(images, channels, grid, DTYPES[dtype]), 1, residual=True, relu=False)
        for programs, kernel in launches:
            entry = figures(kernel, programs, arch, dtype, "") | {"file": FILE}
            if entry["stack"] or entry["spill_accesses"]:
                found.append(f"{name_of(entry)}, {channels} channels: spills")
    return found


def _accesses(entry: dict[str, Any]) -> tuple[int, int]:
    """16-byte loads and stores of a thread that move a tile of each of the tensors."""
    rows, channels, _, _ = entry["tile"]
    name, item = entry["kernel"], DTYPES[entry["dtype"]].itemsize
    read, written = HAS_RESIDUAL.get(name, (0, 0)) if entry["residual"] else (0, 0)
    each = rows * channels * item // (VECTOR * entry["threads"])
    return each * (READS[name] + read), each * (WRITES[name] + written)


def under_way(entry: dict[str, Any]) -> float:
    """Bytes that the resident programs of the whole device have asked for at once."""
    device = occupancy.BY_ARCH[entry["arch"]]
    held = occupancy.resident(device, entry["threads"], entry["registers"], entry["shared_bytes"])
    programs = min(entry["grid"][0], held.blocks * device.multiprocessors)
    # A pipeline has tiles of its next steps under way.
    tiles = entry["tile"][3] - 1 if entry["async128"] else 1
    return float(programs * entry["threads"] * VECTOR * _accesses(entry)[0] * tiles)


def _memory_faults(entry: dict[str, Any]) -> Iterator[str]:
    loads, stores = _accesses(entry)
    # The pipeline's prologue copies as many tiles as it has steps ahead; vectors of a few channels may be wide as well.
    wide = entry["async128"] or entry["ld128"]
    # Of 16-bit numbers, the group's last row is loaded by threads that have one channel each.
    tiny = entry["ld_tiny"] - (entry["kernel"] == "moments")
    if wide < loads or (entry["async128"] and wide % loads) or entry["async_narrow"] or tiny > 0:
        yield (
            f"a tile by {wide} accesses of 16 bytes, not {loads}; {entry['async_narrow']} narrower copies, "
            f"{entry['ld_tiny']} loads of 1 or 2 bytes"
        )
    if entry["ld_narrow"] > MOST_NARROW_LOADS:
        yield f"{entry['ld_narrow']} narrow loads"
    if entry["st128"] != stores or (stores and entry["st_narrow"]):
        yield f"{entry['st128']} wide and {entry['st_narrow']} narrow stores, not {stores} and 0"
    device, asked = occupancy.BY_ARCH[entry["arch"]], under_way(entry)
    if not asked >= LATENCY * device.bandwidth:
        yield f"{asked:,.0f} bytes under way, {device.name} wants {LATENCY * device.bandwidth:,.0f}"


def faults(entry: dict[str, Any]) -> list[str]:
    """What is wrong with a kernel's figures; empty when nothing is."""
    return never(entry) + list(_memory_faults(entry) if "tile" in entry else ())


def name_of(entry: dict[str, Any]) -> str:
    words = [entry["file"], entry["kernel"], entry["mode"], entry["dtype"]]
    if "tile" in entry:
        words.append("[{} x {}, {} warps, {} stages]".format(*entry["tile"]))
    return " ".join(filter(None, words)) + f" sm_{entry['arch']}"


def line(entry: dict[str, Any]) -> str:
    """A kernel's figures for people."""
    asked = f"{under_way(entry) / 1e6:5.1f} MB under way" if "tile" in entry else ""
    return (
        f"{name_of(entry):82} registers {entry['registers']:3} shared {entry['shared_bytes']:6} "
        f"async128 {entry['async128']:2} ld128 {entry['ld128']:2} st128 {entry['st128']:2} grid {entry['grid']} {asked}"
    )


def gate(entries: list[dict[str, Any]]) -> list[str]:
    """Every fault of every kernel."""
    return [f"{name_of(entry)}: {fault}" for entry in entries for fault in faults(entry)]
