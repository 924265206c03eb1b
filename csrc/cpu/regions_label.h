// Labelling of `regions` on the CPU: tile by tile, with the few limbs that can win somewhere in the tile.
//
// The distance to a limb over its thickness changes by at most 1 / thickness a pixel. So its value at a tile's centre
// bounds it in the whole tile, and a limb whose least value is above another one's greatest is left out. The others
// are compared pixel by pixel in their order, as the reference compares all: the result is the same to the bit.
// Plain loops, inlined into functions for each instruction set (dispatch.h), where the compiler vectorises them.
#pragma once
#include <cmath>
#include <limits>

#include "../device/regions.h"
#include "dispatch.h"

namespace mgran {

constexpr int kTileHeight = 8, kTileWidth = 16;
// From a tile's centre to the furthest centre of a pixel: half of sqrt(7^2 + 15^2), rounded up.
constexpr float kTileRadius = 8.3f;
// Bounds are on roots of distances. Rounding may move a position by about 4e-6 of height + width (joints are at most
// that far): the slack is far more. Roots below kSlackRoot may be equal as squares, by underflow.
constexpr float kSlackPixels = 1.0f / 16384.0f, kSlackFactor = 1.0001f, kSlackRoot = 1e-15f;
// Roots above this might overflow when squared.
constexpr float kLargest = 1e18f;
// The root of an infinite square may be as low as this.
constexpr float kLeastOverflow = 1.8446743e19f;

// What labelling the pixels of one person takes.
struct Person {
  Limb limbs[MGRAN_MAX_LIMBS];
  int count;
  // The same limbs for bounds, one array each, filled up to whole vectors with limbs that never win nor bound.
  alignas(64) float x[MGRAN_MAX_LIMBS], y[MGRAN_MAX_LIMBS], dx[MGRAN_MAX_LIMBS], dy[MGRAN_MAX_LIMBS];
  alignas(64) float inverse[MGRAN_MAX_LIMBS], weight[MGRAN_MAX_LIMBS], reach[MGRAN_MAX_LIMBS];
  float radius;  // of a tile, with its slack
  bool torso;
  std::uint8_t torso_group;
  Joints joints;
  Limb edges[4];                   // of the torso
  float left, right, top, bottom;  // of the torso, with the radius of a tile around it
};

inline Person prepare_person(const MgranRegions& args, std::int64_t n) {
  Person p;
  p.joints = find_joints(args.keypoints + n * 51, args.height, args.width, args.keypoint_threshold);
  p.radius = kTileRadius + kSlackPixels * (static_cast<float>(args.height) + static_cast<float>(args.width));
  p.count = 0;
  for (int i = 0; i < args.layout.limb_count; ++i) p.count += prepare_limb(p.joints, args.layout, i, p.limbs[p.count]);
  for (int i = 0; i < MGRAN_MAX_LIMBS; ++i) {
    const bool there = i < p.count;
    const Limb limb = there ? p.limbs[i] : Limb{};
    p.x[i] = limb.x;
    p.y[i] = limb.y;
    p.dx[i] = limb.dx;
    p.dy[i] = limb.dy;
    p.inverse[i] = limb.inverse;
    p.weight[i] = limb.weight;
    p.reach[i] = there ? p.radius * std::sqrt(limb.weight) : std::numeric_limits<float>::infinity();
  }
  p.torso = args.layout.torso && has_torso(p.joints);
  p.torso_group = static_cast<std::uint8_t>(args.layout.torso);
  if (!p.torso) return p;
  p.left = p.top = std::numeric_limits<float>::infinity();
  p.right = p.bottom = -std::numeric_limits<float>::infinity();
  for (int c = 0; c < 4; ++c) {
    const int a = corner(c), b = corner((c + 1) % 4);
    const float ax = p.joints.x[a], ay = p.joints.y[a];
    const float dx = p.joints.x[b] - ax, dy = p.joints.y[b] - ay, square = dx * dx + dy * dy;
    p.edges[c] = Limb{ax, ay, dx, dy, square > 0.0f ? 1.0f / square : 0.0f, 1.0f, 0};
    p.left = ax < p.left ? ax : p.left;
    p.right = ax > p.right ? ax : p.right;
    p.top = ay < p.top ? ay : p.top;
    p.bottom = ay > p.bottom ? ay : p.bottom;
  }
  p.left -= p.radius;
  p.right += p.radius;
  p.top -= p.radius;
  p.bottom += p.radius;
  return p;
}

// The limbs that may win somewhere in the tile around (x, y).
struct Candidates {
  std::int32_t limb[MGRAN_MAX_LIMBS];
  int count;
  int group;  // of all of them, 0: there are several
};

// The group of all candidates, 0: there are several. With a greatest distance that is finite there is a winner at
// every pixel.
inline int one_group(const Person& p, const Candidates& candidates, std::uint32_t groups, float greatest) {
  return (groups & (groups - 1)) == 0 && greatest < kLargest ? p.limbs[candidates.limb[0]].group : 0;
}

inline void find_candidates(const Person& p, float x, float y, Candidates& out) {
  float lower[MGRAN_MAX_LIMBS], bound = std::numeric_limits<float>::infinity();
  for (int i = 0; i < p.count; ++i) {
    const float distance = std::sqrt(limb_distance(p.limbs[i], x, y)), upper = distance + p.reach[i];
    lower[i] = (distance < kLeastOverflow ? distance : kLeastOverflow) - p.reach[i];
    bound = upper < bound ? upper : bound;  // NaN bounds nothing
  }
  const float greatest = bound * kSlackFactor + kSlackRoot;
  std::uint32_t groups = 0;
  out.count = 0;
  for (int i = 0; i < p.count; ++i) {
    if (lower[i] > greatest) continue;
    groups |= 1u << p.limbs[i].group;
    out.limb[out.count++] = i;
  }
  out.group = one_group(p, out, groups, greatest);
}

// Is the tile around (x, y) all inside or all outside of the torso? Then its pixel (px, py) tells.
enum class Torso { outside, inside, mixed };

MGRAN_INLINE Torso find_torso(const Person& p, float x, float y, float px, float py) {
  if (!p.torso || x < p.left || x > p.right || y < p.top || y > p.bottom) return Torso::outside;
  for (int c = 0; c < 4; ++c)
    if (!(limb_distance(p.edges[c], x, y) > p.radius * p.radius)) return Torso::mixed;
  return inside_torso(p.joints, px, py) ? Torso::inside : Torso::outside;
}

// One row of a tile inside the torso or not: -1 or 0.
inline void mark_torso(const Joints& j, const float* px /* [16] */, float py, std::int32_t* inside /* [16] */) {
  alignas(64) std::int32_t edge[kTileWidth];
  for (int l = 0; l < kTileWidth; ++l) inside[l] = edge[l] = 0;
  for (int c = 0; c < 4; ++c) {
    const int a = corner(c), b = corner((c + 1) % 4);
    const float ax = j.x[a], ay = j.y[a], by = j.y[b], dx = j.x[b] - ax, dy = by - ay;
    if ((ay > py) == (by > py)) continue;
    const float sign = by > ay ? 1.0f : -1.0f;
    for (int l = 0; l < kTileWidth; ++l) {
      const float side = (px[l] - ax) * dy - (py - ay) * dx;
      inside[l] ^= -static_cast<std::int32_t>(side * sign < 0.0f);
      edge[l] |= -static_cast<std::int32_t>(side == 0.0f);
    }
  }
  for (int l = 0; l < kTileWidth; ++l) inside[l] |= edge[l];
}

// Groups of all pixels of the tile whose upper left pixel is (x, y).
inline void label_tile(const Person& p, const Candidates& candidates, bool torso, int x, int y,
                       std::uint8_t* out /* [kTileHeight, kTileWidth] */) {
  alignas(64) float px[kTileWidth], distance[kTileWidth];
  alignas(64) std::int32_t group[kTileWidth];
  for (int l = 0; l < kTileWidth; ++l) px[l] = static_cast<float>(x + l) + 0.5f;
  for (int row = 0; row < kTileHeight; ++row) {
    const float py = static_cast<float>(y + row) + 0.5f;
    for (int l = 0; l < kTileWidth; ++l) group[l] = 0;
    if (torso) mark_torso(p.joints, px, py, group);
    for (int l = 0; l < kTileWidth; ++l) {
      distance[l] = group[l] ? 0.0f : std::numeric_limits<float>::infinity();
      group[l] &= p.torso_group;
    }
    for (int k = 0; k < candidates.count; ++k) {
      const Limb limb = p.limbs[candidates.limb[k]];
      for (int l = 0; l < kTileWidth; ++l) {
        const float d = limb_distance(limb, px[l], py);
        // In masks rather than choices, which compilers are more willing to vectorise.
        const std::int32_t nearer = -static_cast<std::int32_t>(d < distance[l]);
        distance[l] = d < distance[l] ? d : distance[l];
        group[l] = (group[l] & ~nearer) | (limb.group & nearer);
      }
    }
    for (int l = 0; l < kTileWidth; ++l) out[row * kTileWidth + l] = static_cast<std::uint8_t>(group[l]);
  }
}

// The inner loops, which regions_lanes.h has in vectors as well.
struct TileKernels {
  void (*find_candidates)(const Person&, float x, float y, Candidates& out);
  void (*label_tile)(const Person&, const Candidates&, bool torso, int x, int y, std::uint8_t* out);
};

// Turns foreground into groups in up to kTileHeight rows of a map, the first of them row y. `columns` tells which
// columns have foreground.
MGRAN_INLINE void label_rows(const TileKernels& kernels, const Person& p, int y, int rows, std::int64_t width,
                             const std::uint8_t* columns /* [width] */, std::uint8_t* map /* [rows, width] */) {
  alignas(64) std::uint8_t labels[kTileHeight * kTileWidth];
  Candidates candidates{};
  for (std::int64_t begin = 0; begin < width; begin += kTileWidth) {
    const int x = static_cast<int>(begin),
              count = static_cast<int>(width - begin < kTileWidth ? width - begin : kTileWidth);
    std::uint8_t some = 0;
    for (int l = 0; l < count; ++l) some |= columns[x + l];
    if (!some) continue;
    const float cx = static_cast<float>(x) + 0.5f * kTileWidth, cy = static_cast<float>(y) + 0.5f * kTileHeight;
    const Torso torso = find_torso(p, cx, cy, static_cast<float>(x) + 0.5f, static_cast<float>(y) + 0.5f);
    int group = p.torso_group;
    if (torso != Torso::inside) {
      kernels.find_candidates(p, cx, cy, candidates);
      group = torso == Torso::mixed && candidates.group != p.torso_group ? 0 : candidates.group;
    }
    if (!group) kernels.label_tile(p, candidates, torso == Torso::mixed, x, y, labels);
    for (int row = 0; row < rows; ++row) {
      std::uint8_t* pixels = map + row * width + begin;
      const std::uint8_t* label = labels + row * kTileWidth;
      if (group && count == kTileWidth)
        for (int l = 0; l < kTileWidth; ++l) pixels[l] &= static_cast<std::uint8_t>(group);
      else if (count == kTileWidth)
        for (int l = 0; l < kTileWidth; ++l) pixels[l] &= label[l];
      else
        for (int l = 0; l < count; ++l) pixels[l] &= group ? static_cast<std::uint8_t>(group) : label[l];
    }
  }
}

}  // namespace mgran
