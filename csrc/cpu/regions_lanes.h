// The vectors that regions_tile.h is written in, for AVX2 and AVX-512.
#pragma once
#include <cstdint>

#include "dispatch.h"
#include "regions_label.h"

#if MGRAN_X86

#define MGRAN_LANES_INLINE static MGRAN_INLINE

namespace mgran::avx2 {

#define MGRAN_TARGET MGRAN_AVX2

using Floats = __m256;
using Ints = __m256i;
using Mask = __m256;
constexpr int kLanes = 8, kRows = 4;  // so many rows of a tile at once fit into the registers

MGRAN_TARGET MGRAN_LANES_INLINE Floats set(float v) { return _mm256_set1_ps(v); }
MGRAN_TARGET MGRAN_LANES_INLINE Ints set(std::int32_t v) { return _mm256_set1_epi32(v); }
MGRAN_TARGET MGRAN_LANES_INLINE Floats load(const float* v) { return _mm256_load_ps(v); }
MGRAN_TARGET MGRAN_LANES_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
MGRAN_TARGET MGRAN_LANES_INLINE Floats sub(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
MGRAN_TARGET MGRAN_LANES_INLINE Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
MGRAN_TARGET MGRAN_LANES_INLINE Floats root(Floats a) { return _mm256_sqrt_ps(a); }
// b where a is NaN.
MGRAN_TARGET MGRAN_LANES_INLINE Floats least(Floats a, Floats b) { return _mm256_min_ps(a, b); }
MGRAN_TARGET MGRAN_LANES_INLINE Floats most(Floats a, Floats b) { return _mm256_max_ps(a, b); }
MGRAN_TARGET MGRAN_LANES_INLINE Mask no_lanes() { return _mm256_setzero_ps(); }
MGRAN_TARGET MGRAN_LANES_INLINE Mask less(Floats a, Floats b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
MGRAN_TARGET MGRAN_LANES_INLINE Mask equal(Floats a, Floats b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
MGRAN_TARGET MGRAN_LANES_INLINE Mask any(Mask a, Mask b) { return _mm256_or_ps(a, b); }
MGRAN_TARGET MGRAN_LANES_INLINE Mask exclusive(Mask a, Mask b) { return _mm256_xor_ps(a, b); }
MGRAN_TARGET MGRAN_LANES_INLINE Floats choose(Mask m, Floats yes, Floats no) { return _mm256_blendv_ps(no, yes, m); }
MGRAN_TARGET MGRAN_LANES_INLINE Ints choose(Mask m, Ints yes, Ints no) {
  return _mm256_blendv_epi8(no, yes, _mm256_castps_si256(m));
}
// One bit a lane: is a <= b, or one of them NaN?
MGRAN_TARGET MGRAN_LANES_INLINE std::uint32_t not_greater(Floats a, Floats b) {
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NGT_UQ)));
}
MGRAN_TARGET MGRAN_LANES_INLINE float least_lane(Floats v) {
  __m128 m = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_min_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_min_ss(m, _mm_movehdup_ps(m)));
}
// first, first + 1, ...
MGRAN_TARGET MGRAN_LANES_INLINE Floats count_from(std::int32_t first) {
  const __m256i lanes = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  return _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_set1_epi32(first), lanes));
}
MGRAN_TARGET MGRAN_LANES_INLINE void store_bytes(Ints v, std::uint8_t* out) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(words, words));
}

#include "regions_tile.h"
#undef MGRAN_TARGET

}  // namespace mgran::avx2

namespace mgran::avx512 {

#define MGRAN_TARGET MGRAN_AVX512

using Floats = __m512;
using Ints = __m512i;
using Mask = __mmask16;
constexpr int kLanes = 16, kRows = 8;

MGRAN_TARGET MGRAN_LANES_INLINE Floats set(float v) { return _mm512_set1_ps(v); }
MGRAN_TARGET MGRAN_LANES_INLINE Ints set(std::int32_t v) { return _mm512_set1_epi32(v); }
MGRAN_TARGET MGRAN_LANES_INLINE Floats load(const float* v) { return _mm512_load_ps(v); }
MGRAN_TARGET MGRAN_LANES_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
MGRAN_TARGET MGRAN_LANES_INLINE Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
MGRAN_TARGET MGRAN_LANES_INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
// Masked with every lane: in GCC 12 the plain forms warn of a variable of their own header.
constexpr Mask kAll = 0xffff;
MGRAN_TARGET MGRAN_LANES_INLINE Floats root(Floats a) { return _mm512_maskz_sqrt_ps(kAll, a); }
// b where a is NaN.
MGRAN_TARGET MGRAN_LANES_INLINE Floats least(Floats a, Floats b) { return _mm512_maskz_min_ps(kAll, a, b); }
MGRAN_TARGET MGRAN_LANES_INLINE Floats most(Floats a, Floats b) { return _mm512_maskz_max_ps(kAll, a, b); }
MGRAN_TARGET MGRAN_LANES_INLINE Mask no_lanes() { return 0; }
MGRAN_TARGET MGRAN_LANES_INLINE Mask less(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
MGRAN_TARGET MGRAN_LANES_INLINE Mask equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
MGRAN_TARGET MGRAN_LANES_INLINE Mask any(Mask a, Mask b) { return static_cast<Mask>(a | b); }
MGRAN_TARGET MGRAN_LANES_INLINE Mask exclusive(Mask a, Mask b) { return static_cast<Mask>(a ^ b); }
MGRAN_TARGET MGRAN_LANES_INLINE Floats choose(Mask m, Floats yes, Floats no) { return _mm512_mask_mov_ps(no, m, yes); }
MGRAN_TARGET MGRAN_LANES_INLINE Ints choose(Mask m, Ints yes, Ints no) { return _mm512_mask_mov_epi32(no, m, yes); }
// One bit a lane: is a <= b, or one of them NaN?
MGRAN_TARGET MGRAN_LANES_INLINE std::uint32_t not_greater(Floats a, Floats b) {
  return _mm512_cmp_ps_mask(a, b, _CMP_NGT_UQ);
}
MGRAN_TARGET MGRAN_LANES_INLINE float least_lane(Floats v) {
  const __m256 half = _mm256_min_ps(_mm512_maskz_extractf32x8_ps(0xff, v, 0), _mm512_maskz_extractf32x8_ps(0xff, v, 1));
  __m128 m = _mm_min_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  m = _mm_min_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_min_ss(m, _mm_movehdup_ps(m)));
}
// first, first + 1, ...
MGRAN_TARGET MGRAN_LANES_INLINE Floats count_from(std::int32_t first) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_maskz_cvtepi32_ps(kAll, _mm512_add_epi32(_mm512_set1_epi32(first), lanes));
}
MGRAN_TARGET MGRAN_LANES_INLINE void store_bytes(Ints v, std::uint8_t* out) {
  _mm512_mask_cvtepi32_storeu_epi8(out, kAll, v);
}

#include "regions_tile.h"
#undef MGRAN_TARGET

}  // namespace mgran::avx512

#undef MGRAN_LANES_INLINE
#endif
