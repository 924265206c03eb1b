// The mathematics of `crops`, for host and device alike, in the order of operations of the reference.
// Compile without contraction into fused multiply-adds (-ffp-contract=off, --fmad=false): equality with the
// reference is to the bit.
#pragma once
#include "../crops.h"
#include "portable.h"

namespace mgran {

constexpr int kWeightBits = 15;  // blending weights are integers over 2**15
constexpr int kPixelBits = 7;    // blended pixels are integers over 2**7

// A box [4] (x1, y1, x2, y2) that is empty, or has a coordinate which is not finite, gives an all-zero crop.
MGRAN_HD bool has_pixels(const float* box) {
  // v - v is 0 for a finite v, NaN for the others.
  for (int k = 0; k < 4; ++k)
    if (!(box[k] - box[k] == 0.0f)) return false;
  return box[2] > box[0] && box[3] > box[1];
}

// One end to the other of a box on one axis, ready for many pixels of the crop.
struct CropAxis {
  double low, length;           // start and length of the box
  double first, last;           // positions stay between the centres of the box's first and last pixel
  std::int32_t target, source;  // pixels of the crop and of the frame on this axis
};

// Wants has_pixels().
MGRAN_HD CropAxis crop_axis(float from, float to, std::int32_t target, std::int32_t source) {
  const double low = static_cast<double>(from), high = static_cast<double>(to);
  CropAxis axis;
  axis.low = low;
  axis.length = high - low;
  axis.first = low;
  axis.last = high - 1.0;
  if (axis.last < axis.first) {  // thinner than a pixel: one position
    axis.first = (low + high) * 0.5 - 0.5;
    axis.last = axis.first;
  }
  axis.target = target;
  axis.source = source;
  return axis;
}

// Pixel i of the crop lies between the frame's pixels `first` and `first + 1` on this axis. `first` is -2 to
// `source`; a pixel below 0 or from `source` on is black.
struct CropTap {
  std::int32_t first;
  std::int32_t weight;  // of the second pixel, 0 to 2**15 - 1
};

MGRAN_HD CropTap crop_tap(const CropAxis& axis, std::int32_t i) {
  double position = axis.low + (static_cast<double>(i) + 0.5) * axis.length / static_cast<double>(axis.target) - 0.5;
  position = position < axis.first ? axis.first : position;
  position = position > axis.last ? axis.last : position;
  // Far outside is as far as just outside: both pixels are black, whatever the weight. Clamping before the floor
  // keeps the position within an int32.
  const double end = static_cast<double>(axis.source);
  position = position < -2.0 ? -2.0 : position > end ? end : position;
  CropTap tap;
  tap.first = static_cast<std::int32_t>(position);
  tap.first -= static_cast<double>(tap.first) > position;  // the floor of a negative position
  const double scaled = (position - static_cast<double>(tap.first)) * static_cast<double>(1 << kWeightBits);
  // Adding and subtracting 2**52 rounds half to even, as the reference's round() does.
  constexpr double kRound = 4503599627370496.0;
  const std::int32_t weight = static_cast<std::int32_t>((scaled + kRound) - kRound);
  constexpr std::int32_t kMost = (1 << kWeightBits) - 1;
  tap.weight = weight < kMost ? weight : kMost;
  return tap;
}

// a + (b - a) * weight / 2**15, rounded half up. For |b - a| < 2**15 it is a plus the rounded high half of a 16-bit
// product (pmulhrsw on x86, sqrdmulh on ARM).
MGRAN_HD std::int32_t lerp(std::int32_t a, std::int32_t b, std::int32_t weight) {
  return a + (((b - a) * weight + (1 << (kWeightBits - 1))) >> kWeightBits);
}

// Two neighbours of a row, 0 to 255 each, blended: an integer over 2**7.
MGRAN_HD std::int32_t blend_across(std::int32_t left, std::int32_t right, std::int32_t weight) {
  return lerp(left << kPixelBits, right << kPixelBits, weight);
}

// Two of those, one below the other: the pixel of the crop.
MGRAN_HD std::uint8_t blend_down(std::int32_t upper, std::int32_t lower, std::int32_t weight) {
  return static_cast<std::uint8_t>((lerp(upper, lower, weight) + (1 << (kPixelBits - 1))) >> kPixelBits);
}

}  // namespace mgran
