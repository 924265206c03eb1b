// Where the cells of windows lie.
#pragma once
#include <algorithm>
#include <cstddef>
#include <vector>

#include "../conv.h"

namespace mgran {

// Bytes of an element of the dtypes that a layer may have.
inline std::size_t size_of(std::int32_t dtype) { return dtype == MGRAN_FLOAT32 ? 4 : dtype == MGRAN_UINT8 ? 1 : 2; }

// Finds cells of one layer.
class Finder {
 public:
  Finder(const MgranCells& layer, std::int64_t images, std::size_t element, const std::uint8_t* zeros)
      : layer_(layer), bytes_(static_cast<std::size_t>(layer.channels) * element), zeros_(zeros), first_(1, 0) {
    for (std::int64_t image = 0; image < images; ++image) {
      const std::int32_t* const w = layer.windows + 4 * image;
      first_.push_back(first_.back() + static_cast<std::int64_t>(w[2]) * w[3]);
    }
  }

  // The image whose window holds the cell `place` of all windows one after another.
  std::int64_t image_of(std::int64_t place) const {
    return std::upper_bound(first_.begin(), first_.end(), place) - first_.begin() - 1;
  }
  std::int64_t first(std::int64_t image) const { return first_[static_cast<std::size_t>(image)]; }
  std::int64_t count() const { return first_.back(); }
  const std::int32_t* window(std::int64_t image) const { return layer_.windows + 4 * image; }

  // A cell of the window of an image, row and column in the grid.
  std::uint8_t* own(std::int64_t image, std::int32_t row, std::int32_t column) const {
    const std::int32_t* const w = window(image);
    const std::int64_t place = layer_.spread
                                   ? (image * layer_.height + row) * layer_.width + column
                                   : first(image) + static_cast<std::int64_t>(row - w[0]) * w[3] + (column - w[1]);
    return static_cast<std::uint8_t*>(layer_.cells) + static_cast<std::size_t>(place) * bytes_;
  }

  // Any cell, also beyond the grid.
  const std::uint8_t* at(std::int64_t image, std::int32_t row, std::int32_t column) const {
    const std::int32_t* const w = window(image);
    if (row >= w[0] && row < w[0] + w[2] && column >= w[1] && column < w[1] + w[3]) return own(image, row, column);
    if (!layer_.background || row < 0 || row >= layer_.height || column < 0 || column >= layer_.width) return zeros_;
    const std::int64_t place = static_cast<std::int64_t>(row) * layer_.width + column;
    return static_cast<const std::uint8_t*>(layer_.background) + static_cast<std::size_t>(place) * bytes_;
  }

 private:
  MgranCells layer_;
  std::size_t bytes_;
  const std::uint8_t* zeros_;
  std::vector<std::int64_t> first_;
};

}  // namespace mgran
