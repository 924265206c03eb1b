// The mathematics of `inputs`, for host and device alike, in the order of operations of the reference.
// Compile without contraction into fused multiply-adds (-ffp-contract=off, --fmad=false): equality with the
// reference is to the bit.
#pragma once
#include "../inputs.h"
#include "portable.h"

namespace mgran {

// A crop's pixel, one channel of it, in float32: scaled, then centred, then divided. Multiplying by 1 / std
// instead would differ in the last bit.
MGRAN_HD float normalize(std::uint8_t pixel, float scale, float mean, float std) {
  const float scaled = static_cast<float>(pixel) * scale;
  return (scaled - mean) / std;
}

// Whether input `index` (0: global, r: region r) shows a pixel of region `region`; `empty` says that the person's
// whole map is 0, in which case the global input is the whole crop.
MGRAN_HD bool shows(int index, std::uint8_t region, bool empty) {
  return index == 0 ? region > 0 || empty : region == index;
}

}  // namespace mgran
