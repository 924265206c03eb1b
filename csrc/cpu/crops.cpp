// `crops` on the CPU: which rows and columns of the frame a crop needs, and which of them are outside of it.
#include "../crops.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "../device/crops.h"
#include "crops_rows.h"
#include "threads.h"

namespace {

using mgran::Columns;
using mgran::CropAxis;
using Kernels = mgran::CropKernels;

// The memory of one thread.
class Scratch {
 public:
  explicit Scratch(const MgranCrops& args) {
    const std::size_t outputs = 3 * static_cast<std::size_t>(args.width);
    padded_ = (outputs + mgran::kStep - 1) / mgran::kStep * mgran::kStep;
    // A row holds the frame's columns and the black ones that taps reach: two to the left, two to the right.
    const std::size_t row = 3 * (static_cast<std::size_t>(args.frame_width) + 4) + mgran::kSlack;
    std::size_t size = mgran::kStep;
    const auto reserve = [&size](std::size_t bytes) {
      const std::size_t at = size - mgran::kStep;
      size += (bytes + mgran::kStep - 1) / mgran::kStep * mgran::kStep;
      return at;
    };
    const std::size_t column_weight = reserve(padded_ * 2), index = reserve(padded_ * 2), base = reserve(padded_ * 4);
    const std::size_t first = reserve(static_cast<std::size_t>(args.width) * 4), source = reserve(row);
    const std::size_t row_taps = reserve(static_cast<std::size_t>(args.height) * 4);
    const std::size_t weights = reserve(static_cast<std::size_t>(std::max(args.height, args.width)) * 4);
    const std::size_t left = reserve(padded_ + mgran::kSlack), right = reserve(padded_ + mgran::kSlack);
    const std::size_t even = reserve(padded_ * 2), odd = reserve(padded_ * 2), zeros = reserve(padded_ * 2);
    memory_.reset(new std::uint8_t[size]);
    std::memset(memory_.get(), 0, size);
    const std::size_t off = reinterpret_cast<std::uintptr_t>(memory_.get()) % mgran::kStep;
    std::uint8_t* start = memory_.get() + (off ? mgran::kStep - off : 0);
    columns = {};
    columns.weight = reinterpret_cast<std::int16_t*>(start + column_weight);
    columns.index = start + index;
    columns.base = reinterpret_cast<std::int32_t*>(start + base);
    columns.first = reinterpret_cast<std::int32_t*>(start + first);
    row_first = reinterpret_cast<std::int32_t*>(start + row_taps);
    weight = reinterpret_cast<std::int32_t*>(start + weights);
    source_ = start + source;
    left_ = start + left;
    right_ = start + right;
    blended[0] = reinterpret_cast<std::int16_t*>(start + even);
    blended[1] = reinterpret_cast<std::int16_t*>(start + odd);
    black = reinterpret_cast<const std::int16_t*>(start + zeros);
  }

  int padded() const { return static_cast<int>(padded_); }
  std::uint8_t* source() { return source_; }
  std::uint8_t* left() { return left_; }
  std::uint8_t* right() { return right_; }

  Columns columns;
  std::int32_t* row_first;    // [height] upper source row
  std::int32_t* weight;       // [max(height, width)] of the second tap, of the columns and then of the rows
  std::int16_t* blended[2];   // [padded] rows blended across: of even and odd rows of the frame
  const std::int16_t* black;  // [padded] such a row outside of the frame

