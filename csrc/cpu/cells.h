// Where the cells of a layer lie.
#pragma once
#include <cstddef>

#include "../conv.h"

namespace mgran {

// Bytes of an element of the dtypes that a layer may have.
inline std::size_t size_of(std::int32_t dtype) { return dtype == MGRAN_FLOAT32 ? 4 : dtype == MGRAN_UINT8 ? 1 : 2; }

struct Place {
  std::int64_t image;
  std::int32_t row, column;
};

// Where the cells go that are made.
class Made {
 public:
  Made(const MgranMade& layer, std::size_t element)
      : layer_(layer), bytes_(static_cast<std::size_t>(layer.channels) * element) {}

  std::int64_t count() const { return layer_.count; }
  Place place(std::int64_t i) const {
    const std::int32_t place = layer_.places[i], row = place / layer_.width;
    return {row / layer_.height, row % layer_.height, place % layer_.width};
  }
  std::uint8_t* cell(std::int64_t i) const {
    return static_cast<std::uint8_t*>(layer_.cells) +
           static_cast<std::size_t>(layer_.spread ? layer_.places[i] : i) * bytes_;
  }

 private:
  MgranMade layer_;
  std::size_t bytes_;
};

// Finds cells of one layer.
class Finder {
 public:
  Finder(const MgranCells& layer, std::size_t element, const std::uint8_t* zeros)
      : layer_(layer), bytes_(static_cast<std::size_t>(layer.channels) * element), zeros_(zeros) {}

  // Any cell, also beyond the grid.
  const std::uint8_t* at(std::int64_t image, std::int32_t row, std::int32_t column) const {
    if (row < 0 || row >= layer_.height || column < 0 || column >= layer_.width) return zeros_;
    const std::int64_t place = static_cast<std::int64_t>(row) * layer_.width + column;
    const std::int32_t kept = layer_.index[image * layer_.height * layer_.width + place];
    if (kept >= 0) return static_cast<const std::uint8_t*>(layer_.cells) + static_cast<std::size_t>(kept) * bytes_;
    if (!layer_.background) return zeros_;
    return static_cast<const std::uint8_t*>(layer_.background) + static_cast<std::size_t>(place) * bytes_;
  }

 private:
  MgranCells layer_;
  std::size_t bytes_;
  const std::uint8_t* zeros_;
};

}  // namespace mgran
