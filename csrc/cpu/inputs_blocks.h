// The inner loops of `inputs` on the CPU, for each instruction set: 16 pixels are 48 crop bytes; they are
// normalised once and stored once for every input, zeroed where the input does not show the pixel.
// Elements stay in crop order (pixel by pixel, three channels each), so a pixel's mask bit counts three times.
#pragma once
#include "../device/inputs.h"
#include "../inputs.h"
#include "dispatch.h"
#include "half.h"
#include "inputs_pages.h"

namespace mgran {

// A run of pixels of one person.
template <typename Storage>
struct InputsSpan {
  const std::uint8_t* crops;  // [pixels, 3]
  const std::uint8_t* map;    // [pixels]
  Storage* out;               // [1 + regions, pixels, 3], inputs `plane` elements apart
  std::int64_t plane;
  std::int64_t pixels;
  const MgranInputs* args;
  bool empty;  // the person's whole map is 0
};

// Each of these handles whole blocks from the start of the span and returns how many pixels it did.

template <typename T>
std::int64_t inputs_portable(const InputsSpan<typename T::Storage>& span) {
  const MgranInputs& args = *span.args;
  constexpr int kPixels = 16;
  float mean[3 * kPixels], std[3 * kPixels];  // by element, so that the loop over elements vectorises
  for (int i = 0; i < 3 * kPixels; ++i) {
    mean[i] = args.mean[i % 3];
    std[i] = args.std[i % 3];
  }
  for (std::int64_t p = 0; p < span.pixels; p += kPixels) {
    const int count = static_cast<int>(span.pixels - p < kPixels ? span.pixels - p : kPixels);
    float normalized[3 * kPixels];
    typename T::Storage values[3 * kPixels];
    for (int i = 0; i < 3 * count; ++i) normalized[i] = normalize(span.crops[3 * p + i], args.scale, mean[i], std[i]);
    for (int i = 0; i < 3 * count; ++i) encode(normalized[i], T{}, values + i);
    for (int index = 0; index <= args.regions; ++index) {
      typename T::Storage* out = span.out + index * span.plane + 3 * p;
      for (int i = 0; i < count; ++i) {
        const bool shown = shows(index, span.map[p + i], span.empty);
        for (int c = 0; c < 3; ++c) out[3 * i + c] = shown ? values[3 * i + c] : typename T::Storage{};
      }
    }
  }
  return span.pixels;
}

#if MGRAN_X86

// AVX2: eight elements are a vector; vector j begins with channel 2 * j % 3. Masks are bytes, widened to elements.

MGRAN_AVX2 MGRAN_INLINE __m256 inputs_normalize(__m128i bytes, __m256 scale, __m256 mean, __m256 std) {
  const __m256 pixel = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
  return _mm256_div_ps(_mm256_sub_ps(_mm256_mul_ps(pixel, scale), mean), std);
}

MGRAN_AVX2 MGRAN_INLINE __m256i inputs_round_bfloat16(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256 is_nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, nan, _mm256_castps_si256(is_nan)), 16);
}

// 16 floats -> 16 elements of 16 bits.
MGRAN_AVX2 MGRAN_INLINE __m256i inputs_encode(__m256 low, __m256 high, BFloat16) {
  const __m256i packed = _mm256_packus_epi32(inputs_round_bfloat16(low), inputs_round_bfloat16(high));
  return _mm256_permute4x64_epi64(packed, 0xd8);  // packus works within halves
}

MGRAN_AVX2 MGRAN_INLINE __m256i inputs_encode(__m256 low, __m256 high, Float16) {
  constexpr int kNearestEven = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return _mm256_set_m128i(_mm256_cvtps_ph(high, kNearestEven), _mm256_cvtps_ph(low, kNearestEven));
}

template <bool kStream>
MGRAN_AVX2 MGRAN_INLINE void inputs_store(void* to, __m256i value) {
  if (kStream)
    _mm256_stream_si256(static_cast<__m256i*>(to), value);
  else
    _mm256_storeu_si256(static_cast<__m256i*>(to), value);
}

// Three bytes of mask for each of 16 pixels: part k covers elements 16 * k to 16 * k + 15.
MGRAN_AVX2 MGRAN_INLINE __m128i inputs_triple(__m128i pixels, int k) {
  const __m128i first = _mm_setr_epi8(0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5);
  const __m128i second = _mm_setr_epi8(5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 9, 10, 10);
  const __m128i third = _mm_setr_epi8(10, 11, 11, 11, 12, 12, 12, 13, 13, 13, 14, 14, 14, 15, 15, 15);
  return _mm_shuffle_epi8(pixels, k == 0 ? first : k == 1 ? second : third);
}

