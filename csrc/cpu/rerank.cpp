// `rerank` on the CPU: k-reciprocal re-ranking (Zhong et al. 2017) with sparse vectors. What it holds grows with the
// number of neighbours, and with the result; each picture is worked on by itself.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of variables that its own headers leave uninitialised on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "../rerank.h"

#include <algorithm>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "threads.h"

#define MGRAN_NAMESPACE rerank_portable
#define MGRAN_TARGET
#include "rerank_rows.h"

#if MGRAN_X86
#define MGRAN_NAMESPACE rerank_avx2
#define MGRAN_TARGET MGRAN_AVX2
#include "rerank_rows.h"

#define MGRAN_NAMESPACE rerank_avx512
#define MGRAN_TARGET MGRAN_AVX512
#include "rerank_rows.h"
#endif

namespace {

bool within(const std::int32_t* values, std::int64_t count, std::int64_t end) {
  return std::all_of(values, values + count, [end](std::int32_t value) { return value >= 0 && value < end; });
}

bool rises(const std::int64_t* starts, std::int64_t rows) {
  return starts[0] == 0 && std::is_sorted(starts, starts + rows + 1);
}

int threads_for(const MgranRerank& args, int threads) {
  return static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), std::max<std::int64_t>(args.rows, 1)));
}

// Runs f(row, scratch) for all rows; each thread has a scratch of its own.
template <typename Scratch, typename F>
int for_rows(const MgranRerank& args, int threads, const Scratch& like, F f) {
  threads = threads_for(args, threads);
  try {
    // Allocated out here: an exception must not leave an OpenMP region.
    std::vector<Scratch> scratches(threads, like);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16) if (threads > 1)
    for (std::int64_t row = 0; row < args.rows; ++row) f(row, scratches[mgran::thread_number()]);
  } catch (const std::bad_alloc&) {
    return MGRAN_NO_MEMORY;
  }
  return MGRAN_OK;
}

// Of candidates in `list` (the first `count` neighbours of `row`) those that have `row` among their own first `count`.
template <typename F>
void reciprocal(const MgranRerank& args, std::int32_t row, std::int32_t count, F f) {
  const std::int32_t* list = args.neighbours + static_cast<std::int64_t>(row) * args.k;
  for (std::int32_t i = 0; i < count; ++i) {
    const std::int32_t* back = args.neighbours + static_cast<std::int64_t>(list[i]) * args.k;
    if (std::find(back, back + count, row) != back + count) f(list[i]);
  }
}

struct Sets {
  std::vector<std::int32_t> own, other, all;
};

struct Sum {
  std::vector<float> total;
  std::vector<std::int32_t> touched;
  std::vector<char> seen;
};

}  // namespace

extern "C" int mgran_rerank_nearest_cpu(const MgranRerank* given, int threads) {
  const MgranRerank& args = *given;
  if (args.k < 1 || args.k > args.width || args.width > std::numeric_limits<std::int32_t>::max())
    return MGRAN_UNSUPPORTED;
  using Best = std::pair<float, std::int32_t>;
  return for_rows(args, threads, std::vector<Best>(args.k), [&](std::int64_t row, std::vector<Best>& best) {
    const float* values = args.values + row * args.width;
    float largest = values[0];
    for (std::int64_t i = 1; i < args.width; ++i) largest = largest < values[i] ? values[i] : largest;
    args.largest[row] = largest;
    // The worst of the best is on top of a heap: most values are compared with it and no more.
    for (std::int32_t i = 0; i < args.k; ++i) best[i] = {values[i], i};
    std::make_heap(best.begin(), best.end());
    for (std::int64_t i = args.k; i < args.width; ++i) {
      // Of those at one distance the lower index is nearer.
      if (!(values[i] < best.front().first)) continue;
      std::pop_heap(best.begin(), best.end());
      best.back() = {values[i], static_cast<std::int32_t>(i)};
      std::push_heap(best.begin(), best.end());
    }
    std::sort_heap(best.begin(), best.end());
    for (std::int32_t i = 0; i < args.k; ++i) args.neighbours[row * args.k + i] = best[i].second;
  });
}

extern "C" int mgran_rerank_expand_cpu(const MgranRerank* given, int threads) {
  const MgranRerank& args = *given;
  if (args.k < 1 || args.few < 1 || args.few > args.k ||
      args.capacity < std::int64_t{args.k} * (1 + std::int64_t{args.few}) ||
      !within(args.neighbours, args.rows * args.k, args.rows))
    return MGRAN_UNSUPPORTED;
  return for_rows(args, threads, Sets{}, [&](std::int64_t row, Sets& sets) {
    sets.own.clear();
    reciprocal(args, static_cast<std::int32_t>(row), args.k, [&](std::int32_t one) { sets.own.push_back(one); });
    sets.all = sets.own;
    for (const std::int32_t candidate : sets.own) {
      sets.other.clear();
      std::int64_t common = 0;
      reciprocal(args, candidate, args.few, [&](std::int32_t one) {
        sets.other.push_back(one);
        common += std::find(sets.own.begin(), sets.own.end(), one) != sets.own.end();
      });
      if (3 * common > 2 * static_cast<std::int64_t>(sets.other.size()))
        sets.all.insert(sets.all.end(), sets.other.begin(), sets.other.end());
    }
    std::sort(sets.all.begin(), sets.all.end());
    sets.all.erase(std::unique(sets.all.begin(), sets.all.end()), sets.all.end());
    args.counts[row] = static_cast<std::int32_t>(sets.all.size());
    std::copy(sets.all.begin(), sets.all.end(), args.out_members + row * args.capacity);
  });
}

