// The inner loops of `ranking` on the CPU, written once and compiled for each instruction set. The including file
// defines, for every inclusion, MGRAN_NAMESPACE and MGRAN_TARGET (a function attribute); hence no #pragma once.
// Plain loops: compilers make vectors of them.

namespace mgran {
namespace MGRAN_NAMESPACE {

#include "distance_rows.h"

// How many of x [n] are less than, and how many at most, each of kThresholds values.
template <typename T, int kThresholds>
MGRAN_TARGET void count_some(const T* x, std::int64_t n, const T* at, std::int64_t* less, std::int64_t* most) {
  using Int = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  // Blocks that 32 bits count, and that stay in the first cache.
  constexpr std::int64_t kBlock = 4096;
  for (int k = 0; k < kThresholds; ++k) less[k] = most[k] = 0;
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const T* block = x + begin;
    const std::int64_t length = n - begin < kBlock ? n - begin : kBlock;
    Int below[kThresholds] = {}, upto[kThresholds] = {};
    for (std::int64_t i = 0; i < length; ++i) {
      for (int k = 0; k < kThresholds; ++k) {
        below[k] += block[i] < at[k];
        upto[k] += block[i] <= at[k];
      }
    }
    for (int k = 0; k < kThresholds; ++k) {
      less[k] += below[k];
      most[k] += upto[k];
    }
  }
}

template <typename T>
MGRAN_TARGET void count(const T* x, std::int64_t n, const T* at, std::int64_t thresholds, std::int64_t* less,
                        std::int64_t* most) {
  std::int64_t k = 0;
  for (; k + 4 <= thresholds; k += 4) count_some<T, 4>(x, n, at + k, less + k, most + k);
  for (; k < thresholds; ++k) count_some<T, 1>(x, n, at + k, less + k, most + k);
}

template <typename T>
RankingKernels<T> kernels() {
  return {fill<T, MgranRanking>, count<T>};
}

}  // namespace MGRAN_NAMESPACE
}  // namespace mgran

#undef MGRAN_NAMESPACE
#undef MGRAN_TARGET
