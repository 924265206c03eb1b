// What the kernels of `regions` and `align` are launched with: by value, so that there is nothing to copy to the
// device and nothing to keep alive.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "../device/regions.h"
#include "launch.h"

namespace mgran::cuda {

constexpr int kRegionsThreads = 128;
constexpr int kRun = 16;                              // neighbouring pixels that one thread labels
constexpr int kRegionsTile = kRun * kRegionsThreads;  // pixels that one block labels
constexpr int kBoxes = 2 + MGRAN_MAX_REGIONS;         // in a person's workspace
// Of a person's boxes (top, bottom, left, right), number 0 is the mask's and number 1 + g that of region g. Number 1
// would be the background's: its first number says that the map is empty (`align` alone).
constexpr int kEmptyFlag = 4;

struct RegionsPlan {
  const void* mask;         // [people, mask_height, mask_width]
  const float* keypoints;   // [people, 17, 3]
  std::uint8_t* map;        // [people, height, width] or null
  std::int32_t* workspace;  // [people, kBoxes, 4]
  double limit;             // of a resampled sum
  float cut;                // of a float32 mask of the map's size
  std::int32_t byte_cut;    // of a uint8 mask of the map's size
  float keypoint_threshold;
  float slack;  // more than the rounding of a distance, in pixels
  std::int32_t mask_height, mask_width, height, width;
  std::int32_t tiles;      // of a person
  std::int32_t resampled;  // the mask has another size than the map
  std::int32_t narrow;     // 32 bits hold the taps' positions
  std::int32_t limb_count, band_count, torso, rectangles, regions;
  std::int32_t limbs[3 * MGRAN_MAX_LIMBS];
  std::int32_t bands[5 * MGRAN_MAX_LIMBS];
  float weights[MGRAN_MAX_LIMBS];
};

// The least float32 that counts as foreground: rounding to 1/2**25 is monotone, so `v >= cut` says in float32 what
// the definition says in float64. NaN is no foreground in either.
inline float least_foreground(double limit) {
  // Floats in their order, as integers: 0 is -infinity.
  const auto value = [](std::uint32_t rank) {
    const std::uint32_t ordered = rank + 0x007fffffu;
    const std::uint32_t bits = ordered & 0x80000000u ? ordered ^ 0x80000000u : ~ordered;
    float v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
  };
  std::uint32_t low = 0, high = 0xff000001u;  // high is +infinity
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    if (std::nearbyint(static_cast<double>(value(middle)) * kMaskSteps) >= limit)
      high = middle;
    else
      low = middle + 1;
  }
  return value(low);
}

// False when a size is beyond the kernels.
inline bool make_plan(const MgranRegions& args, RegionsPlan& plan) {
  const std::int64_t pixels = static_cast<std::int64_t>(args.height) * args.width;
  const MgranLayout& layout = args.layout;
  if (pixels > std::int64_t{1} << 30) return false;
  if (layout.limb_count > MGRAN_MAX_LIMBS || layout.band_count > MGRAN_MAX_LIMBS) return false;
  if (layout.regions > MGRAN_MAX_REGIONS) return false;
  plan = {};
  plan.mask = args.mask;
  plan.keypoints = args.keypoints;
  plan.map = args.map;
  plan.workspace = args.workspace;
  plan.limit = args.limit;
  plan.cut = least_foreground(args.limit);
  plan.byte_cut = args.limit > 255.0 ? 256 : args.limit > 0.0 ? static_cast<std::int32_t>(std::ceil(args.limit)) : 0;
  plan.keypoint_threshold = args.keypoint_threshold;
  plan.slack = (static_cast<float>(args.height) + static_cast<float>(args.width)) / 16384.0f;
  plan.mask_height = args.mask_height;
  plan.mask_width = args.mask_width;
  plan.height = args.height;
  plan.width = args.width;
  plan.tiles = static_cast<std::int32_t>((pixels + kRegionsTile - 1) / kRegionsTile);
  plan.resampled = args.mask_height != args.height || args.mask_width != args.width;
  constexpr std::int64_t kNarrow = std::int64_t{1} << 30;
  plan.narrow = static_cast<std::int64_t>(args.mask_height) * args.height < kNarrow &&
                static_cast<std::int64_t>(args.mask_width) * args.width < kNarrow;
  plan.limb_count = layout.limb_count;
  plan.band_count = layout.band_count;
  plan.torso = layout.torso;
  plan.rectangles = layout.rectangles;
  plan.regions = layout.regions;
  for (int i = 0; i < 3 * layout.limb_count; ++i) plan.limbs[i] = layout.limbs[i];
  for (int i = 0; i < 5 * layout.band_count; ++i) plan.bands[i] = layout.bands[i];
  for (int i = 0; i < layout.limb_count; ++i) plan.weights[i] = layout.weights[i];
  return true;
}

// The plan of the people from `first` on.
inline RegionsPlan from_person(const RegionsPlan& plan, std::int64_t first, bool mask_is_float) {
  RegionsPlan later = plan;
  const std::int64_t pixels = static_cast<std::int64_t>(plan.height) * plan.width;
  const std::int64_t mask_bytes = static_cast<std::int64_t>(plan.mask_height) * plan.mask_width *
                                  static_cast<std::int64_t>(mask_is_float ? sizeof(float) : sizeof(std::uint8_t));
  later.mask = static_cast<const char*>(plan.mask) + first * mask_bytes;
  later.keypoints = plan.keypoints + first * 51;
  later.map = plan.map ? plan.map + first * pixels : nullptr;
  later.workspace = plan.workspace + first * 4 * kBoxes;
  return later;
}

// Fills the workspace with what labelling needs: the boxes of the masks without keypoints and, for a layout of
// rectangles, the boxes of the regions. Defined in regions.cu; people * tiles at most kMostBlocks.
cudaError_t launch_survey(const RegionsPlan& plan, std::int64_t people, bool mask_is_float, cudaStream_t stream);

}  // namespace mgran::cuda
