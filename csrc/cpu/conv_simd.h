// Dot products of `conv`, one structure for each instruction set and element type with the same names, so that
// conv_tile.h is written once. Along the channels, elements lie in groups of 4 bytes: 1 float32, 2 bfloat16, or 4
// bytes (unsigned activations, signed weights). A step multiplies one group of a cell with that of each output
// channel and adds it to as many sums.
#pragma once
#include <cstdint>
#include <cstring>

#include "dispatch.h"
#include "half.h"
#include "pooling_simd.h"

#if MGRAN_X86
#define MGRAN_AVX512_BF16 \
  __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2" MGRAN_WIDE)))
#define MGRAN_AVX512_VNNI \
  __attribute__((target("avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2" MGRAN_WIDE)))
#endif

namespace mgran {

struct UInt8 {
  using Storage = std::uint8_t;
};

MGRAN_INLINE std::int32_t conv_group(const void* p) {
  std::int32_t group;
  std::memcpy(&group, p, sizeof group);
  return group;
}

// What follows has: Vector (pooling_simd.h), Group, Sum; kRows x kVectors sums fit the registers.
struct PortableConv {
  using Vector = PortableVector;
  using Group = std::int32_t;
  static constexpr int kRows = 4, kVectors = 8;

  static MGRAN_INLINE Group group(const std::uint8_t* p) { return conv_group(p); }
  static MGRAN_INLINE Group weights(const std::int32_t* p) { return *p; }
  static MGRAN_INLINE float load(const std::uint8_t* p, UInt8) { return *p; }
  template <typename T>
  static MGRAN_INLINE float load(const typename T::Storage* p, T type) {
    return decode(*p, type);
  }
  static MGRAN_INLINE void save(std::uint8_t* p, float v, UInt8) {
    v = v > 0.0f ? v : 0.0f;  // NaN becomes 0
    *p = static_cast<std::uint8_t>(PortableVector::nearest(v < 255.0f ? v : 255.0f));
  }
  template <typename T>
  static MGRAN_INLINE void save(typename T::Storage* p, float v, T type) {
    encode(v, type, p);
  }
};

struct PortableConvFloat32 : PortableConv {
  using Sum = float;
  static MGRAN_INLINE Sum zero() { return 0.0f; }
  static MGRAN_INLINE Sum dot(Sum sum, Group a, Group w) {
    return sum + float_of(static_cast<std::uint32_t>(a)) * float_of(static_cast<std::uint32_t>(w));
  }
  static MGRAN_INLINE float real(Sum sum) { return sum; }
};

struct PortableConvBFloat16 : PortableConv {
  using Sum = float;
  static MGRAN_INLINE Sum zero() { return 0.0f; }
  static MGRAN_INLINE float low(Group g) { return float_of(static_cast<std::uint32_t>(g) << 16); }
  static MGRAN_INLINE float high(Group g) { return float_of(static_cast<std::uint32_t>(g) & 0xffff0000u); }
  static MGRAN_INLINE Sum dot(Sum sum, Group a, Group w) { return sum + low(a) * low(w) + high(a) * high(w); }
  static MGRAN_INLINE float real(Sum sum) { return sum; }
};

struct PortableConvUInt8 : PortableConv {
  using Sum = std::int32_t;
  static MGRAN_INLINE Sum zero() { return 0; }
  static MGRAN_INLINE Sum dot(Sum sum, Group a, Group w) {
    for (int byte = 0; byte < 4; ++byte)
      sum += static_cast<std::int32_t>(static_cast<std::uint8_t>(static_cast<std::uint32_t>(a) >> (8 * byte))) *
             static_cast<std::int8_t>(static_cast<std::uint32_t>(w) >> (8 * byte));
    return sum;
  }
  static MGRAN_INLINE float real(Sum sum) { return static_cast<float>(sum); }
};

#if MGRAN_X86

struct Avx2Conv {
  using Vector = Avx2Vector;
  using Group = __m256i;
  static constexpr int kRows = 6, kVectors = 2;

