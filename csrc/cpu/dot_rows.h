// Products of one vector and some others: included by inner loops, inside of their namespace and once for each
// instruction set; hence no #pragma once.

// out[j] = a . b[j], j < kVectors, where b[j] begins at b + j * n. So many sums side by side, then one half of them
// added to the other until one is left: the same order, and so the same bits, for every instruction set and number of
// vectors.
template <int kVectors>
MGRAN_TARGET void dots(const float* a, const float* b, std::int64_t n, float* out) {
  constexpr int kLanes = 32;
  float sum[kVectors][kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kVectors; ++j)
      for (int lane = 0; lane < kLanes; ++lane) sum[j][lane] += a[i + lane] * b[j * n + i + lane];
  for (int j = 0; j < kVectors; ++j) {
    for (int lane = 0; i + lane < n; ++lane) sum[j][lane] += a[i + lane] * b[j * n + i + lane];
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane) sum[j][lane] += sum[j][lane + half];
    out[j] = sum[j][0];
  }
}
