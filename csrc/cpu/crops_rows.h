// The rows of `crops` on the CPU: a row of the frame is blended across into 16-bit integers, two of those down into
// bytes of the crop; for each instruction set.
//
// An output byte is one channel of one pixel; a row of the crop is 3 * width of them, and no vector cares where a
// pixel begins. For every group of output bytes one window of the source row is loaded, and a byte shuffle, made
// once for each crop, brings the left neighbours into place; the same shuffle of the window three bytes further
// brings the right ones.
#pragma once
#include <cstring>

#include "../device/crops.h"
#include "dispatch.h"

namespace mgran {

constexpr int kStep = 64;    // buffers hold a multiple of this many output bytes, and are aligned to it
constexpr int kSlack = 80;   // bytes behind a source row in scratch that a window may touch
constexpr int kToRight = 3;  // bytes from a pixel to its right neighbour

// How the columns of one crop come from a row of the frame.
struct Columns {
  std::int32_t* first;      // [width] left source pixel, counted from `origin`
  std::int16_t* weight;     // [padded] of the right neighbour
  std::int32_t* base;       // [padded / group] where the group's window begins
  std::uint8_t* index;      // [padded, 2] 0x80 (a zero), and the output byte's place in its window
  std::int32_t origin;      // column of the frame
  std::int32_t begin, end;  // columns of the frame that are needed, exclusive end; none: the crop is black
  bool wide;    // a group's sources do not fit in a window: neighbours are brought together one pixel at a time
  bool direct;  // the frame's rows are read where they are: no window leaves the row
};

// Blends left and right neighbours. The window of group g begins at left + base[g] and right + base[g].
using BlendAcross = void(const std::uint8_t* left, const std::uint8_t* right, const Columns& columns, int outputs,
                         std::int16_t* out /* [padded] */);
// Blends two rows of that into bytes.
using BlendDown = void(const std::int16_t* upper, const std::int16_t* lower, int weight, int outputs,
                       std::uint8_t* out /* [outputs] */);

// The taps of an axis, pixels 0 to count.
using FindTaps = void(const CropAxis& axis, int count, std::int32_t* first, std::int32_t* weight);

struct CropKernels {
  FindTaps* find_taps;
  BlendAcross* across;
  BlendDown* down;
  int group, window;  // output bytes of a group, source bytes of its window; group 0: needs no index and no window
};

// A plain loop, inlined into a function for each instruction set, where the compiler vectorises it.
MGRAN_INLINE void find_taps(CropAxis axis, int count, std::int32_t* first, std::int32_t* weight) {
  for (int i = 0; i < count; ++i) {
    const CropTap tap = crop_tap(axis, i);
    first[i] = tap.first;
    weight[i] = tap.weight;
  }
}

inline void find_taps_portable(const CropAxis& axis, int count, std::int32_t* first, std::int32_t* weight) {
  find_taps(axis, count, first, weight);
}

inline void across_portable(const std::uint8_t* left, const std::uint8_t* right, const Columns& columns, int outputs,
                            std::int16_t* out) {
  const std::int16_t* weight = columns.weight;
  for (int i = 0; i < outputs; ++i) out[i] = static_cast<std::int16_t>(blend_across(left[i], right[i], weight[i]));
}

inline void down_portable(const std::int16_t* upper, const std::int16_t* lower, int weight, int outputs,
                          std::uint8_t* out) {
  for (int i = 0; i < outputs; ++i) out[i] = blend_down(upper[i], lower[i], weight);
}

#if MGRAN_X86
// pmulhrsw is lerp's product with its rounding, and with 2**8 the last rounding: (v + 2**6) >> 7.
constexpr short kToByte = 1 << (kWeightBits - kPixelBits);

MGRAN_AVX2 inline void find_taps_avx2(const CropAxis& axis, int count, std::int32_t* first, std::int32_t* weight) {
  find_taps(axis, count, first, weight);
}

MGRAN_AVX2 MGRAN_INLINE __m256i load_windows(const std::uint8_t* source, const std::int32_t* base) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + base[0]));
  const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + base[1]));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

MGRAN_AVX2 inline void across_avx2(const std::uint8_t* left, const std::uint8_t* right, const Columns& columns,
                                   int outputs, std::int16_t* out) {
  const std::int32_t* base = columns.base;
  for (int i = 0; i < outputs; i += 16, base += 2) {
    const __m256i index = _mm256_load_si256(reinterpret_cast<const __m256i*>(columns.index + 2 * i));
    const __m256i weight = _mm256_load_si256(reinterpret_cast<const __m256i*>(columns.weight + i));
    // The shuffle puts a byte into the upper half of its 16 bits, which is one bit too far.
    const __m256i a = _mm256_srli_epi16(_mm256_shuffle_epi8(load_windows(left, base), index), 1);
    const __m256i b = _mm256_srli_epi16(_mm256_shuffle_epi8(load_windows(right, base), index), 1);
    const __m256i v = _mm256_add_epi16(a, _mm256_mulhrs_epi16(_mm256_sub_epi16(b, a), weight));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + i), v);
  }
}

