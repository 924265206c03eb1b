// `batchnorm` on the CPU, forward and backward: sums over the cells, then one pass that writes. Channels are taken in
// blocks small enough that the second pass finds in the cache what the first one read.
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

constexpr std::int64_t kGrain = 64;              // channels of a block: a multiple of this, of all strips, of a line
constexpr std::int64_t kBlockBytes = 8 << 20;    // what a block's two passes read, if that is possible
constexpr std::int64_t kPieceBytes = 128 << 10;  // of one tensor, in one task

// The work: blocks of channels; in a block, pieces of cells, each of one row.
struct Plan {
  const MgranBatchnorm& args;
  bool is_backward;
  std::int64_t block;          // channels
  std::int64_t piece;          // cells
  std::int64_t pieces;         // of a row
  std::vector<double> counts;  // with args.counts: of each task

  Plan(const MgranBatchnorm& a, bool backward) : args(a), is_backward(backward) {
    const std::int64_t element = args.dtype == MGRAN_FLOAT32 ? 4 : 2;
    const std::int64_t tensors = 1 + (backward ? 1 : 0) + (args.residual ? 1 : 0);
    const std::int64_t channel = std::max<std::int64_t>(1, args.rows * args.cells * element * tensors);
    block = std::max<std::int64_t>(1, kBlockBytes / channel / kGrain) * kGrain;
    block = std::min(block, args.channels);
    piece = std::max<std::int64_t>(1, kPieceBytes / (block * element));
    pieces = (args.cells + piece - 1) / piece;
    piece = (args.cells + pieces - 1) / pieces;
    pieces = (args.cells + piece - 1) / piece;
    if (!args.counts) return;
    for (std::int64_t i = 0; i < tasks(); ++i) {
      const std::int64_t cell = i / pieces * args.cells + i % pieces * piece;
      const std::int64_t last = std::min(cell + piece, (i / pieces + 1) * args.cells);
      counts.push_back(std::accumulate(args.counts + cell, args.counts + last, 0.0));
    }
  }

  std::int64_t tasks() const { return args.rows * pieces; }

