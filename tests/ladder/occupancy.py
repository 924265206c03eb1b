"""How many blocks of a kernel one multiprocessor holds, from registers, shared memory and threads.

``resident`` follows the rules that CUDA's programming guide publishes for each compute capability.
``header_blocks`` asks CUDA's own ``cuda_occupancy.h``, which is plain C++ and needs no GPU; rung f and the tests
compare the two.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cubin
from cubin import GateError

WARP = 32
# A warp's registers are given out in units of 256, each warp's by one of four partitions of a multiprocessor.
REGISTER_UNIT, PARTITIONS = 256, 4
MOST_REGISTERS = 255


@dataclass(frozen=True)
class Device:
    """One GPU, as far as occupancy and bandwidth go.

    Attributes:
        name: as people call it.
        arch: 80 for compute capability 8.0.
        multiprocessors: on the whole device.
        threads, blocks, registers, shared: what one multiprocessor holds; shared in bytes.
        shared_block: the most shared memory of one block, in bytes, the system's part left out.
        shared_system: what the system takes of each block's shared memory, in bytes.
        shared_unit: shared memory is given out in multiples of this.
        bandwidth: of the memory, in bytes a second, from the data sheet.
    """

    name: str
    arch: int
    multiprocessors: int
    threads: int
    blocks: int
    shared: int
    shared_block: int
    bandwidth: float
    registers: int = 65536
    shared_system: int = 1024
    shared_unit: int = 128


DEVICES = (
    Device("T4", 75, 40, 1024, 16, 64 << 10, 64 << 10, 0.32e12, shared_system=0, shared_unit=256),
    Device("A100", 80, 108, 2048, 32, 164 << 10, 163 << 10, 2.04e12),
    Device("RTX 3090", 86, 82, 1536, 16, 100 << 10, 99 << 10, 0.936e12),
    Device("L4", 89, 58, 1536, 24, 100 << 10, 99 << 10, 0.30e12),
    Device("H100", 90, 132, 2048, 32, 228 << 10, 227 << 10, 3.35e12),
    Device("B200", 100, 148, 2048, 32, 228 << 10, 227 << 10, 8.0e12),
    Device("RTX 5090", 120, 170, 1536, 24, 100 << 10, 99 << 10, 1.79e12),
)
BY_ARCH = {device.arch: device for device in DEVICES}


@dataclass(frozen=True)
class Residency:
    """Attributes:
    blocks: resident blocks of one multiprocessor; 0: the kernel cannot be launched.
    occupancy: their warps, as a share of the most warps.
    limit: what allows no further block: threads, blocks, registers or shared memory.
    """

    blocks: int
    occupancy: float
    limit: str


def resident(device: Device, threads: int, registers: int, shared: int) -> Residency:
    """For a kernel with ``threads`` a block, ``registers`` a thread and ``shared`` bytes a block."""
    if threads < 1 or registers < 0 or shared < 0:
        raise ValueError(f"threads {threads}, registers {registers}, shared {shared}: not a kernel's figures")
    warps = -(-threads // WARP)
    most_warps = device.threads // WARP
    limits = {"threads": most_warps // warps, "blocks": device.blocks}
    if threads > 1024 or registers > MOST_REGISTERS:
        return Residency(0, 0.0, "threads" if threads > 1024 else "registers")
    if registers:
        a_warp = _up(registers * WARP, REGISTER_UNIT)
        room = device.registers // PARTITIONS // a_warp * PARTITIONS
        # A launch is refused where the block, rounded up to all partitions, would not fit.
        fits = a_warp * _up(warps, PARTITIONS) <= device.registers
        limits["registers"] = room // warps if fits else 0
    taken = _up(shared + device.shared_system, device.shared_unit)
    if shared > device.shared_block:
        limits["shared memory"] = 0
    elif taken:
        limits["shared memory"] = device.shared // taken
    name, blocks = min(limits.items(), key=lambda item: item[1])
    return Residency(blocks, blocks * warps / most_warps, name)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


# --- CUDA's own header ------------------------------------------------------------------------------------------------

# Reads a line a question (device, then kernel) and answers with the resident blocks.
_SOURCE = r"""
#include <initializer_list>
#include <cstdio>
#include <cuda_occupancy.h>

int main() {
  int arch, sms, threads_sm, registers_sm, shared_sm, shared_block, shared_system, threads, registers, shared;
  while (std::scanf("%d %d %d %d %d %d %d %d %d %d", &arch, &sms, &threads_sm, &registers_sm, &shared_sm,
                    &shared_block, &shared_system, &threads, &registers, &shared) == 10) {
    cudaOccDeviceProp device;
    device.computeMajor = arch / 10;
    device.computeMinor = arch % 10;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = threads_sm;
    device.regsPerBlock = device.regsPerMultiprocessor = registers_sm;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 << 10;
    device.sharedMemPerMultiprocessor = shared_sm;
    device.numSms = sms;
    device.sharedMemPerBlockOptin = shared_block;
    device.reservedSharedMemPerBlock = shared_system;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = shared;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    const int status = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
    std::printf("%d\n", status == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -static_cast<int>(status));
  }
}
"""


def header_folder() -> Path | None:
    """Where cuda_occupancy.h is: beside nvcc or in Triton's wheel; None where there is neither."""
    folders = []
    try:
        dry = cubin.run(["sh", "-c", f"'{cubin.find_tool('nvcc')}' --dryrun -x cu -E /dev/null 2>&1"])
        folders += [Path(line.partition("TOP=")[2]) / "include" for line in dry.splitlines() if "TOP=" in line]
    except GateError:
        pass
    triton = importlib.util.find_spec("triton")
    for folder in triton.submodule_search_locations or [] if triton else []:
        folders.append(Path(folder) / "backends" / "nvidia" / "include")
    return next((folder for folder in folders if (folder / "cuda_occupancy.h").exists()), None)


@functools.cache
def _header_program() -> Path:
    folder = header_folder()
    if folder is None:
        raise GateError("no cuda_occupancy.h beside nvcc or in Triton's wheel")
    key = hashlib.sha256((_SOURCE + str(folder)).encode()).hexdigest()[:16]
    program = cubin.CACHE.parent / f"occupancy-{key}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        # Under a name of its own first: another process may start it as soon as it is there.
        aside = program.with_name(f"{program.name}.{os.getpid()}")
        compiler = [cubin.find_tool(os.environ.get("CXX", "c++")), "-std=c++17", "-O1", "-x", "c++", "-"]
        cubin.run([*compiler, f"-isystem{folder}", "-o", aside], stdin=_SOURCE)
        aside.replace(program)
    return program


def header_blocks(questions: Sequence[tuple[Device, int, int, int]]) -> list[int]:
    """Resident blocks by CUDA's header for each (device, threads, registers, shared)."""
    lines = [
        f"{d.arch} {d.multiprocessors} {d.threads} {d.registers} {d.shared} {d.shared_block} "
        f"{d.shared_system} {threads} {registers} {shared}\n"
        for d, threads, registers, shared in questions
    ]
    answers = [int(word) for word in cubin.run([_header_program()], stdin="".join(lines)).split()]
    if len(answers) != len(questions):
        raise GateError(f"cuda_occupancy.h gave {len(answers)} answers to {len(questions)} questions")
    refused = [question for question, answer in zip(questions, answers, strict=True) if answer < 0]
    if refused:
        raise GateError(f"cuda_occupancy.h refused {len(refused)} questions, the first is {refused[0]}")
    return answers