MGRAN_AVX2 MGRAN_INLINE __m256i down16_avx2(const std::int16_t* upper, const std::int16_t* lower, __m256i weight) {
  const __m256i a = _mm256_load_si256(reinterpret_cast<const __m256i*>(upper));
  const __m256i b = _mm256_load_si256(reinterpret_cast<const __m256i*>(lower));
  const __m256i v = _mm256_add_epi16(a, _mm256_mulhrs_epi16(_mm256_sub_epi16(b, a), weight));
  return _mm256_mulhrs_epi16(v, _mm256_set1_epi16(kToByte));
}

MGRAN_AVX2 inline void down_avx2(const std::int16_t* upper, const std::int16_t* lower, int weight, int outputs,
                                 std::uint8_t* out) {
  const __m256i w = _mm256_set1_epi16(static_cast<short>(weight));
  for (int i = 0; i < outputs; i += 32) {
    const __m256i a = down16_avx2(upper + i, lower + i, w), b = down16_avx2(upper + i + 16, lower + i + 16, w);
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
    if (outputs - i >= 32) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), bytes);
    } else {
      alignas(32) std::uint8_t rest[32];
      _mm256_store_si256(reinterpret_cast<__m256i*>(rest), bytes);
      std::memcpy(out + i, rest, static_cast<std::size_t>(outputs - i));
    }
  }
}

// A shuffle of 64 bytes across lanes needs VBMI, which the first machines with AVX-512 lack: those take AVX2.
#define MGRAN_VBMI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx2")))

MGRAN_VBMI inline void find_taps_vbmi(const CropAxis& axis, int count, std::int32_t* first, std::int32_t* weight) {
  find_taps(axis, count, first, weight);
}

MGRAN_VBMI inline void across_vbmi(const std::uint8_t* left, const std::uint8_t* right, const Columns& columns,
                                   int outputs, std::int16_t* out) {
  constexpr __mmask64 kUpperHalves = 0xaaaaaaaaaaaaaaaa;
  const std::int32_t* base = columns.base;
  for (int i = 0; i < outputs; i += 32, ++base) {
    const __m512i index = _mm512_load_si512(columns.index + 2 * i), weight = _mm512_load_si512(columns.weight + i);
    const __m512i l = _mm512_loadu_si512(left + *base), r = _mm512_loadu_si512(right + *base);
    // The shuffle puts a byte into the upper half of its 16 bits, which is one bit too far.
    const __m512i a = _mm512_srli_epi16(_mm512_maskz_permutexvar_epi8(kUpperHalves, index, l), 1);
    const __m512i b = _mm512_srli_epi16(_mm512_maskz_permutexvar_epi8(kUpperHalves, index, r), 1);
    _mm512_store_si512(out + i, _mm512_add_epi16(a, _mm512_mulhrs_epi16(_mm512_sub_epi16(b, a), weight)));
  }
}

MGRAN_VBMI MGRAN_INLINE __m512i down32_vbmi(const std::int16_t* upper, const std::int16_t* lower, __m512i weight) {
  const __m512i a = _mm512_load_si512(upper), b = _mm512_load_si512(lower);
  const __m512i v = _mm512_add_epi16(a, _mm512_mulhrs_epi16(_mm512_sub_epi16(b, a), weight));
  return _mm512_mulhrs_epi16(v, _mm512_set1_epi16(kToByte));
}

MGRAN_VBMI inline void down_vbmi(const std::int16_t* upper, const std::int16_t* lower, int weight, int outputs,
                                 std::uint8_t* out) {
  const __m512i w = _mm512_set1_epi16(static_cast<short>(weight));
  const __m512i order = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
  for (int i = 0; i < outputs; i += 64) {
    const __m512i a = down32_vbmi(upper + i, lower + i, w), b = down32_vbmi(upper + i + 32, lower + i + 32, w);
    // Not the plain permutexvar: in GCC 12 it warns of a variable of its own header.
    const __m512i bytes = _mm512_maskz_permutexvar_epi64(0xff, order, _mm512_packus_epi16(a, b));
    const int rest = outputs - i;
    _mm512_mask_storeu_epi8(out + i, rest >= 64 ? ~__mmask64{0} : (__mmask64{1} << rest) - 1, bytes);
  }
}
#endif

inline CropKernels choose_crop_kernels() {
#if MGRAN_X86
  const Isa best = isa();
  if (best == Isa::avx512 && __builtin_cpu_supports("avx512vbmi"))
    return {find_taps_vbmi, across_vbmi, down_vbmi, 32, 64};
  if (best >= Isa::avx2) return {find_taps_avx2, across_avx2, down_avx2, 8, 16};
#endif
  return {find_taps_portable, across_portable, down_portable, 0, 0};
}

}  // namespace mgran
