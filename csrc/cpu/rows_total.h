// The inner loop of `rows_total` on the CPU, written once and compiled for each instruction set. The including file
// defines, for every inclusion, MGRAN_NAMESPACE, MGRAN_TARGET (a function attribute) and MGRAN_VECTOR (a structure of
// pooling_simd.h); hence no #pragma once.

namespace mgran {
namespace MGRAN_NAMESPACE {

using V = MGRAN_VECTOR;
using F = V::F;

// Vectors that are summed in registers at a time. Where a vector is one number, compilers make vectors of them.
constexpr int kStrip = V::kWidth == 1 ? 16 : 4;

template <typename T, int N>
MGRAN_TARGET MGRAN_INLINE void total_strip(const MgranRows& args, std::int64_t row, std::int64_t channel) {
  using Storage = typename T::Storage;
  const std::int64_t at = row * args.channels + channel;
  F sums[N];
  for (int i = 0; i < N; ++i)
    sums[i] = args.base ? V::load(static_cast<const Storage*>(args.base) + at + i * V::kWidth, T{}) : V::set(0.0f);
  const Storage* x = static_cast<const Storage*>(args.x) + channel;
  for (std::int32_t k = args.starts[row]; k < args.starts[row + 1]; ++k) {
    const Storage* member = x + args.members[k] * args.channels;
    for (int i = 0; i < N; ++i) sums[i] = V::add(sums[i], V::load(member + i * V::kWidth, T{}));
  }
  Storage* out = static_cast<Storage*>(args.out) + at;
  for (int i = 0; i < N; ++i) V::template save<false>(out + i * V::kWidth, sums[i], T{});
}

// Rows first .. last - 1, channels from..to: whole vectors.
template <typename T>
MGRAN_TARGET void total_of(const MgranRows& args, std::int64_t first, std::int64_t last, std::int64_t from,
                           std::int64_t to) {
  for (std::int64_t row = first; row < last; ++row) {
    std::int64_t c = from;
    for (; c + kStrip * V::kWidth <= to; c += kStrip * V::kWidth) total_strip<T, kStrip>(args, row, c);
    for (; c < to; c += V::kWidth) total_strip<T, 1>(args, row, c);
  }
}

MGRAN_TARGET void total(const MgranRows& args, std::int64_t first, std::int64_t last, std::int64_t from,
                        std::int64_t to) {
  switch (args.dtype) {
    case MGRAN_FLOAT32:
      return total_of<Float32>(args, first, last, from, to);
    case MGRAN_FLOAT16:
      return total_of<Float16>(args, first, last, from, to);
    default:
      return total_of<BFloat16>(args, first, last, from, to);
  }
}

inline RowsKernels kernels() { return {V::kWidth, total}; }

}  // namespace MGRAN_NAMESPACE
}  // namespace mgran

#undef MGRAN_NAMESPACE
#undef MGRAN_TARGET
#undef MGRAN_VECTOR
