// `network` on the CPU: the input's cells, then step after step.
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
using mgran::Made;
using mgran::size_of;

void put(std::uint8_t value, std::uint8_t* out) { *out = value; }
// A byte is exact in bfloat16.
void put(std::uint8_t value, std::uint16_t* out) { mgran::encode(static_cast<float>(value), mgran::BFloat16{}, out); }
void put(std::uint8_t value, float* out) { *out = static_cast<float>(value); }

// Red, green, blue and 255 where the pixel's region is the input's, four zeros elsewhere.
template <typename T>
void pack(const MgranPeople& people, const std::int32_t* places, std::int64_t count, T* cells,
          [[maybe_unused]] int threads) {
  const std::int64_t pixels = static_cast<std::int64_t>(people.height) * people.width;
  // Of a person whose map is empty the whole crop is the input of the whole person.
  std::vector<std::uint8_t> empty(static_cast<std::size_t>(people.people));
  for (std::int64_t n = 0; n < people.people; ++n) {
    const std::uint8_t* const map = people.map + n * pixels;
    empty[static_cast<std::size_t>(n)] = std::all_of(map, map + pixels, [](std::uint8_t region) { return !region; });
  }
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t image = places[i] / pixels, person = image / people.inputs;
    const std::int64_t pixel = person * pixels + places[i] % pixels;
    const std::int32_t region = people.first + static_cast<std::int32_t>(image % people.inputs);
    const std::uint8_t here = people.map[pixel];
    const bool inside = region ? here == region : here != 0 || empty[static_cast<std::size_t>(person)];
    const std::uint8_t mask = inside ? 255 : 0;
    for (int c = 0; c < 3; ++c) put(people.crops[3 * pixel + c] & mask, cells + 4 * i + c);
    put(mask, cells + 4 * i + 3);
  }
}

using LargestRow = void(const std::uint8_t* const*, int, std::int32_t, void*);

template <typename T>
LargestRow* largest_row() {
  return mgran::choose<LargestRow>(mgran::largest_portable::largest_row<T>,
                                   MGRAN_ONLY_X86(mgran::largest_avx2::largest_row<T>),
                                   MGRAN_ONLY_X86(mgran::largest_avx512::largest_row<T>));
}

int pool(const MgranCells& source, const MgranMade& out, const MgranStep& step, std::int32_t dtype, int threads) {
  const std::size_t element = size_of(dtype);
  const std::vector<std::uint8_t> zeros(static_cast<std::size_t>(source.channels) * element, 0);
  const Finder from(source, element, zeros.data());
  const Made to(out, element);
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
    for (std::int64_t made = task * kCells; made < end; ++made) {
      const auto [image, r, c] = to.place(made);
      for (int y = 0, i = 0; y < step.kernel[0]; ++y)
        for (int x = 0; x < step.kernel[0]; ++x, ++i)
          cells[i] = from.at(image, r * step.stride[0] - step.padding[0] + y, c * step.stride[0] - step.padding[0] + x);
      row(cells, taps, out.channels, to.cell(made));
    }
  }
  return MGRAN_OK;
}

int run(const MgranNetwork& network, const MgranPeople& people, const MgranPlan& plan, void* workspace, void* out,
        int threads) {
  // Where the tables of each layer begin.
  std::vector<std::int64_t> begin(1, 0);
  for (std::int64_t i = 0; i <= network.count; ++i)
    begin.push_back(begin.back() + people.people * people.inputs * network.layers[i].height * network.layers[i].width);
  const auto cells = [&](std::int64_t i) {
    const MgranLayer& l = network.layers[i];
    return MgranCells{static_cast<std::uint8_t*>(workspace) + plan.offsets[i],
                      plan.index + begin[i],
                      l.background,
                      l.height,
                      l.width,
                      l.channels};
  };
  const auto made = [&](std::int64_t i) {
    const MgranLayer& l = network.layers[i];
    const bool last = i == network.count;
    return MgranMade{last ? out : static_cast<std::uint8_t*>(workspace) + plan.offsets[i],
                     plan.places + begin[i],
                     plan.counts[i],
                     l.height,
                     l.width,
                     l.channels,
                     last};
  };
  const MgranMade input = made(0);
  switch (network.layers[0].dtype) {
    case MGRAN_FLOAT32:
      pack(people, input.places, input.count, static_cast<float*>(input.cells), threads);
      break;
    case MGRAN_BFLOAT16:
      pack(people, input.places, input.count, static_cast<std::uint16_t*>(input.cells), threads);
      break;
    case MGRAN_UINT8:
      pack(people, input.places, input.count, static_cast<std::uint8_t*>(input.cells), threads);
      break;
    default:
      return MGRAN_UNSUPPORTED;
  }
  for (std::int64_t i = 0; i < network.count; ++i) {
    const MgranStep& step = network.steps[i];
    int status;
    if (step.pool) {
      status = pool(cells(step.source[0]), made(i + 1), step, network.layers[i + 1].dtype, threads);
    } else {
      MgranConv conv{};
      conv.count = step.count;
      for (int s = 0; s < step.count; ++s)
        conv.sources[s] = {cells(step.source[s]), step.kernel[s], step.stride[s], step.padding[s]};
      conv.out = made(i + 1);
      conv.residuals = step.residual >= 0;
      if (step.residual >= 0) conv.residual = cells(step.residual);
      conv.weights = step.weights;
      conv.scale = step.scale;
      conv.bias = step.bias;
      conv.residual_scale = step.residual_scale;
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
