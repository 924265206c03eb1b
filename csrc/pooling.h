// Launch ABI of `pooling` on the CPU, forward and backward (on the GPU it is Triton: kernels/pooling.py).
// Definition: mgran_fast/reference/pooling.py.
#pragma once
#include "abi.h"

extern "C" {

enum { MGRAN_MEAN = 0, MGRAN_MAX = 1, MGRAN_GEM = 2 };

struct MgranPooling {
  const void* features;        // [rows, height, width, channels] of `dtype`: channels innermost, contiguous
  const std::uint8_t* map;     // [people, map_height, map_width]; rows is a multiple of people
  const std::int64_t* region;  // [rows]: 0 the whole person; a region that does not occur has no pixels
  void* out;                   // [rows, channels] of `dtype`; forward: written; backward: the forward's result
  const void* grad_out;        // backward: [rows, channels] of `dtype`
  void* grad_features;         // backward: as features, written completely
  std::int64_t rows, people, channels;
  std::int32_t height, width;  // of the features
  std::int32_t map_height, map_width;
  std::int32_t dtype, mode;
  float power;  // of MGRAN_GEM, positive
};

int mgran_pooling_cpu(const MgranPooling* args, int threads);
int mgran_pooling_backward_cpu(const MgranPooling* args, int threads);
}
