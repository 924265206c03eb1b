// `regions` on the GPU, one thread a pixel, in three steps: binarize and find the mask's box; label by the
// nearest limb; fill rectangles (the box layout alone). NOT YET RUN ON A GPU.
#include <cuda_runtime.h>

#include "../device/regions.h"
#include "../regions.h"

namespace {

using mgran::Box;
using mgran::Joints;
using mgran::Limb;

constexpr int kThreads = 256;
constexpr int kBoxes = MGRAN_MAX_REGIONS + 2;  // boxes in a person's workspace: the mask's, then one a region

// Tables travel by value in the launch's parameters: nothing to copy, nothing to keep alive.
struct Tables {
  std::int32_t limbs[3 * MGRAN_MAX_LIMBS];
  float weights[MGRAN_MAX_LIMBS];
  std::int32_t bands[5 * MGRAN_MAX_LIMBS];
};

__device__ void grow(std::int32_t* box /* [4] */, int y, int x) {
  atomicMin(box + 0, y);
  atomicMax(box + 1, y + 1);
  atomicMin(box + 2, x);
  atomicMax(box + 3, x + 1);
}

__device__ Box load_box(const std::int32_t* box /* [4] */) {
  return box[1] ? Box{box[0], box[1], box[2], box[3]} : Box{0, 0, 0, 0};
}

__global__ void reset_boxes(std::int32_t* workspace, std::int64_t boxes, int height, int width) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= boxes) return;
  workspace[4 * i + 0] = height;
  workspace[4 * i + 1] = 0;
  workspace[4 * i + 2] = width;
  workspace[4 * i + 3] = 0;
}

__device__ double quantize(std::uint8_t v) { return v; }
__device__ double quantize(float v) { return nearbyint(static_cast<double>(v) * mgran::kMaskSteps); }

template <typename T>
__global__ void binarize(MgranRegions args) {
  const std::int64_t n = blockIdx.y;
  const int pixel = blockIdx.x * kThreads + threadIdx.x;
  if (pixel >= args.height * args.width) return;
  const int y = pixel / args.width, x = pixel % args.width;
  const T* mask = static_cast<const T*>(args.mask) + n * args.mask_height * args.mask_width;
  double sum;
  if (args.mask_height == args.height && args.mask_width == args.width) {
    sum = quantize(mask[pixel]);
  } else {
    const mgran::Taps r = mgran::taps(y, args.mask_height, args.height);
    const mgran::Taps c = mgran::taps(x, args.mask_width, args.width);
    const T* upper = mask + static_cast<std::int64_t>(r.first) * args.mask_width;
    const T* lower = mask + static_cast<std::int64_t>(r.second) * args.mask_width;
    sum = (quantize(upper[c.first]) * r.low + quantize(lower[c.first]) * r.high) * c.low +
          (quantize(upper[c.second]) * r.low + quantize(lower[c.second]) * r.high) * c.high;
  }
  const bool foreground = sum >= args.limit;
  args.map[n * args.height * args.width + pixel] = foreground;
  if (foreground) grow(args.workspace + n * 4 * kBoxes, y, x);
}

