// The inner loop of `conv`, written once and compiled for each instruction set. The including file defines, for
// every inclusion, MGRAN_NAMESPACE and MGRAN_TARGET (a function attribute); hence no #pragma once.
//
// A tile is kRows output cells times a panel of 32 output channels. Its sums stay in registers while all taps of all
// sources go by; where a tap finds its cell is said by a pointer (an indirect convolution; Dukhan 2019, "The Indirect
// Convolution Algorithm"), so that a cell may lie in a window, in the background, or be the zeros around the image.
//
// Weights of a panel: [taps of the sources, groups of channels, 32 output channels] of 4 bytes.

namespace mgran {
namespace MGRAN_NAMESPACE {

template <typename D, typename In, typename Out>
MGRAN_TARGET MGRAN_INLINE void conv_put(const ConvTile& tile, const typename D::Sum& sum, int row, int channel) {
  using V = typename D::Vector;
  using Storage = typename Out::Storage;
  if (channel >= tile.channels) return;
  const auto bias = V::load(tile.bias + channel);
  auto v = D::real(sum);
  v = tile.scale ? V::add(V::mul(v, V::load(tile.scale + channel)), bias) : V::add(v, bias);
  const bool whole = channel + V::kWidth <= tile.channels;
  const std::size_t valid = static_cast<std::size_t>(whole ? V::kWidth : tile.channels - channel);
  if (tile.residual) {
    using Given = typename In::Storage;
    Given few[V::kWidth] = {};
    const Given* from = reinterpret_cast<const Given*>(tile.residual[row]) + channel;
    if (!whole) {
      std::memcpy(few, from, valid * sizeof(Given));
      from = few;
    }
    auto other = D::load(from, In{});
    if (tile.residual_scale) other = V::mul(other, V::load(tile.residual_scale + channel));
    v = V::add(v, other);
  }
  if (tile.relu) v = V::at_least(v, V::set(0.0f));
  Storage* const to = reinterpret_cast<Storage*>(tile.out[row]) + channel;
  if (whole) {
    D::save(to, v, Out{});
  } else {
    Storage some[V::kWidth];
    D::save(some, v, Out{});
    std::memcpy(to, some, valid * sizeof(Storage));
  }
}

template <typename D, typename In, typename Out>
MGRAN_TARGET void conv_tile(const ConvTile& tile) {
  constexpr int kRows = D::kRows, kVectors = D::kVectors, kWidth = D::Vector::kWidth;
  static_assert(kRows <= kConvRows && kConvPanel % (kVectors * kWidth) == 0, "a panel is whole tiles");
  for (int first = 0; first < kConvPanel; first += kVectors * kWidth) {
    typename D::Sum sums[kRows][kVectors];
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kVectors; ++j) sums[i][j] = D::zero();
    const std::int32_t* weights = tile.weights + first;
    for (int source = 0; source < tile.sources; ++source) {
      const int groups = tile.groups[source];
      for (int tap = 0; tap < tile.taps[source]; ++tap) {
        const std::uint8_t* const* const cells = tile.cells[source] + tap * kConvRows;
        const std::uint8_t* cell[kRows];
        for (int i = 0; i < kRows; ++i) cell[i] = cells[i];
        for (int group = 0; group < groups; ++group, weights += kConvPanel) {
          typename D::Group w[kVectors];
          for (int j = 0; j < kVectors; ++j) w[j] = D::weights(weights + j * kWidth);
          MGRAN_UNROLL
          for (int i = 0; i < kRows; ++i) {
            const typename D::Group a = D::group(cell[i] + 4 * group);
            for (int j = 0; j < kVectors; ++j) sums[i][j] = D::dot(sums[i][j], a, w[j]);
          }
        }
      }
    }
    MGRAN_UNROLL
    for (int i = 0; i < kRows; ++i) {
      if (i >= tile.rows) break;
      for (int j = 0; j < kVectors; ++j) conv_put<D, In, Out>(tile, sums[i][j], i, first + j * kWidth);
    }
  }
}

}  // namespace MGRAN_NAMESPACE
}  // namespace mgran
#undef MGRAN_NAMESPACE
#undef MGRAN_TARGET
