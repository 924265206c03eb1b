// The inner loops of `pooling` on the CPU, written once and compiled for each instruction set. The including file
// defines, for every inclusion, MGRAN_NAMESPACE, MGRAN_TARGET (a function attribute) and MGRAN_VECTOR (a structure of
// pooling_simd.h); hence no #pragma once.
//
// Memory is the limit: a cell's channels are contiguous, so cells are the outer loop, four at a time, and the sums
// of up to kChunk channels wait in the first-level cache.

namespace mgran {
namespace MGRAN_NAMESPACE {

using V = MGRAN_VECTOR;
using F = V::F;

constexpr float kSmallestNormal = 1.17549435e-38f;
constexpr int kChunk = 1024;                  // channels
constexpr std::int64_t kPassBytes = 1 << 19;  // features that backward reads twice: they fit the second-level cache

// An exponent in two floats, so that a large logarithm times it keeps its fraction.
struct Exponent {
  float high, low;
};

MGRAN_TARGET MGRAN_INLINE Exponent exponent_of(double value) {
  const float high = static_cast<float>(value);
  return {high, static_cast<float>(value - static_cast<double>(high))};
}

// x to the power p, x positive and no less than float32's smallest normal number: about float accuracy while
// |p log2(x)| is moderate. NaN where x is not finite.
MGRAN_TARGET MGRAN_INLINE F power(F x, Exponent p) {
  F e;
  const F m = V::split(x, e);
  // log2(m) = 2 / ln 2 * artanh(s), s = (m - 1) / (m + 1), |s| < 0.172.
  const F one = V::set(1.0f);
  const F s = V::div(V::sub(m, one), V::add(m, one)), s2 = V::mul(s, s);
  F series = V::fma(s2, V::set(2.88539008f / 9), V::set(2.88539008f / 7));
  series = V::fma(s2, series, V::set(2.88539008f / 5));
  series = V::fma(s2, series, V::set(2.88539008f / 3));
  series = V::fma(s2, series, V::set(2.88539008f));
  // p * (e + log2(m)) = n + f; the limits of n are beyond float32's exponents.
  const F high = V::set(p.high), tail = V::fma(e, V::set(p.low), V::mul(V::mul(s, series), high));
  const F n = V::nearest(V::at_most(V::at_least(V::fma(e, high, tail), V::set(-250.0f)), V::set(250.0f)));
  F f = V::add(V::fms(e, high, n), tail);
  f = V::at_most(V::at_least(f, V::set(-1.0f)), one);  // beyond only where n was limited
  // 2**f by its Taylor series, |f| <= 1/2.
  F exponential = V::fma(f, V::set(1.52527338e-5f), V::set(1.54035304e-4f));
  exponential = V::fma(f, exponential, V::set(1.33335581e-3f));
  exponential = V::fma(f, exponential, V::set(9.61812911e-3f));
  exponential = V::fma(f, exponential, V::set(5.55041087e-2f));
  exponential = V::fma(f, exponential, V::set(2.40226507e-1f));
  exponential = V::fma(f, exponential, V::set(6.93147181e-1f));
  exponential = V::fma(f, exponential, one);
  return V::add(V::scale(exponential, n), V::sub(x, x));
}

// x**kPower for small integers, x**p for kPower = 0.
template <int kPower>
MGRAN_TARGET MGRAN_INLINE F raise(F x, Exponent p) {
  if constexpr (kPower == 0) return power(x, p);
  if constexpr (kPower == 1) return x;
  if constexpr (kPower == 2) return V::mul(x, x);
  if constexpr (kPower == 3) return V::mul(V::mul(x, x), x);
}

// Takes kCells cells into the sums (or maxima) of `count` channels.
template <typename T, int kMode, int kPower, int kCells>
MGRAN_TARGET MGRAN_INLINE void take(const typename T::Storage* const* cells /* [kCells] -> [count] */,
                                    const float* weights, Exponent p, int count, float* sums) {
  F weight[kCells];
  for (int k = 0; k < kCells; ++k) weight[k] = V::set(weights[k]);
  const F smallest = V::set(kGemSmallest);
  for (int c = 0; c < count; c += V::kWidth) {
    F sum = V::load(sums + c);
    for (int k = 0; k < kCells; ++k) {
      const F x = V::load(cells[k] + c, T{});
      if constexpr (kMode == MGRAN_MEAN) sum = V::fma(x, weight[k], sum);
      if constexpr (kMode == MGRAN_MAX) sum = V::largest(sum, x);
      if constexpr (kMode == MGRAN_GEM) sum = V::fma(raise<kPower>(V::at_least(x, smallest), p), weight[k], sum);
    }
    V::template save<false>(sums + c, sum, Float32{});
  }
}

template <typename T, int kMode, int kPower>
MGRAN_TARGET void accumulate(const PoolingTask& task, const typename T::Storage* features, Exponent p, int count,
                             float* sums) {
  const std::int64_t stride = task.args->channels;
  const F start = V::set(kMode == MGRAN_MAX ? -INFINITY : 0.0f);
  for (int c = 0; c < count; c += V::kWidth) V::template save<false>(sums + c, start, Float32{});
  // Fewer loads and stores of the sums; beside a general power they do not matter.
  constexpr int kTogether = kMode == MGRAN_GEM && kPower == 0 ? 1 : 4;
  int i = 0;
  for (; i + kTogether <= task.visible_count; i += kTogether) {
    const typename T::Storage* cells[kTogether];
    for (int k = 0; k < kTogether; ++k) cells[k] = features + task.visible[i + k] * stride;
    take<T, kMode, kPower, kTogether>(cells, task.weights + i, p, count, sums);
  }
  for (; i < task.visible_count; ++i) {
    const typename T::Storage* cell = features + task.visible[i] * stride;
    take<T, kMode, kPower, 1>(&cell, task.weights + i, p, count, sums);
  }
}

// GeM of one vector of channels as the reference does it, relative to the largest feature: for powers that leave
// float32's range.
template <typename T>
MGRAN_TARGET F careful_gem(const PoolingTask& task, const typename T::Storage* features, Exponent p, Exponent inverse) {
  const std::int64_t stride = task.args->channels;
  const F smallest = V::set(kGemSmallest);
  F largest = smallest, sum = V::set(0.0f);
  for (int i = 0; i < task.visible_count; ++i)
    largest = V::largest(largest, V::load(features + task.visible[i] * stride, T{}));
  for (int i = 0; i < task.visible_count; ++i) {
    const F x = V::at_least(V::load(features + task.visible[i] * stride, T{}), smallest);
    const F ratio = V::at_least(V::div(x, largest), V::set(kSmallestNormal));
    sum = V::fma(power(ratio, p), V::set(task.weights[i]), sum);
  }
  return V::mul(power(V::at_least(sum, V::set(kSmallestNormal)), inverse), largest);
}

// The pooled values of `count` channels in float32.
template <typename T, int kMode, int kPower>
MGRAN_TARGET void pool(const PoolingTask& task, const typename T::Storage* features, int count, float* pooled) {
  const Exponent p = exponent_of(task.args->power), inverse = exponent_of(1.0 / task.args->power);
  accumulate<T, kMode, kPower>(task, features, p, count, pooled);
  if constexpr (kMode == MGRAN_GEM && kPower == 1) {
    // The reference divides by the largest feature: an infinite one gives NaN, here as there.
    for (int c = 0; c < count; c += V::kWidth) {
      const F mean = V::load(pooled + c);
      V::template save<false>(pooled + c, V::add(mean, V::sub(mean, mean)), Float32{});
    }
  } else if constexpr (kMode == MGRAN_GEM) {
    // Within these, no power that matters has over- or underflowed.
    const F low = V::set(8e-28f), high = V::set(1e30f);
    for (int c = 0; c < count; c += V::kWidth) {
      const F mean = V::load(pooled + c);
      F value;
      if (!V::all_within(mean, low, high))
        value = careful_gem<T>(task, features + c, p, inverse);
      else if constexpr (kPower == 2)
        value = V::root(mean);
      else
        value = power(mean, inverse);
      V::template save<false>(pooled + c, value, Float32{});
    }
  }
}

template <typename T, int kMode, int kPower>
MGRAN_TARGET void forward(const PoolingTask& task) {
  using Storage = typename T::Storage;
  const MgranPooling& args = *task.args;
  const std::int64_t cells = static_cast<std::int64_t>(args.height) * args.width;
  const Storage* features = static_cast<const Storage*>(args.features) + task.row * cells * args.channels + task.first;
  Storage* out = static_cast<Storage*>(args.out) + task.row * args.channels + task.first;
  alignas(64) float pooled[kChunk];
  for (std::int64_t first = 0; first < task.channels; first += kChunk) {
    const int count = static_cast<int>(task.channels - first < kChunk ? task.channels - first : kChunk);
    if (task.visible_count)
      pool<T, kMode, kPower>(task, features + first, count, pooled);
    else
      for (int c = 0; c < count; ++c) pooled[c] = 0.0f;
    for (int c = 0; c < count; c += V::kWidth) V::template save<false>(out + first + c, V::load(pooled + c), T{});
  }
}

// What backward knows of a channel beside the features.
struct Channels {
  alignas(64) float slope[kChunk];   // the gradient that comes in; of max: its share of each maximum
  alignas(64) float pooled[kChunk];  // of max: the maximum; of gem: 1 / the pooled value
};

// Adds to channels.slope how many of kCells cells equal the maximum.
template <typename T, int kCells>
MGRAN_TARGET MGRAN_INLINE void count_maxima(const PoolingTask& task, const typename T::Storage* features, int i,
                                            int count, Channels& channels) {
  const F one = V::set(1.0f);
  for (int c = 0; c < count; c += V::kWidth) {
    const F maximum = V::load(channels.pooled + c);
    F hits = V::load(channels.slope + c);
    for (int k = 0; k < kCells; ++k) {
      const F x = V::load(features + task.visible[i + k] * task.args->channels + c, T{});
      hits = V::add_where_equal(x, maximum, hits, one);
    }
    V::template save<false>(channels.slope + c, hits, Float32{});
  }
}

template <typename T, int kMode, int kPower>
MGRAN_TARGET void prepare(const PoolingTask& task, const typename T::Storage* features, const typename T::Storage* out,
                          const typename T::Storage* grad_out, int count, Channels& channels) {
  const F one = V::set(1.0f), zero = V::set(0.0f);
  if constexpr (kMode == MGRAN_MAX) {
    for (int c = 0; c < count; c += V::kWidth) {
      V::template save<false>(channels.pooled + c, V::load(out + c, T{}), Float32{});
      V::template save<false>(channels.slope + c, zero, Float32{});
    }
    int i = 0;
    for (; i + 4 <= task.visible_count; i += 4) count_maxima<T, 4>(task, features, i, count, channels);
    for (; i < task.visible_count; ++i) count_maxima<T, 1>(task, features, i, count, channels);
    for (int c = 0; c < count; c += V::kWidth) {
      const F hits = V::at_least(V::load(channels.slope + c), one);
      // Rounded here once, not at every cell.
      typename T::Storage rounded[V::kWidth];
      V::template save<false>(rounded, V::div(V::load(grad_out + c, T{}), hits), T{});
      V::template save<false>(channels.slope + c, V::load(rounded, T{}), Float32{});
    }
  } else {
    for (int c = 0; c < count; c += V::kWidth)
      V::template save<false>(channels.slope + c, V::load(grad_out + c, T{}), Float32{});
    if constexpr (kMode == MGRAN_GEM && kPower != 1) {
      // A rounded result would cost p - 1 times its rounding error; 16 bits are too few for that.
      if constexpr (sizeof(typename T::Storage) == 2) pool<T, kMode, kPower>(task, features, count, channels.pooled);
      for (int c = 0; c < count; c += V::kWidth) {
        const F pooled = sizeof(typename T::Storage) == 2 ? V::load(channels.pooled + c) : V::load(out + c, T{});
        V::template save<false>(channels.pooled + c, V::div(one, pooled), Float32{});
      }
    }
  }
}

// The gradient of one visible cell.
template <typename T, int kMode, int kPower, bool kStream>
MGRAN_TARGET MGRAN_INLINE void differentiate(const typename T::Storage* x, const Channels& channels, float weight,
                                             Exponent less, int count, typename T::Storage* grad) {
  const F w = V::set(weight), smallest = V::set(kGemSmallest), zero = V::set(0.0f);
  for (int c = 0; c < count; c += V::kWidth) {
    F value = V::load(channels.slope + c);
    if constexpr (kMode == MGRAN_MEAN) value = V::mul(value, w);
    if constexpr (kMode == MGRAN_MAX)
      value = V::where_equal(V::load(x + c, T{}), V::load(channels.pooled + c), value, zero);
    if constexpr (kMode == MGRAN_GEM) {
      const F feature = V::load(x + c, T{});
      value = V::mul(value, w);
      F below = zero;
      if constexpr (kPower != 1) {
        // (x / pooled)**(p - 1) stays in range where the two powers would not.
        const F inverse = V::load(channels.pooled + c);
        const F ratio = V::at_least(V::mul(V::at_least(feature, smallest), inverse), V::set(kSmallestNormal));
        value = V::mul(value, raise<kPower == 0 ? 0 : kPower - 1>(ratio, less));
        below = V::sub(inverse, inverse);  // NaN where the pooled value is, else 0
      }
      value = V::where_reaches(feature, smallest, value, below);
    }
    if constexpr (kMode == MGRAN_MAX)
      V::template save_exact<kStream>(grad + c, value, T{});
    else
      V::template save<kStream>(grad + c, value, T{});
  }
}

template <typename T, int kMode, int kPower, bool kStream>
MGRAN_TARGET void backward(const PoolingTask& task) {
  using Storage = typename T::Storage;
  const MgranPooling& args = *task.args;
  const std::int64_t cells = static_cast<std::int64_t>(args.height) * args.width;
  const std::int64_t row = task.row * args.channels + task.first;
  const std::int64_t offset = task.row * cells * args.channels + task.first;
  const Storage* features = static_cast<const Storage*>(args.features) + offset;
  Storage* grad_features = static_cast<Storage*>(args.grad_features) + offset;
  const Exponent less = exponent_of(static_cast<double>(args.power) - 1.0);
  std::int64_t chunk = kChunk;
  while (chunk > 128 && chunk * cells * static_cast<std::int64_t>(sizeof(Storage)) > kPassBytes) chunk /= 2;
  Channels channels;
  for (std::int64_t first = 0; first < task.channels; first += chunk) {
    const int count = static_cast<int>(task.channels - first < chunk ? task.channels - first : chunk);
    if (task.visible_count)
      prepare<T, kMode, kPower>(task, features + first, static_cast<const Storage*>(args.out) + row + first,
                                static_cast<const Storage*>(args.grad_out) + row + first, count, channels);
    for (std::int64_t cell = 0, i = 0; cell < cells; ++cell) {
      Storage* grad = grad_features + cell * args.channels + first;
      if (i < task.visible_count && task.visible[i] == cell) {
        const Storage* x = features + cell * args.channels + first;
        differentiate<T, kMode, kPower, kStream>(x, channels, task.weights[i], less, count, grad);
        ++i;
      } else {
        for (int c = 0; c < count; c += V::kWidth) V::template save<kStream>(grad + c, V::set(0.0f), T{});
      }
    }
  }
}

template <typename T, int kMode, int kPower>
MGRAN_TARGET void either(const PoolingTask& task, bool is_backward) {
  if (!is_backward)
    forward<T, kMode, kPower>(task);
  else if (task.stream)
    backward<T, kMode, kPower, true>(task);
  else
    backward<T, kMode, kPower, false>(task);
}

template <typename T>
MGRAN_TARGET void by_mode(const PoolingTask& task, bool is_backward) {
  if (task.args->mode == MGRAN_MEAN) return either<T, MGRAN_MEAN, 0>(task, is_backward);
  if (task.args->mode == MGRAN_MAX) return either<T, MGRAN_MAX, 0>(task, is_backward);
  if (task.args->power == 1.0f) return either<T, MGRAN_GEM, 1>(task, is_backward);
  if (task.args->power == 2.0f) return either<T, MGRAN_GEM, 2>(task, is_backward);
  if (task.args->power == 3.0f) return either<T, MGRAN_GEM, 3>(task, is_backward);
  return either<T, MGRAN_GEM, 0>(task, is_backward);
}

MGRAN_TARGET inline void by_type(const PoolingTask& task, bool is_backward) {
  if (task.args->dtype == MGRAN_FLOAT32) return by_mode<Float32>(task, is_backward);
  if (task.args->dtype == MGRAN_FLOAT16) return by_mode<Float16>(task, is_backward);
  return by_mode<BFloat16>(task, is_backward);
}

inline PoolingKernels kernels() {
  return {V::kWidth, [](const PoolingTask& task) { by_type(task, false); },
          [](const PoolingTask& task) { by_type(task, true); }};
}

}  // namespace MGRAN_NAMESPACE
}  // namespace mgran

#undef MGRAN_NAMESPACE
#undef MGRAN_TARGET
#undef MGRAN_VECTOR
