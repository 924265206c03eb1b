"""Front for nvcc: a .cu file's own host code runs, and its launches run here, on the PTX that nvcc made of it.

The host code is a shared library of the same file on the emulator of tests/emulator, whose hook hands over every
launch: the kernel's mangled name, the launch configuration and the arguments' bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .machine import Dimensions, Program, launch
from .memory import Memory
from .parser import parse
from .statistics import Statistics
from .values import PtxError

FLAGS = ("-ptx", "-lineinfo", "--fmad=false", "-std=c++17")
LAUNCH_FAILED = 719  # cudaErrorLaunchFailure
_HOOK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_size_t),
)


@dataclass
class Launched:
    """One launch and what it moved."""

    kernel: str
    grid: Dimensions
    block: Dimensions
    statistics: Statistics
    touched: tuple[int, int]  # bytes of the sectors loaded and stored, each once


def compile_ptx(source: Path, arch: int, cache: Path) -> str:
    """The PTX of a .cu file for sm_``arch``, kept in ``cache`` under the hash of the file and the headers near it."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise PtxError("no nvcc on the PATH")
    near = sorted(p for p in source.parents[1].rglob("*") if p.suffix in (".h", ".cuh"))
    texts = [str(arch), *FLAGS, *(p.name + p.read_text() for p in [source, *near])]
    kept = cache / (hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24] + ".ptx")
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = Path(folder) / kept.name
            command = [nvcc, *FLAGS, f"-arch=sm_{arch}", str(source), "-o", str(made)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                raise PtxError(f"{' '.join(command)}\n{result.stderr.strip()[-2000:]}")
            os.replace(made, kept)
    return kept.read_text()


def programs(ptx: str) -> dict[str, Program]:
    """The kernels of a module by mangled name."""
    return {name: Program(entry) for name, entry in parse(ptx).items()}


@contextlib.contextmanager
def simulated(library: ctypes.CDLL, kernels: Mapping[str, Program], memory: Memory) -> Iterator[list[Launched]]:
    """While open, the library's launches run here and append to the list; an error is raised on leaving."""
    launches: list[Launched] = []
    errors: list[Exception] = []

    def run(name: bytes, grid: Any, block: Any, shared: int, count: int, arguments: Any, sizes: Any) -> int:
        # Exceptions do not pass through the library.
        try:
            kernel = name.decode()
            if kernel not in kernels:
                raise PtxError(f"nvcc made no kernel '{kernel}'")
            values = [ctypes.string_at(arguments[i], sizes[i]) for i in range(count)]
            shape: tuple[Dimensions, Dimensions] = ((grid[0], grid[1], grid[2]), (block[0], block[1], block[2]))
            memory.forget()
            statistics = launch(kernels[kernel], *shape, values, memory, shared)
            launches.append(Launched(kernel, *shape, statistics, memory.touched_bytes()))
        except Exception as error:
            errors.append(error)
            return LAUNCH_FAILED
        return 0

    hook = _HOOK(run)
    library.mgran_emulator_hook(hook)
    try:
        yield launches
    finally:
        library.mgran_emulator_hook(None)
    if errors:
        raise errors[0]
