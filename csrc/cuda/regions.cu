// `regions` on the GPU: mask and keypoints -> region map.
//
// 1. reset_boxes and survey: the mask's box of each person without a usable limb, for the bands. The blocks of the
//    others return before they read the mask.
// 2. For a layout of rectangles, survey once more: label, and take each region's box.
// 3. label: binarize, label, fill, and write the map, once.
// Binarizing and labelling again costs less than a map that is written, read and written again.
//
// Bytes at P pixels a person and a mask of M bytes: at least M read and P written; the kernels move just that, M once
// more for a person without limbs, and once more for a layout of rectangles.
#include "../regions.h"

#include "launch.h"
#include "regions_tile.cuh"

namespace mgran::cuda {

constexpr int kResetThreads = 256;
constexpr int kWarps = kRegionsThreads / 32;

// Every box empty: growing it by min and max then needs no test.
__global__ void __launch_bounds__(kResetThreads)
    reset_boxes(std::int32_t* __restrict__ workspace, std::int64_t numbers, int height, int width) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kResetThreads + threadIdx.x;
  if (i < numbers) workspace[i] = i % 4 == 0 ? height : i % 4 == 2 ? width : 0;
}

// The box of the pixels of one label in a run.
__device__ __forceinline__ Box box_of_run(const RegionsPlan& plan, int first, int label,
                                          const std::uint8_t* run /* [kRun] */) {
  Box box{plan.height, 0, plan.width, 0};
  int y = first / plan.width, x = first - y * plan.width;
#pragma unroll 1
  for (int k = 0; k < kRun; ++k) {
    if (run[k] == label) {
      box.top = min(box.top, y);
      box.bottom = y + 1;
      box.left = min(box.left, x);
      box.right = max(box.right, x + 1);
    }
    if (++x == plan.width) x = 0, ++y;
  }
  return box;
}

__device__ __forceinline__ Box join_over_warp(Box box) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    box.top = min(box.top, __shfl_xor_sync(kWholeWarp, box.top, step));
    box.bottom = max(box.bottom, __shfl_xor_sync(kWholeWarp, box.bottom, step));
    box.left = min(box.left, __shfl_xor_sync(kWholeWarp, box.left, step));
    box.right = max(box.right, __shfl_xor_sync(kWholeWarp, box.right, step));
  }
  return box;
}

// One block a tile. kRegions: the boxes of the regions; otherwise the mask's box of people without limbs.
template <typename Mask, bool kRegions>
__global__ void __launch_bounds__(kRegionsThreads) survey(const RegionsPlan plan) {
  MGRAN_SHARED(Person, person, [1]);
  MGRAN_SHARED(uint4, tile, [kRegionsTile / 16]);
  MGRAN_SHARED(std::int32_t, boxes, [kWarps][MGRAN_MAX_REGIONS][4]);
  std::uint8_t* labels = reinterpret_cast<std::uint8_t*>(tile);
  const std::int64_t n = blockIdx.x / plan.tiles;
  const int start = static_cast<int>(blockIdx.x % plan.tiles) * kRegionsTile;
  const int count = min(plan.height * plan.width - start, kRegionsTile);
  const int thread = threadIdx.x, warp = thread / 32;
  prepare_person(plan, n, kRegions, false, person[0]);
  if (!kRegions && person[0].limb_count > 0) return;  // the whole block
  binarize<Mask>(plan, n, start, count, labels);
  __syncthreads();
  if (kRegions) label_tile(plan, person[0], start, count, false, labels);

  // Each thread looks at its own run alone: no barrier.
  const int groups = kRegions ? plan.regions : 1;
  for (int label = 1; label <= groups; ++label) {
    const Box own = box_of_run(plan, start + kRun * thread, label, labels + kRun * thread);
    const Box box = join_over_warp(own);
    if (thread % 32 == 0) {
      std::int32_t* to = boxes[warp][label - 1];
      to[0] = box.top;
      to[1] = box.bottom;
      to[2] = box.left;
      to[3] = box.right;
    }
  }
  __syncthreads();
  if (thread >= 4 * groups) return;
  const int group = thread / 4, side = thread % 4;
  std::int32_t* to = plan.workspace + (n * kBoxes + (kRegions ? 2 + group : 0)) * 4 + side;
  std::int32_t value = boxes[0][group][side];
  if (side % 2 == 0) {
    for (int w = 1; w < kWarps; ++w) value = min(value, boxes[w][group][side]);
    if (value < (side == 0 ? plan.height : plan.width)) atomicMin(to, value);
  } else {
    for (int w = 1; w < kWarps; ++w) value = max(value, boxes[w][group][side]);
    if (value > 0) atomicMax(to, value);
  }
}

