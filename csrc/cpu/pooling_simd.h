// Vectors of float32 for `pooling`, one structure for each instruction set with the same names, so that
// pooling_rows.h is written once. Elements of any type are loaded as float32 and rounded to nearest even on storing.
#pragma once
#include <cmath>

#include "dispatch.h"
#include "half.h"

namespace mgran {

struct PortableVector {
  using F = float;
  static constexpr int kWidth = 1;

  // By masks: compilers vectorise that, where a condition would become a branch.
  static MGRAN_INLINE F pick(bool condition, F then, F otherwise) {
    const std::uint32_t mask = 0u - static_cast<std::uint32_t>(condition);
    return float_of((bits_of(then) & mask) | (bits_of(otherwise) & ~mask));
  }
  static MGRAN_INLINE F set(float v) { return v; }
  static MGRAN_INLINE F load(const float* p) { return *p; }
  template <typename T>
  static MGRAN_INLINE F load(const typename T::Storage* p, T type) {
    return decode(*p, type);
  }
  template <bool kStream, typename T>
  static MGRAN_INLINE void save(typename T::Storage* p, F v, T type) {
    encode(v, type, p);
  }
  // For values that the element type holds exactly.
  template <bool kStream, typename T>
  static MGRAN_INLINE void save_exact(typename T::Storage* p, F v, T type) {
    encode(v, type, p);
  }
  static MGRAN_INLINE F add(F a, F b) { return a + b; }
  static MGRAN_INLINE F sub(F a, F b) { return a - b; }
  static MGRAN_INLINE F mul(F a, F b) { return a * b; }
  static MGRAN_INLINE F div(F a, F b) { return a / b; }
  static MGRAN_INLINE F fma(F a, F b, F c) { return a * b + c; }
  static MGRAN_INLINE F fms(F a, F b, F c) { return a * b - c; }
  static MGRAN_INLINE F root(F a) { return std::sqrt(a); }
  // x, or `low` where x is smaller; NaN stays.
  static MGRAN_INLINE F at_least(F x, F low) { return pick(x < low, low, x); }
  static MGRAN_INLINE F at_most(F x, F high) { return pick(x > high, high, x); }
  // The larger one; NaN where either is NaN.
  static MGRAN_INLINE F largest(F a, F x) { return pick((x > a) | (x != x), x, a); }
  static MGRAN_INLINE F where_equal(F a, F b, F then, F otherwise) { return pick(a == b, then, otherwise); }
  // v + more where a == b, else v.
  static MGRAN_INLINE F add_where_equal(F a, F b, F v, F more) { return v + pick(a == b, more, 0.0f); }
  static MGRAN_INLINE F where_reaches(F a, F b, F then, F otherwise) { return pick(a >= b, then, otherwise); }
  static MGRAN_INLINE bool all_within(F v, F low, F high) { return v >= low && v <= high; }
  // Nearest integer; |v| < 2**22.
  static MGRAN_INLINE F nearest(F v) { return (v + 12582912.0f) - 12582912.0f; }
  // v = m * 2**exponent with m between sqrt(1/2) and sqrt(2); v positive and normal. Returns m.
  static MGRAN_INLINE F split(F v, F& exponent) {
    const std::int32_t bits = static_cast<std::int32_t>(bits_of(v));
    const std::int32_t e = (bits - 0x3f3504f3) >> 23;
    exponent = static_cast<float>(e);
    return float_of(static_cast<std::uint32_t>(bits) - (static_cast<std::uint32_t>(e) << 23));
  }
  // v * 2**n, n an integer between -250 and 250. In two steps: half of n always is an exponent.
  static MGRAN_INLINE F scale(F v, F n) {
    const std::int32_t all = static_cast<std::int32_t>(n), half = all >> 1;
    return v * float_of(static_cast<std::uint32_t>(half + 127) << 23) *
           float_of(static_cast<std::uint32_t>(all - half + 127) << 23);
  }
};

#if MGRAN_X86

struct Avx2Vector {
  using F = __m256;
  static constexpr int kWidth = 8;

