// `batchnorm` on the CPU, forward and backward: sums over pieces of the cells, one after another as they lie in memory,
// then one pass that writes.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of variables that its own headers leave uninitialised on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "../batchnorm.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <numeric>
#include <vector>

#include "batchnorm_task.h"
#include "inputs_pages.h"
#include "pooling_simd.h"
#include "threads.h"

#define MGRAN_NAMESPACE batchnorm_portable
#define MGRAN_TARGET
#define MGRAN_VECTOR PortableVector
#include "batchnorm_rows.h"

#if MGRAN_X86
#define MGRAN_NAMESPACE batchnorm_avx2
#define MGRAN_TARGET MGRAN_AVX2
#define MGRAN_VECTOR Avx2Vector
#include "batchnorm_rows.h"

#define MGRAN_NAMESPACE batchnorm_avx512
#define MGRAN_TARGET MGRAN_AVX512
#define MGRAN_VECTOR Avx512Vector
#include "batchnorm_rows.h"
#endif

namespace {

using mgran::BatchnormKernels;
using mgran::BatchnormTask;

constexpr std::int64_t kAligned = 64;            // channels: whole strips and whole lines of a cache
constexpr std::int64_t kPieceBytes = 256 << 10;  // of one tensor, in one task

// The work: pieces of cells, each of one row.
struct Plan {
  const MgranBatchnorm& args;
  std::int64_t piece;          // cells
  std::int64_t pieces;         // of a row
  std::vector<double> counts;  // of each task: how many cells its own stand for

  explicit Plan(const MgranBatchnorm& a) : args(a) {
    const std::int64_t element = args.dtype == MGRAN_FLOAT32 ? 4 : 2;
    piece = std::max<std::int64_t>(1, kPieceBytes / (args.channels * element));
    pieces = (args.cells + piece - 1) / piece;
    piece = (args.cells + pieces - 1) / pieces;
    pieces = (args.cells + piece - 1) / piece;
    for (std::int64_t i = 0; i < tasks(); ++i) {
      const BatchnormTask made = task(i);
      const float* first = args.counts ? args.counts + made.cell : nullptr;
      counts.push_back(first ? std::accumulate(first, first + made.cells, 0.0) : static_cast<double>(made.cells));
    }
  }

  std::int64_t tasks() const { return args.rows * pieces; }

  // All of it but the sums.
  BatchnormTask task(std::int64_t number) const {
    const std::int64_t row = number / pieces, cell = number % pieces * piece;
    BatchnormTask made{};
    made.args = &args;
    made.cell = row * args.cells + cell;
    made.cells = std::min(piece, args.cells - cell);
    made.channels = args.channels;
    made.group = row % args.groups;
    return made;
  }

