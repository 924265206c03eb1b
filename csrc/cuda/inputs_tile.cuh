// The emission of aligned inputs, shared by inputs.cu and align.cu: a tile's crop bytes and region map lie in shared
// memory and leave as 1 + R masked copies.
//
// A pixel's value depends on its byte and channel alone, so a block first computes all 3 * 256 of them: three
// divisions a thread in place of one for every element of the tile.
#pragma once
#include <cstring>

#include "../device/inputs.h"
#include "memory.cuh"

namespace mgran::cuda {

// An element of the output as its bits.
template <typename T>
struct Element;

template <>
struct Element<float> {
  using Bits = std::uint32_t;
  static __device__ __forceinline__ Bits bits(float v) {
    Bits b;
    std::memcpy(&b, &v, sizeof b);
    return b;
  }
};

template <>
struct Element<__half> {
  using Bits = std::uint16_t;
  static __device__ __forceinline__ Bits bits(float v) { return __half_as_ushort(__float2half_rn(v)); }
};

template <>
struct Element<__nv_bfloat16> {
  using Bits = std::uint16_t;
  static __device__ __forceinline__ Bits bits(float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
};

struct Normalization {
  float scale, mean[3], std[3];
};

inline Normalization normalization(const MgranInputs& args) {
  return {args.scale, {args.mean[0], args.mean[1], args.mean[2]}, {args.std[0], args.std[1], args.std[2]}};
}

// All threads of the block; barrier afterwards.
template <typename T, int kThreads>
__device__ __forceinline__ void fill_values(const Normalization& norm,
                                            typename Element<T>::Bits* values /* [3, 256] */) {
#pragma unroll
  for (int c = 0; c < 3; ++c)
    for (int v = threadIdx.x; v < 256; v += kThreads)
      values[256 * c + v] =
          Element<T>::bits(normalize(static_cast<std::uint8_t>(v), norm.scale, norm.mean[c], norm.std[c]));
}

__device__ __forceinline__ uint4 pack(const std::uint32_t (&e)[4]) { return make_uint4(e[0], e[1], e[2], e[3]); }

__device__ __forceinline__ uint4 pack(const std::uint16_t (&e)[8]) {
  return make_uint4(e[0] | static_cast<std::uint32_t>(e[1]) << 16, e[2] | static_cast<std::uint32_t>(e[3]) << 16,
                    e[4] | static_cast<std::uint32_t>(e[5]) << 16, e[6] | static_cast<std::uint32_t>(e[7]) << 16);
}

// Writes the tile of `count` pixels to each of a person's 1 + regions inputs. All threads of the block.
//   bytes, labels, values: shared memory, [3 * count], [count], [3, 256]
//   out: the tile's place in the person's input 0; the next input is `step` elements further
template <typename Bits, int kThreads>
__device__ __forceinline__ void emit(const std::uint8_t* bytes, const std::uint8_t* labels, const Bits* values,
                                     bool empty, int count, int regions, std::int64_t step, Bits* __restrict__ out) {
  constexpr int kVector = 16 / sizeof(Bits);
  const int elements = 3 * count;
  // Either all inputs of a tile start at 16-byte addresses, or it goes one element at a time.
  const bool vectors = aligned16(out) && step % kVector == 0;
  const int whole = vectors ? elements / kVector : 0;
  for (int v = threadIdx.x; v < whole; v += kThreads) {
    Bits value[kVector];
    std::uint8_t label[kVector];
    int pixel = kVector * v / 3, channel = kVector * v - 3 * pixel;
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      value[k] = values[256 * channel + bytes[kVector * v + k]];
      label[k] = labels[pixel];
      const bool last = channel == 2;
      channel = last ? 0 : channel + 1;
      pixel += last;
    }
    Bits* to = out + kVector * v;
    for (int input = 0; input <= regions; ++input, to += step) {
      Bits shown[kVector];
#pragma unroll
      for (int k = 0; k < kVector; ++k) shown[k] = shows(input, label[k], empty) ? value[k] : Bits{0};
      *reinterpret_cast<uint4*>(to) = pack(shown);
    }
  }
  for (int e = kVector * whole + threadIdx.x; e < elements; e += kThreads) {
    const Bits value = values[256 * (e % 3) + bytes[e]];
    const std::uint8_t label = labels[e / 3];
    Bits* to = out + e;
    for (int input = 0; input <= regions; ++input, to += step) *to = shows(input, label, empty) ? value : Bits{0};
  }
}

}  // namespace mgran::cuda