  MGRAN_AVX2 static MGRAN_INLINE F set(float v) { return _mm256_set1_ps(v); }
  MGRAN_AVX2 static MGRAN_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
  MGRAN_AVX2 static MGRAN_INLINE F load(const float* p, Float32) { return _mm256_loadu_ps(p); }
  MGRAN_AVX2 static MGRAN_INLINE F load(const std::uint16_t* p, Float16) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  MGRAN_AVX2 static MGRAN_INLINE F load(const std::uint16_t* p, BFloat16) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  template <bool kStream>
  MGRAN_AVX2 static MGRAN_INLINE void save(float* p, F v, Float32) {
    if (kStream)
      _mm256_stream_ps(p, v);
    else
      _mm256_storeu_ps(p, v);
  }
  template <bool kStream>
  MGRAN_AVX2 static MGRAN_INLINE void put(std::uint16_t* p, __m128i v) {
    if (kStream)
      _mm_stream_si128(reinterpret_cast<__m128i*>(p), v);
    else
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v);
  }
  template <bool kStream>
  MGRAN_AVX2 static MGRAN_INLINE void save(std::uint16_t* p, F v, Float16) {
    put<kStream>(p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  template <bool kStream>
  MGRAN_AVX2 static MGRAN_INLINE void save(std::uint16_t* p, F v, BFloat16) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, nan, is_nan), 16);
    put<kStream>(p, _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1)));
  }
  template <bool kStream, typename T>
  MGRAN_AVX2 static MGRAN_INLINE void save_exact(typename T::Storage* p, F v, T type) {
    save<kStream>(p, v, type);
  }
  template <bool kStream>
  MGRAN_AVX2 static MGRAN_INLINE void save_exact(std::uint16_t* p, F v, BFloat16) {
    const __m256i top = _mm256_srli_epi32(_mm256_castps_si256(v), 16);
    put<kStream>(p, _mm_packus_epi32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1)));
  }
  MGRAN_AVX2 static MGRAN_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
  MGRAN_AVX2 static MGRAN_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  MGRAN_AVX2 static MGRAN_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  MGRAN_AVX2 static MGRAN_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
  MGRAN_AVX2 static MGRAN_INLINE F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  MGRAN_AVX2 static MGRAN_INLINE F fms(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }
  MGRAN_AVX2 static MGRAN_INLINE F root(F a) { return _mm256_sqrt_ps(a); }
  // The instruction returns its second argument where either is NaN.
  MGRAN_AVX2 static MGRAN_INLINE F at_least(F x, F low) { return _mm256_max_ps(low, x); }
  MGRAN_AVX2 static MGRAN_INLINE F at_most(F x, F high) { return _mm256_min_ps(high, x); }
  MGRAN_AVX2 static MGRAN_INLINE F largest(F a, F x) {
    return _mm256_blendv_ps(_mm256_max_ps(x, a), x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }
  MGRAN_AVX2 static MGRAN_INLINE F where_equal(F a, F b, F then, F otherwise) {
    return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(a, b, _CMP_EQ_OQ));
  }
  MGRAN_AVX2 static MGRAN_INLINE F add_where_equal(F a, F b, F v, F more) {
    return _mm256_add_ps(v, _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ), more));
  }
  MGRAN_AVX2 static MGRAN_INLINE F where_reaches(F a, F b, F then, F otherwise) {
    return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(a, b, _CMP_GE_OQ));
  }
  MGRAN_AVX2 static MGRAN_INLINE bool all_within(F v, F low, F high) {
    const __m256 within = _mm256_and_ps(_mm256_cmp_ps(v, low, _CMP_GE_OQ), _mm256_cmp_ps(v, high, _CMP_LE_OQ));
    return _mm256_movemask_ps(within) == 0xff;
  }
  MGRAN_AVX2 static MGRAN_INLINE F nearest(F v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  MGRAN_AVX2 static MGRAN_INLINE F split(F v, F& exponent) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i e = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(0x3f3504f3)), 23);
    exponent = _mm256_cvtepi32_ps(e);
    return _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(e, 23)));
  }
  MGRAN_AVX2 static MGRAN_INLINE F scale(F v, F n) {
    const __m256i all = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(all, 1), bias = _mm256_set1_epi32(127);
    const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(all, half), bias), 23);
    return _mm256_mul_ps(_mm256_mul_ps(v, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
  }
};

