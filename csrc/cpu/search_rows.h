// The inner loops of `search` on the CPU, written once and compiled for each instruction set. The including file
// defines, for every inclusion, MGRAN_NAMESPACE and MGRAN_TARGET (a function attribute); hence no #pragma once.
// Plain loops: compilers make vectors of them.

namespace mgran {
namespace MGRAN_NAMESPACE {

#include "distance_rows.h"
#include "dot_rows.h"

// The products of one entry and all queries, `pitch` apart.
MGRAN_TARGET void products(const float* entry, const float* queries, std::int64_t count, std::int64_t n, float* out,
                           std::int64_t pitch) {
  constexpr int kTogether = 4;
  float some[kTogether];
  std::int64_t q = 0;
  for (; q + kTogether <= count; q += kTogether) {
    dots<kTogether>(entry, queries + q * n, n, some);
    for (int j = 0; j < kTogether; ++j) out[(q + j) * pitch] = some[j];
  }
  for (; q < count; ++q) dots<1>(entry, queries + q * n, n, out + q * pitch);
}

// Whether any of x [n] is less than `worst`.
MGRAN_TARGET bool any_below(const float* x, std::int64_t n, float worst) {
  int some = 0;
  for (std::int64_t i = 0; i < n; ++i) some |= x[i] < worst;
  return some != 0;
}

inline SearchKernels kernels() { return {products, fill<float, MgranSearch>, any_below}; }

}  // namespace MGRAN_NAMESPACE
}  // namespace mgran

#undef MGRAN_NAMESPACE
#undef MGRAN_TARGET
