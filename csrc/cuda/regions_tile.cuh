// A tile of a region map, made in shared memory: binarize the mask, then label by the nearest limb. Shared by
// regions.cu and align.cu.
//
// A thread labels a run of 16 neighbouring pixels. Before it measures them it measures the run's centre: a distance
// changes by at most the way gone, so a limb that is further from the centre than another one by more than the
// run's length cannot win anywhere in the run and is left out. The remaining limbs are measured in the order and
// with the arithmetic of the reference, so the map equals it to the bit.
#pragma once
#include <cmath>

#include "../device/regions.h"
#include "memory.cuh"
#include "regions_plan.h"

namespace mgran::cuda {

// A limb in 32 bytes: two shared loads of 16 bytes.
struct alignas(16) ReadyLimb {
  Limb limb;
  float root;  // 1 / thickness
};

// What labelling a person's pixels takes, in shared memory.
struct Person {
  ReadyLimb limbs[MGRAN_MAX_LIMBS];
  Joints joints;
  Box box;                            // of the mask; set for a person without limbs
  Box rectangles[MGRAN_MAX_REGIONS];  // of the regions; set for a layout of rectangles
  std::int32_t limb_count;
  std::int32_t torso;              // group of the torso, 0 when a corner is missing
  float top, bottom, left, right;  // no pixel's centre outside of these is inside the torso
  std::int32_t table[3 * MGRAN_MAX_LIMBS];
  std::int32_t bands[5 * MGRAN_MAX_LIMBS];
  float weights[MGRAN_MAX_LIMBS];
};

__device__ __forceinline__ MgranLayout layout_of(const RegionsPlan& plan, const Person& person) {
  return {person.table,    person.weights, person.bands,    plan.limb_count,
          plan.band_count, plan.torso,     plan.rectangles, plan.regions};
}

__device__ __forceinline__ Box load_box(const std::int32_t* box /* [4] */) {
  return box[1] ? Box{box[0], box[1], box[2], box[3]} : Box{0, 0, 0, 0};
}

__device__ __forceinline__ void find_torso(const RegionsPlan& plan, Person& person) {
  const Joints& j = person.joints;
  person.torso = plan.torso && has_torso(j) ? plan.torso : 0;
  if (!person.torso) return;
  const float margin = 1.0f + plan.slack;
  person.top = fminf(fminf(j.y[corner(0)], j.y[corner(1)]), fminf(j.y[corner(2)], j.y[corner(3)]));
  person.bottom = fmaxf(fmaxf(j.y[corner(0)], j.y[corner(1)]), fmaxf(j.y[corner(2)], j.y[corner(3)]));
  person.left = fminf(fminf(j.x[corner(0)], j.x[corner(1)]), fminf(j.x[corner(2)], j.x[corner(3)])) - margin;
  person.right = fmaxf(fmaxf(j.x[corner(0)], j.x[corner(1)]), fmaxf(j.x[corner(2)], j.x[corner(3)])) + margin;
}

// All threads of the block; ends with a barrier. `use_boxes`: the survey of the mask is complete.
__device__ __forceinline__ void prepare_person(const RegionsPlan& plan, std::int64_t n, bool use_boxes,
                                               bool use_rectangles, Person& person) {
  const int lane = threadIdx.x % 32, thread = threadIdx.x;
  const std::int32_t* boxes = plan.workspace + n * 4 * kBoxes;
  if (thread >= 32) {
    for (int i = thread - 32; i < 5 * plan.band_count; i += kRegionsThreads - 32) person.bands[i] = plan.bands[i];
    if (use_boxes && thread == 32) person.box = load_box(boxes);
    if (use_rectangles && thread >= 64 && thread - 64 < plan.regions)
      person.rectangles[thread - 64] = load_box(boxes + 4 * (2 + thread - 64));
  } else {
    for (int i = lane; i < 3 * plan.limb_count; i += 32) person.table[i] = plan.limbs[i];
    if (lane < plan.limb_count) person.weights[lane] = plan.weights[lane];
    if (lane < 17)
      find_joint(person.joints, plan.keypoints + n * 51, lane, plan.height, plan.width, plan.keypoint_threshold);
    __syncwarp();
    if (lane == 0) find_neck(person.joints);
    if (lane == 1) find_pelvis(person.joints);
    if (lane == 2) find_torso(plan, person);
    __syncwarp();
    ReadyLimb ready;
    const bool usable =
        lane < plan.limb_count && prepare_limb(person.joints, layout_of(plan, person), lane, ready.limb);
    const unsigned all = __ballot_sync(kWholeWarp, usable);
    if (usable) {
      ready.root = sqrtf(ready.limb.weight);
      person.limbs[__popc(all & ((1u << lane) - 1))] = ready;  // in the table's order
    }
    if (lane == 0) person.limb_count = __popc(all);
  }
  __syncthreads();
}

__device__ __forceinline__ double quantize(std::uint8_t v) { return v; }
__device__ __forceinline__ double quantize(float v) { return rint(static_cast<double>(v) * kMaskSteps); }

__device__ __forceinline__ std::uint32_t flag(const RegionsPlan& plan, float v) { return v >= plan.cut; }
__device__ __forceinline__ std::uint32_t flag(const RegionsPlan& plan, std::uint8_t v) { return v >= plan.byte_cut; }

// 16 bytes of the mask -> their flags, one byte each.
__device__ __forceinline__ void binarize16(const RegionsPlan& plan, const float* mask, std::uint8_t* flags) {
  const float4 v = __ldg(reinterpret_cast<const float4*>(mask));
  *reinterpret_cast<std::uint32_t*>(flags) =
      flag(plan, v.x) | flag(plan, v.y) << 8 | flag(plan, v.z) << 16 | flag(plan, v.w) << 24;
}

__device__ __forceinline__ std::uint32_t flags_of(const RegionsPlan& plan, std::uint32_t four) {
  std::uint32_t flags = 0;
#pragma unroll
  for (int shift = 0; shift < 32; shift += 8) flags |= flag(plan, static_cast<std::uint8_t>(four >> shift)) << shift;
  return flags;
}

__device__ __forceinline__ void binarize16(const RegionsPlan& plan, const std::uint8_t* mask, std::uint8_t* flags) {
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(mask));
  *reinterpret_cast<uint4*>(flags) =
      make_uint4(flags_of(plan, v.x), flags_of(plan, v.y), flags_of(plan, v.z), flags_of(plan, v.w));
}