struct Avx512Vector {
  using F = __m512;
  static constexpr int kWidth = 16;

  MGRAN_AVX512 static MGRAN_INLINE F set(float v) { return _mm512_set1_ps(v); }
  MGRAN_AVX512 static MGRAN_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
  MGRAN_AVX512 static MGRAN_INLINE F load(const float* p, Float32) { return _mm512_loadu_ps(p); }
  MGRAN_AVX512 static MGRAN_INLINE F load(const std::uint16_t* p, Float16) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  MGRAN_AVX512 static MGRAN_INLINE F load(const std::uint16_t* p, BFloat16) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  template <bool kStream>
  MGRAN_AVX512 static MGRAN_INLINE void save(float* p, F v, Float32) {
    if (kStream)
      _mm512_stream_ps(p, v);
    else
      _mm512_storeu_ps(p, v);
  }
  template <bool kStream>
  MGRAN_AVX512 static MGRAN_INLINE void put(std::uint16_t* p, __m256i v) {
    if (kStream)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(p), v);
    else
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  }
  template <bool kStream>
  MGRAN_AVX512 static MGRAN_INLINE void save(std::uint16_t* p, F v, Float16) {
    put<kStream>(p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  template <bool kStream>
  MGRAN_AVX512 static MGRAN_INLINE void save(std::uint16_t* p, F v, BFloat16) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    put<kStream>(p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
  }
  template <bool kStream, typename T>
  MGRAN_AVX512 static MGRAN_INLINE void save_exact(typename T::Storage* p, F v, T type) {
    save<kStream>(p, v, type);
  }
  template <bool kStream>
  MGRAN_AVX512 static MGRAN_INLINE void save_exact(std::uint16_t* p, F v, BFloat16) {
    put<kStream>(p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(v), 16)));
  }
  MGRAN_AVX512 static MGRAN_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
  MGRAN_AVX512 static MGRAN_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  MGRAN_AVX512 static MGRAN_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  MGRAN_AVX512 static MGRAN_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
  MGRAN_AVX512 static MGRAN_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  MGRAN_AVX512 static MGRAN_INLINE F fms(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
  MGRAN_AVX512 static MGRAN_INLINE F root(F a) { return _mm512_sqrt_ps(a); }
  MGRAN_AVX512 static MGRAN_INLINE F at_least(F x, F low) { return _mm512_max_ps(low, x); }
  MGRAN_AVX512 static MGRAN_INLINE F at_most(F x, F high) { return _mm512_min_ps(high, x); }
  MGRAN_AVX512 static MGRAN_INLINE F largest(F a, F x) {
    return _mm512_mask_mov_ps(_mm512_max_ps(x, a), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
  }
  MGRAN_AVX512 static MGRAN_INLINE F where_equal(F a, F b, F then, F otherwise) {
    return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), then);
  }
  MGRAN_AVX512 static MGRAN_INLINE F add_where_equal(F a, F b, F v, F more) {
    return _mm512_mask_add_ps(v, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), v, more);
  }
  MGRAN_AVX512 static MGRAN_INLINE F where_reaches(F a, F b, F then, F otherwise) {
    return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), then);
  }
  MGRAN_AVX512 static MGRAN_INLINE bool all_within(F v, F low, F high) {
    return _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(v, low, _CMP_GE_OQ), v, high, _CMP_LE_OQ) == 0xffff;
  }
  MGRAN_AVX512 static MGRAN_INLINE F nearest(F v) {
    return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  MGRAN_AVX512 static MGRAN_INLINE F split(F v, F& exponent) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i e = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3)), 23);
    exponent = _mm512_cvtepi32_ps(e);
    return _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(e, 23)));
  }
  MGRAN_AVX512 static MGRAN_INLINE F scale(F v, F n) { return _mm512_scalef_ps(v, n); }
};

#endif

}  // namespace mgran
