// `conv` on the CPU: where each output cell's inputs lie, and the order of the tiles.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of variables that its own headers leave uninitialised on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "../conv.h"

#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

#include "cells.h"
#include "conv_simd.h"
#include "threads.h"

#if defined(__GNUC__)
#define MGRAN_UNROLL _Pragma("GCC unroll 16")
#else
#define MGRAN_UNROLL
#endif

namespace mgran {

constexpr int kConvRows = 16;   // output cells of a tile at most, and the distance of a tap's pointers to the next's
constexpr int kConvPanel = 32;  // output channels

struct ConvTile {
  const std::uint8_t* const* cells[2];  // of each source: [taps, kConvRows] where the input cell lies
  std::int32_t taps[2], groups[2];      // of each source
  std::int32_t sources;
  const std::int32_t* weights;
  const float *scale, *bias;            // of the panel's first channel; scale may be null
  const std::uint8_t* const* residual;  // [rows] of the panel's first channel, or null
  std::uint8_t* const* out;             // [rows] of the panel's first channel
  std::int32_t rows, channels;          // that count, at most D::kRows and kConvPanel
  const float* residual_scale;          // of the panel's first channel, or null for 1
  bool relu;
};

}  // namespace mgran

#define MGRAN_NAMESPACE conv_portable
#define MGRAN_TARGET
#include "conv_tile.h"
#if MGRAN_X86
#define MGRAN_NAMESPACE conv_avx2
#define MGRAN_TARGET MGRAN_AVX2
#include "conv_tile.h"
#define MGRAN_NAMESPACE conv_avx512
#define MGRAN_TARGET MGRAN_AVX512
#include "conv_tile.h"
#define MGRAN_NAMESPACE conv_bf16
#define MGRAN_TARGET MGRAN_AVX512_BF16
#include "conv_tile.h"
#define MGRAN_NAMESPACE conv_vnni
#define MGRAN_TARGET MGRAN_AVX512_VNNI
#include "conv_tile.h"
#endif

