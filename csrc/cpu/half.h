// float16 and bfloat16 on the CPU, for code that has no instructions for them: round to nearest even, by integer
// arithmetic alone, so that every compiler and machine gives the same bits. NaN stays NaN.
#pragma once
#include <cstdint>
#include <cstring>

#include "dispatch.h"

namespace mgran {

// The element types of the ABI: how one is stored, and how it becomes a float and back.
struct Float32 {
  using Storage = float;
};
struct Float16 {
  using Storage = std::uint16_t;
};
struct BFloat16 {
  using Storage = std::uint16_t;
};

MGRAN_INLINE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

MGRAN_INLINE float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

MGRAN_INLINE void encode(float value, Float32, float* out) { *out = value; }

MGRAN_INLINE void encode(float value, BFloat16, std::uint16_t* out) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  // Rounding could carry a NaN into infinity or beyond.
  *out = static_cast<std::uint16_t>(value == value ? rounded : (bits >> 16) | 0x40);
}

MGRAN_INLINE void encode(float value, Float16, std::uint16_t* out) {
  const std::uint32_t bits = bits_of(value), sign = (bits >> 16) & 0x8000;
  std::uint32_t magnitude = bits & 0x7fffffff, half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00 | ((magnitude >> 13) & 0x3ff);
  } else if (magnitude >= 0x47800000) {  // 65536 and more; what lies between 65504 and that rounds below
    half = 0x7c00;
  } else if (magnitude >= 0x38800000) {  // a normal float16: drop 13 bits, move the exponent's bias
    half = (magnitude + 0xfff + ((magnitude >> 13) & 1) - 0x38000000) >> 13;
  } else if (magnitude >= 0x33000000) {  // a subnormal one, in units of 2**-24
    const std::uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000, shift = 126 - (magnitude >> 23);
    const std::uint32_t rest = mantissa & ((1u << shift) - 1), tie = 1u << (shift - 1);
    half = mantissa >> shift;
    half += rest > tie || (rest == tie && (half & 1));
  } else {
    half = 0;
  }
  *out = static_cast<std::uint16_t>(sign | half);
}

MGRAN_INLINE float decode(float value, Float32) { return value; }

MGRAN_INLINE float decode(std::uint16_t value, BFloat16) { return float_of(static_cast<std::uint32_t>(value) << 16); }

MGRAN_INLINE float decode(std::uint16_t value, Float16) {
  // Without branches, which vectorises: all three cases, and masks to choose among them.
  const std::uint32_t sign = static_cast<std::uint32_t>(value & 0x8000) << 16, magnitude = value & 0x7fffu;
  const std::uint32_t shifted = magnitude << 13;
  const std::uint32_t is_small = 0u - static_cast<std::uint32_t>(magnitude < 0x400);
  const std::uint32_t is_special = 0u - static_cast<std::uint32_t>(magnitude >= 0x7c00);
  // A subnormal's bits below an exponent of 2**-14, and that taken off again: exact.
  const std::uint32_t small = bits_of(float_of(shifted + 0x38800000) - 6.103515625e-5f);
  const std::uint32_t other = shifted + 0x38000000 + (is_special & 0x38000000);
  return float_of(sign | (small & is_small) | (other & ~is_small));
}

}  // namespace mgran
