// Launch ABI of `regions`: mask and keypoints -> region map. Definition and conventions:
// mgran_fast/reference/regions.py, which every implementation equals to the bit.
#pragma once
#include "abi.h"

extern "C" {

// A body layout as flat tables (mgran_fast/layouts.py).
struct MgranLayout {
  const std::int32_t* limbs;  // [limb_count, 3]: group, start joint, end joint; sorted by group
  const float* weights;       // [limb_count]: 1 / thickness^2
  const std::int32_t* bands;  // [band_count, 5]: group, top, bottom, left, right in 1/24 of the mask's box
  std::int32_t limb_count;    // at most MGRAN_MAX_LIMBS
  std::int32_t band_count;
  std::int32_t torso;       // group of the filled quadrilateral, 0 for none
  std::int32_t rectangles;  // 1: fill every region up to its bounding rectangle
  std::int32_t regions;     // number of groups, at most MGRAN_MAX_REGIONS
};

struct MgranRegions {
  const void* mask;         // [people, mask_height, mask_width], float32 or uint8, contiguous
  const float* keypoints;   // [people, 17, 3]: x, y, score; contiguous
  std::uint8_t* map;        // [people, height, width], written completely
  std::int32_t* workspace;  // CUDA: [people, 4 * (2 + MGRAN_MAX_REGIONS)]; CPU: may be null
  std::int64_t people;
  std::int32_t mask_height, mask_width, height, width;
  std::int32_t mask_is_float;  // 0: uint8
  double limit;                // a resampled mask sum >= limit is foreground
  float keypoint_threshold;
  MgranLayout layout;
};

enum { MGRAN_MAX_LIMBS = 32, MGRAN_MAX_REGIONS = 15, MGRAN_JOINTS = 19 };

int mgran_regions_cpu(const MgranRegions* args, int threads);

// Launched on `stream` (a cudaStream_t); no synchronisation, no allocation.
int mgran_regions_cuda(const MgranRegions* args, void* stream);
}