namespace {

using mgran::ConvTile;
using mgran::Finder;
using mgran::kConvPanel;
using mgran::kConvRows;
using mgran::Made;
using mgran::size_of;

// Weights that stay in the second-level cache while tiles go by.
constexpr std::size_t kWeightBytes = 384 << 10;

struct Kernel {
  void (*tile)(const ConvTile&);
  int rows;
};

template <typename Out>
Kernel float32_kernel() {
  using namespace mgran;
  Kernel kernel{conv_portable::conv_tile<PortableConvFloat32, Float32, Out>, PortableConv::kRows};
#if MGRAN_X86
  if (isa() >= Isa::avx2) kernel = {conv_avx2::conv_tile<Avx2ConvFloat32, Float32, Out>, Avx2Conv::kRows};
  if (isa() >= Isa::avx512) kernel = {conv_avx512::conv_tile<Avx512ConvFloat32, Float32, Out>, Avx512Conv::kRows};
#endif
  return kernel;
}

template <typename Out>
Kernel bfloat16_kernel() {
  using namespace mgran;
  Kernel kernel{conv_portable::conv_tile<PortableConvBFloat16, BFloat16, Out>, PortableConv::kRows};
#if MGRAN_X86
  if (isa() >= Isa::avx2) kernel = {conv_avx2::conv_tile<Avx2ConvBFloat16, BFloat16, Out>, Avx2Conv::kRows};
  if (isa() >= Isa::avx512) kernel = {conv_avx512::conv_tile<Avx512ConvBFloat16, BFloat16, Out>, Avx512Conv::kRows};
  if (isa() >= Isa::avx512 && has_bf16()) kernel.tile = conv_bf16::conv_tile<Avx512NativeBFloat16, BFloat16, Out>;
#endif
  return kernel;
}

template <typename Out>
Kernel uint8_kernel() {
  using namespace mgran;
  Kernel kernel{conv_portable::conv_tile<PortableConvUInt8, UInt8, Out>, PortableConv::kRows};
#if MGRAN_X86
  if (isa() >= Isa::avx2) kernel = {conv_avx2::conv_tile<Avx2ConvUInt8, UInt8, Out>, Avx2Conv::kRows};
  if (isa() >= Isa::avx512) kernel = {conv_avx512::conv_tile<Avx512ConvUInt8, UInt8, Out>, Avx512Conv::kRows};
  if (isa() >= Isa::avx512 && has_vnni()) kernel.tile = conv_vnni::conv_tile<Avx512NativeUInt8, UInt8, Out>;
#endif
  return kernel;
}

Kernel choose_kernel(std::int32_t dtype, std::int32_t out_dtype) {
  const bool same = dtype == out_dtype;
  if (!same && out_dtype != MGRAN_FLOAT32) return {nullptr, 0};
  switch (dtype) {
    case MGRAN_FLOAT32:
      return float32_kernel<mgran::Float32>();
    case MGRAN_BFLOAT16:
      return same ? bfloat16_kernel<mgran::BFloat16>() : bfloat16_kernel<mgran::Float32>();
    case MGRAN_UINT8:
      return same ? uint8_kernel<mgran::UInt8>() : uint8_kernel<mgran::Float32>();
    default:
      return {nullptr, 0};
  }
}

// What a task needs room for: pointers of one tile.
struct Pointers {
  std::vector<const std::uint8_t*> cells[2];
  const std::uint8_t* residual[kConvRows];
  std::uint8_t* out[kConvRows];
};

struct Layers {
  std::vector<Finder> sources;
  std::vector<Finder> residual;  // none or one
  Made out;
};

// Where the tile of `rows` output cells from `first` on finds everything; returns how many cells there are.
int find(const MgranConv& args, const Layers& layers, std::int64_t first, int rows, Pointers& pointers) {
  const int valid = static_cast<int>(std::min<std::int64_t>(rows, layers.out.count() - first));
  for (int i = 0; i < rows; ++i) {
    // What is too much repeats the last cell, and is not written.
    const std::int64_t cell = first + std::min(i, valid - 1);
    const auto [image, row, column] = layers.out.place(cell);
    pointers.out[i] = layers.out.cell(cell);
    if (args.residuals) pointers.residual[i] = layers.residual[0].at(image, row, column);
    for (int s = 0; s < args.count; ++s) {
      const MgranConvSource& source = args.sources[s];
      const std::int32_t top = row * source.stride - source.padding, left = column * source.stride - source.padding;
      const std::uint8_t** to = pointers.cells[s].data() + i;
      for (std::int32_t y = 0; y < source.kernel; ++y)
        for (std::int32_t x = 0; x < source.kernel; ++x, to += kConvRows)
          *to = layers.sources[static_cast<std::size_t>(s)].at(image, top + y, left + x);
    }
  }
  return valid;
}

int run(const MgranConv& args, int threads) {
  const Kernel kernel = choose_kernel(args.dtype, args.out_dtype);
  if (!kernel.tile) return MGRAN_UNSUPPORTED;
  const std::size_t element = size_of(args.dtype), out_element = size_of(args.out_dtype);
  std::size_t widest = 0;
  for (int s = 0; s < args.count; ++s)
    widest = std::max(widest, static_cast<std::size_t>(args.sources[s].x.channels) * element);
  widest = std::max(widest, static_cast<std::size_t>(args.out.channels) * std::max(element, out_element));
  const std::vector<std::uint8_t> zeros(widest, 0);

  Layers layers{{}, {}, Made(args.out, out_element)};
  std::int64_t steps = 0;  // of the inner loop, for one panel
  for (int s = 0; s < args.count; ++s) {
    const MgranConvSource& source = args.sources[s];
    layers.sources.emplace_back(source.x, element, zeros.data());
    steps += static_cast<std::int64_t>(source.kernel) * source.kernel * source.x.channels * element / 4;
  }
  if (args.residuals) layers.residual.emplace_back(args.residual, element, zeros.data());

  const std::int64_t tiles = (layers.out.count() + kernel.rows - 1) / kernel.rows;
  const std::int64_t panels = (args.out.channels + kConvPanel - 1) / kConvPanel;
  if (tiles == 0 || panels == 0) return MGRAN_OK;
  const std::size_t panel_bytes = static_cast<std::size_t>(steps) * kConvPanel * 4;
  const std::int64_t together = std::clamp<std::int64_t>(
      static_cast<std::int64_t>(kWeightBytes / std::max<std::size_t>(panel_bytes, 1)), 1, panels);
  const std::int64_t sets = (panels + together - 1) / together;
  // Runs of tiles, so many that every thread gets about as much.
  const std::int64_t runs = std::min(tiles, threads > 1 ? std::max<std::int64_t>(4 * threads / sets, 1) * threads : 1);
  const std::int64_t tasks = runs * sets;
  threads = static_cast<int>(std::clamp<std::int64_t>(threads, 1, tasks));
  std::vector<Pointers> room(static_cast<std::size_t>(threads));
  for (Pointers& pointers : room)
    for (int s = 0; s < args.count; ++s)
      pointers.cells[s].resize(static_cast<std::size_t>(args.sources[s].kernel) *
                               static_cast<std::size_t>(args.sources[s].kernel) * kConvRows);

#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (std::int64_t task = 0; task < tasks; ++task) {
    Pointers& pointers = room[static_cast<std::size_t>(mgran::thread_number())];
    const std::int64_t set = task / runs, part = task % runs;
    const std::int64_t last_panel = std::min((set + 1) * together, panels);
    ConvTile tile{};
    tile.sources = args.count;
    for (int s = 0; s < args.count; ++s) {
      const MgranConvSource& source = args.sources[s];
      tile.cells[s] = pointers.cells[s].data();
      tile.taps[s] = source.kernel * source.kernel;
      tile.groups[s] = static_cast<std::int32_t>(static_cast<std::size_t>(source.x.channels) * element / 4);
    }
    tile.relu = args.relu != 0;
    for (std::int64_t t = tiles * part / runs; t < tiles * (part + 1) / runs; ++t) {
      tile.rows = find(args, layers, t * kernel.rows, kernel.rows, pointers);
      const std::uint8_t* residual[kConvRows];
      std::uint8_t* out[kConvRows];
      for (std::int64_t panel = set * together; panel < last_panel; ++panel) {
        const std::size_t channel = static_cast<std::size_t>(panel) * kConvPanel;
        for (int i = 0; i < tile.rows; ++i) {
          out[i] = pointers.out[i] + channel * out_element;
          if (args.residuals) residual[i] = pointers.residual[i] + channel * element;
        }
        tile.out = out;
        tile.residual = args.residuals ? residual : nullptr;
        tile.weights = static_cast<const std::int32_t*>(args.weights) + panel * steps * kConvPanel;
        tile.scale = args.scale ? args.scale + panel * kConvPanel : nullptr;
        tile.bias = args.bias + panel * kConvPanel;
        tile.residual_scale = args.residual_scale ? args.residual_scale + panel * kConvPanel : nullptr;
        tile.channels =
            static_cast<std::int32_t>(std::min<std::int64_t>(kConvPanel, args.out.channels - panel * kConvPanel));
        kernel.tile(tile);
      }
    }
  }
  return MGRAN_OK;
}

}  // namespace

extern "C" int mgran_conv_cpu(const MgranConv* args, int threads) {
  try {
    return run(*args, threads);
  } catch (const std::bad_alloc&) {
    return MGRAN_NO_MEMORY;
  }
}
