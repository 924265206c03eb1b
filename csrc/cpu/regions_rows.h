// The rows of `regions` on the CPU: from a mask's rows to foreground bytes, and what is found out about a whole map.
// Plain loops, inlined into functions for each instruction set (dispatch.h), where the compiler vectorises them.
#pragma once
#include <cmath>
#include <cstring>
#include <limits>

#include "../device/regions.h"
#include "dispatch.h"

namespace mgran {

constexpr std::uint8_t kForeground = 0xff;  // in the map until it is labelled: more than any group

// The column taps of a resampled mask, one array each.
struct ColumnTaps {
  const std::int32_t *first, *second;  // [width]
  const double *low, *high;            // [width]
};

inline double quantize(std::uint8_t v) { return v; }
// nearbyint rounds half to even, as the reference's round() does.
inline double quantize(float v) { return std::nearbyint(static_cast<double>(v) * kMaskSteps); }

// quantize() of a value in [-1, 1]: to add and subtract 1.5 * 2**52 rounds to an integer, half to even.
MGRAN_INLINE double quantize_probability(std::uint8_t v) { return v; }
MGRAN_INLINE double quantize_probability(float v) {
  constexpr double kRound = 6755399441055744.0;
  return (static_cast<double>(v) * kMaskSteps + kRound) - kRound;
}

// The least value that is foreground when the mask has the size of the map: quantize() never falls. NaN for none.
inline float least_foreground(double limit, float /* of the mask's type */) {
  // float32 in ascending order, as integers: the bits, mirrored for negative numbers.
  const auto value = [](std::int64_t key) {
    const std::uint32_t bits =
        key >= 0 ? static_cast<std::uint32_t>(key) : 0x80000000u | static_cast<std::uint32_t>(-key);
    float v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
  };
  constexpr std::int64_t kInfinity = 0x7f800000;
  if (!(quantize(value(kInfinity)) >= limit)) return std::numeric_limits<float>::quiet_NaN();
  std::int64_t background = -kInfinity - 1, foreground = kInfinity;
  while (foreground - background > 1) {
    const std::int64_t middle = background + (foreground - background) / 2;
    (quantize(value(middle)) >= limit ? foreground : background) = middle;
  }
  return value(foreground);
}
inline int least_foreground(double limit, std::uint8_t /* of the mask's type */) {
  int v = 0;
  while (v < 256 && !(v >= limit)) ++v;
  return v;
}

MGRAN_INLINE void binarize(const float* values, float least, int width, std::uint8_t* out) {
  int x = 0;
  // Blocks of a fixed size: the compiler then knows how many vectors of bytes come out.
  for (; x + 64 <= width; x += 64)
    for (int i = 0; i < 64; ++i) out[x + i] = values[x + i] >= least ? kForeground : 0;
  for (; x < width; ++x) out[x] = values[x] >= least ? kForeground : 0;
}
MGRAN_INLINE void binarize(const std::uint8_t* values, int least, int width, std::uint8_t* out) {
  for (int x = 0; x < width; ++x) out[x] = values[x] >= least ? kForeground : 0;
}

// Are all values in [-1, 1]? Then every sum of weighted values is exact, in any order.
MGRAN_INLINE bool is_probability(const std::uint8_t*, std::int64_t) { return true; }
MGRAN_INLINE bool is_probability(const float* values, std::int64_t count) {
  std::int32_t outside = 0;
  for (std::int64_t i = 0; i < count; ++i) outside |= !(values[i] >= -1.0f && values[i] <= 1.0f);
  return !outside;
}

// One row of the mask, resampled to the map's width.
template <typename T>
MGRAN_INLINE void resample_columns(const T* row, int mask_width, const ColumnTaps& taps, int width,
                                   double* values /* [mask_width] */, double* out /* [width] */) {
  for (int x = 0; x < mask_width; ++x) values[x] = quantize_probability(row[x]);
  for (int x = 0; x < width; ++x) out[x] = values[taps.first[x]] * taps.low[x] + values[taps.second[x]] * taps.high[x];
}

// Two of those, one below the other: a row of the map.
MGRAN_INLINE void resample_rows(const double* upper, const double* lower, double low, double high, double limit,
                                int width, std::uint8_t* out) {
  int x = 0;
  for (; x + 64 <= width; x += 64)
    for (int i = x; i < x + 64; ++i) out[i] = upper[i] * low + lower[i] * high >= limit ? kForeground : 0;
  for (; x < width; ++x) out[x] = upper[x] * low + lower[x] * high >= limit ? kForeground : 0;
}

// The same for any values, in the reference's order of operations: rows first.
template <typename T>
MGRAN_INLINE void resample_any(const T* upper, const T* lower, double low, double high, int mask_width,
                               const ColumnTaps& taps, double limit, int width, double* values /* [mask_width] */,
                               std::uint8_t* out) {
  for (int x = 0; x < mask_width; ++x) values[x] = quantize(upper[x]) * low + quantize(lower[x]) * high;
  for (int x = 0; x < width; ++x) {
    const double sum = values[taps.first[x]] * taps.low[x] + values[taps.second[x]] * taps.high[x];
    out[x] = sum >= limit ? kForeground : 0;
  }
}

// Which columns of some rows have foreground: 0 or not.
MGRAN_INLINE void find_columns(const std::uint8_t* map, std::int64_t width, int rows, std::uint8_t* columns) {
  std::memcpy(columns, map, static_cast<std::size_t>(width));
  for (int y = 1; y < rows; ++y)
    for (std::int64_t x = 0; x < width; ++x) columns[x] |= map[y * width + x];
}

// The box of the pixels that equal `value`. `columns` is scratch.
MGRAN_INLINE Box bounding_box(const std::uint8_t* map, int height, int width, std::uint8_t value,
                              std::uint8_t* columns /* [width] */) {
  Box box{height, 0, width, 0};
  std::memset(columns, 0, static_cast<std::size_t>(width));
  for (int y = 0; y < height; ++y) {
    const std::uint8_t* row = map + static_cast<std::int64_t>(y) * width;
    std::uint8_t some = 0;
    for (int x = 0; x < width; ++x) {
      const std::uint8_t equal = row[x] == value ? 0xff : 0;
      columns[x] |= equal;
      some |= equal;
    }
    if (!some) continue;
    if (y < box.top) box.top = y;
    box.bottom = y + 1;
  }
  if (!box.bottom) return Box{0, 0, 0, 0};
  box.left = 0;
  box.right = width;
  while (!columns[box.left]) ++box.left;
  while (!columns[box.right - 1]) --box.right;
  return box;
}

// The fallback without keypoints, see band_of(): the last band that holds a pixel gives its group.
MGRAN_INLINE void label_bands(const MgranLayout& layout, const Box& box, int width, std::uint8_t* map) {
  // Column x is in a band from kBandUnits * (x - left) >= edge * (right - left) on: round the quotient up.
  const auto column = [&box](std::int32_t edge) {
    const std::int64_t offset = static_cast<std::int64_t>(edge) * (box.right - box.left);
    return box.left + static_cast<std::int32_t>((offset + kBandUnits - 1) / kBandUnits);
  };
  for (int y = box.top; y < box.bottom; ++y) {
    std::uint8_t* row = map + static_cast<std::int64_t>(y) * width;
    const std::int64_t dy = kBandUnits * static_cast<std::int64_t>(y - box.top), h = box.bottom - box.top;
    for (int b = 0; b < layout.band_count; ++b) {
      const std::int32_t* band = layout.bands + 5 * b;
      if (dy < band[1] * h || dy >= band[2] * h) continue;
      const std::uint8_t group = static_cast<std::uint8_t>(band[0]);
      const int left = column(band[3]), right = column(band[4]);
      for (int x = left; x < right; ++x) row[x] = row[x] ? group : 0;
    }
    for (int x = box.left; x < box.right; ++x) row[x] = row[x] == kForeground ? 0 : row[x];
  }
}

// A box of this group's pixels is filled where the map is still background.
MGRAN_INLINE void fill_box(const Box& box, std::uint8_t group, int width, std::uint8_t* map) {
  for (int y = box.top; y < box.bottom; ++y) {
    std::uint8_t* row = map + static_cast<std::int64_t>(y) * width;
    for (int x = box.left; x < box.right; ++x) row[x] = row[x] ? row[x] : group;
  }
}

}  // namespace mgran
