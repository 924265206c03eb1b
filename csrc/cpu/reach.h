// Which cells of a layer pixels can influence, and which cells of a source a cell depends on, for several sets at once:
// a cell's sets are bits.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mgran {

using Bits = std::uint16_t;

struct Grid {
  std::int32_t height, width;

  std::size_t cells() const { return static_cast<std::size_t>(height) * static_cast<std::size_t>(width); }
};

struct Geometry {
  std::int32_t kernel, stride, padding;

  bool one_to_one() const { return kernel == 1 && stride == 1 && padding == 0; }
};

// out[o] |= the bits of all inputs that the output o sees. A kernel is a square: rows and columns go one by one.
inline void influence(const Bits* in, Grid from, const Geometry& g, Bits* out, Grid to, std::vector<Bits>& room) {
  if (g.one_to_one()) {
    for (std::size_t i = 0; i < to.cells(); ++i) out[i] |= in[i];
    return;
  }
  const std::size_t width = static_cast<std::size_t>(to.width);
  room.assign(static_cast<std::size_t>(from.height) * width, 0);
  for (std::int32_t row = 0; row < from.height; ++row) {
    const Bits* const line = in + static_cast<std::size_t>(row) * static_cast<std::size_t>(from.width);
    Bits* const wide = room.data() + static_cast<std::size_t>(row) * width;
    for (std::int32_t column = 0; column < to.width; ++column) {
      const std::int32_t first = column * g.stride - g.padding;
      const std::int32_t end = std::min(first + g.kernel, from.width);
      for (std::int32_t x = std::max(first, 0); x < end; ++x) wide[column] |= line[x];
    }
  }
  for (std::int32_t row = 0; row < to.height; ++row) {
    const std::int32_t first = row * g.stride - g.padding, end = std::min(first + g.kernel, from.height);
    for (std::int32_t y = std::max(first, 0); y < end; ++y) {
      const Bits* const wide = room.data() + static_cast<std::size_t>(y) * width;
      Bits* const line = out + static_cast<std::size_t>(row) * width;
      for (std::size_t column = 0; column < width; ++column) line[column] |= wide[column];
    }
  }
}

// in[i] |= the bits of all outputs that see the input i.
inline void dependence(const Bits* out, Grid to, const Geometry& g, Bits* in, Grid from, std::vector<Bits>& room) {
  if (g.one_to_one()) {
    for (std::size_t i = 0; i < from.cells(); ++i) in[i] |= out[i];
    return;
  }
  const std::size_t width = static_cast<std::size_t>(from.width);
  room.assign(static_cast<std::size_t>(to.height) * width, 0);
  for (std::int32_t row = 0; row < to.height; ++row) {
    const Bits* const line = out + static_cast<std::size_t>(row) * static_cast<std::size_t>(to.width);
    Bits* const wide = room.data() + static_cast<std::size_t>(row) * width;
    for (std::int32_t column = 0; column < to.width; ++column) {
      if (!line[column]) continue;
      const std::int32_t first = column * g.stride - g.padding;
      const std::int32_t end = std::min(first + g.kernel, from.width);
      for (std::int32_t x = std::max(first, 0); x < end; ++x) wide[x] |= line[column];
    }
  }
  for (std::int32_t row = 0; row < to.height; ++row) {
    const std::int32_t first = row * g.stride - g.padding, end = std::min(first + g.kernel, from.height);
    const Bits* const wide = room.data() + static_cast<std::size_t>(row) * width;
    for (std::int32_t y = std::max(first, 0); y < end; ++y) {
      Bits* const line = in + static_cast<std::size_t>(y) * width;
      for (std::size_t column = 0; column < width; ++column) line[column] |= wide[column];
    }
  }
}

// out[o] = the bits of all pixels that pooling counts to the cell o of a grid: cell i of n cells along P pixels has the
// pixels floor(i P / n) to ceil((i + 1) P / n), exclusive (mgran_fast/reference/pooling.py).
inline void pooled(const Bits* pixels, Grid from, Bits* out, Grid to) {
  const auto first = [](std::int64_t i, std::int64_t side, std::int64_t cells) { return i * side / cells; };
  const auto end = [](std::int64_t i, std::int64_t side, std::int64_t cells) {
    return ((i + 1) * side + cells - 1) / cells;
  };
  for (std::int32_t row = 0; row < to.height; ++row)
    for (std::int32_t column = 0; column < to.width; ++column) {
      Bits all = 0;
      const std::int64_t right = end(column, from.width, to.width), bottom = end(row, from.height, to.height);
      for (std::int64_t y = first(row, from.height, to.height); y < bottom; ++y)
        for (std::int64_t x = first(column, from.width, to.width); x < right; ++x) all |= pixels[y * from.width + x];
      *out++ = all;
    }
}

}  // namespace mgran