 private:
  std::unique_ptr<std::uint8_t[]> memory_;
  std::uint8_t *source_, *left_, *right_;
  std::size_t padded_;
};

// Gives every group its window, within `limit` bytes of the row; false when one does not fit.
bool place_windows(const Kernels& kernels, Columns& columns, int width, int padded, std::int64_t limit) {
  const int outputs = 3 * width, group = kernels.group;
  for (int begin = 0; begin < padded; begin += group) {
    const int last = std::min(begin + group, outputs) - 1;
    std::int32_t base = 0;
    if (begin < outputs) {
      const std::int64_t latest = limit - mgran::kToRight - kernels.window;
      const std::int64_t wanted = 3 * static_cast<std::int64_t>(columns.first[begin / 3]);
      if (latest < 0) return false;
      base = static_cast<std::int32_t>(std::min(wanted, latest));
      if (3 * static_cast<std::int64_t>(columns.first[last / 3]) + 3 - base > kernels.window) return false;
    }
    columns.base[begin / group] = base;
    for (int i = begin; i < begin + group; ++i) {
      columns.index[2 * i] = 0x80;
      columns.index[2 * i + 1] = static_cast<std::uint8_t>(i < outputs ? 3 * columns.first[i / 3] + i % 3 - base : 0);
    }
  }
  return true;
}

// The identity, for neighbours that have been brought together.
void place_together(const Kernels& kernels, Columns& columns, int padded) {
  for (int i = 0; i < padded; ++i) {
    columns.index[2 * i] = 0x80;
    columns.index[2 * i + 1] = static_cast<std::uint8_t>(i % kernels.group);
  }
  for (int g = 0; g < padded / kernels.group; ++g) columns.base[g] = g * kernels.group;
}

void prepare_columns(const MgranCrops& args, const Kernels& kernels, const float* box, Scratch& scratch) {
  Columns& columns = scratch.columns;
  const CropAxis axis = mgran::crop_axis(box[0], box[2], args.width, args.frame_width);
  kernels.find_taps(axis, args.width, columns.first, scratch.weight);
  for (int x = 0; x < args.width; ++x) {
    for (int c = 0; c < 3; ++c) columns.weight[3 * x + c] = static_cast<std::int16_t>(scratch.weight[x]);
  }
  // Taps never go back from one column to the next.
  const std::int32_t least = columns.first[0], most = columns.first[args.width - 1];
  columns.begin = std::max(least, 0);
  columns.end = std::min(most + 2, args.frame_width);
  if (columns.begin >= columns.end) return;
  const std::int64_t row = 3 * static_cast<std::int64_t>(args.frame_width);
  columns.origin = 0;
  if (least >= 0 && most + 2 <= args.frame_width) {
    columns.direct = true;
    columns.wide = false;
    if (kernels.group && place_windows(kernels, columns, args.width, scratch.padded(), row)) return;
  }
  // Bringing neighbours together reads four bytes a pixel, one more than it wants.
  columns.direct = least >= 0 && 3 * (static_cast<std::int64_t>(most) + 2) + 1 <= row;
  if (!columns.direct) {
    columns.origin = least;
    for (int x = 0; x < args.width; ++x) columns.first[x] -= least;
    // What is outside of the frame is black in every row; what is inside is copied row by row.
    std::memset(scratch.source(), 0, 3 * (static_cast<std::size_t>(most - least) + 2) + mgran::kSlack);
    const std::int64_t limit = 3 * (static_cast<std::int64_t>(most) - least + 2) + mgran::kSlack;
    columns.wide = false;
    if (kernels.group && place_windows(kernels, columns, args.width, scratch.padded(), limit)) return;
  }
  columns.wide = true;
  if (kernels.group) place_together(kernels, columns, scratch.padded());
}

// Every row of a frame is on memory pages of its own, where the hardware does not look ahead by itself.
void prefetch([[maybe_unused]] const std::uint8_t* begin, [[maybe_unused]] std::int64_t bytes) {
#if defined(__GNUC__)
  constexpr std::int64_t kLine = 64;
  for (std::int64_t b = 0; b < bytes; b += kLine) __builtin_prefetch(begin + b);
  __builtin_prefetch(begin + bytes - 1);
#endif
}

// One row of the frame, blended across.
void blend_row(const MgranCrops& args, const Kernels& kernels, Scratch& scratch, std::int32_t y, std::int16_t* out) {
  const Columns& columns = scratch.columns;
  const int outputs = 3 * args.width;
  const std::uint8_t* row = args.frame + y * args.row_stride;
  const std::int64_t begin = 3 * static_cast<std::int64_t>(columns.begin);
  const std::int64_t bytes = 3 * static_cast<std::int64_t>(columns.end - columns.begin);
  constexpr std::int32_t kAhead = 4;
  if (y + kAhead < args.frame_height) prefetch(row + kAhead * args.row_stride + begin, bytes);
  if (!columns.direct) {
    std::memcpy(scratch.source() + begin - 3 * static_cast<std::int64_t>(columns.origin), row + begin,
                static_cast<std::size_t>(bytes));
    row = scratch.source();
  }
  if (!columns.wide) return kernels.across(row, row + mgran::kToRight, columns, outputs, out);
  // Four bytes at a time: the fourth is overwritten by the next pixel.
  std::uint8_t *left = scratch.left(), *right = scratch.right();
  for (int x = 0; x < args.width; ++x) {
    const std::uint8_t* pixel = row + 3 * static_cast<std::int64_t>(columns.first[x]);
    std::memcpy(left + 3 * x, pixel, 4);
    std::memcpy(right + 3 * x, pixel + mgran::kToRight, 4);
  }
  kernels.across(left, right, columns, outputs, out);
}

// Rows `begin` to `end` of one crop.
void fill(const MgranCrops& args, const Kernels& kernels, Scratch& scratch, std::int64_t n, int begin, int end) {
  const float* box = args.boxes + 4 * n;
  const int outputs = 3 * args.width;
  std::uint8_t* out = args.out + n * args.height * outputs;
  const auto blacken = [&] {
    std::memset(out + static_cast<std::int64_t>(begin) * outputs, 0, static_cast<std::size_t>(end - begin) * outputs);
  };
  if (!mgran::has_pixels(box) || args.frame_height == 0 || args.frame_width == 0) return blacken();
  prepare_columns(args, kernels, box, scratch);
  if (scratch.columns.begin >= scratch.columns.end) return blacken();
  const CropAxis axis = mgran::crop_axis(box[1], box[3], args.height, args.frame_height);
  kernels.find_taps(axis, args.height, scratch.row_first, scratch.weight);
  std::int32_t held[2] = {-1, -1};  // the rows of the frame in scratch.blended
  const auto blended = [&](std::int32_t y) -> const std::int16_t* {
    if (y < 0 || y >= args.frame_height) return scratch.black;
    if (held[y & 1] != y) blend_row(args, kernels, scratch, y, scratch.blended[y & 1]);
    held[y & 1] = y;
    return scratch.blended[y & 1];
  };
  for (int y = begin; y < end; ++y) {
    const std::int32_t first = scratch.row_first[y], weight = scratch.weight[y];
    const std::int16_t* upper = blended(first);
    const std::int16_t* lower = weight ? blended(first + 1) : upper;
    kernels.down(upper, lower, weight, outputs, out + static_cast<std::int64_t>(y) * outputs);
  }
}

void run(const MgranCrops& args, int threads) {
  const Kernels kernels = mgran::choose_crop_kernels();
  // Fewer crops than threads: each is cut into blocks of rows, but not into slivers that share no rows of the frame.
  constexpr int kLeastRows = 32;
  const std::int64_t wanted = args.count >= 4 * static_cast<std::int64_t>(threads) ? 1 : threads;
  const int blocks = static_cast<int>(std::clamp<std::int64_t>(args.height / kLeastRows, 1, wanted));
  const std::int64_t items = args.count * blocks;
  threads = static_cast<int>(std::min<std::int64_t>(threads, items));
  // Allocated out here: an exception must not leave an OpenMP region.
  std::unique_ptr<std::unique_ptr<Scratch>[]> scratches(new std::unique_ptr<Scratch>[threads]);
  for (int t = 0; t < threads; ++t) scratches[t].reset(new Scratch(args));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t item = 0; item < items; ++item) {
    const std::int64_t block = item % blocks;
    const int begin = static_cast<int>(block * args.height / blocks);
    const int end = static_cast<int>((block + 1) * args.height / blocks);
    fill(args, kernels, *scratches[mgran::thread_number()], item / blocks, begin, end);
  }
}

}  // namespace

extern "C" int mgran_crops_cpu(const MgranCrops* args, int threads) {
  if (args->count == 0 || args->height == 0 || args->width == 0) return MGRAN_OK;
  try {
    run(*args, std::max(threads, 1));
  } catch (const std::bad_alloc&) {
    return MGRAN_NO_MEMORY;
  }
  return MGRAN_OK;
}
