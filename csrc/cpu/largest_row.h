// The inner loop of max pooling, compiled for each instruction set by the compiler's own vectorisation. The including
// file defines, for every inclusion, MGRAN_NAMESPACE and MGRAN_TARGET; hence no #pragma once.

namespace mgran {
namespace MGRAN_NAMESPACE {

// out[c] = the largest of cells[0][c], cells[1][c], ... as integers, which for floats that are not negative is the
// order of their values (and NaN is above all).
template <typename T>
MGRAN_TARGET void largest_row(const std::uint8_t* const* cells, int count, std::int32_t channels, void* to) {
  T* const out = static_cast<T*>(to);
  const T* const first = reinterpret_cast<const T*>(cells[0]);
  if (count == 9) {
    const T *a = reinterpret_cast<const T*>(cells[1]), *b = reinterpret_cast<const T*>(cells[2]),
            *c = reinterpret_cast<const T*>(cells[3]), *d = reinterpret_cast<const T*>(cells[4]),
            *e = reinterpret_cast<const T*>(cells[5]), *f = reinterpret_cast<const T*>(cells[6]),
            *g = reinterpret_cast<const T*>(cells[7]), *h = reinterpret_cast<const T*>(cells[8]);
    for (std::int32_t i = 0; i < channels; ++i) {
      const T ab = a[i] > b[i] ? a[i] : b[i], cd = c[i] > d[i] ? c[i] : d[i], ef = e[i] > f[i] ? e[i] : f[i],
              gh = g[i] > h[i] ? g[i] : h[i];
      const T abcd = ab > cd ? ab : cd, efgh = ef > gh ? ef : gh, rest = abcd > efgh ? abcd : efgh;
      out[i] = first[i] > rest ? first[i] : rest;
    }
    return;
  }
  for (std::int32_t i = 0; i < channels; ++i) out[i] = first[i];
  for (int k = 1; k < count; ++k) {
    const T* const other = reinterpret_cast<const T*>(cells[k]);
    for (std::int32_t i = 0; i < channels; ++i) out[i] = other[i] > out[i] ? other[i] : out[i];
  }
}

}  // namespace MGRAN_NAMESPACE
}  // namespace mgran
#undef MGRAN_NAMESPACE
#undef MGRAN_TARGET