  BatchnormTask task(std::int64_t number, std::int64_t first, std::int64_t channels) const {
    const std::int64_t row = number / pieces, cell = number % pieces * piece;
    BatchnormTask made{};
    made.args = &args;
    made.cell = row * args.cells + cell;
    made.cells = std::min(piece, args.cells - cell);
    made.first = first;
    made.channels = channels;
    made.group = row % args.groups;
    made.count = counts.empty() ? static_cast<double>(made.cells) : counts[static_cast<std::size_t>(number)];
    return made;
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
void combine_statistics(const Plan& plan, const std::vector<float>& sums, std::int64_t first, std::int64_t channels) {
  const MgranBatchnorm& args = plan.args;
  for (std::int64_t group = 0; group < args.groups; ++group) {
    for (std::int64_t c = 0; c < channels; ++c) {
      double count = 0, mean = 0, squares = 0;
      for (std::int64_t row = group; row < args.rows; row += args.groups) {
        for (std::int64_t i = row * plan.pieces; i < (row + 1) * plan.pieces; ++i) {
          const double more = plan.task(i, first, channels).count;
          const double away = sums[i * 2 * plan.block + c] - mean, total = count + more;
          mean += away * more / total;
          squares += sums[(i * 2 + 1) * plan.block + c] + away * away * count * more / total;
          count = total;
        }
      }
      const std::int64_t at = group * args.channels + first + c;
      const double var = std::max(squares / count, 0.0);
      // A NaN stays one.
      args.mean[at] = static_cast<float>(mean);
      args.var[at] = static_cast<float>(squares != squares ? squares : var);
      if (!(args.phases & MGRAN_BATCHNORM_WRITE)) continue;
      const double invstd = 1.0 / std::sqrt(static_cast<double>(args.var[at]) + static_cast<double>(args.eps));
      args.invstd[at] = static_cast<float>(invstd);
      args.scale[at] = args.weight[first + c] * args.invstd[at];
      args.shift[at] = static_cast<float>(args.bias[first + c] - mean * static_cast<double>(args.scale[at]));
    }
  }
}

void combine_sums(const Plan& plan, const std::vector<float>& sums, std::int64_t first, std::int64_t channels,
                  std::vector<float>& means) {
  const MgranBatchnorm& args = plan.args;
  for (std::int64_t group = 0; group < args.groups; ++group) {
    double count = 0;
    for (std::int64_t row = group; row < args.rows; row += args.groups)
      for (std::int64_t i = row * plan.pieces; i < (row + 1) * plan.pieces; ++i)
        count += plan.task(i, first, channels).count;
    const double share = 1.0 / count;
    for (std::int64_t c = 0; c < channels; ++c) {
      double bias = 0, weight = 0;
      for (std::int64_t row = group; row < args.rows; row += args.groups) {
        for (std::int64_t i = row * plan.pieces; i < (row + 1) * plan.pieces; ++i) {
          bias += sums[i * 2 * plan.block + c];
          weight += sums[(i * 2 + 1) * plan.block + c];
        }
      }
      const std::int64_t at = group * args.channels + first + c;
      weight *= args.invstd[at];
      args.grad_bias[at] = static_cast<float>(bias);
      args.grad_weight[at] = static_cast<float>(weight);
      if (means.empty()) continue;
      means[at] = static_cast<float>(bias * share);
      means[args.groups * args.channels + at] = static_cast<float>(weight * share);
    }
  }
}

void run(const MgranBatchnorm& args, int threads, bool is_backward) {
  const BatchnormKernels kernels = mgran::choose<BatchnormKernels()>(
      mgran::batchnorm_portable::kernels, MGRAN_ONLY_X86(mgran::batchnorm_avx2::kernels),
      MGRAN_ONLY_X86(mgran::batchnorm_avx512::kernels))();
  const Plan plan(args, is_backward);
  const bool sum = args.phases & MGRAN_BATCHNORM_SUM, write = args.phases & MGRAN_BATCHNORM_WRITE;
  const std::int64_t bytes = args.rows * args.cells * args.channels * (args.dtype == MGRAN_FLOAT32 ? 4 : 2);
  bool stream = false;
  if (write) {
    stream = mgran::prepare_output(args.out, bytes);
    if (args.out_residual) stream = mgran::prepare_output(args.out_residual, bytes) && stream;
    const auto address =
        reinterpret_cast<std::uintptr_t>(args.out) | reinterpret_cast<std::uintptr_t>(args.out_residual);
    stream = stream && address % 64 == 0 && args.channels % kGrain == 0;
  }
  // Allocated out here: an exception must not leave an OpenMP region.
  std::vector<float> sums(sum ? plan.tasks() * 2 * plan.block : 0), means;
  if (is_backward && sum && write) means.resize(2 * args.groups * args.channels);
  const float* grad_bias_mean = means.empty() ? args.grad_bias_mean : means.data();
  const float* grad_weight_mean =
      means.empty() ? args.grad_weight_mean : means.data() + static_cast<std::int64_t>(args.groups) * args.channels;

  const std::int64_t tasks = plan.tasks();
  threads = static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), tasks));
  for (std::int64_t first = 0; first < args.channels; first += plan.block) {
    const std::int64_t channels = std::min(plan.block, args.channels - first);
    if (sum) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
      for (std::int64_t i = 0; i < tasks; ++i) {
        BatchnormTask task = plan.task(i, first, channels);
        task.sums = sums.data() + i * 2 * plan.block;
        task.sums_width = plan.block;
        std::fill_n(task.sums, 2 * plan.block, 0.0f);
        both(task, kernels, is_backward ? &BatchnormKernels::reduce : &BatchnormKernels::statistics);
      }
      if (is_backward)
        combine_sums(plan, sums, first, channels, means);
      else
        combine_statistics(plan, sums, first, channels);
    }
    if (!write) continue;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (std::int64_t i = 0; i < tasks; ++i) {
      BatchnormTask task = plan.task(i, first, channels);
      task.grad_bias_mean = grad_bias_mean;
      task.grad_weight_mean = grad_weight_mean;
      task.stream = stream;
      both(task, kernels, is_backward ? &BatchnormKernels::grad : &BatchnormKernels::apply);
    }
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