__device__ __forceinline__ Taps axis_taps(int i, int source, int target, bool narrow) {
  return narrow ? taps<std::int32_t>(i, source, target) : taps(i, source, target);
}

// The tile's foreground, a byte of 0 or 1 a pixel; 0 beyond `count`. All threads of the block; barrier afterwards.
template <typename Mask>
__device__ __forceinline__ void binarize(const RegionsPlan& plan, std::int64_t n, int start, int count,
                                         std::uint8_t* flags /* [kRegionsTile], 16-byte aligned */) {
  const int thread = threadIdx.x;
  const Mask* mask = static_cast<const Mask*>(plan.mask) + n * plan.mask_height * plan.mask_width;
  if (!plan.resampled) {
    constexpr int kVector = 16 / sizeof(Mask);
    const Mask* tile = mask + start;
    const int whole = aligned16(tile) ? count / kVector : 0;
#pragma unroll(kRegionsTile / kVector / kRegionsThreads)
    for (int i = thread; i < whole; i += kRegionsThreads) binarize16(plan, tile + kVector * i, flags + kVector * i);
#pragma unroll 1
    for (int i = kVector * whole + thread; i < count; i += kRegionsThreads)
      flags[i] = static_cast<std::uint8_t>(flag(plan, __ldg(tile + i)));
  } else {
    int y = -1, x = -1;
    Taps rows{}, columns{};
#pragma unroll 1
    for (int i = thread; i < count; i += kRegionsThreads) {
      const int row = (start + i) / plan.width, column = start + i - row * plan.width;
      if (row != y) rows = axis_taps(row, plan.mask_height, plan.height, plan.narrow);
      if (column != x) columns = axis_taps(column, plan.mask_width, plan.width, plan.narrow);
      y = row;
      x = column;
      const Mask* upper = mask + static_cast<std::int64_t>(rows.first) * plan.mask_width;
      const Mask* lower = mask + static_cast<std::int64_t>(rows.second) * plan.mask_width;
      const double left =
          quantize(__ldg(upper + columns.first)) * rows.low + quantize(__ldg(lower + columns.first)) * rows.high;
      const double right =
          quantize(__ldg(upper + columns.second)) * rows.low + quantize(__ldg(lower + columns.second)) * rows.high;
      flags[i] = left * columns.low + right * columns.high >= plan.limit;
    }
  }
  for (int i = count + thread; i < kRegionsTile; i += kRegionsThreads) flags[i] = 0;
}

// The limbs that can be the nearest one somewhere in a run.
struct Near {
  unsigned limbs;      // as bits
  std::int32_t group;  // of all of them, 0 when they differ
};

// For the run of pixels (y, x .. x + kRun - 1).
__device__ __forceinline__ Near near_limbs(const RegionsPlan& plan, const Person& person, int y, int x) {
  const int count = person.limb_count;
  if (x + kRun > plan.width) return {count == 32 ? kWholeWarp : (1u << count) - 1, 0};  // it goes on in the next row
  const float cx = static_cast<float>(x) + 0.5f * kRun, cy = static_cast<float>(y) + 0.5f;
  // `slack` is far more than what rounding adds to either distance. Written so that NaN leaves no limb out.
  const float reach = 0.5f * (kRun - 1) + plan.slack;
  float most = INFINITY;
  unsigned candidates = 0;
  // The bound of the first round sinks as it goes; the second one looks at what is left with the last bound.
#pragma unroll 2
  for (int i = 0; i < count; ++i) {
    const float distance = sqrtf(limb_distance(person.limbs[i].limb, cx, cy)), way = reach * person.limbs[i].root;
    if (!(distance - way > most)) candidates |= 1u << i;
    most = fminf(most, distance + way);
  }
  Near near{0, -1};
#pragma unroll 1
  for (; candidates; candidates &= candidates - 1) {
    const int i = __ffs(candidates) - 1;
    const ReadyLimb& ready = person.limbs[i];
    if (sqrtf(limb_distance(ready.limb, cx, cy)) - reach * ready.root > most) continue;
    near.limbs |= 1u << i;
    near.group = near.group == -1 || near.group == ready.limb.group ? ready.limb.group : 0;
  }
  // Limbs that are infinitely thin or far have no distance to win with: let them be measured.
  if (!(most < 1e18f)) near.group = 0;
  return near;
}

