"""The emulator itself: what it computes, and the mistakes that it names. Kernels of a few lines, compiled here."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

LADDER = Path(__file__).resolve().parents[1] / "ladder"
sys.path.insert(0, str(LADDER))

import build  # noqa: E402

pytestmark = [
    pytest.mark.skipif(build.cuda_include() is None, reason="needs the CUDA headers (nvcc on the PATH)"),
    pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="x86-64 Linux alone"),
]

HEAD = '#include "launch.h"\n#include <cstring>\nnamespace mgran::cuda {\n'
# One program with a kernel for each test; the first argument chooses.
SOURCE = (
    HEAD
    + r"""
__global__ void sum_warps(const int* in, int* out) {
  MGRAN_SHARED(int, sums, [4]);
  int v = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0) atomicAdd(out, sums[0] + sums[1] + sums[2] + sums[3]);
}
__global__ void votes(unsigned* out) {
  const int t = threadIdx.x;
  const unsigned ballot = __ballot_sync(0xffffffffu, t % 3 == 0);
  const int count = __syncthreads_count(t % 5 == 0), any = __syncthreads_or(t == 40), all = __syncthreads_and(t < 63);
  const int up = __shfl_up_sync(0xffffffffu, t, 3), down = __shfl_down_sync(0xffffffffu, t, 4, 8);
  if (t == 33) {
    const unsigned results[] = {ballot, static_cast<unsigned>(count), static_cast<unsigned>(any),
                                static_cast<unsigned>(all), static_cast<unsigned>(up), static_cast<unsigned>(down)};
    std::memcpy(out, results, sizeof(results));
  }
}
__global__ void dynamic(float* out) {
  MGRAN_DYNAMIC_SHARED(float, buffer);
  const float before = buffer[threadIdx.x];
  buffer[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = before != before ? buffer[blockDim.x - 1 - threadIdx.x] : -1.0f;
}
__global__ void order_of_blocks(int* next, int* out) { out[blockIdx.x + gridDim.x * blockIdx.y] = atomicAdd(next, 1); }
__global__ void divergent() {
  if (threadIdx.x < 7) __syncthreads();
}
__global__ void two_barriers() {
  if (threadIdx.x < 7)
    __syncthreads();
  else
    __syncthreads();
}
__global__ void half_a_warp(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 0);
  __syncthreads();
}
__global__ void beyond_shared() {
  MGRAN_SHARED(int, array, [8]);
  array[threadIdx.x] = 1;
}
__global__ void misaligned(const unsigned char* in, unsigned* out) {
  *out = __ldg(reinterpret_cast<const uint4*>(in + 4)).x;
}
__global__ void too_much_shared(int* out) {
  MGRAN_SHARED(int, array, [16384]);
  array[threadIdx.x] = 1;
  *out = array[0];
}
}  // namespace mgran::cuda

