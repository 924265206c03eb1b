// `ranking` on the CPU. A query's list is never sorted: a right match has as many entries before it as there are
// smaller distances, and counting these for a dozen matches takes a few passes over a row that lies in the cache.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of variables that its own headers leave uninitialised on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "../ranking.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "threads.h"

namespace mgran {
template <typename T>
struct RankingKernels {
  std::int64_t (*fill)(const MgranRanking&, std::int64_t, T*);
  void (*count)(const T*, std::int64_t, const T*, std::int64_t, std::int64_t*, std::int64_t*);
};
}  // namespace mgran

#define MGRAN_NAMESPACE ranking_portable
#define MGRAN_TARGET
#include "ranking_rows.h"

#if MGRAN_X86
#define MGRAN_NAMESPACE ranking_avx2
#define MGRAN_TARGET MGRAN_AVX2
#include "ranking_rows.h"

#define MGRAN_NAMESPACE ranking_avx512
#define MGRAN_TARGET MGRAN_AVX512
#include "ranking_rows.h"
#endif

namespace {

using mgran::RankingKernels;

// With more right matches than this, finding each distance's place among them is cheaper than counting for each.
constexpr std::int64_t kManyMatches = 192;

// What a thread works on: one query's row, and its right matches.
template <typename T>
struct Scratch {
  std::vector<T> distances, at;
  std::vector<std::pair<T, std::int64_t>> matches;  // distance, entry
  std::vector<std::int64_t> less, most, ranks;

  Scratch(const MgranRanking& args, std::int64_t matches_most) : distances(args.gallery) {
    at.resize(matches_most);
    less.resize(matches_most);
    most.resize(matches_most);
    ranks.resize(matches_most);
    matches.reserve(matches_most);
  }
};

// Of many matches: they rise, so a distance's place among them says which of them it is less than, and at most.
template <typename T>
void place(Scratch<T>& scratch, std::int64_t matches) {
  const T* const begin = scratch.at.data();
  const T* const end = begin + matches;
  std::fill_n(scratch.less.begin(), matches, 0);
  std::fill_n(scratch.most.begin(), matches, 0);
  for (const T distance : scratch.distances) {
    if (!(distance <= end[-1])) continue;  // junk, or beyond all of them
    // The first that is not less, without branches: which way to go is a coin toss each time.
    const T* first = begin;
    for (std::int64_t left = matches; left > 1;) {
      const std::int64_t half = left / 2;
      first += half * (first[half - 1] < distance);
      left -= half;
    }
    first += *first < distance;
    ++scratch.most[first - begin];
    while (first != end && *first == distance) ++first;
    if (first != end) ++scratch.less[first - begin];
  }
  for (std::int64_t i = 1; i < matches; ++i) {
    scratch.less[i] += scratch.less[i - 1];
    scratch.most[i] += scratch.most[i - 1];
  }
}

// How many distances are less than, and at most, those of the matches. Junk is NaN by now, which no comparison holds
// for.
template <typename T>
void count(const RankingKernels<T>& kernels, const MgranRanking& args, Scratch<T>& scratch) {
  const std::int64_t matches = static_cast<std::int64_t>(scratch.matches.size());
  for (std::int64_t i = 0; i < matches; ++i) scratch.at[i] = scratch.matches[i].first;
  if (matches > kManyMatches) {
    place(scratch, matches);
  } else {
    kernels.count(scratch.distances.data(), args.gallery, scratch.at.data(), matches, scratch.less.data(),
                  scratch.most.data());
  }
}

// From counts to ranks, ascending.
template <typename T>
void settle_ties(const MgranRanking& args, Scratch<T>& scratch) {
  const auto& matches = scratch.matches;
  const std::int64_t count = static_cast<std::int64_t>(matches.size());
  for (std::int64_t begin = 0, end; begin < count; begin = end) {
    end = begin + 1;
    while (end < count && matches[end].first == matches[begin].first) ++end;
    const std::int64_t wrong = scratch.most[begin] - scratch.less[begin] - (end - begin);
    for (std::int64_t i = begin; i < end; ++i) scratch.ranks[i] = scratch.less[i] + 1 + (i - begin);
    if (wrong == 0 || args.ties == MGRAN_TIES_OPTIMISTIC) continue;
    if (args.ties == MGRAN_TIES_PESSIMISTIC) {
      for (std::int64_t i = begin; i < end; ++i) scratch.ranks[i] += wrong;
      continue;
    }
    // Those at the same distance that lie before each match; the matches rise, so one walk meets them all.
    std::int64_t before = 0, entry = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      for (; entry < matches[i].second; ++entry) before += scratch.distances[entry] == matches[begin].first;
      scratch.ranks[i] = scratch.less[i] + 1 + before;
    }
  }
}

