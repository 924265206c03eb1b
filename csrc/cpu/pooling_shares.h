// How much of each cell of a row's features lies in the row's region, counted from the region map.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../pooling.h"

namespace mgran {

// The visible cells of one row; one object a thread, reused from row to row.
struct Shares {
  std::vector<std::int32_t> cells;  // [visible_count]: the cells with a share > 0, ascending
  std::vector<float> weights;       // [visible_count]: their shares over the sum of the shares
  int visible_count = 0;

  explicit Shares(const MgranPooling& args)
      : cells(static_cast<std::size_t>(args.height) * args.width),
        weights(cells.size()),
        column_bytes_(args.map_width),
        columns_(args.map_width) {}

  // Fills cells and weights for a row. Region 0 is the whole person, or everything where the person's map is 0.
  void count(const MgranPooling& args, std::int64_t row) {
    const std::int64_t person = row / (args.rows / args.people);
    const std::uint8_t* map = args.map + person * args.map_height * args.map_width;
    const std::int64_t region = args.region[row];
    visible_count = 0;
    if (region < 0 || region > 255 || args.map_height == 0 || args.map_width == 0) return;
    double total = collect(args, map, [region](std::uint8_t pixel) {
      return static_cast<std::uint8_t>(region == 0 ? pixel != 0 : pixel == static_cast<std::uint8_t>(region));
    });
    if (region == 0 && visible_count == 0)
      total = collect(args, map, [](std::uint8_t) { return static_cast<std::uint8_t>(1); });
    for (int i = 0; i < visible_count; ++i) weights[i] = static_cast<float>(weights[i] / total);
  }

 private:
  struct Bin {
    std::int32_t first, last;
  };

  // Bin i of `count` over `size` pixels: bins overlap where the sizes do not divide.
  static Bin bin(int i, int count, int size) {
    const std::int64_t begin = static_cast<std::int64_t>(i) * size, end = begin + size;
    return {static_cast<std::int32_t>(begin / count), static_cast<std::int32_t>((end + count - 1) / count)};
  }

  template <typename Inside>
  double collect(const MgranPooling& args, const std::uint8_t* map /* [map_height, map_width] */, Inside inside) {
    double total = 0.0;
    visible_count = 0;
    for (int i = 0; i < args.height; ++i) {
      const Bin rows = bin(i, args.height, args.map_height);
      count_columns(args, map, rows, inside);
      for (int j = 0; j < args.width; ++j) {
        const Bin columns = bin(j, args.width, args.map_width);
        std::int64_t pixels = 0;
        for (int x = columns.first; x < columns.last; ++x) pixels += columns_[x];
        if (pixels == 0) continue;
        const std::int64_t area = static_cast<std::int64_t>(rows.last - rows.first) * (columns.last - columns.first);
        const double share = static_cast<double>(pixels) / static_cast<double>(area);
        cells[visible_count] = i * args.width + j;
        weights[visible_count++] = static_cast<float>(share);
        total += share;
      }
    }
    return total;
  }

  // columns_[x]: the pixels inside, of the map's rows of a bin. Summed in bytes, which vectorises, as long as a byte
  // holds the sum.
  template <typename Inside>
  void count_columns(const MgranPooling& args, const std::uint8_t* map, Bin rows, Inside inside) {
    const int width = args.map_width;
    std::fill(columns_.begin(), columns_.end(), 0);
    std::uint8_t* bytes = column_bytes_.data();
    for (int y = rows.first; y < rows.last;) {
      const int end = std::min(rows.last, y + 255);
      std::fill_n(bytes, width, std::uint8_t{0});
      for (; y < end; ++y) {
        const std::uint8_t* line = map + static_cast<std::int64_t>(y) * width;
        for (int x = 0; x < width; ++x) bytes[x] = static_cast<std::uint8_t>(bytes[x] + inside(line[x]));
      }
      for (int x = 0; x < width; ++x) columns_[x] += bytes[x];
    }
  }

  std::vector<std::uint8_t> column_bytes_;  // [map_width]
  std::vector<std::int32_t> columns_;       // [map_width]
};

}  // namespace mgran
