// Launch ABI of `crops`: boxes cut from a frame and resized bilinearly. Definition: mgran_fast/reference/crops.py,
// which every implementation equals to the bit.
#pragma once
#include "abi.h"

extern "C" {

struct MgranCrops {
  const std::uint8_t* frame;  // [frame_height, frame_width, 3], rows row_stride bytes apart
  const float* boxes;         // [count, 4]: x1, y1, x2, y2 in pixels of the frame, any value; contiguous
  std::uint8_t* out;          // [count, height, width, 3], written completely
  std::int64_t count;
  std::int64_t row_stride;  // at least 3 * frame_width
  std::int32_t frame_height, frame_width, height, width;
};

int mgran_crops_cpu(const MgranCrops* args, int threads);

// Launched on `stream` (a cudaStream_t); no synchronisation, no allocation.
int mgran_crops_cuda(const MgranCrops* args, void* stream);
}