template <typename T>
void rank_one(const RankingKernels<T>& kernels, const MgranRanking& args, std::int64_t query, Scratch<T>& scratch) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  args.ap[query] = args.inp[query] = kNan;
  args.first[query] = 0;
  T* distances = scratch.distances.data();
  args.nan[query] = kernels.fill(args, query, distances);
  if (args.nan[query] >= 0) return;
  auto& matches = scratch.matches;
  matches.clear();
  for (std::int64_t i = args.begins[query]; i < args.ends[query]; ++i) {
    const std::int64_t entry = args.members[i];
    if (!args.query_cameras || args.query_cameras[query] != args.gallery_cameras[entry])
      matches.emplace_back(distances[entry], entry);
    else
      distances[entry] = std::numeric_limits<T>::quiet_NaN();
  }
  if (matches.empty()) return;
  for (std::int64_t i = 0; i < args.nobodies; ++i) distances[args.nobody[i]] = std::numeric_limits<T>::quiet_NaN();
  std::sort(matches.begin(), matches.end());
  count(kernels, args, scratch);
  settle_ties(args, scratch);
  // One after another, as the reference adds.
  double total = 0;
  const std::int64_t hits = static_cast<std::int64_t>(matches.size());
  for (std::int64_t i = 0; i < hits; ++i) {
    const double rank = static_cast<double>(scratch.ranks[i]);
    double precision = static_cast<double>(i + 1) / rank;
    if (args.trapezoid) {
      const double above = scratch.ranks[i] == 1 ? 1.0 : static_cast<double>(i) / (rank - 1);
      precision = (above + precision) / 2;
    }
    total += precision;
  }
  args.ap[query] = total / static_cast<double>(hits);
  args.inp[query] = static_cast<double>(hits) / static_cast<double>(scratch.ranks[hits - 1]);
  args.first[query] = scratch.ranks[0];
}

template <typename T>
void run(const MgranRanking& args, int threads) {
  const auto kernels = mgran::choose<RankingKernels<T>()>(mgran::ranking_portable::kernels<T>,
                                                          MGRAN_ONLY_X86(mgran::ranking_avx2::kernels<T>),
                                                          MGRAN_ONLY_X86(mgran::ranking_avx512::kernels<T>))();
  std::int64_t most = 0;
  for (std::int64_t query = 0; query < args.queries; ++query)
    most = std::max(most, args.ends[query] - args.begins[query]);
  threads = static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), args.queries));
  // Allocated out here: an exception must not leave an OpenMP region.
  std::vector<Scratch<T>> scratches(threads, Scratch<T>(args, most));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) if (threads > 1)
  for (std::int64_t query = 0; query < args.queries; ++query)
    rank_one(kernels, args, query, scratches[mgran::thread_number()]);
}

bool within(const std::int64_t* values, std::int64_t count, std::int64_t end) {
  return std::all_of(values, values + count, [end](std::int64_t value) { return value >= 0 && value < end; });
}

}  // namespace

extern "C" int mgran_ranking_cpu(const MgranRanking* given, int threads) {
  const MgranRanking& args = *given;
  const bool known = args.metric >= MGRAN_DISTANCES && args.metric <= MGRAN_COSINE && args.ties >= MGRAN_TIES_INDEX &&
                     args.ties <= MGRAN_TIES_OPTIMISTIC;
  if (!known || !within(args.members, args.count, args.gallery) || !within(args.nobody, args.nobodies, args.gallery))
    return MGRAN_UNSUPPORTED;
  for (std::int64_t query = 0; query < args.queries; ++query)
    if (args.begins[query] < 0 || args.ends[query] < args.begins[query] || args.ends[query] > args.count)
      return MGRAN_UNSUPPORTED;
  if (args.queries == 0) return MGRAN_OK;
  try {
    args.is_double ? run<double>(args, threads) : run<float>(args, threads);
  } catch (const std::bad_alloc&) {
    return MGRAN_NO_MEMORY;
  }
  return MGRAN_OK;
}
