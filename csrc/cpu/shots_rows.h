// The inner loops of `shots` on the CPU, written once and compiled for each instruction set. The including file
// defines, for every inclusion, MGRAN_NAMESPACE and MGRAN_TARGET (a function attribute); hence no #pragma once.
// Plain loops: compilers make vectors of them.

namespace mgran {
namespace MGRAN_NAMESPACE {

#include "distance_rows.h"

// Of each of x [n], how many of `at` are less; whether any of them is equal. A NaN is less than nothing.
template <typename T>
MGRAN_TARGET bool places(const T* x, std::int64_t n, const T* at, std::int64_t count, std::int32_t* out) {
  // Blocks that stay in the first cache.
  constexpr std::int64_t kBlock = 2048;
  int tied = 0;
  for (std::int64_t begin = 0; begin < n; begin += kBlock) {
    const std::int64_t end = n - begin < kBlock ? n : begin + kBlock;
    for (std::int64_t i = begin; i < end; ++i) out[i] = 0;
    for (std::int64_t k = 0; k < count; ++k) {
      const T value = at[k];
      for (std::int64_t i = begin; i < end; ++i) {
        out[i] += value < x[i];
        tied |= value == x[i];
      }
    }
  }
  return tied;
}

// One more variable that is 1 with the chance `share`: mass[s], the chance of the sum s, for s below n. `before` holds
// n.
MGRAN_TARGET inline void add_variable(double* __restrict mass, double* __restrict before, std::int64_t n,
                                      double share) {
  const double rest = 1.0 - share;
  for (std::int64_t s = 0; s < n; ++s) before[s] = mass[s];
  mass[0] = before[0] * rest;
  for (std::int64_t s = 1; s < n; ++s) mass[s] = before[s] * rest + before[s - 1] * share;
}

template <typename T>
ShotsKernels<T> kernels() {
  return {fill<T, MgranShots>, places<T>, add_variable};
}

}  // namespace MGRAN_NAMESPACE
}  // namespace mgran

#undef MGRAN_NAMESPACE
#undef MGRAN_TARGET