__global__ void label(MgranRegions args, Tables tables) {
  __shared__ Joints joints;
  __shared__ Limb limbs[MGRAN_MAX_LIMBS];
  __shared__ int limb_count;
  args.layout.limbs = tables.limbs;
  args.layout.weights = tables.weights;
  args.layout.bands = tables.bands;
  const std::int64_t n = blockIdx.y;
  if (threadIdx.x == 0) {
    joints = mgran::find_joints(args.keypoints + n * 51, args.height, args.width, args.keypoint_threshold);
    limb_count = 0;
    for (int i = 0; i < args.layout.limb_count; ++i)
      limb_count += mgran::prepare_limb(joints, args.layout, i, limbs[limb_count]);
  }
  __syncthreads();
  const int pixel = blockIdx.x * kThreads + threadIdx.x;
  if (pixel >= args.height * args.width) return;
  std::uint8_t& out = args.map[n * args.height * args.width + pixel];
  if (!out) return;
  const int y = pixel / args.width, x = pixel % args.width;
  std::int32_t* boxes = args.workspace + n * 4 * kBoxes;
  std::int32_t group = 0;
  if (limb_count == 0) {
    group = mgran::band_of(args.layout, load_box(boxes), y, x);
  } else {
    const float px = static_cast<float>(x) + 0.5f, py = static_cast<float>(y) + 0.5f;
    float best = INFINITY;
    if (args.layout.torso && mgran::has_torso(joints) && mgran::inside_torso(joints, px, py)) {
      best = 0.0f;
      group = args.layout.torso;
    }
    for (int i = 0; i < limb_count; ++i) {
      const float d = mgran::limb_distance(limbs[i], px, py);
      if (d < best) {
        best = d;
        group = limbs[i].group;
      }
    }
  }
  out = static_cast<std::uint8_t>(group);
  if (args.layout.rectangles) grow(boxes + 4 * (1 + group), y, x);
}

__global__ void fill(MgranRegions args) {
  const std::int64_t n = blockIdx.y;
  const int pixel = blockIdx.x * kThreads + threadIdx.x;
  if (pixel >= args.height * args.width) return;
  std::uint8_t& out = args.map[n * args.height * args.width + pixel];
  const int y = pixel / args.width, x = pixel % args.width;
  for (int group = 1; !out && group <= args.layout.regions; ++group) {
    const Box box = load_box(args.workspace + (n * kBoxes + 1 + group) * 4);
    if (y >= box.top && y < box.bottom && x >= box.left && x < box.right) out = static_cast<std::uint8_t>(group);
  }
}

}  // namespace

extern "C" int mgran_regions_cuda(const MgranRegions* host, void* stream_) {
  MgranRegions args = *host;
  const std::int64_t pixels = static_cast<std::int64_t>(args.height) * args.width;
  if (args.people == 0 || pixels == 0) return 0;
  if (args.layout.band_count > MGRAN_MAX_LIMBS) return 2;
  Tables tables{};
  for (int i = 0; i < 3 * args.layout.limb_count; ++i) tables.limbs[i] = args.layout.limbs[i];
  for (int i = 0; i < args.layout.limb_count; ++i) tables.weights[i] = args.layout.weights[i];
  for (int i = 0; i < 5 * args.layout.band_count; ++i) tables.bands[i] = args.layout.bands[i];
  const auto stream = static_cast<cudaStream_t>(stream_);
  const auto blocks = static_cast<unsigned>((pixels + kThreads - 1) / kThreads);
  // gridDim.y ends at 65535: more people go in several launches.
  constexpr std::int64_t kMost = 65535;
  for (std::int64_t first = 0; first < host->people; first += kMost) {
    args.people = host->people - first < kMost ? host->people - first : kMost;
    const std::int64_t mask_bytes = static_cast<std::int64_t>(args.mask_height) * args.mask_width *
                                    (args.mask_is_float ? sizeof(float) : sizeof(std::uint8_t));
    args.mask = static_cast<const char*>(host->mask) + first * mask_bytes;
    args.keypoints = host->keypoints + first * 51;
    args.map = host->map + first * pixels;
    args.workspace = host->workspace + first * 4 * kBoxes;
    const dim3 grid(blocks, static_cast<unsigned>(args.people));
    const std::int64_t boxes = args.people * kBoxes;
    reset_boxes<<<static_cast<unsigned>((boxes + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
        args.workspace, boxes, args.height, args.width);
    if (args.mask_is_float)
      binarize<float><<<grid, kThreads, 0, stream>>>(args);
    else
      binarize<std::uint8_t><<<grid, kThreads, 0, stream>>>(args);
    label<<<grid, kThreads, 0, stream>>>(args, tables);
    if (args.layout.rectangles) fill<<<grid, kThreads, 0, stream>>>(args);
  }
  return cudaGetLastError() == cudaSuccess ? 0 : 3;
}
