"""Dry launches: the package's Triton kernels compiled just as a launch would, for a GPU that is not there.

Used by triton_gate.py and its parts, and to load the kernels of a source tree.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

import cubin
import occupancy
from cubin import GateError
from mgran_fast.kernels import tables

ROOT = Path(__file__).resolve().parents[2]
# What begins the names of instructions of the tensor cores, Ampere's to Blackwell's.
TENSOR_CORES = ("HMMA", "HGMMA", "UTCHMMA")


class NoDevice:
    """A Triton driver that knows its target and nothing else."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        # Triton keeps compiled kernels by device: each architecture must be a device of its own.
        return self.arch

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


@contextlib.contextmanager
def dry_launches(arch: int) -> Iterator[list[tuple[tuple[int, ...], Any]]]:
    """While open, a launch compiles for sm_``arch`` and appends (grid, compiled kernel) to the list it yields."""
    launches: list[tuple[tuple[int, ...], Any]] = []
    run: Callable[..., Any] = JITFunction.run

    def dry(self: Any, *arguments: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        launches.append((grid, kernel))
        return kernel

    active = driver._active  # reset_active() would look for a GPU
    driver.set_active(NoDevice(arch))
    JITFunction.run = dry
    try:
        yield launches
    finally:
        JITFunction.run = run
        driver._active = active


def load(tree: Path = ROOT, name: str = "pooling") -> ModuleType:
    """One module of the kernels of a source tree, which may have a bug in."""
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        raise GateError("TRITON_INTERPRET is set: nothing would be compiled")
    path = tree / "kernels" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"gated_{abs(hash(path))}", path)
    if spec is None or spec.loader is None:
        raise GateError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    # The tables of this tree, in place of the installed ones.
    tables.TABLE, tables.POINTWISE, tables.BATCHNORM = (
        tree / "kernels" / f"{table}.json" for table in ("pooling", "pointwise", "batchnorm")
    )
    for kept in (
        tables.entries, tables.choose, tables.products, tables.product, tables.norms, tables.batchnorm
    ):  # fmt: skip
        kept.cache_clear()
    return module


def figures(kernel: Any, grid: tuple[int, ...], arch: int, dtype: str, mode: str) -> dict[str, Any]:
    """What became of one kernel, in the units of the compile gate's table."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(kernel.asm["cubin"])
        (usage,) = cubin.parse_usage(cubin.dump("-res-usage", file), arch).values()
        (instructions,) = cubin.parse_sass(cubin.dump("-sass", file)).values()
    counts = cubin.count_accesses(instructions)

    def many(head: str, *widths: str) -> int:
        """Instructions of that name, of these widths alone where there are some."""
        return sum(
            times
            for name, times in instructions.items()
            if name.partition(".")[0] == head and (not widths or set(widths) & set(name.split(".")))
        )

    return {
        "kernel": kernel.metadata.name.removeprefix("_"),
        "arch": arch,
        "dtype": dtype,
        "mode": mode,
        "registers": usage["registers"],
        "stack": usage["stack"],
        "spill_accesses": counts["local"],
        "shared_bytes": kernel.metadata.shared,  # Triton's shared memory is dynamic: no cubin tells it
        "threads": 32 * kernel.metadata.num_warps,
        "ld128": counts["loads128"],
        "st128": counts["stores128"],
        "ld_narrow": many("LDG") - counts["loads128"],
        "ld_tiny": many("LDG", "U8", "S8", "U16", "S16"),
        "st_narrow": many("STG") - counts["stores128"],
        "st64": many("STG", "64"),
        # From global to shared memory, with no register between.
        "async128": many("LDGSTS", "128"),
        "async_narrow": many("LDGSTS") - many("LDGSTS", "128"),
        "tensor": sum(many(head) for head in TENSOR_CORES),
        "red": counts["red"],
        "atom": counts["atom"],
        "grid": list(grid),
    }


def never(entry: dict[str, Any]) -> list[str]:
    """What no kernel's figures may show: spills, atomics, more shared memory than a block has."""
    device = occupancy.BY_ARCH[entry["arch"]]
    found = []
    if entry["stack"] or entry["spill_accesses"]:
        found.append(f"spills: {entry['stack']} bytes of stack, {entry['spill_accesses']} local accesses")
    if entry["red"] or entry["atom"]:
        found.append("has atomics")
    if entry["shared_bytes"] > device.shared_block:
        found.append(f"{entry['shared_bytes']} bytes of shared memory, {device.name} has {device.shared_block}")
    return found