extern "C" int run(int test, void* in, void* out, unsigned blocks, unsigned threads) {
  using namespace mgran::cuda;
  using mgran::launch;
  const dim3 grid(blocks), block(threads);
  alignas(16) static unsigned char bytes[64];
  int* const ints = static_cast<int*>(out);
  if (test == 0) return launch(sum_warps, grid, block, 0, nullptr, static_cast<const int*>(in), ints);
  if (test == 1) return launch(votes, grid, block, 0, nullptr, static_cast<unsigned*>(out));
  if (test == 2) return launch(dynamic, grid, block, 4 * threads, nullptr, static_cast<float*>(out));
  if (test == 3) return launch(order_of_blocks, dim3(blocks, 2), block, 0, nullptr, static_cast<int*>(in), ints);
  if (test == 4) return launch(divergent, grid, block, 0, nullptr);
  if (test == 5) return launch(two_barriers, grid, block, 0, nullptr);
  if (test == 6) return launch(half_a_warp, grid, block, 0, nullptr, ints);
  if (test == 7) return launch(beyond_shared, grid, block, 0, nullptr);
  if (test == 8) return launch(misaligned, grid, block, 0, nullptr, bytes, static_cast<unsigned*>(out));
  return launch(too_much_shared, grid, block, 0, nullptr, ints);
}
"""
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emulator")
    (folder / "kernels.cu").write_text(SOURCE)
    command = [build.COMPILER, *build.COMMON, "-O1", *build.CUDA_FLAGS, "-shared", "-pthread"]
    command += [f"-I{build.ROOT / 'csrc' / 'cuda'}", f"-I{build.EMULATOR}"]
    command += ["-isystem", str(build.cuda_include()), "-x", "c++", str(folder / "kernels.cu")]
    command += [str(build.EMULATOR / f"{name}.cpp") for name in ("emulator", "block", "fiber")]
    result = subprocess.run([*command, "-o", str(folder / "kernels.so"), "-ldl"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder / "kernels.so"


def fault(library: Path, test: int, threads: int, blocks: int = 1) -> str:
    """What a process says that runs the test, which must end it."""
    code = (
        "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); out = (ctypes.c_int * 4096)();"
        "sys.exit(library.run(int(sys.argv[2]), None, out, int(sys.argv[3]), int(sys.argv[4])))"
    )
    words = [sys.executable, "-c", code, str(library), str(test), str(blocks), str(threads)]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 86
    return result.stderr


@pytest.mark.parametrize("order", ["0", "1", "5"])
def test_shuffles_shared_memory_and_atomics(library: Path, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRAN_EMULATOR_ORDER", order)
    numbers = (ctypes.c_int * 384)(*range(384))
    total = ctypes.c_int(0)
    assert ctypes.CDLL(str(library)).run(0, numbers, ctypes.byref(total), 3, 128) == 0
    assert total.value == sum(range(384))


def test_votes_and_shuffles(library: Path) -> None:
    out = (ctypes.c_uint * 6)()
    assert ctypes.CDLL(str(library)).run(1, None, out, 1, 64) == 0
    ballot = sum(1 << (t - 32) for t in range(32, 64) if t % 3 == 0)
    # Lane 1 of its warp: three up is out of range, its own value stays.
    assert list(out) == [ballot, 13, 1, 0, 33, 37]


def test_dynamic_shared_memory_is_poisoned_first(library: Path) -> None:
    out = (ctypes.c_float * 50)()
    assert ctypes.CDLL(str(library)).run(2, None, out, 1, 50) == 0
    assert list(out) == [float(49 - i) for i in range(50)]


def test_orders_of_blocks(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    for order in ("0", "1", "5"):
        monkeypatch.setenv("MGRAN_EMULATOR_ORDER", order)
        out, following = (ctypes.c_int * 10)(), ctypes.c_int(0)
        assert ctypes.CDLL(str(library)).run(3, ctypes.byref(following), out, 5, 1) == 0
        seen[order] = list(out)
    assert seen["0"] == list(range(10))
    assert seen["1"] == list(range(9, -1, -1))
    assert sorted(seen["5"]) == list(range(10)) != seen["5"]


@pytest.mark.parametrize(
    ("test", "threads", "words"),
    [
        (4, 64, "only a part of the block reaches __syncthreads"),
        (5, 64, "threads of one block meet at different __syncthreads"),
        (6, 32, "deadlock"),
        (7, 9, "written outside of the shared array array"),
        (8, 1, "a misaligned __ldg"),
        (9, 1, "more than 48 KiB of shared memory"),
    ],
)
def test_faults_are_named(library: Path, test: int, threads: int, words: str) -> None:
    assert words in fault(library, test, threads)


def test_a_mask_that_names_lanes_that_have_returned(library: Path) -> None:
    assert "names a lane that has returned or does not exist" in fault(library, 6, 20)


@pytest.mark.parametrize(("blocks", "threads"), [(0, 32), (1, 0), (1, 1025)])
def test_configurations_that_no_gpu_takes(library: Path, blocks: int, threads: int) -> None:
    assert ctypes.CDLL(str(library)).run(2, None, None, blocks, threads) != 0


def test_the_hook_sees_the_launch(library: Path) -> None:
    seen = []

    def record(name, grid, block, shared, count, arguments, sizes):  # type: ignore[no-untyped-def]
        value = ctypes.c_void_p.from_address(arguments[0]).value
        seen.append((name, grid[0:3], block[0:3], shared, count, sizes[0], value))
        return 7

    loaded = ctypes.CDLL(str(library))
    hook = build.HOOK(record)
    loaded.mgran_emulator_hook(hook)
    try:
        assert loaded.run(2, None, ctypes.c_void_p(4096), 3, 40) == 7
    finally:
        loaded.mgran_emulator_hook(build.HOOK())
    assert seen == [(b"_ZN5mgran4cuda7dynamicEPf", [3, 1, 1], [40, 1, 1], 160, 1, 8, 4096)]
