// `rows` on the CPU: rows of a matrix gathered by an index, the sums that are its transpose, and the lists that these
// go by. Sums run over a row's members in one order, in float32, whatever the number of threads.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of variables that its own headers leave uninitialised on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "../rows.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "inputs_pages.h"
#include "pooling_simd.h"

namespace mgran {
struct RowsKernels {
  int width;  // channels of a vector
  void (*total)(const MgranRows&, std::int64_t first, std::int64_t last, std::int64_t from, std::int64_t to);
};
}  // namespace mgran

#define MGRAN_NAMESPACE rows_portable
#define MGRAN_TARGET
#define MGRAN_VECTOR PortableVector
#include "rows_total.h"

#if MGRAN_X86
#define MGRAN_NAMESPACE rows_avx2
#define MGRAN_TARGET MGRAN_AVX2
#define MGRAN_VECTOR Avx2Vector
#include "rows_total.h"

#define MGRAN_NAMESPACE rows_avx512
#define MGRAN_TARGET MGRAN_AVX512
#define MGRAN_VECTOR Avx512Vector
#include "rows_total.h"
#endif

namespace {

constexpr std::int64_t kTaskBytes = 256 << 10;  // what a task reads, about

std::int64_t element_size(const MgranRows& args) { return args.dtype == MGRAN_FLOAT32 ? 4 : 2; }

bool known(const MgranRows& args) {
  return args.dtype == MGRAN_FLOAT32 || args.dtype == MGRAN_FLOAT16 || args.dtype == MGRAN_BFLOAT16;
}

bool within(const std::int32_t* values, std::int64_t count, std::int64_t low, std::int64_t high) {
  // Without a branch: compilers vectorise that.
  std::int32_t least = 0, most = -1;
  for (std::int64_t i = 0; i < count; ++i) {
    least = std::min(least, values[i]);
    most = std::max(most, values[i]);
  }
  return least >= low && most < high;
}

}  // namespace

extern "C" int mgran_rows_gather_cpu(const MgranRows* given, int threads) {
  const MgranRows& args = *given;
  if (!known(args) || args.pitch < 0) return MGRAN_UNSUPPORTED;
  if (!within(args.index, args.count, -1, args.rows)) return MGRAN_UNSUPPORTED;
  const std::int64_t bytes = args.channels * element_size(args);
  if (args.count == 0 || bytes == 0) return MGRAN_OK;
  mgran::prepare_output(args.out, args.count * bytes);
  const std::int64_t pitch = args.pitch * element_size(args);
  const char* x = static_cast<const char*>(args.x);
  char* out = static_cast<char*>(args.out);
  const std::int64_t step = std::max<std::int64_t>(1, kTaskBytes / bytes), tasks = (args.count + step - 1) / step;
  threads = static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), tasks));
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (std::int64_t task = 0; task < tasks; ++task) {
    const std::int64_t last = std::min(args.count, (task + 1) * step);
    for (std::int64_t i = task * step; i < last; ++i) {
      if (args.index[i] < 0)
        std::memset(out + i * bytes, 0, static_cast<std::size_t>(bytes));
      else
        std::memcpy(out + i * bytes, x + args.index[i] * pitch, static_cast<std::size_t>(bytes));
    }
  }
  return MGRAN_OK;
}

extern "C" int mgran_rows_total_cpu(const MgranRows* given, int threads) {
  const MgranRows& args = *given;
  if (!known(args)) return MGRAN_UNSUPPORTED;
  if (args.rows == 0) return MGRAN_OK;
  const std::int32_t all = args.starts[args.rows];
  if (args.starts[0] != 0 || all > args.count || !std::is_sorted(args.starts, args.starts + args.rows + 1) ||
      !within(args.members, all, 0, args.count))
    return MGRAN_UNSUPPORTED;
  if (args.channels == 0) return MGRAN_OK;
  mgran::prepare_output(args.out, args.rows * args.channels * element_size(args));
  const mgran::RowsKernels portable = mgran::rows_portable::kernels();
  const mgran::RowsKernels fast =
      mgran::choose<mgran::RowsKernels()>(mgran::rows_portable::kernels, MGRAN_ONLY_X86(mgran::rows_avx2::kernels),
                                          MGRAN_ONLY_X86(mgran::rows_avx512::kernels))();
  const std::int64_t whole = args.channels / fast.width * fast.width;
  // Tasks of about as many members: some rows have hundreds.
  const std::int64_t most = std::max<std::int64_t>(1, kTaskBytes / (args.channels * element_size(args)));
  const std::int64_t tasks = (std::max<std::int64_t>(all, args.rows) + most - 1) / most;
  threads = static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), tasks));
  const auto row_of = [&](std::int64_t task) {
    // Where starts[row] + row, which rises by one at least, reaches the task's share.
    const std::int64_t share = (static_cast<std::int64_t>(all) + args.rows) * task / tasks;
    std::int64_t low = 0, high = args.rows;
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (args.starts[middle] + middle < share)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  };
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (std::int64_t task = 0; task < tasks; ++task) {
    const std::int64_t first = row_of(task), last = task + 1 == tasks ? args.rows : row_of(task + 1);
    if (whole) fast.total(args, first, last, 0, whole);
    if (whole < args.channels) portable.total(args, first, last, whole, args.channels);
  }
  return MGRAN_OK;
}

extern "C" int mgran_rows_invert_cpu(const MgranRows* given, int) {
  const MgranRows& args = *given;
  if (!within(args.index, args.count, -1, args.rows)) return MGRAN_UNSUPPORTED;
  // Counted, summed, filled: members of a row keep their order. It takes a thousandth of what uses it.
  std::int32_t* starts = args.starts;
  std::fill_n(starts, args.rows + 1, 0);
  for (std::int64_t i = 0; i < args.count; ++i)
    if (args.index[i] >= 0) ++starts[args.index[i] + 1];
  for (std::int64_t row = 0; row < args.rows; ++row) starts[row + 1] += starts[row];
  for (std::int64_t i = 0; i < args.count; ++i)
    if (args.index[i] >= 0) args.members[starts[args.index[i]]++] = static_cast<std::int32_t>(i);
  // Each start has moved to its row's end.
  for (std::int64_t row = args.rows; row > 0; --row) starts[row] = starts[row - 1];
  starts[0] = 0;
  return MGRAN_OK;
}