// 48 normalised floats, and how an input's share of them is stored.
template <bool kStream>
MGRAN_AVX2 MGRAN_INLINE void inputs_store_masked(float* out, const __m256* values, __m128i pixels, Float32) {
  for (int k = 0; k < 3; ++k) {
    const __m128i mask = inputs_triple(pixels, k);
    const __m256i low = _mm256_cvtepi8_epi32(mask), high = _mm256_cvtepi8_epi32(_mm_srli_si128(mask, 8));
    inputs_store<kStream>(out + 16 * k, _mm256_and_si256(low, _mm256_castps_si256(values[2 * k])));
    inputs_store<kStream>(out + 16 * k + 8, _mm256_and_si256(high, _mm256_castps_si256(values[2 * k + 1])));
  }
}

template <bool kStream>
MGRAN_AVX2 MGRAN_INLINE void inputs_store_masked(std::uint16_t* out, const __m256i* values, __m128i pixels) {
  for (int k = 0; k < 3; ++k)
    inputs_store<kStream>(out + 16 * k, _mm256_and_si256(_mm256_cvtepi8_epi16(inputs_triple(pixels, k)), values[k]));
}

template <typename T, bool kStream>
MGRAN_AVX2 std::int64_t inputs_avx2(const InputsSpan<typename T::Storage>& span) {
  const MgranInputs& args = *span.args;
  const __m256 scale = _mm256_set1_ps(args.scale);
  __m256 mean[3], std[3];
  for (int j = 0; j < 3; ++j) {
    float m[8], s[8];
    for (int i = 0; i < 8; ++i) {
      m[i] = args.mean[(2 * j + i) % 3];
      s[i] = args.std[(2 * j + i) % 3];
    }
    mean[j] = _mm256_loadu_ps(m);
    std[j] = _mm256_loadu_ps(s);
  }
  const __m128i everything = span.empty ? _mm_set1_epi8(-1) : _mm_setzero_si128();
  constexpr std::int64_t kBlock = 16;  // pixels
  std::int64_t p = 0;
  for (; p + kBlock <= span.pixels; p += kBlock) {
    const std::uint8_t* crop = span.crops + 3 * p;
    __m256 values[6];
    for (int j = 0; j < 6; ++j) {
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(crop + 8 * j));
      values[j] = inputs_normalize(bytes, scale, mean[j % 3], std[j % 3]);
    }
    const __m128i map = _mm_loadu_si128(reinterpret_cast<const __m128i*>(span.map + p));
    const __m128i background = _mm_cmpeq_epi8(map, _mm_setzero_si128());
    __m128i pixels = _mm_or_si128(everything, _mm_andnot_si128(background, _mm_set1_epi8(-1)));
    typename T::Storage* out = span.out + 3 * p;
    if constexpr (sizeof(typename T::Storage) == 4) {
      for (int index = 0;; out += span.plane) {
        inputs_store_masked<kStream>(out, values, pixels, T{});
        if (++index > args.regions) break;
        pixels = _mm_cmpeq_epi8(map, _mm_set1_epi8(static_cast<char>(index)));
      }
    } else {
      __m256i encoded[3];
      for (int k = 0; k < 3; ++k) encoded[k] = inputs_encode(values[2 * k], values[2 * k + 1], T{});
      for (int index = 0;; out += span.plane) {
        inputs_store_masked<kStream>(out, encoded, pixels);
        if (++index > args.regions) break;
        pixels = _mm_cmpeq_epi8(map, _mm_set1_epi8(static_cast<char>(index)));
      }
    }
  }
  if (kStream) end_stream();
  return p;
}

// AVX-512: 16 elements are a vector; vector k begins with channel k. Masks are bits, spread to every third.

MGRAN_AVX512 MGRAN_INLINE __m512 inputs_normalize(__m128i bytes, __m512 scale, __m512 mean, __m512 std) {
  const __m512 pixel = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
  return _mm512_div_ps(_mm512_sub_ps(_mm512_mul_ps(pixel, scale), mean), std);
}

MGRAN_AVX512 MGRAN_INLINE __m256i inputs_encode(__m512 value, Float16) {
  return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

MGRAN_AVX512 MGRAN_INLINE __m256i inputs_encode(__m512 value, BFloat16) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}

template <bool kStream>
MGRAN_AVX512 MGRAN_INLINE void inputs_store(void* to, __m512i value) {
  if (kStream)
    _mm512_stream_si512(static_cast<__m512i*>(to), value);
  else
    _mm512_storeu_si512(to, value);
}

// The 48 elements of 16 pixels as floats: v[0] to v[2].
MGRAN_AVX512 MGRAN_INLINE void inputs_load(const std::uint8_t* crop, __m512 scale, const __m512* mean,
                                           const __m512* std, __m512* v) {
  for (int k = 0; k < 3; ++k)
    v[k] = inputs_normalize(_mm_loadu_si128(reinterpret_cast<const __m128i*>(crop) + k), scale, mean[k], std[k]);
}

