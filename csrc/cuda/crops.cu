// `crops` on the GPU: boxes cut from a frame and resized bilinearly.
//
// A block makes a tile of at most 16 rows and 128 columns of one crop. The tile's taps, whose arithmetic is float64,
// are computed once and lie in shared memory; a thread blends a pixel in integers; the tile's bytes gather in shared
// memory and leave 16 at a time.
//
// Bytes: at least 3 written for each of the crops' pixels, and each of the frame's pixels under a box read once. The
// kernel asks for 12 bytes (4 taps) a pixel; neighbouring pixels ask for the same bytes, so all but the first come
// from the L1 cache.
#include "../crops.h"

#include "../device/crops.h"
#include "launch.h"
#include "memory.cuh"

namespace mgran::cuda {

constexpr int kCropsThreads = 256;
constexpr int kCropRows = 16;
constexpr int kCropColumns = 128;
static_assert(kCropRows + kCropColumns <= kCropsThreads, "one tap a thread");

// One channel of the pixels that a tap lies between, blended; a null row, or a column outside, is black.
__device__ __forceinline__ int across(const std::uint8_t* row, CropTap column, bool left, bool right, int channel) {
  const std::int64_t at = static_cast<std::int64_t>(column.first) * 3 + channel;
  const int a = row && left ? __ldg(row + at) : 0;
  const int b = row && right ? __ldg(row + at + 3) : 0;
  return blend_across(a, b, column.weight);
}

// One block a tile of one crop.
__global__ void __launch_bounds__(kCropsThreads)
    resize_tile(const std::uint8_t* __restrict__ frame /* [frame_height, frame_width, 3] */,
                const float* __restrict__ boxes /* [count, 4] */,
                std::uint8_t* __restrict__ out /* [count, height, width, 3] */, std::int64_t row_stride,
                int frame_height, int frame_width, int height, int width, unsigned across_tiles, unsigned tiles) {
  MGRAN_SHARED(uint4, tile, [kCropRows * kCropColumns * 3 / 16]);
  MGRAN_SHARED(CropTap, taps, [kCropRows + kCropColumns]);
  std::uint8_t* bytes = reinterpret_cast<std::uint8_t*>(tile);
  const int thread = threadIdx.x;
  const std::int64_t n = blockIdx.x / tiles;
  const unsigned place = blockIdx.x % tiles;
  const int top = static_cast<int>(place / across_tiles) * kCropRows;
  const int left = static_cast<int>(place % across_tiles) * kCropColumns;
  const int rows = height - top < kCropRows ? height - top : kCropRows;
  const int columns = width - left < kCropColumns ? width - left : kCropColumns;
  // A tile as wide as the crop is one run of memory. The rows of another one start at 16-byte addresses of their own.
  const bool one_run = across_tiles == 1;
  const int pitch = 3 * (one_run ? width : kCropColumns);

  float box[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) box[k] = __ldg(boxes + 4 * n + k);
  const bool there = has_pixels(box);
  if (there) {
    const bool down = thread < kCropRows;
    const int i = down ? thread : thread - kCropRows;
    if (i < (down ? rows : columns)) {
      const CropAxis axis =
          down ? crop_axis(box[1], box[3], height, frame_height) : crop_axis(box[0], box[2], width, frame_width);
      taps[thread] = crop_tap(axis, (down ? top : left) + i);
    }
  }
  __syncthreads();
  for (int i = thread; i < rows * columns; i += kCropsThreads) {
    const int y = i / columns, x = i - y * columns;
    int pixel[3] = {0, 0, 0};
    if (there) {
      const CropTap row = taps[y], column = taps[kCropRows + x];
      const std::uint8_t* first = frame + row.first * row_stride;
      const std::uint8_t* upper = row.first >= 0 && row.first < frame_height ? first : nullptr;
      const std::uint8_t* lower = row.first >= -1 && row.first < frame_height - 1 ? first + row_stride : nullptr;
      const bool left_in = column.first >= 0 && column.first < frame_width;
      const bool right_in = column.first >= -1 && column.first < frame_width - 1;
#pragma unroll
      for (int c = 0; c < 3; ++c)
        pixel[c] = blend_down(across(upper, column, left_in, right_in, c), across(lower, column, left_in, right_in, c),
                              row.weight);
    }
    std::uint8_t* to = bytes + y * pitch + 3 * x;
#pragma unroll
    for (int c = 0; c < 3; ++c) to[c] = static_cast<std::uint8_t>(pixel[c]);
  }
  __syncthreads();
  std::uint8_t* corner = out + ((n * height + top) * width + left) * 3;
  if (one_run) {
    store_bytes(corner, bytes, rows * pitch, thread, kCropsThreads);
  } else {
    // A warp a row: 24 pieces of 16 bytes.
    for (int y = thread / 32; y < rows; y += kCropsThreads / 32)
      store_bytes(corner + static_cast<std::int64_t>(y) * width * 3, bytes + y * pitch, 3 * columns, thread % 32, 32);
  }
}

}  // namespace mgran::cuda

extern "C" int mgran_crops_cuda(const MgranCrops* args, void* stream_) {
  using namespace mgran::cuda;
  if (args->count == 0 || args->height == 0 || args->width == 0) return MGRAN_OK;
  const std::int64_t across_tiles = (static_cast<std::int64_t>(args->width) + kCropColumns - 1) / kCropColumns;
  const std::int64_t tiles = (static_cast<std::int64_t>(args->height) + kCropRows - 1) / kCropRows * across_tiles;
  if (tiles > kMostBlocks) return MGRAN_UNSUPPORTED;
  const auto stream = static_cast<cudaStream_t>(stream_);
  const std::int64_t crop = static_cast<std::int64_t>(args->height) * args->width * 3;
  const std::int64_t most = kMostBlocks / tiles;
  for (std::int64_t first = 0; first < args->count; first += most) {
    const std::int64_t count = args->count - first < most ? args->count - first : most;
    const cudaError_t error = mgran::launch(
        resize_tile, dim3(static_cast<unsigned>(count * tiles)), dim3(kCropsThreads), 0, stream, args->frame,
        args->boxes + 4 * first, args->out + first * crop, args->row_stride, args->frame_height, args->frame_width,
        args->height, args->width, static_cast<unsigned>(across_tiles), static_cast<unsigned>(tiles));
    if (error != cudaSuccess) return status(error);
  }
  return MGRAN_OK;
}
