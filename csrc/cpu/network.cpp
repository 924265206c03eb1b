// `network` on the CPU: the input's windows, then step after step.
#include "../network.h"

#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

#include "cells.h"
#include "dispatch.h"
#include "half.h"
#include "threads.h"

#define MGRAN_NAMESPACE largest_portable
#define MGRAN_TARGET
#include "largest_row.h"
#if MGRAN_X86
#define MGRAN_NAMESPACE largest_avx2
#define MGRAN_TARGET MGRAN_AVX2
#include "largest_row.h"
#define MGRAN_NAMESPACE largest_avx512
#define MGRAN_TARGET MGRAN_AVX512
#include "largest_row.h"
#endif

namespace {

using mgran::Finder;
using mgran::size_of;

void put(std::uint8_t value, std::uint8_t* out) { *out = value; }
// A byte is exact in bfloat16.
void put(std::uint8_t value, std::uint16_t* out) { mgran::encode(static_cast<float>(value), mgran::BFloat16{}, out); }
void put(std::uint8_t value, float* out) { *out = static_cast<float>(value); }

// Red, green, blue and 255 where the pixel's region is the input's, four zeros elsewhere.
template <typename T>
void pack(const MgranPeople& people, const std::int32_t* windows, void* cells, int threads) {
  const std::int64_t images = people.people * people.inputs;
  std::vector<std::int64_t> first(static_cast<std::size_t>(images) + 1, 0);
  for (std::int64_t i = 0; i < images; ++i)
    first[static_cast<std::size_t>(i) + 1] =
        first[static_cast<std::size_t>(i)] + static_cast<std::int64_t>(windows[4 * i + 2]) * windows[4 * i + 3];
  const std::int64_t pixels = static_cast<std::int64_t>(people.height) * people.width;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (std::int64_t image = 0; image < images; ++image) {
    const std::int32_t* const w = windows + 4 * image;
    const std::uint8_t* const map = people.map + image / people.inputs * pixels;
    const std::uint8_t* const crop = people.crops + image / people.inputs * pixels * 3;
    const std::int32_t region = people.first + static_cast<std::int32_t>(image % people.inputs);
    bool whole = region == 0;
    for (std::int64_t i = 0; i < pixels && whole; ++i) whole = map[i] == 0;
    T* to = static_cast<T*>(cells) + first[static_cast<std::size_t>(image)] * 4;
    for (std::int32_t row = w[0]; row < w[0] + w[2]; ++row) {
      const std::int64_t start = static_cast<std::int64_t>(row) * people.width + w[1];
      for (std::int64_t place = start; place < start + w[3]; ++place, to += 4) {
        const bool inside = whole || (region == 0 ? map[place] != 0 : map[place] == region);
        const std::uint8_t mask = inside ? 255 : 0;
        for (int c = 0; c < 3; ++c) put(crop[3 * place + c] & mask, to + c);
        put(mask, to + 3);
      }
    }
  }
}

using LargestRow = void(const std::uint8_t* const*, int, std::int32_t, void*);

template <typename T>
LargestRow* largest_row() {
  return mgran::choose<LargestRow>(mgran::largest_portable::largest_row<T>,
                                   MGRAN_ONLY_X86(mgran::largest_avx2::largest_row<T>),
                                   MGRAN_ONLY_X86(mgran::largest_avx512::largest_row<T>));
}

int pool(const MgranCells& source, const MgranCells& out, const MgranStep& step, std::int32_t dtype,
         std::int64_t images, int threads) {
  const std::size_t element = size_of(dtype);
  const std::vector<std::uint8_t> zeros(static_cast<std::size_t>(source.channels) * element, 0);
  const Finder from(source, images, element, zeros.data()), to(out, images, element, zeros.data());
  LargestRow* const row = element == 4   ? largest_row<std::int32_t>()
                          : element == 2 ? largest_row<std::int16_t>()
                                         : largest_row<std::uint8_t>();
  const int taps = step.kernel[0] * step.kernel[0];
  constexpr std::int64_t kCells = 64;  // of a task
  const std::int64_t tasks = (to.count() + kCells - 1) / kCells;
  std::vector<const std::uint8_t*> room(static_cast<std::size_t>(taps) * static_cast<std::size_t>(threads));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) if (threads > 1)
  for (std::int64_t task = 0; task < tasks; ++task) {
    const std::uint8_t** const cells = room.data() + static_cast<std::size_t>(mgran::thread_number()) * taps;
    const std::int64_t end = std::min(to.count(), (task + 1) * kCells);
    std::int64_t image = to.image_of(task * kCells);
    for (std::int64_t place = task * kCells; place < end; ++place) {
      while (place >= to.first(image + 1)) ++image;
      const std::int64_t inside = place - to.first(image);
      const std::int32_t* const w = to.window(image);
      const std::int32_t r = w[0] + static_cast<std::int32_t>(inside / w[3]);
      const std::int32_t c = w[1] + static_cast<std::int32_t>(inside % w[3]);
      for (int y = 0, i = 0; y < step.kernel[0]; ++y)
        for (int x = 0; x < step.kernel[0]; ++x, ++i)
          cells[i] = from.at(image, r * step.stride[0] - step.padding[0] + y, c * step.stride[0] - step.padding[0] + x);
      row(cells, taps, out.channels, to.own(image, r, c));
    }
  }
  return MGRAN_OK;
}

