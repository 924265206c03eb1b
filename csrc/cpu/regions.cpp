// `regions` on the CPU: binarize, label by the nearest limb, fall back to bands of the mask's box, fill rectangles.
#include "../regions.h"

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <new>

#include "dispatch.h"
#include "regions_label.h"
#include "regions_lanes.h"
#include "regions_rows.h"
#include "threads.h"

namespace {

using mgran::Box;
using mgran::ColumnTaps;
using mgran::kForeground;
using mgran::kTileHeight;
using mgran::Person;
using mgran::Taps;

// What one thread works in.
struct Scratch {
  std::unique_ptr<double[]> values;         // [mask_width] one row of the mask
  std::unique_ptr<double[]> resampled[2];   // [width] even and odd rows of the mask, at the map's width
  std::unique_ptr<std::uint8_t[]> columns;  // [width]
};

// What all people of a call share.
struct Call {
  const MgranRegions* args;
  bool resample;
  float least_float;  // foreground from here on, without resampling
  int least_byte;
  ColumnTaps taps;
  mgran::TileKernels tiles;
};

MGRAN_INLINE auto least_of(const Call& call, float) { return call.least_float; }
MGRAN_INLINE auto least_of(const Call& call, std::uint8_t) { return call.least_byte; }

// Binarizes rows `begin` to `end` of one person, and labels them if the person has limbs.
template <typename T>
MGRAN_INLINE void label_block(const Call& call, const Person& person, const T* mask /* [mask_height, mask_width] */,
                              int begin, int end, Scratch& scratch, std::uint8_t* map /* [height, width] */) {
  const MgranRegions& args = *call.args;
  const std::int64_t width = args.width, mask_width = args.mask_width;
  const bool exact = !call.resample || mgran::is_probability(mask, mask_width * args.mask_height);
  std::int32_t held[2] = {-1, -1};  // the rows of the mask in scratch.resampled
  for (int y = begin; y < end; y += kTileHeight) {
    const int rows = y + kTileHeight < end ? kTileHeight : end - y;
    std::uint8_t* out = map + y * width;
    for (int row = 0; row < rows; ++row) {
      if (!call.resample) {
        mgran::binarize(mask + (y + row) * mask_width, least_of(call, T{}), args.width, out + row * width);
        continue;
      }
      const Taps t = mgran::taps(y + row, args.mask_height, args.height);
      if (!exact) {
        mgran::resample_any(mask + t.first * mask_width, mask + t.second * mask_width, t.low, t.high, args.mask_width,
                            call.taps, args.limit, args.width, scratch.values.get(), out + row * width);
        continue;
      }
      for (const std::int32_t source : {t.first, t.second})
        if (held[source & 1] != source) {
          mgran::resample_columns(mask + source * mask_width, args.mask_width, call.taps, args.width,
                                  scratch.values.get(), scratch.resampled[source & 1].get());
          held[source & 1] = source;
        }
      mgran::resample_rows(scratch.resampled[t.first & 1].get(), scratch.resampled[t.second & 1].get(), t.low, t.high,
                           args.limit, args.width, out + row * width);
    }
    if (!person.count) continue;
    mgran::find_columns(out, width, rows, scratch.columns.get());
    mgran::label_rows(call.tiles, person, y, rows, width, scratch.columns.get(), out);
  }
}

// What needs the whole map of a person: bands without limbs, and rectangles.
MGRAN_INLINE void finish_map(const MgranRegions& args, const Person& person, Scratch& scratch, std::uint8_t* map) {
  const MgranLayout& layout = args.layout;
  std::uint8_t* columns = scratch.columns.get();
  if (!person.count) {
    const Box box = mgran::bounding_box(map, args.height, args.width, kForeground, columns);
    mgran::label_bands(layout, box, args.width, map);
  }
  if (!layout.rectangles) return;
  Box boxes[MGRAN_MAX_REGIONS + 1];
  for (int group = 1; group <= layout.regions; ++group)
    boxes[group] = mgran::bounding_box(map, args.height, args.width, static_cast<std::uint8_t>(group), columns);
  for (int group = 1; group <= layout.regions; ++group)
    mgran::fill_box(boxes[group], static_cast<std::uint8_t>(group), args.width, map);
}

// One set of functions for each instruction set.
#define MGRAN_REGIONS_KERNELS(attribute, name)                                                                        \
  attribute void block_float_##name(const Call& call, const Person& person, const float* mask, int begin, int end,    \
                                    Scratch& scratch, std::uint8_t* map) {                                            \
    label_block(call, person, mask, begin, end, scratch, map);                                                        \
  }                                                                                                                   \
  attribute void block_byte_##name(const Call& call, const Person& person, const std::uint8_t* mask, int begin,       \
                                   int end, Scratch& scratch, std::uint8_t* map) {                                    \
    label_block(call, person, mask, begin, end, scratch, map);                                                        \
  }                                                                                                                   \
  attribute void finish_##name(const MgranRegions& args, const Person& person, Scratch& scratch, std::uint8_t* map) { \
    finish_map(args, person, scratch, map);                                                                           \
  }

MGRAN_REGIONS_KERNELS(, portable)
#if MGRAN_X86
MGRAN_REGIONS_KERNELS(MGRAN_AVX2, avx2)
MGRAN_REGIONS_KERNELS(MGRAN_AVX512, avx512)
#endif