  // f(task) for all tasks of a group.
  template <typename F>
  void each_of(std::int64_t group, F f) const {
    for (std::int64_t row = group; row < args.rows; row += args.groups)
      for (std::int64_t i = row * pieces; i < (row + 1) * pieces; ++i) f(i);
  }
};

// Whole vectors by the fast kernel, what is left by the portable one.
void both(BatchnormTask task, const BatchnormKernels& fast, void (*BatchnormKernels::*run)(const BatchnormTask&)) {
  const BatchnormKernels portable = mgran::batchnorm_portable::kernels();
  const std::int64_t channels = task.channels;
  task.channels = channels / fast.width * fast.width;
  if (task.channels) (fast.*run)(task);
  task.first += task.channels;
  if (task.sums) task.sums += task.channels;
  task.channels = channels - task.channels;
  task.stream = false;
  if (task.channels) (portable.*run)(task);
}

// Means and squared deviations of pieces become those of the groups (Chan et al. 1979).
void combine_statistics(const Plan& plan, const std::vector<float>& sums) {
  const MgranBatchnorm& args = plan.args;
  const std::int64_t channels = args.channels;
  std::vector<double> mean(channels), squares(channels);
  for (std::int64_t group = 0; group < args.groups; ++group) {
    double count = 0;
    std::fill(mean.begin(), mean.end(), 0.0);
    std::fill(squares.begin(), squares.end(), 0.0);
    plan.each_of(group, [&](std::int64_t i) {
      const double share = plan.counts[i] / (count + plan.counts[i]), weight = count * share;
      const float *more_mean = sums.data() + i * 2 * channels, *more_squares = more_mean + channels;
      for (std::int64_t c = 0; c < channels; ++c) {
        const double away = more_mean[c] - mean[c];
        mean[c] += away * share;
        squares[c] += more_squares[c] + away * away * weight;
      }
      count += plan.counts[i];
    });
    for (std::int64_t c = 0; c < channels; ++c) {
      const std::int64_t at = group * channels + c;
      const double var = std::max(squares[c] / count, 0.0);
      // A NaN stays one.
      args.mean[at] = static_cast<float>(mean[c]);
      args.var[at] = static_cast<float>(squares[c] != squares[c] ? squares[c] : var);
      if (!(args.phases & MGRAN_BATCHNORM_WRITE)) continue;
      const double invstd = 1.0 / std::sqrt(static_cast<double>(args.var[at]) + static_cast<double>(args.eps));
      args.invstd[at] = static_cast<float>(invstd);
      args.scale[at] = args.weight[c] * args.invstd[at];
      args.shift[at] = static_cast<float>(args.bias[c] - mean[c] * static_cast<double>(args.scale[at]));
    }
  }
}

void combine_sums(const Plan& plan, const std::vector<float>& sums, std::vector<float>& means) {
  const MgranBatchnorm& args = plan.args;
  const std::int64_t channels = args.channels;
  std::vector<double> bias(channels), weight(channels);
  for (std::int64_t group = 0; group < args.groups; ++group) {
    double count = 0;
    std::fill(bias.begin(), bias.end(), 0.0);
    std::fill(weight.begin(), weight.end(), 0.0);
    plan.each_of(group, [&](std::int64_t i) {
      count += plan.counts[i];
      const float *more_bias = sums.data() + i * 2 * channels, *more_weight = more_bias + channels;
      for (std::int64_t c = 0; c < channels; ++c) {
        bias[c] += more_bias[c];
        weight[c] += more_weight[c];
      }
    });
    for (std::int64_t c = 0; c < channels; ++c) {
      const std::int64_t at = group * channels + c;
      weight[c] *= args.invstd[at];
      args.grad_bias[at] = static_cast<float>(bias[c]);
      args.grad_weight[at] = static_cast<float>(weight[c]);
      if (means.empty()) continue;
      means[at] = static_cast<float>(bias[c] / count);
      means[args.groups * channels + at] = static_cast<float>(weight[c] / count);
    }
  }
}

void run(const MgranBatchnorm& args, int threads, bool is_backward) {
  const BatchnormKernels kernels = mgran::choose<BatchnormKernels()>(
      mgran::batchnorm_portable::kernels, MGRAN_ONLY_X86(mgran::batchnorm_avx2::kernels),
      MGRAN_ONLY_X86(mgran::batchnorm_avx512::kernels))();
  const Plan plan(args);
  const bool sum = args.phases & MGRAN_BATCHNORM_SUM, write = args.phases & MGRAN_BATCHNORM_WRITE;
  const std::int64_t bytes = args.rows * args.cells * args.channels * (args.dtype == MGRAN_FLOAT32 ? 4 : 2);
  bool stream = false;
  if (write) {
    stream = mgran::prepare_output(args.out, bytes);
    if (args.out_residual) stream = mgran::prepare_output(args.out_residual, bytes) && stream;
    const auto address =
        reinterpret_cast<std::uintptr_t>(args.out) | reinterpret_cast<std::uintptr_t>(args.out_residual);
    stream = stream && address % 64 == 0 && args.channels % kAligned == 0;
  }
  // Allocated out here: an exception must not leave an OpenMP region.
  const std::int64_t tasks = plan.tasks();
  std::vector<float> sums(sum ? tasks * 2 * args.channels : 0), means;
  if (is_backward && sum && write) means.resize(2 * args.groups * args.channels);
  const float* grad_bias_mean = means.empty() ? args.grad_bias_mean : means.data();
  const float* grad_weight_mean =
      means.empty() ? args.grad_weight_mean : means.data() + static_cast<std::int64_t>(args.groups) * args.channels;

  threads = static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), tasks));
  if (sum) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (std::int64_t i = 0; i < tasks; ++i) {
      BatchnormTask task = plan.task(i);
      task.count = plan.counts[i];
      task.sums = sums.data() + i * 2 * args.channels;
      both(task, kernels, is_backward ? &BatchnormKernels::reduce : &BatchnormKernels::statistics);
    }
    if (is_backward)
      combine_sums(plan, sums, means);
    else
      combine_statistics(plan, sums);
  }
  if (!write) return;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (std::int64_t i = 0; i < tasks; ++i) {
    BatchnormTask task = plan.task(i);
    task.grad_bias_mean = grad_bias_mean;
    task.grad_weight_mean = grad_weight_mean;
    task.stream = stream;
    both(task, kernels, is_backward ? &BatchnormKernels::grad : &BatchnormKernels::apply);
    if (stream) mgran::end_stream();
  }
}

int start(const MgranBatchnorm& args, int threads, bool is_backward) {
  const bool known = args.dtype == MGRAN_FLOAT32 || args.dtype == MGRAN_FLOAT16 || args.dtype == MGRAN_BFLOAT16;
  if (!known || args.groups < 1 || args.rows % args.groups) return MGRAN_UNSUPPORTED;
  if (args.rows == 0 || args.cells == 0 || args.channels == 0) return MGRAN_OK;
  try {
    run(args, threads, is_backward);
  } catch (const std::bad_alloc&) {
    return MGRAN_NO_MEMORY;
  }
  return MGRAN_OK;
}

}  // namespace

extern "C" int mgran_batchnorm_cpu(const MgranBatchnorm* args, int threads) { return start(*args, threads, false); }

extern "C" int mgran_batchnorm_backward_cpu(const MgranBatchnorm* args, int threads) {
  return start(*args, threads, true);
}
