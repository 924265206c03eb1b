// The mathematics of `regions`, for host and device alike, in the order of operations of the reference.
// Compile without contraction into fused multiply-adds (-ffp-contract=off, --fmad=false): equality with the
// reference is to the bit.
#pragma once
#include "../regions.h"
#include "portable.h"

namespace mgran {

constexpr float kReach = 1.5f;             // a keypoint further away than one crop is no joint
constexpr float kShortest = 1e-6f;         // squared length under which a limb is a point
constexpr double kMaskSteps = 33554432.0;  // 2**25
constexpr int kBandUnits = 24;

struct Joints {
  float x[MGRAN_JOINTS], y[MGRAN_JOINTS];
  bool valid[MGRAN_JOINTS];
};

// A limb ready for many pixels.
struct Limb {
  float x, y;     // start
  float dx, dy;   // to the end
  float inverse;  // 1 / length^2, 0 for a point
  float weight;   // 1 / thickness^2
  std::int32_t group;
};

struct Box {
  std::int32_t top, bottom, left, right;  // exclusive ends; all 0 when empty
};

MGRAN_HD float magnitude(float v) { return v < 0.0f ? -v : v; }

// Both midpoints use one rule: the mean of two joints, or the only one there is.
MGRAN_HD void add_midpoint(Joints& j, int left, int right, int at) {
  const float half = j.valid[left] && j.valid[right] ? 0.5f : 1.0f;
  j.x[at] = (j.x[left] + j.x[right]) * half;
  j.y[at] = (j.y[left] + j.y[right]) * half;
  j.valid[at] = j.valid[left] || j.valid[right];
}

// Sets joint k, one of the 17 keypoints.
MGRAN_HD void find_joint(Joints& j, const float* keypoints /* [17, 3] */, int k, int height, int width,
                         float threshold) {
  const float x = keypoints[3 * k], y = keypoints[3 * k + 1], score = keypoints[3 * k + 2];
  // Written so that NaN anywhere makes the joint unusable.
  const bool valid = score >= threshold &&
                     magnitude(x - 0.5f * static_cast<float>(width)) <= kReach * static_cast<float>(width) &&
                     magnitude(y - 0.5f * static_cast<float>(height)) <= kReach * static_cast<float>(height);
  j.valid[k] = valid;
  j.x[k] = valid ? x : 0.0f;
  j.y[k] = valid ? y : 0.0f;
}

MGRAN_HD void find_neck(Joints& j) { add_midpoint(j, 5, 6, 17); }

MGRAN_HD void find_pelvis(Joints& j) { add_midpoint(j, 11, 12, 18); }

MGRAN_HD Joints find_joints(const float* keypoints /* [17, 3] */, int height, int width, float threshold) {
  Joints j;
  for (int k = 0; k < 17; ++k) find_joint(j, keypoints, k, height, width, threshold);
  find_neck(j);
  find_pelvis(j);
  return j;
}

// Makes limb i of the layout ready; false when one of its joints is unusable.
MGRAN_HD bool prepare_limb(const Joints& j, const MgranLayout& layout, int i, Limb& limb) {
  const int a = layout.limbs[3 * i + 1], b = layout.limbs[3 * i + 2];
  if (!j.valid[a] || !j.valid[b]) return false;
  limb.x = j.x[a];
  limb.y = j.y[a];
  limb.dx = j.x[b] - j.x[a];
  limb.dy = j.y[b] - j.y[a];
  const float square = limb.dx * limb.dx + limb.dy * limb.dy;
  limb.inverse = square > kShortest ? 1.0f / square : 0.0f;
  limb.weight = layout.weights[i];
  limb.group = layout.limbs[3 * i];
  return true;
}

// Squared distance from a pixel's centre to a limb, over the limb's squared thickness.
MGRAN_HD float limb_distance(const Limb& limb, float px, float py) {
  const float ux = px - limb.x, uy = py - limb.y;
  float t = (ux * limb.dx + uy * limb.dy) * limb.inverse;
  t = t < 0.0f ? 0.0f : t;
  t = t > 1.0f ? 1.0f : t;
  const float ex = ux - t * limb.dx, ey = uy - t * limb.dy;
  return (ex * ex + ey * ey) * limb.weight;
}

// The torso's corners in turn: left shoulder, right shoulder, right hip, left hip. A function, since a
// constexpr array has no address on the device.
MGRAN_HD int corner(int c) { return c == 0 ? 5 : c == 1 ? 6 : c == 2 ? 12 : 11; }

MGRAN_HD bool has_torso(const Joints& j) {
  return j.valid[corner(0)] && j.valid[corner(1)] && j.valid[corner(2)] && j.valid[corner(3)];
}

// Even-odd rule; a pixel on an edge that its row crosses is inside. Wants has_torso().
MGRAN_HD bool inside_torso(const Joints& j, float px, float py) {
  bool inside = false, edge = false;
  for (int c = 0; c < 4; ++c) {
    const int a = corner(c), b = corner((c + 1) % 4);
    const float ay = j.y[a], by = j.y[b];
    if ((ay > py) == (by > py)) continue;
    const float side = (px - j.x[a]) * (by - ay) - (py - ay) * (j.x[b] - j.x[a]);
    if (by > ay ? side < 0.0f : side > 0.0f) inside = !inside;
    if (side == 0.0f) edge = true;
  }
  return inside || edge;
}

// The bilinear taps of one axis: two indices and the second one's weight in units of 1/(2 * target).
struct Taps {
  std::int32_t first, second;
  double low, high;
};

// 32 bits do where 2 * source * target fits them, and divide much faster on a GPU.
template <typename Int = std::int64_t>
MGRAN_HD Taps taps(int i, int source, int target) {
  const Int unit = 2 * static_cast<Int>(target), last = unit * (source - 1);
  Int position = (2 * static_cast<Int>(i) + 1) * source - target;
  position = position < 0 ? 0 : position > last ? last : position;
  Taps t;
  t.first = static_cast<std::int32_t>(position / unit);
  t.second = t.first + 1 < source ? t.first + 1 : source - 1;
  t.high = static_cast<double>(position - t.first * unit);
  t.low = static_cast<double>(unit) - t.high;
  return t;
}

// The fallback without keypoints: the last band of the mask's box that holds the pixel, 0 for none.
MGRAN_HD std::uint8_t band_of(const MgranLayout& layout, const Box& box, int y, int x) {
  const std::int64_t dy = kBandUnits * static_cast<std::int64_t>(y - box.top), h = box.bottom - box.top;
  const std::int64_t dx = kBandUnits * static_cast<std::int64_t>(x - box.left), w = box.right - box.left;
  std::uint8_t group = 0;
  for (int b = 0; b < layout.band_count; ++b) {
    const std::int32_t* band = layout.bands + 5 * b;
    if (dy >= band[1] * h && dy < band[2] * h && dx >= band[3] * w && dx < band[4] * w)
      group = static_cast<std::uint8_t>(band[0]);
  }
  return group;
}

}  // namespace mgran
