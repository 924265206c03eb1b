// `inputs` on the GPU: crops and region map -> the 1 + R aligned inputs.
//
// Bytes at P pixels a person and R regions, elements of S bytes: at least P * (3 + 1) read and P * 3 * S * (1 + R)
// written; the kernels move just that, and find_empty reads the start of each map once more, up to the first 4 KiB
// that hold a pixel of a region (the whole map of a person that has none).
#include "../inputs.h"

#include "inputs_tile.cuh"
#include "launch.h"

namespace mgran::cuda {

constexpr int kInputsThreads = 256;
constexpr int kInputsTile = 2048;  // pixels

// One block a person: is the whole map 0?
__global__ void __launch_bounds__(kInputsThreads)
    find_empty(const std::uint8_t* __restrict__ maps /* [people, pixels] */, std::int32_t* __restrict__ empty,
               std::int64_t pixels) {
  const std::uint8_t* map = maps + static_cast<std::int64_t>(blockIdx.x) * pixels;
  const bool vectors = aligned16(map);
  bool some = false;
  // All threads agree on `some`, so all of them leave together.
  for (std::int64_t start = 0; start < pixels && !some; start += 16 * kInputsThreads) {
    const std::int64_t at = start + 16 * static_cast<int>(threadIdx.x);
    std::uint32_t seen = 0;
    if (vectors && at + 16 <= pixels) {
      const uint4 v = __ldg(reinterpret_cast<const uint4*>(map + at));
      seen = v.x | v.y | v.z | v.w;
    } else {
      for (std::int64_t i = at; i < at + 16 && i < pixels; ++i) seen |= __ldg(map + i);
    }
    some = __syncthreads_or(seen != 0);
  }
  if (threadIdx.x == 0) empty[blockIdx.x] = !some;
}

// One block a tile of one person.
template <typename T>
__global__ void __launch_bounds__(kInputsThreads)
    emit_inputs(const std::uint8_t* __restrict__ crops /* [people, pixels, 3] */,
                const std::uint8_t* __restrict__ maps /* [people, pixels] */,
                const std::int32_t* __restrict__ empty /* [people] */,
                T* __restrict__ out /* [people, 1 + regions, pixels, 3] */, std::int64_t pixels, unsigned tiles,
                int regions, Normalization norm) {
  using Bits = typename Element<T>::Bits;
  MGRAN_SHARED(uint4, bytes, [3 * kInputsTile / 16]);
  MGRAN_SHARED(uint4, labels, [kInputsTile / 16]);
  MGRAN_SHARED(Bits, values, [3 * 256]);
  const std::int64_t person = blockIdx.x / tiles;
  const std::int64_t start = static_cast<std::int64_t>(blockIdx.x % tiles) * kInputsTile;
  const int count = pixels - start < kInputsTile ? static_cast<int>(pixels - start) : kInputsTile;
  std::uint8_t* tile = reinterpret_cast<std::uint8_t*>(bytes);
  std::uint8_t* map = reinterpret_cast<std::uint8_t*>(labels);
  const std::int64_t at = person * pixels + start;
  load_bytes(crops + 3 * at, tile, 3 * count, threadIdx.x, kInputsThreads);
  load_bytes(maps + at, map, count, threadIdx.x, kInputsThreads);
  fill_values<T, kInputsThreads>(norm, values);
  __syncthreads();
  Bits* to = reinterpret_cast<Bits*>(out) + (person * (1 + regions) * pixels + start) * 3;
  emit<Bits, kInputsThreads>(tile, map, values, empty[person] != 0, count, regions, 3 * pixels, to);
}

template <typename T>
cudaError_t launch_inputs(const MgranInputs& args, cudaStream_t stream) {
  const std::int64_t tiles = (args.pixels + kInputsTile - 1) / kInputsTile;
  const std::int64_t most = kMostBlocks / tiles;
  for (std::int64_t first = 0; first < args.people; first += most) {
    const std::int64_t people = args.people - first < most ? args.people - first : most;
    const std::uint8_t* map = args.map + first * args.pixels;
    std::int32_t* empty = args.workspace + first;
    cudaError_t error = launch(find_empty, dim3(static_cast<unsigned>(people)), dim3(kInputsThreads), 0, stream, map,
                               empty, args.pixels);
    if (error != cudaSuccess) return error;
    error = launch(emit_inputs<T>, dim3(static_cast<unsigned>(people * tiles)), dim3(kInputsThreads), 0, stream,
                   args.crops + first * args.pixels * 3, map, empty,
                   static_cast<T*>(args.out) + first * (1 + args.regions) * args.pixels * 3, args.pixels,
                   static_cast<unsigned>(tiles), args.regions, normalization(args));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace mgran::cuda

extern "C" int mgran_inputs_cuda(const MgranInputs* args, void* stream_) {
  using namespace mgran::cuda;
  if (args->people == 0 || args->pixels == 0) return MGRAN_OK;
  if ((args->pixels - 1) / kInputsTile >= kMostBlocks) return MGRAN_UNSUPPORTED;
  const auto stream = static_cast<cudaStream_t>(stream_);
  if (args->dtype == MGRAN_FLOAT32) return status(launch_inputs<float>(*args, stream));
  if (args->dtype == MGRAN_FLOAT16) return status(launch_inputs<__half>(*args, stream));
  if (args->dtype == MGRAN_BFLOAT16) return status(launch_inputs<__nv_bfloat16>(*args, stream));
  return MGRAN_UNSUPPORTED;
}
