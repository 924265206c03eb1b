// `align` on the GPU: crops, masks and keypoints -> aligned inputs, the region map in shared memory alone.
//
// The survey of regions.cu, then find_unlabelled, which says whose map is empty, then align_tile: a block makes the
// map of its tile and emits the tile's inputs.
//
// Bytes at P pixels a person, a mask of M bytes, R regions and elements of S bytes: at least M + 3 * P read and
// P * 3 * S * (1 + R) written; that is what align_tile moves (and P more where the map is asked for). find_unlabelled
// reads the start of each mask once more, up to the first 2048 pixels that hold one of a region (the whole mask of a
// person that has none), the survey what regions.cu says.
#include "../align.h"

#include "inputs_tile.cuh"
#include "launch.h"
#include "regions_tile.cuh"

namespace mgran::cuda {

// One block a person: is the whole map 0? The answer goes to the workspace.
template <typename Mask>
__global__ void __launch_bounds__(kRegionsThreads) find_unlabelled(const RegionsPlan plan) {
  MGRAN_SHARED(Person, person, [1]);
  MGRAN_SHARED(uint4, tile, [kRegionsTile / 16]);
  std::uint8_t* labels = reinterpret_cast<std::uint8_t*>(tile);
  const std::int64_t n = blockIdx.x;
  prepare_person(plan, n, true, false, person[0]);
  bool some = false;
  // All threads agree on `some`, so all of them leave together.
  for (int i = 0; i < plan.tiles && !some; ++i) {
    const int start = i * kRegionsTile, count = min(plan.height * plan.width - start, kRegionsTile);
    binarize<Mask>(plan, n, start, count, labels);
    __syncthreads();
    label_tile(plan, person[0], start, count, false, labels);
    const uint4 run = tile[threadIdx.x];
    some = __syncthreads_or((run.x | run.y | run.z | run.w) != 0);
  }
  if (threadIdx.x == 0) plan.workspace[n * 4 * kBoxes + kEmptyFlag] = !some;
}

// One block a tile.
template <typename T, typename Mask>
__global__ void __launch_bounds__(kRegionsThreads, 8)
    align_tile(const RegionsPlan plan, const std::uint8_t* __restrict__ crops /* [people, pixels, 3] */,
               T* __restrict__ out /* [people, 1 + regions, pixels, 3] */, int regions, const Normalization norm) {
  using Bits = typename Element<T>::Bits;
  MGRAN_SHARED(Person, person, [1]);
  MGRAN_SHARED(uint4, tile, [kRegionsTile / 16]);
  MGRAN_SHARED(uint4, crop, [3 * kRegionsTile / 16]);
  MGRAN_SHARED(Bits, values, [3 * 256]);
  std::uint8_t* labels = reinterpret_cast<std::uint8_t*>(tile);
  std::uint8_t* bytes = reinterpret_cast<std::uint8_t*>(crop);
  const std::int64_t n = blockIdx.x / plan.tiles, pixels = plan.height * plan.width;
  const int start = static_cast<int>(blockIdx.x % plan.tiles) * kRegionsTile;
  const int count = min(plan.height * plan.width - start, kRegionsTile);
  load_bytes(crops + (n * pixels + start) * 3, bytes, 3 * count, threadIdx.x, kRegionsThreads);
  binarize<Mask>(plan, n, start, count, labels);
  fill_values<T, kRegionsThreads>(norm, values);
  prepare_person(plan, n, true, plan.rectangles, person[0]);
  label_tile(plan, person[0], start, count, plan.rectangles, labels);
  __syncthreads();
  if (plan.map) store_bytes(plan.map + n * pixels + start, labels, count, threadIdx.x, kRegionsThreads);
  const bool empty = plan.workspace[n * 4 * kBoxes + kEmptyFlag] != 0;
  Bits* to = reinterpret_cast<Bits*>(out) + (n * (1 + regions) * pixels + start) * 3;
  emit<Bits, kRegionsThreads>(bytes, labels, values, empty, count, regions, 3 * pixels, to);
}

template <typename T, typename Mask>
cudaError_t launch_align(const RegionsPlan& all, const MgranAlign& args, cudaStream_t stream) {
  const std::int64_t pixels = static_cast<std::int64_t>(all.height) * all.width;
  const std::int64_t total = args.regions.people, most = kMostBlocks / all.tiles;
  const dim3 block(kRegionsThreads);
  const bool is_float = args.regions.mask_is_float;
  T* out = static_cast<T*>(args.inputs.out);
  for (std::int64_t first = 0; first < total; first += most) {
    const std::int64_t people = total - first < most ? total - first : most;
    const RegionsPlan plan = from_person(all, first, is_float);
    cudaError_t error = launch_survey(plan, people, is_float, stream);
    if (error == cudaSuccess)
      error = launch(find_unlabelled<Mask>, dim3(static_cast<unsigned>(people)), block, 0, stream, plan);
    if (error == cudaSuccess)
      error = launch(align_tile<T, Mask>, dim3(static_cast<unsigned>(people * plan.tiles)), block, 0, stream, plan,
                     args.inputs.crops + first * pixels * 3, out + first * (1 + plan.regions) * pixels * 3,
                     plan.regions, normalization(args.inputs));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

template <typename T>
int align_as(const RegionsPlan& plan, const MgranAlign& args, cudaStream_t stream) {
  return status(args.regions.mask_is_float ? launch_align<T, float>(plan, args, stream)
                                           : launch_align<T, std::uint8_t>(plan, args, stream));
}

}  // namespace mgran::cuda

extern "C" int mgran_align_cuda(const MgranAlign* args, void* stream_) {
  using namespace mgran::cuda;
  if (args->regions.people == 0 || args->regions.height == 0 || args->regions.width == 0) return MGRAN_OK;
  RegionsPlan plan;
  if (!make_plan(args->regions, plan)) return MGRAN_UNSUPPORTED;
  const auto stream = static_cast<cudaStream_t>(stream_);
  if (args->inputs.dtype == MGRAN_FLOAT32) return align_as<float>(plan, *args, stream);
  if (args->inputs.dtype == MGRAN_FLOAT16) return align_as<__half>(plan, *args, stream);
  if (args->inputs.dtype == MGRAN_BFLOAT16) return align_as<__nv_bfloat16>(plan, *args, stream);
  return MGRAN_UNSUPPORTED;
}