extern "C" int mgran_rerank_pairs_cpu(const MgranRerank* given, int threads) {
  const MgranRerank& args = *given;
  if (args.queries < 0 || args.queries > args.rows || !rises(args.starts, args.rows) ||
      !within(args.members, args.starts[args.rows], args.rows))
    return MGRAN_UNSUPPORTED;
  const auto dot = mgran::choose(mgran::rerank_portable::dots<1>, MGRAN_ONLY_X86(mgran::rerank_avx2::dots<1>),
                                 MGRAN_ONLY_X86(mgran::rerank_avx512::dots<1>));
  const auto embedding = [&args](std::int64_t row) {
    return row < args.queries ? args.values + row * args.width : args.gallery + (row - args.queries) * args.width;
  };
  return for_rows(args, threads, 0, [&](std::int64_t row, int) {
    for (std::int64_t at = args.starts[row]; at < args.starts[row + 1]; ++at)
      dot(embedding(row), embedding(args.members[at]), args.width, args.out_weights + at);
  });
}

extern "C" int mgran_rerank_mean_cpu(const MgranRerank* given, int threads) {
  const MgranRerank& args = *given;
  if (args.few < 1 || args.few > args.k || !within(args.neighbours, args.rows * args.k, args.rows) ||
      !rises(args.starts, args.rows) || !within(args.members, args.starts[args.rows], args.rows))
    return MGRAN_UNSUPPORTED;
  const bool write = args.out_members != nullptr;
  if (write ? !rises(args.out_starts, args.rows) : args.counts == nullptr) return MGRAN_UNSUPPORTED;
  const Sum like{std::vector<float>(write ? args.rows : 0), {}, std::vector<char>(args.rows)};
  bool fits = true;
  const int status = for_rows(args, threads, like, [&](std::int64_t row, Sum& sum) {
    sum.touched.clear();
    for (std::int32_t i = 0; i < args.few; ++i) {
      const std::int32_t other = args.neighbours[row * args.k + i];
      for (std::int64_t at = args.starts[other]; at < args.starts[other + 1]; ++at) {
        const std::int32_t member = args.members[at];
        if (!sum.seen[member]) {
          sum.seen[member] = 1;
          sum.touched.push_back(member);
          if (write) sum.total[member] = 0;
        }
        if (write) sum.total[member] += args.weights[at];
      }
    }
    const std::int64_t count = static_cast<std::int64_t>(sum.touched.size());
    if (!write) {
      args.counts[row] = static_cast<std::int32_t>(count);
    } else if (args.out_starts[row + 1] - args.out_starts[row] == count) {
      std::sort(sum.touched.begin(), sum.touched.end());
      for (std::int64_t i = 0; i < count; ++i) {
        args.out_members[args.out_starts[row] + i] = sum.touched[i];
        args.out_weights[args.out_starts[row] + i] = sum.total[sum.touched[i]] / static_cast<float>(args.few);
      }
    } else {
#pragma omp atomic write
      fits = false;
    }
    for (const std::int32_t member : sum.touched) sum.seen[member] = 0;
  });
  return status == MGRAN_OK && !fits ? MGRAN_UNSUPPORTED : status;
}

extern "C" int mgran_rerank_jaccard_cpu(const MgranRerank* given, int threads) {
  const MgranRerank& args = *given;
  if (!rises(args.starts, args.rows) || !rises(args.column_starts, args.columns) ||
      !within(args.members, args.starts[args.rows], args.columns) ||
      !within(args.column_rows, args.column_starts[args.columns], args.width))
    return MGRAN_UNSUPPORTED;
  return for_rows(args, threads, 0, [&](std::int64_t row, int) {
    float* out = args.out + row * args.width;
    std::fill_n(out, args.width, 0.0f);
    for (std::int64_t i = args.starts[row]; i < args.starts[row + 1]; ++i) {
      const std::int32_t member = args.members[i];
      const float weight = args.weights[i];
      for (std::int64_t at = args.column_starts[member]; at < args.column_starts[member + 1]; ++at)
        out[args.column_rows[at]] += std::min(weight, args.column_weights[at]);
    }
    for (std::int64_t i = 0; i < args.width; ++i) out[i] = 1.0f - out[i] / (2.0f - out[i]);
  });
}