// One block a tile.
template <typename Mask>
__global__ void __launch_bounds__(kRegionsThreads) label(const RegionsPlan plan) {
  MGRAN_SHARED(Person, person, [1]);
  MGRAN_SHARED(uint4, tile, [kRegionsTile / 16]);
  std::uint8_t* labels = reinterpret_cast<std::uint8_t*>(tile);
  const std::int64_t n = blockIdx.x / plan.tiles, pixels = plan.height * plan.width;
  const int start = static_cast<int>(blockIdx.x % plan.tiles) * kRegionsTile;
  const int count = min(plan.height * plan.width - start, kRegionsTile);
  binarize<Mask>(plan, n, start, count, labels);
  prepare_person(plan, n, true, plan.rectangles, person[0]);
  label_tile(plan, person[0], start, count, plan.rectangles, labels);
  __syncthreads();
  store_bytes(plan.map + n * pixels + start, labels, count, threadIdx.x, kRegionsThreads);
}

template <typename Mask>
cudaError_t launch_survey_of(const RegionsPlan& plan, std::int64_t people, cudaStream_t stream) {
  const std::int64_t numbers = people * 4 * kBoxes;
  const dim3 tiles(static_cast<unsigned>(people * plan.tiles)), block(kRegionsThreads);
  cudaError_t error = launch(reset_boxes, dim3(static_cast<unsigned>((numbers + kResetThreads - 1) / kResetThreads)),
                             dim3(kResetThreads), 0, stream, plan.workspace, numbers, plan.height, plan.width);
  if (error == cudaSuccess) error = launch(survey<Mask, false>, tiles, block, 0, stream, plan);
  if (error == cudaSuccess && plan.rectangles) error = launch(survey<Mask, true>, tiles, block, 0, stream, plan);
  return error;
}

cudaError_t launch_survey(const RegionsPlan& plan, std::int64_t people, bool mask_is_float, cudaStream_t stream) {
  return mask_is_float ? launch_survey_of<float>(plan, people, stream)
                       : launch_survey_of<std::uint8_t>(plan, people, stream);
}

}  // namespace mgran::cuda

extern "C" int mgran_regions_cuda(const MgranRegions* args, void* stream_) {
  using namespace mgran::cuda;
  if (args->people == 0 || args->height == 0 || args->width == 0) return MGRAN_OK;
  RegionsPlan all;
  if (!make_plan(*args, all)) return MGRAN_UNSUPPORTED;
  const auto stream = static_cast<cudaStream_t>(stream_);
  const bool is_float = args->mask_is_float;
  const std::int64_t most = kMostBlocks / all.tiles;
  for (std::int64_t first = 0; first < args->people; first += most) {
    const std::int64_t people = args->people - first < most ? args->people - first : most;
    const RegionsPlan plan = from_person(all, first, is_float);
    const dim3 tiles(static_cast<unsigned>(people * plan.tiles)), block(kRegionsThreads);
    cudaError_t error = launch_survey(plan, people, is_float, stream);
    if (error == cudaSuccess)
      error = is_float ? mgran::launch(label<float>, tiles, block, 0, stream, plan)
                       : mgran::launch(label<std::uint8_t>, tiles, block, 0, stream, plan);
    if (error != cudaSuccess) return status(error);
  }
  return MGRAN_OK;
}
