// Launch ABI of `inputs`: crops and region map -> aligned inputs. Definition: mgran_fast/reference/inputs.py.
#pragma once
#include "abi.h"

extern "C" {

struct MgranInputs {
  const std::uint8_t* crops;  // [people, pixels, 3]
  const std::uint8_t* map;    // [people, pixels]
  void* out;                  // [people, 1 + regions, pixels, 3] of `dtype`, written completely
  std::int32_t* workspace;    // CUDA: [people]; CPU: may be null
  std::int64_t people;
  std::int64_t pixels;   // height * width
  std::int32_t regions;  // 0 to 255
  std::int32_t dtype;    // MGRAN_FLOAT32, ..16, MGRAN_BFLOAT16
  float scale;
  float mean[3], std[3];
};

int mgran_inputs_cpu(const MgranInputs* args, int threads);

// Launched on `stream` (a cudaStream_t); no synchronisation, no allocation.
int mgran_inputs_cuda(const MgranInputs* args, void* stream);
}
