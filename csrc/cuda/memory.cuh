// How the kernels of this folder move bytes: 16 at a time, neighbouring lanes taking neighbouring 16 bytes, wherever
// the addresses allow; one element at a time elsewhere (odd sizes, odd addresses, tails).
//
#pragma once
#include <cstdint>

#include "../abi.h"
#include "launch.h"

namespace mgran::cuda {

constexpr std::int64_t kMostBlocks = 2147483647;  // gridDim.x
constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ __forceinline__ bool aligned16(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % 16 == 0;
}

// Bytes `first`, `first + stride`, .. (or 16-byte vectors, counted alike) of `count` go from global to shared memory,
// which is 16-byte aligned. A block has a turn or two to take, so unrolled loops would be code that never runs.
__device__ __forceinline__ void load_bytes(const std::uint8_t* __restrict__ global, std::uint8_t* shared, int count,
                                           int first, int stride) {
  int done = 0;
  if (aligned16(global)) {
    const uint4* from = reinterpret_cast<const uint4*>(global);
    uint4* to = reinterpret_cast<uint4*>(shared);
#pragma unroll 1
    for (int i = first; i < count / 16; i += stride) to[i] = __ldg(from + i);
    done = count / 16 * 16;
  }
#pragma unroll 1
  for (int i = done + first; i < count; i += stride) shared[i] = __ldg(global + i);
}

// The way back.
__device__ __forceinline__ void store_bytes(std::uint8_t* __restrict__ global, const std::uint8_t* shared, int count,
                                            int first, int stride) {
  int done = 0;
  if (aligned16(global)) {
    uint4* to = reinterpret_cast<uint4*>(global);
    const uint4* from = reinterpret_cast<const uint4*>(shared);
#pragma unroll 1
    for (int i = first; i < count / 16; i += stride) to[i] = from[i];
    done = count / 16 * 16;
  }
#pragma unroll 1
  for (int i = done + first; i < count; i += stride) global[i] = shared[i];
}

inline int status(cudaError_t error) { return error == cudaSuccess ? MGRAN_OK : MGRAN_LAUNCH; }

}  // namespace mgran::cuda