  MGRAN_AVX2 static MGRAN_INLINE Group group(const std::uint8_t* p) { return _mm256_set1_epi32(conv_group(p)); }
  MGRAN_AVX2 static MGRAN_INLINE Group weights(const std::int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  MGRAN_AVX2 static MGRAN_INLINE __m256 load(const std::uint8_t* p, UInt8) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  template <typename T>
  MGRAN_AVX2 static MGRAN_INLINE __m256 load(const typename T::Storage* p, T type) {
    return Vector::load(p, type);
  }
  MGRAN_AVX2 static MGRAN_INLINE void save(std::uint8_t* p, __m256 v, UInt8) {
    // The second operand is taken where either is NaN.
    v = _mm256_min_ps(_mm256_max_ps(v, _mm256_setzero_ps()), _mm256_set1_ps(255.0f));
    const __m256i whole = _mm256_cvtps_epi32(v);
    const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }
  template <typename T>
  MGRAN_AVX2 static MGRAN_INLINE void save(typename T::Storage* p, __m256 v, T type) {
    Vector::save<false>(p, v, type);
  }
};

struct Avx2ConvFloat32 : Avx2Conv {
  using Sum = __m256;
  MGRAN_AVX2 static MGRAN_INLINE Sum zero() { return _mm256_setzero_ps(); }
  MGRAN_AVX2 static MGRAN_INLINE Sum dot(Sum sum, Group a, Group w) {
    return _mm256_fmadd_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(w), sum);
  }
  MGRAN_AVX2 static MGRAN_INLINE __m256 real(Sum sum) { return sum; }
};

struct Avx2ConvBFloat16 : Avx2ConvFloat32 {
  MGRAN_AVX2 static MGRAN_INLINE Sum dot(Sum sum, Group a, Group w) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    sum = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(w, 16)),
                          sum);
    return _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(a, high)),
                           _mm256_castsi256_ps(_mm256_and_si256(w, high)), sum);
  }
};

struct Avx2ConvUInt8 : Avx2Conv {
  using Sum = __m256i;
  MGRAN_AVX2 static MGRAN_INLINE Sum zero() { return _mm256_setzero_si256(); }
  // By 16-bit products: those of 8-bit ones would be added up in 16 bits, which they do not fit.
  MGRAN_AVX2 static MGRAN_INLINE Sum dot(Sum sum, Group a, Group w) {
    const __m256i even =
        _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(w, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
  }
  MGRAN_AVX2 static MGRAN_INLINE __m256 real(Sum sum) { return _mm256_cvtepi32_ps(sum); }
};

struct Avx512Conv {
  using Vector = Avx512Vector;
  using Group = __m512i;
  static constexpr int kRows = 14, kVectors = 2;

  MGRAN_AVX512 static MGRAN_INLINE Group group(const std::uint8_t* p) { return _mm512_set1_epi32(conv_group(p)); }
  MGRAN_AVX512 static MGRAN_INLINE Group weights(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  MGRAN_AVX512 static MGRAN_INLINE __m512 load(const std::uint8_t* p, UInt8) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  template <typename T>
  MGRAN_AVX512 static MGRAN_INLINE __m512 load(const typename T::Storage* p, T type) {
    return Vector::load(p, type);
  }
  MGRAN_AVX512 static MGRAN_INLINE void save(std::uint8_t* p, __m512 v, UInt8) {
    // The second operand is taken where either is NaN.
    v = _mm512_min_ps(_mm512_max_ps(v, _mm512_setzero_ps()), _mm512_set1_ps(255.0f));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  template <typename T>
  MGRAN_AVX512 static MGRAN_INLINE void save(typename T::Storage* p, __m512 v, T type) {
    Vector::save<false>(p, v, type);
  }
};

struct Avx512ConvFloat32 : Avx512Conv {
  using Sum = __m512;
  MGRAN_AVX512 static MGRAN_INLINE Sum zero() { return _mm512_setzero_ps(); }
  MGRAN_AVX512 static MGRAN_INLINE Sum dot(Sum sum, Group a, Group w) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(w), sum);
  }
  MGRAN_AVX512 static MGRAN_INLINE __m512 real(Sum sum) { return sum; }
};

struct Avx512ConvBFloat16 : Avx512ConvFloat32 {
  MGRAN_AVX512 static MGRAN_INLINE Sum dot(Sum sum, Group a, Group w) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a, 16)), _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)),
                          sum);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a, high)),
                           _mm512_castsi512_ps(_mm512_and_si512(w, high)), sum);
  }
};

struct Avx512ConvUInt8 : Avx512Conv {
  using Sum = __m512i;
  MGRAN_AVX512 static MGRAN_INLINE Sum zero() { return _mm512_setzero_si512(); }
  MGRAN_AVX512 static MGRAN_INLINE Sum dot(Sum sum, Group a, Group w) {
    const __m512i even =
        _mm512_madd_epi16(_mm512_and_si512(a, _mm512_set1_epi16(255)), _mm512_srai_epi16(_mm512_slli_epi16(w, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(a, 8), _mm512_srai_epi16(w, 8));
    return _mm512_add_epi32(sum, _mm512_add_epi32(even, odd));
  }
  MGRAN_AVX512 static MGRAN_INLINE __m512 real(Sum sum) { return _mm512_cvtepi32_ps(sum); }
};

struct Avx512NativeBFloat16 : Avx512ConvFloat32 {
  MGRAN_AVX512_BF16 static MGRAN_INLINE Sum dot(Sum sum, Group a, Group w) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(w));
  }
};

struct Avx512NativeUInt8 : Avx512ConvUInt8 {
  MGRAN_AVX512_VNNI static MGRAN_INLINE Sum dot(Sum sum, Group a, Group w) { return _mm512_dpbusd_epi32(sum, a, w); }
};

#endif

}  // namespace mgran
