// `pooling` on the CPU, forward and backward: the shares of the cells from the region map, then one pass over the
// features of the visible cells.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of variables that its own headers leave uninitialised on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "../pooling.h"

#include <algorithm>
#include <new>
#include <vector>

#include "inputs_pages.h"
#include "pooling_shares.h"
#include "pooling_simd.h"
#include "pooling_task.h"
#include "threads.h"

#define MGRAN_NAMESPACE pooling_portable
#define MGRAN_TARGET
#define MGRAN_VECTOR PortableVector
#include "pooling_rows.h"

#if MGRAN_X86
#define MGRAN_NAMESPACE pooling_avx2
#define MGRAN_TARGET MGRAN_AVX2
#define MGRAN_VECTOR Avx2Vector
#include "pooling_rows.h"

#define MGRAN_NAMESPACE pooling_avx512
#define MGRAN_TARGET MGRAN_AVX512
#define MGRAN_VECTOR Avx512Vector
#include "pooling_rows.h"
#endif

namespace {

using mgran::PoolingKernels;
using mgran::PoolingTask;

// Channels of a task where rows are split: a multiple of every vector's width and of 64 bytes.
constexpr std::int64_t kGrain = 64;

void run(const MgranPooling& args, int threads, bool is_backward) {
  const PoolingKernels kernels =
      mgran::choose<PoolingKernels()>(mgran::pooling_portable::kernels, MGRAN_ONLY_X86(mgran::pooling_avx2::kernels),
                                      MGRAN_ONLY_X86(mgran::pooling_avx512::kernels))();
  const PoolingKernels portable = mgran::pooling_portable::kernels();
  const std::int64_t cells = static_cast<std::int64_t>(args.height) * args.width;
  const std::int64_t element = args.dtype == MGRAN_FLOAT32 ? 4 : 2;
  const bool stream =
      is_backward && mgran::prepare_output(args.grad_features, args.rows * cells * args.channels * element) &&
      reinterpret_cast<std::uintptr_t>(args.grad_features) % 64 == 0 && args.channels * element % 64 == 0;

  // Whole rows where there are enough of them to share out; else some channels of a row.
  threads = std::max(threads, 1);
  std::int64_t piece = args.channels;
  if (threads > 1 && args.rows < 4 * static_cast<std::int64_t>(threads)) {
    const std::int64_t pieces = (4 * static_cast<std::int64_t>(threads) + args.rows - 1) / args.rows;
    piece = ((args.channels + pieces - 1) / pieces + kGrain - 1) / kGrain * kGrain;
  }
  const std::int64_t pieces = (args.channels + piece - 1) / piece, tasks = args.rows * pieces;
  threads = static_cast<int>(std::min<std::int64_t>(threads, tasks));
  // Allocated out here: an exception must not leave an OpenMP region.
  std::vector<mgran::Shares> shares(threads, mgran::Shares(args));

#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (std::int64_t i = 0; i < tasks; ++i) {
    mgran::Shares& visible = shares[mgran::thread_number()];
    PoolingTask task;
    task.args = &args;
    task.row = i / pieces;
    task.first = i % pieces * piece;
    task.stream = stream;
    visible.count(args, task.row);
    task.visible = visible.cells.data();
    task.weights = visible.weights.data();
    task.visible_count = visible.visible_count;
    const std::int64_t channels = std::min(piece, args.channels - task.first);
    task.channels = channels / kernels.width * kernels.width;
    const auto main = is_backward ? kernels.backward : kernels.forward;
    const auto rest = is_backward ? portable.backward : portable.forward;
    if (task.channels) main(task);
    task.first += task.channels;
    task.channels = channels - task.channels;
    task.stream = false;
    if (task.channels) rest(task);
    if (stream) mgran::end_stream();
  }
}

int start(const MgranPooling& args, int threads, bool is_backward) {
  const bool known_type = args.dtype == MGRAN_FLOAT32 || args.dtype == MGRAN_FLOAT16 || args.dtype == MGRAN_BFLOAT16;
  const bool known_mode = args.mode == MGRAN_MEAN || args.mode == MGRAN_MAX || args.mode == MGRAN_GEM;
  if (!known_type || !known_mode) return MGRAN_UNSUPPORTED;
  if (args.rows == 0 || args.channels == 0) return MGRAN_OK;
  try {
    run(args, threads, is_backward);
  } catch (const std::bad_alloc&) {
    return MGRAN_NO_MEMORY;
  }
  return MGRAN_OK;
}

}  // namespace

extern "C" int mgran_pooling_cpu(const MgranPooling* args, int threads) { return start(*args, threads, false); }

extern "C" int mgran_pooling_backward_cpu(const MgranPooling* args, int threads) { return start(*args, threads, true); }