// Pixel i's bit goes to bits 3 * i, 3 * i + 1 and 3 * i + 2.
MGRAN_AVX512 MGRAN_INLINE std::uint64_t inputs_triple(unsigned pixels) { return _pdep_u64(pixels, 0x249249249249) * 7; }

// A block of float32: 16 pixels are three vectors.
template <bool kStream>
MGRAN_AVX512 MGRAN_INLINE void inputs_block(const InputsSpan<float>& span, std::int64_t p, __m512 scale,
                                            const __m512* mean, const __m512* std, Float32) {
  __m512 v[3];
  inputs_load(span.crops + 3 * p, scale, mean, std, v);
  const __m128i map = _mm_loadu_si128(reinterpret_cast<const __m128i*>(span.map + p));
  unsigned pixels = _mm_test_epi8_mask(map, map) | (span.empty ? 0xffff : 0);
  float* out = span.out + 3 * p;
  for (int index = 0;; out += span.plane) {
    const std::uint64_t elements = inputs_triple(pixels);
    for (int k = 0; k < 3; ++k) {
      const __mmask16 mask = static_cast<__mmask16>(elements >> 16 * k);
      inputs_store<kStream>(out + 16 * k, _mm512_castps_si512(_mm512_maskz_mov_ps(mask, v[k])));
    }
    if (++index > span.args->regions) break;
    pixels = _mm_cmpeq_epi8_mask(map, _mm_set1_epi8(static_cast<char>(index)));
  }
}

// A block of 16-bit elements: 32 pixels are three vectors, of which the middle one has 16 elements of either half.
template <bool kStream, typename T>
MGRAN_AVX512 MGRAN_INLINE void inputs_block(const InputsSpan<std::uint16_t>& span, std::int64_t p, __m512 scale,
                                            const __m512* mean, const __m512* std, T) {
  __m512 v[6];
  inputs_load(span.crops + 3 * p, scale, mean, std, v);
  inputs_load(span.crops + 3 * p + 48, scale, mean, std, v + 3);
  __m512i packed[3];
  for (int k = 0; k < 3; ++k)
    packed[k] =
        _mm512_inserti64x4(_mm512_castsi256_si512(inputs_encode(v[2 * k], T{})), inputs_encode(v[2 * k + 1], T{}), 1);
  const __m256i map = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(span.map + p));
  unsigned pixels = _mm256_test_epi8_mask(map, map) | (span.empty ? 0xffffffff : 0);
  std::uint16_t* out = span.out + 3 * p;
  for (int index = 0;; out += span.plane) {
    const std::uint64_t low = inputs_triple(pixels & 0xffff), high = inputs_triple(pixels >> 16);
    const std::uint64_t masks[3] = {low, low >> 32 | high << 16, high >> 16};
    for (int k = 0; k < 3; ++k)
      inputs_store<kStream>(out + 32 * k, _mm512_maskz_mov_epi16(static_cast<__mmask32>(masks[k]), packed[k]));
    if (++index > span.args->regions) break;
    pixels = _mm256_cmpeq_epi8_mask(map, _mm256_set1_epi8(static_cast<char>(index)));
  }
}

template <typename T, bool kStream>
MGRAN_AVX512 std::int64_t inputs_avx512(const InputsSpan<typename T::Storage>& span) {
  constexpr std::int64_t kBlock = sizeof(typename T::Storage) == 4 ? 16 : 32;  // pixels
  const MgranInputs& args = *span.args;
  const __m512 scale = _mm512_set1_ps(args.scale);
  __m512 mean[3], std[3];
  for (int k = 0; k < 3; ++k) {
    float m[16], s[16];
    for (int i = 0; i < 16; ++i) {
      m[i] = args.mean[(k + i) % 3];
      s[i] = args.std[(k + i) % 3];
    }
    mean[k] = _mm512_loadu_ps(m);
    std[k] = _mm512_loadu_ps(s);
  }
  std::int64_t p = 0;
  for (; p + kBlock <= span.pixels; p += kBlock) inputs_block<kStream>(span, p, scale, mean, std, T{});
  if (kStream) end_stream();
  return p;
}

#endif

// The loop for this machine. kStream: stores past the caches; wants `out` and `plane` in multiples of 64 bytes.
template <typename T, bool kStream>
auto inputs_blocks() {
  using Function = std::int64_t(const InputsSpan<typename T::Storage>&);
  return choose<Function>(inputs_portable<T>, MGRAN_ONLY_X86((inputs_avx2<T, kStream>)),
                          MGRAN_ONLY_X86((inputs_avx512<T, kStream>)));
}

}  // namespace mgran