// Four pixels, where `flags` says that they are foreground, by their nearest limb.
__device__ __forceinline__ std::uint32_t nearest_groups(const Person& person, std::uint32_t flags, unsigned limbs,
                                                        bool try_torso, const float (&px)[4], const float (&py)[4]) {
  float best[4];
  std::uint32_t group[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const bool inside = try_torso && inside_torso(person.joints, px[k], py[k]);
    best[k] = inside ? 0.0f : INFINITY;
    group[k] = inside ? person.torso : 0;
  }
#pragma unroll 1
  for (; limbs; limbs &= limbs - 1) {
    const ReadyLimb ready = person.limbs[__ffs(limbs) - 1];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float distance = limb_distance(ready.limb, px[k], py[k]);
      const bool nearer = distance < best[k];
      best[k] = nearer ? distance : best[k];
      group[k] = nearer ? ready.limb.group : group[k];
    }
  }
  std::uint32_t labels = 0;
#pragma unroll
  for (int k = 0; k < 4; ++k) labels |= (flags >> 8 * k & 1) * group[k] << 8 * k;
  return labels;
}

// Turns the flags of this thread's run into labels. `first` is the person's pixel that the run starts with.
__device__ __forceinline__ void label_run(const RegionsPlan& plan, const Person& person, int first,
                                          std::uint32_t* run /* [kRun / 4] */) {
  if (!(run[0] | run[1] | run[2] | run[3])) return;
  int y = first / plan.width, x = first - y * plan.width;
  if (person.limb_count == 0) {
    const MgranLayout layout = layout_of(plan, person);
    std::uint8_t* pixel = reinterpret_cast<std::uint8_t*>(run);
#pragma unroll 1
    for (int k = 0; k < kRun; ++k) {
      if (pixel[k]) pixel[k] = band_of(layout, person.box, y, x);
      if (++x == plan.width) x = 0, ++y;
    }
    return;
  }
  const Near near = near_limbs(plan, person, y, x);
  const bool one_row = x + kRun <= plan.width;
  const float row = static_cast<float>(y) + 0.5f, column = static_cast<float>(x) + 0.5f;
  const bool far = one_row && (row < person.top || row > person.bottom || column > person.right ||
                               column + (kRun - 1) < person.left);
  const bool try_torso = person.torso && !far;
  if (near.group && (!try_torso || near.group == person.torso)) {
    // Whichever wins, the group is the same: each byte of 1 becomes the group.
#pragma unroll
    for (int word = 0; word < kRun / 4; ++word) run[word] *= static_cast<std::uint32_t>(near.group);
    return;
  }
#pragma unroll 1
  for (int word = 0; word < kRun / 4; ++word) {
    float px[4], py[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      px[k] = static_cast<float>(x) + 0.5f;
      py[k] = static_cast<float>(y) + 0.5f;
      if (++x == plan.width) x = 0, ++y;
    }
    if (run[word]) run[word] = nearest_groups(person, run[word], near.limbs, try_torso, px, py);
  }
}

// Fills this thread's run up to the regions' rectangles.
__device__ __forceinline__ void fill_run(const RegionsPlan& plan, const Person& person, int first, int end,
                                         std::uint8_t* run /* [kRun] */) {
  int y = first / plan.width, x = first - y * plan.width;
#pragma unroll 1
  for (int k = 0; k < kRun && first + k < end; ++k) {
    for (int g = 1; !run[k] && g <= plan.regions; ++g) {
      const Box& box = person.rectangles[g - 1];
      if (y >= box.top && y < box.bottom && x >= box.left && x < box.right) run[k] = static_cast<std::uint8_t>(g);
    }
    if (++x == plan.width) x = 0, ++y;
  }
}

// Labels a tile of foreground flags in place. All threads of the block, after a barrier; each touches its own run
// alone, so a barrier is wanted afterwards.
__device__ __forceinline__ void label_tile(const RegionsPlan& plan, const Person& person, int start, int count,
                                           bool fill, std::uint8_t* tile /* [kRegionsTile] */) {
  const int at = kRun * static_cast<int>(threadIdx.x);
  if (at >= count) return;
  label_run(plan, person, start + at, reinterpret_cast<std::uint32_t*>(tile + at));
  if (fill) fill_run(plan, person, start + at, start + count, tile + at);
}

}  // namespace mgran::cuda
