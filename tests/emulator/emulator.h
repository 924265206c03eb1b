// Runs a CUDA source file, unchanged, on the CPU: csrc/cuda/launch.h includes this header when the compiler is not
// nvcc. A block is a loop over fibers, one for each CUDA thread, which switch at barriers and warp operations alone.
//
// Emulated: the built-in variables, static and dynamic shared memory (poisoned, with guards), barriers, warp
// shuffles and votes, atomics, cached loads, bit intrinsics. Vector types, __half and __nv_bfloat16 are the host
// halves of the CUDA headers. Not emulated, so a kernel that uses them does not compile: inline PTX, tensor cores,
// asynchronous copies, textures, cooperative groups. x86-64 alone.
//
// Environment: MGRAN_EMULATOR_ORDER, the order of threads and blocks: 0 ascending, 1 descending, larger numbers
// seed a shuffle, anew after every barrier.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

// The CUDA headers give these names meanings of their own under a host compiler.
#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __constant__
// Deliberately left without a meaning: shared memory is declared by MGRAN_SHARED, which can be poisoned.
#undef __shared__

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

// The first thread that comes by makes the block's array, the others find it by the key's address, which is one for
// each declaration (and instance of a template).
#define MGRAN_SHARED(T, name, ...)                                                                  \
  using mgran_shape_of_##name = T __VA_ARGS__;                                                      \
  static char mgran_key_of_##name;                                                                  \
  mgran_shape_of_##name& name = *static_cast<mgran_shape_of_##name*>(mgran::emulator::shared_array( \
      &mgran_key_of_##name, #name, sizeof(mgran_shape_of_##name), alignof(mgran_shape_of_##name)))

#define MGRAN_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(mgran::emulator::dynamic_shared())

// A caller's own way to run launches: the kernel's mangled symbol, its launch configuration, and its arguments as
// `count` pointers to `sizes[i]` bytes each. Returns a cudaError_t.
extern "C" {
typedef int (*MgranHook)(const char* kernel, const unsigned grid[3], const unsigned block[3], std::size_t shared_bytes,
                         int count, const void* const* arguments, const std::size_t* sizes);

// From now on `hook` runs the launches, and nothing is emulated; null: emulate again. Not for use during a launch.
void mgran_emulator_hook(MgranHook hook);
}

namespace mgran {
namespace emulator {

// Where a kernel calls an operation, for messages and to tell whether threads meet in the same one.
struct Site {
  const char* operation;
  const char* file;
  int line;
};

enum class Vote { none, count, any, all };
enum class Shuffle { absolute, up, down, exclusive_or };

extern thread_local uint3 thread_index, block_index;
extern thread_local dim3 block_size, grid_size;

void* shared_array(const void* key, const char* name, std::size_t bytes, std::size_t alignment);
void* dynamic_shared();

// Waits for the whole block; returns the vote over `predicate`.
int block_barrier(Site site, int predicate, Vote vote);
void warp_barrier(Site site, unsigned mask);
std::uint64_t warp_exchange(Site site, unsigned mask, std::uint64_t value, int operand, int width, Shuffle kind);
unsigned warp_ballot(Site site, unsigned mask, int predicate);

// Prints what is wrong, and where the block's threads are, and ends the process with status 86.
[[noreturn]] void fail(const char* what);

MgranHook hook();
int run_hook(void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes, int count, const void* const* arguments,
             const std::size_t* sizes);
int run_grid(dim3 grid, dim3 block, std::size_t shared_bytes, void (*call)(void*), void* context);

}  // namespace emulator

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t,
                   Arguments&&... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "the kernel takes another number of arguments");
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<std::decay_t<Parameters>...> arguments;
  } call{kernel, {static_cast<Parameters>(std::forward<Arguments>(arguments))...}};
  if (emulator::hook()) {
    constexpr std::size_t count = sizeof...(Parameters);
    const std::array<std::size_t, count> sizes{sizeof(Parameters)...};
    const auto pointers = std::apply(
        [](const auto&... values) { return std::array<const void*, count>{static_cast<const void*>(&values)...}; },
        call.arguments);
    return static_cast<cudaError_t>(emulator::run_hook(reinterpret_cast<void*>(kernel), grid, block, shared_bytes,
                                                       static_cast<int>(count), pointers.data(), sizes.data()));
  }
  // Every thread copies the arguments: a kernel may change its own.
  const auto run = [](void* context) {
    const Call& c = *static_cast<const Call*>(context);
    std::apply(c.kernel, c.arguments);
  };
  return static_cast<cudaError_t>(emulator::run_grid(grid, block, shared_bytes, run, &call));
}

}  // namespace mgran

#define threadIdx (mgran::emulator::thread_index)
#define blockIdx (mgran::emulator::block_index)
#define blockDim (mgran::emulator::block_size)
#define gridDim (mgran::emulator::grid_size)
#define warpSize 32

#include "intrinsics.h"
