// What the kernels of batchnorm_rows.h are given: some cells of one row, and some of their channels.
#pragma once
#include <cstdint>

#include "../batchnorm.h"
#include "dispatch.h"

namespace mgran {

struct BatchnormTask {
  const MgranBatchnorm* args;
  std::int64_t cell, cells;      // the first cell, counted through all rows, and how many
  std::int64_t first, channels;  // the task's channels, a multiple of the vectors' width
  std::int64_t group;
  double count;  // first phase: how many cells the task's stand for
  float* sums;   // first phase: two rows of all channels, 0 before: mean and sum of squares about it, or the sums;
                 // begins at the task's first channel
  const float* grad_bias_mean;  // second phase of backward: [groups, channels]
  const float* grad_weight_mean;
  bool stream;  // store past the caches; everything is aligned to 64 bytes
};

struct BatchnormKernels {
  int width;  // channels of a vector
  void (*statistics)(const BatchnormTask&);
  void (*apply)(const BatchnormTask&);
  void (*reduce)(const BatchnormTask&);
  void (*grad)(const BatchnormTask&);
};

}  // namespace mgran