struct Kernels {
  void (*block_float)(const Call&, const Person&, const float* mask, int begin, int end, Scratch&, std::uint8_t* map);
  void (*block_byte)(const Call&, const Person&, const std::uint8_t* mask, int begin, int end, Scratch&,
                     std::uint8_t* map);
  void (*finish)(const MgranRegions&, const Person&, Scratch&, std::uint8_t* map);
  mgran::TileKernels tiles;
};

Kernels choose_kernels() {
#if MGRAN_X86
  const mgran::Isa isa = mgran::isa();
  if (isa == mgran::Isa::avx512)
    return {block_float_avx512,
            block_byte_avx512,
            finish_avx512,
            {mgran::avx512::find_candidates, mgran::avx512::label_tile}};
  if (isa >= mgran::Isa::avx2)
    return {block_float_avx2, block_byte_avx2, finish_avx2, {mgran::avx2::find_candidates, mgran::avx2::label_tile}};
#endif
  return {block_float_portable, block_byte_portable, finish_portable, {mgran::find_candidates, mgran::label_tile}};
}

// The kernel for the mask's type.
auto block_of(const Kernels& kernels, float) { return kernels.block_float; }
auto block_of(const Kernels& kernels, std::uint8_t) { return kernels.block_byte; }

template <typename T>
void run(const MgranRegions& args, int threads) {
  const std::int64_t pixels = static_cast<std::int64_t>(args.height) * args.width;
  const std::int64_t mask_pixels = static_cast<std::int64_t>(args.mask_height) * args.mask_width;
  const Kernels kernels = choose_kernels();
  const auto block = block_of(kernels, T{});

  Call call{};
  call.args = &args;
  call.tiles = kernels.tiles;
  call.resample = args.mask_height != args.height || args.mask_width != args.width;
  std::unique_ptr<std::int32_t[]> indices;
  std::unique_ptr<double[]> weights;
  if (call.resample) {
    indices.reset(new std::int32_t[2 * static_cast<std::size_t>(args.width)]);
    weights.reset(new double[2 * static_cast<std::size_t>(args.width)]);
    for (int x = 0; x < args.width; ++x) {
      const Taps t = mgran::taps(x, args.mask_width, args.width);
      indices[x] = t.first;
      indices[args.width + x] = t.second;
      weights[x] = t.low;
      weights[args.width + x] = t.high;
    }
    call.taps = {indices.get(), indices.get() + args.width, weights.get(), weights.get() + args.width};
  } else if (args.mask_is_float) {
    call.least_float = mgran::least_foreground(args.limit, 0.0f);
  } else {
    call.least_byte = mgran::least_foreground(args.limit, std::uint8_t{0});
  }

  // Fewer people than threads: each is cut into blocks of whole tiles.
  constexpr int kLeastRows = 64;
  const std::int64_t wanted = args.people >= 4 * static_cast<std::int64_t>(threads) ? 1 : threads;
  const int blocks = static_cast<int>(std::clamp<std::int64_t>(args.height / kLeastRows, 1, wanted));
  const std::int64_t items = args.people * blocks, tiles = (args.height + kTileHeight - 1) / kTileHeight;
  threads = static_cast<int>(std::min<std::int64_t>(threads, items));
  // Allocated out here: an exception must not leave an OpenMP region.
  std::unique_ptr<Scratch[]> scratches(new Scratch[threads]);
  for (int t = 0; t < threads; ++t) {
    scratches[t].columns.reset(new std::uint8_t[args.width]);
    if (!call.resample) continue;
    scratches[t].values.reset(new double[args.mask_width]);
    for (auto& row : scratches[t].resampled) row.reset(new double[args.width]);
  }
#pragma omp parallel num_threads(threads)
  {
    Scratch& scratch = scratches[mgran::thread_number()];
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t item = 0; item < items; ++item) {
      const std::int64_t n = item / blocks, part = item % blocks;
      const Person person = mgran::prepare_person(args, n);
      const int begin = static_cast<int>(part * tiles / blocks * kTileHeight);
      const int end = static_cast<int>(std::min<std::int64_t>((part + 1) * tiles / blocks * kTileHeight, args.height));
      std::uint8_t* map = args.map + n * pixels;
      block(call, person, static_cast<const T*>(args.mask) + n * mask_pixels, begin, end, scratch, map);
      if (blocks == 1) kernels.finish(args, person, scratch, map);
    }
    if (blocks > 1) {
#pragma omp for schedule(dynamic, 1)
      for (std::int64_t n = 0; n < args.people; ++n)
        kernels.finish(args, mgran::prepare_person(args, n), scratch, args.map + n * pixels);
    }
  }
}

}  // namespace

extern "C" int mgran_regions_cpu(const MgranRegions* args, int threads) {
  if (args->people == 0 || args->height == 0 || args->width == 0) return MGRAN_OK;
  threads = std::max(threads, 1);
  try {
    args->mask_is_float ? run<float>(*args, threads) : run<std::uint8_t>(*args, threads);
  } catch (const std::bad_alloc&) {
    return MGRAN_NO_MEMORY;
  }
  return MGRAN_OK;
}