int run(const MgranNetwork& network, const MgranPeople& people, const MgranPlan& plan, void* workspace, void* out,
        int threads) {
  const std::int64_t images = people.people * people.inputs;
  const auto layer = [&](std::int64_t i) {
    const MgranLayer& l = network.layers[i];
    const bool last = i == network.count;
    MgranCells cells{};
    cells.cells = last ? out : static_cast<std::uint8_t*>(workspace) + plan.offsets[i];
    cells.windows = plan.windows + i * images * 4;
    cells.background = l.background;
    cells.height = l.height;
    cells.width = l.width;
    cells.channels = l.channels;
    cells.spread = last;
    return cells;
  };
  const MgranCells input = layer(0);
  switch (network.layers[0].dtype) {
    case MGRAN_FLOAT32:
      pack<float>(people, input.windows, input.cells, threads);
      break;
    case MGRAN_BFLOAT16:
      pack<std::uint16_t>(people, input.windows, input.cells, threads);
      break;
    case MGRAN_UINT8:
      pack<std::uint8_t>(people, input.windows, input.cells, threads);
      break;
    default:
      return MGRAN_UNSUPPORTED;
  }
  for (std::int64_t i = 0; i < network.count; ++i) {
    const MgranStep& step = network.steps[i];
    int status;
    if (step.pool) {
      status = pool(layer(step.source[0]), layer(i + 1), step, network.layers[i + 1].dtype, images, threads);
    } else {
      MgranConv conv{};
      conv.count = step.count;
      for (int s = 0; s < step.count; ++s)
        conv.sources[s] = {layer(step.source[s]), step.kernel[s], step.stride[s], step.padding[s]};
      conv.out = layer(i + 1);
      conv.residuals = step.residual >= 0;
      if (step.residual >= 0) conv.residual = layer(step.residual);
      conv.weights = step.weights;
      conv.scale = step.scale;
      conv.bias = step.bias;
      conv.residual_scale = step.residual_scale;
      conv.images = images;
      conv.dtype = network.layers[step.source[0]].dtype;
      conv.out_dtype = network.layers[i + 1].dtype;
      conv.relu = step.relu;
      status = mgran_conv_cpu(&conv, threads);
    }
    if (status != MGRAN_OK) return status;
  }
  return MGRAN_OK;
}

}  // namespace

extern "C" int mgran_network_cpu(const MgranNetwork* network, const MgranPeople* people, const MgranPlan* plan,
                                 void* workspace, void* out, int threads) {
  try {
    return run(*network, *people, *plan, workspace, out, threads < 1 ? 1 : threads);
  } catch (const std::bad_alloc&) {
    return MGRAN_NO_MEMORY;
  }
}
