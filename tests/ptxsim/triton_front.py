"""Front for Triton: ``kernel[grid](cpu tensors)`` compiles for a GPU that is not there and runs here, on its PTX.

Every launch is compiled just as on a GPU of that architecture: the alignments and the constants of its arguments
are those of the call.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from .machine import Dimensions, Program, launch
from .memory import Memory
from .nvcc import Launched
from .parser import parse
from .values import PtxError

WARP = 32
# How the scalars of a signature travel.
SCALARS = {"i1": "<b", "i8": "<b", "i16": "<h", "i32": "<i", "i64": "<q", "u32": "<I", "u64": "<Q", "fp32": "<f"}


class _NoDevice:
    """A driver that knows the architecture alone."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, WARP)

    def get_current_device(self) -> int:
        # Triton keeps compiled kernels by device: each architecture must be a device of its own.
        return self.arch

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


_programs: dict[str, Program] = {}


@contextlib.contextmanager
def simulated(arch: int) -> Iterator[list[Launched]]:
    """While open, launches run here as on sm_``arch`` and append to the list."""
    launches: list[Launched] = []
    run: Callable[..., Any] = JITFunction.run

    def simulate(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        values = dict(zip(self.arg_names, arguments, strict=False))
        values |= {name: value for name, value in options.items() if name in self.arg_names}
        shape = grid(values) if callable(grid) else grid
        launches.append(_launch(kernel, (*shape, 1, 1)[:3], values))
        return kernel

    active = driver._active  # reset_active() would look for a GPU
    driver.set_active(_NoDevice(arch))
    JITFunction.run = simulate
    try:
        yield launches
    finally:
        JITFunction.run = run
        driver._active = active


def _launch(kernel: Any, grid: Dimensions, values: Mapping[str, Any]) -> Launched:
    text = kernel.asm["ptx"]
    key = hashlib.sha256(text.encode()).hexdigest()
    if key not in _programs:
        (entry,) = parse(text).values()
        _programs[key] = Program(entry)
    program = _programs[key]
    memory, arguments, known = Memory(), [], set()
    for name, kind in kernel.src.signature.items():
        if kind == "constexpr":
            continue
        value = values[name]
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            if storage.data_ptr() not in known:
                known.add(storage.data_ptr())
                memory.add(name, _array(storage.data_ptr(), storage.nbytes()))
            arguments.append(struct.pack("<Q", value.data_ptr()))
        elif kind in SCALARS:
            arguments.append(struct.pack(SCALARS[kind], value))
        else:
            raise PtxError(f"not simulated: argument {name} of type {kind}")
    # Scratch memory, which no kernel of ours has: a null pointer that nobody may follow.
    spare = len(program.entry.parameters) - len(arguments)
    arguments += [bytes(parameter.bytes) for parameter in program.entry.parameters[-spare:]] if spare > 0 else []
    block = (WARP * kernel.metadata.num_warps, 1, 1)
    statistics = launch(program, grid, block, arguments, memory, kernel.metadata.shared)
    return Launched(kernel.metadata.name, grid, block, statistics, memory.touched_bytes())


def _array(address: int, size: int) -> np.ndarray[Any, Any]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
