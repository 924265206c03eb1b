// What the kernels of pooling_rows.h are given: some channels of one row, and its visible cells.
#pragma once
#include <cstdint>

#include "../pooling.h"
#include "dispatch.h"

namespace mgran {

// Features enter GeM's power clamped to this, as in the reference.
constexpr float kGemSmallest = 1e-6f;

struct PoolingTask {
  const MgranPooling* args;
  std::int64_t row;
  std::int64_t first, channels;  // the task's channels, a multiple of the vectors' width
  const std::int32_t* visible;   // [visible_count]: the cells with a share > 0, ascending
  const float* weights;          // [visible_count]: their shares over the sum of the shares
  int visible_count;
  bool stream;  // backward: store past the caches; everything is aligned to 64 bytes
};

struct PoolingKernels {
  int width;  // channels of a vector
  void (*forward)(const PoolingTask&);
  void (*backward)(const PoolingTask&);
};

}  // namespace mgran
