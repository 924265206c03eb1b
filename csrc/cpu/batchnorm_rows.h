// The inner loops of `batchnorm` on the CPU, written once and compiled for each instruction set. The including file
// defines, for every inclusion, MGRAN_NAMESPACE, MGRAN_TARGET (a function attribute) and MGRAN_VECTOR (a structure of
// pooling_simd.h); hence no #pragma once.
//
// A few cells at a time, and of them strip after strip of channels: the strip's coefficients and sums are in registers
// for those cells. Memory is read about as it lies, but in as many places as there are cells and tensors, which no
// processor foresees: each strip asks for the same one of the next cells.

namespace mgran {
namespace MGRAN_NAMESPACE {

using V = MGRAN_VECTOR;
using F = V::F;

// Vectors of a strip. Where a vector is one number, compilers make vectors of the strip.
constexpr int kStrip = V::kWidth == 1 ? 16 : 4;
constexpr std::int64_t kTile = 8;  // cells

// Asks for the lines of a strip of the next tile's cell, so that they are near by then. Behind the last one nothing
// comes of it.
template <int N, bool kToWrite = false, typename Storage>
MGRAN_INLINE void fetch_ahead([[maybe_unused]] const Storage* strip, [[maybe_unused]] std::int64_t step) {
#if defined(__GNUC__)
  constexpr int kLine = 64 / static_cast<int>(sizeof(Storage));
  const std::uintptr_t next = reinterpret_cast<std::uintptr_t>(strip) + kTile * step * sizeof(Storage);
  // Narrow rows lie so close that processors foresee them.
  if constexpr (N > 1)
    for (int at = 0; at < N * V::kWidth; at += kLine)
      __builtin_prefetch(reinterpret_cast<const void*>(next + at * sizeof(Storage)), kToWrite, 2);
#endif
}

// A strip of some cells: where it begins in the tensors, among all channels of all groups, and in the sums.
struct Strip {
  std::int64_t offset, coefficients, cells;
  float* sums;
};

template <typename T, bool kCounts, int N>
MGRAN_TARGET MGRAN_INLINE void statistics(const BatchnormTask& task, const Strip& strip) {
  const std::int64_t step = task.args->channels;
  const float* counts = kCounts ? task.args->counts + strip.offset / step : nullptr;
  const auto* x = static_cast<const typename T::Storage*>(task.args->x) + strip.offset;
  // About the values of the task's first cell: a large mean with a small variance keeps its digits.
  const auto* first = static_cast<const typename T::Storage*>(task.args->x) + task.cell * step + strip.offset % step;
  F pivot[N], sum[N], squares[N];
  for (int i = 0; i < N; ++i) {
    pivot[i] = V::load(first + i * V::kWidth, T{});
    sum[i] = V::load(strip.sums + i * V::kWidth);
    squares[i] = V::load(strip.sums + task.args->channels + i * V::kWidth);
  }
  for (std::int64_t cell = 0; cell < strip.cells; ++cell, x += step) {
    fetch_ahead<N>(x, step);
    for (int i = 0; i < N; ++i) {
      const F away = V::sub(V::load(x + i * V::kWidth, T{}), pivot[i]);
      const F all = kCounts ? V::mul(away, V::set(counts[cell])) : away;
      sum[i] = V::add(sum[i], all);
      squares[i] = V::fma(all, away, squares[i]);
    }
  }
  for (int i = 0; i < N; ++i) {
    V::template save<false>(strip.sums + i * V::kWidth, sum[i], Float32{});
    V::template save<false>(strip.sums + task.args->channels + i * V::kWidth, squares[i], Float32{});
  }
}

template <typename T, bool kResidual>
MGRAN_TARGET MGRAN_INLINE F before_relu(F x, const typename T::Storage* residual, F scale, F shift) {
  const F z = V::fma(x, scale, shift);
  if constexpr (kResidual) return V::add(z, V::load(residual, T{}));
  return z;
}

template <typename T, bool kResidual, bool kRelu, bool kStream, int N>
MGRAN_TARGET MGRAN_INLINE void apply(const BatchnormTask& task, const Strip& strip) {
  using Storage = typename T::Storage;
  const MgranBatchnorm& args = *task.args;
  const std::int64_t step = args.channels;
  const Storage* x = static_cast<const Storage*>(args.x) + strip.offset;
  const Storage* residual = kResidual ? static_cast<const Storage*>(args.residual) + strip.offset : x;
  Storage* out = static_cast<Storage*>(args.out) + strip.offset;
  F scale[N], shift[N];
  for (int i = 0; i < N; ++i) {
    scale[i] = V::load(args.scale + strip.coefficients + i * V::kWidth);
    shift[i] = V::load(args.shift + strip.coefficients + i * V::kWidth);
  }
  const F zero = V::set(0.0f);
  for (std::int64_t cell = 0; cell < strip.cells; ++cell, x += step, residual += step, out += step) {
    fetch_ahead<N>(x, step);
    if constexpr (kResidual) fetch_ahead<N>(residual, step);
    if constexpr (!kStream) fetch_ahead<N, true>(out, step);
    for (int i = 0; i < N; ++i) {
      const int at = i * V::kWidth;
      F z = before_relu<T, kResidual>(V::load(x + at, T{}), residual + at, scale[i], shift[i]);
      if constexpr (kRelu) z = V::at_least(z, zero);
      V::template save<kStream>(out + at, z, T{});
    }
  }
}

// The gradient that ReLU lets through: where z is not at most 0, as torch has it.
template <typename T, bool kResidual, bool kRelu>
MGRAN_TARGET MGRAN_INLINE F passed(F grad, F x, const typename T::Storage* residual, F scale, F shift) {
  if constexpr (!kRelu) return grad;
  const F zero = V::set(0.0f);
  return V::where_reaches(zero, before_relu<T, kResidual>(x, residual, scale, shift), zero, grad);
}

template <typename T, bool kResidual, bool kRelu, int N>
MGRAN_TARGET MGRAN_INLINE void reduce(const BatchnormTask& task, const Strip& strip) {
  using Storage = typename T::Storage;
  const MgranBatchnorm& args = *task.args;
  const std::int64_t step = args.channels;
  const Storage* x = static_cast<const Storage*>(args.x) + strip.offset;
  const Storage* grad = static_cast<const Storage*>(args.grad) + strip.offset;
  const Storage* residual = kResidual ? static_cast<const Storage*>(args.residual) + strip.offset : x;
  F scale[N], shift[N], mean[N], bias[N], weight[N];
  for (int i = 0; i < N; ++i) {
    const std::int64_t at = strip.coefficients + i * V::kWidth;
    scale[i] = kRelu ? V::load(args.scale + at) : V::set(0.0f);
    shift[i] = kRelu ? V::load(args.shift + at) : V::set(0.0f);
    mean[i] = V::load(args.mean + at);
    bias[i] = V::load(strip.sums + i * V::kWidth);
    weight[i] = V::load(strip.sums + task.args->channels + i * V::kWidth);
  }
  for (std::int64_t cell = 0; cell < strip.cells; ++cell, x += step, grad += step, residual += step) {
    fetch_ahead<N>(x, step);
    fetch_ahead<N>(grad, step);
    if constexpr (kResidual) fetch_ahead<N>(residual, step);
    for (int i = 0; i < N; ++i) {
      const int at = i * V::kWidth;
      const F value = V::load(x + at, T{});
      const F dz = passed<T, kResidual, kRelu>(V::load(grad + at, T{}), value, residual + at, scale[i], shift[i]);
      bias[i] = V::add(bias[i], dz);
      weight[i] = V::fma(dz, V::sub(value, mean[i]), weight[i]);
    }
  }
  for (int i = 0; i < N; ++i) {
    V::template save<false>(strip.sums + i * V::kWidth, bias[i], Float32{});
    V::template save<false>(strip.sums + task.args->channels + i * V::kWidth, weight[i], Float32{});
  }
}

template <typename T, bool kResidual, bool kRelu, bool kStream, bool kCounts, int N>
MGRAN_TARGET MGRAN_INLINE void grad(const BatchnormTask& task, const Strip& strip) {
  using Storage = typename T::Storage;
  const MgranBatchnorm& args = *task.args;
  const std::int64_t step = args.channels;
  const Storage* x = static_cast<const Storage*>(args.x) + strip.offset;
  const Storage* given = static_cast<const Storage*>(args.grad) + strip.offset;
  const float* counts = kCounts ? args.counts + strip.offset / step : nullptr;
  const Storage* residual = kResidual ? static_cast<const Storage*>(args.residual) + strip.offset : x;
  Storage* out = static_cast<Storage*>(args.out) + strip.offset;
  Storage* out_residual = args.out_residual ? static_cast<Storage*>(args.out_residual) + strip.offset : nullptr;
  // scale * (dz - dbias / M - xhat * dweight / M) = scale * dz - (slope * (x - mean) + constant). The gradient of a
  // cell that stands for n is that of all n together.
  F scale[N], shift[N], mean[N], slope[N], constant[N];
  for (int i = 0; i < N; ++i) {
    const std::int64_t at = strip.coefficients + i * V::kWidth;
    scale[i] = V::load(args.scale + at);
    shift[i] = kRelu ? V::load(args.shift + at) : V::set(0.0f);
    mean[i] = V::load(args.mean + at);
    slope[i] = V::mul(scale[i], V::mul(V::load(args.invstd + at), V::load(task.grad_weight_mean + at)));
    constant[i] = V::mul(scale[i], V::load(task.grad_bias_mean + at));
  }
  for (std::int64_t cell = 0; cell < strip.cells; ++cell, x += step, given += step, residual += step, out += step) {
    fetch_ahead<N>(x, step);
    fetch_ahead<N>(given, step);
    if constexpr (kResidual) fetch_ahead<N>(residual, step);
    if constexpr (!kStream) fetch_ahead<N, true>(out, step);
    if (!kStream && out_residual) fetch_ahead<N, true>(out_residual, step);
    for (int i = 0; i < N; ++i) {
      const int at = i * V::kWidth;
      const F value = V::load(x + at, T{});
      const F dz = passed<T, kResidual, kRelu>(V::load(given + at, T{}), value, residual + at, scale[i], shift[i]);
      F rest = V::fma(slope[i], V::sub(value, mean[i]), constant[i]);
      if constexpr (kCounts) rest = V::mul(rest, V::set(counts[cell]));
      V::template save<kStream>(out + at, V::fms(scale[i], dz, rest), T{});
      // A gradient, or 0: the element type holds it exactly.
      if (out_residual) V::template save_exact<kStream>(out_residual + at, dz, T{});
    }
    if (out_residual) out_residual += step;
  }
}

// Tile after tile of cells; in it strips of kStrip vectors, then of one.
#define MGRAN_TILES(function, ...)                                                                                     \
  for (std::int64_t cell = 0; cell < task.cells; cell += kTile) {                                                      \
    const std::int64_t cells = task.cells - cell < kTile ? task.cells - cell : kTile;                                  \
    const std::int64_t all = task.args->channels, offset = (task.cell + cell) * all + task.first;                      \
    const std::int64_t coefficients = task.group * all + task.first;                                                   \
    std::int64_t c = 0;                                                                                                \
    for (; c + kStrip * V::kWidth <= task.channels; c += kStrip * V::kWidth)                                           \
      function<__VA_ARGS__, kStrip>(task, {offset + c, coefficients + c, cells, task.sums ? task.sums + c : nullptr}); \
    for (; c < task.channels; c += V::kWidth)                                                                          \
      function<__VA_ARGS__, 1>(task, {offset + c, coefficients + c, cells, task.sums ? task.sums + c : nullptr});      \
  }

template <typename T>
MGRAN_TARGET void statistics_of(const BatchnormTask& task) {
  if (task.args->counts) {
    MGRAN_TILES(statistics, T, true)
  } else {
    MGRAN_TILES(statistics, T, false)
  }
  // From sums about the pivot to the mean and the squares about it.
  const auto* first =
      static_cast<const typename T::Storage*>(task.args->x) + task.cell * task.args->channels + task.first;
  const F share = V::set(1.0f / static_cast<float>(task.count));
  for (std::int64_t c = 0; c < task.channels; c += V::kWidth) {
    float *sums = task.sums + c, *squares = sums + task.args->channels;
    const F sum = V::load(sums), mean = V::mul(sum, share);
    V::template save<false>(squares, V::sub(V::load(squares), V::mul(sum, mean)), Float32{});
    V::template save<false>(sums, V::add(V::load(first + c, T{}), mean), Float32{});
  }
}

template <typename T, bool kResidual, bool kRelu, bool kStream>
MGRAN_TARGET void apply_of(const BatchnormTask& task) {
  MGRAN_TILES(apply, T, kResidual, kRelu, kStream)
}

template <typename T, bool kResidual, bool kRelu>
MGRAN_TARGET void reduce_of(const BatchnormTask& task) {
  MGRAN_TILES(reduce, T, kResidual, kRelu)
}

template <typename T, bool kResidual, bool kRelu, bool kStream>
MGRAN_TARGET void grad_of(const BatchnormTask& task) {
  if (task.args->counts) {
    MGRAN_TILES(grad, T, kResidual, kRelu, kStream, true)
  } else {
    MGRAN_TILES(grad, T, kResidual, kRelu, kStream, false)
  }
}

#undef MGRAN_TILES

template <typename T, bool kStream>
MGRAN_TARGET void apply_by(const BatchnormTask& task) {
  const bool residual = task.args->residual != nullptr;
  if (residual && task.args->relu) return apply_of<T, true, true, kStream>(task);
  if (residual) return apply_of<T, true, false, kStream>(task);
  if (task.args->relu) return apply_of<T, false, true, kStream>(task);
  return apply_of<T, false, false, kStream>(task);
}

// Backwards a residual matters to ReLU alone.
template <typename T>
MGRAN_TARGET void reduce_by(const BatchnormTask& task) {
  if (!task.args->relu) return reduce_of<T, false, false>(task);
  if (task.args->residual) return reduce_of<T, true, true>(task);
  return reduce_of<T, false, true>(task);
}

template <typename T, bool kStream>
MGRAN_TARGET void grad_by(const BatchnormTask& task) {
  if (!task.args->relu) return grad_of<T, false, false, kStream>(task);
  if (task.args->residual) return grad_of<T, true, true, kStream>(task);
  return grad_of<T, false, true, kStream>(task);
}

#define MGRAN_BY_DTYPE(name, call)                    \
  MGRAN_TARGET void name(const BatchnormTask& task) { \
    switch (task.args->dtype) {                       \
      case MGRAN_FLOAT32: {                           \
        using T = Float32;                            \
        return call;                                  \
      }                                               \
      case MGRAN_FLOAT16: {                           \
        using T = Float16;                            \
        return call;                                  \
      }                                               \
      default: {                                      \
        using T = BFloat16;                           \
        return call;                                  \
      }                                               \
    }                                                 \
  }

MGRAN_BY_DTYPE(statistics_any, statistics_of<T>(task))
MGRAN_BY_DTYPE(apply_any, (task.stream ? apply_by<T, true>(task) : apply_by<T, false>(task)))
MGRAN_BY_DTYPE(reduce_any, reduce_by<T>(task))
MGRAN_BY_DTYPE(grad_any, (task.stream ? grad_by<T, true>(task) : grad_by<T, false>(task)))

#undef MGRAN_BY_DTYPE

inline BatchnormKernels kernels() { return {V::kWidth, statistics_any, apply_any, reduce_any, grad_any}; }

}  // namespace MGRAN_NAMESPACE
}  // namespace mgran

#undef MGRAN_NAMESPACE
#undef MGRAN_TARGET
#undef MGRAN_VECTOR
