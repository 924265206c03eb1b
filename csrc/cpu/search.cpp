// `search` on the CPU: products of a few queries with entries that lie anywhere, at the speed of memory, and the
// nearest entries of a row of products, which are compared once and mostly kept out by the worst of the best.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of variables that its own headers leave uninitialised on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "../search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "threads.h"

namespace {

struct SearchKernels {
  void (*products)(const float* entry, const float* queries, std::int64_t count, std::int64_t n, float* out,
                   std::int64_t pitch);
  std::int64_t (*fill)(const MgranSearch& args, std::int64_t query, float* out);
  bool (*any_below)(const float* x, std::int64_t n, float worst);
};

}  // namespace

#define MGRAN_NAMESPACE search_portable
#define MGRAN_TARGET
#include "search_rows.h"

#if MGRAN_X86
#define MGRAN_NAMESPACE search_avx2
#define MGRAN_TARGET MGRAN_AVX2
#include "search_rows.h"

#define MGRAN_NAMESPACE search_avx512
#define MGRAN_TARGET MGRAN_AVX512
#include "search_rows.h"
#endif

namespace {

SearchKernels chosen() {
  return mgran::choose(mgran::search_portable::kernels, MGRAN_ONLY_X86(mgran::search_avx2::kernels),
                       MGRAN_ONLY_X86(mgran::search_avx512::kernels))();
}

std::int64_t place(const MgranSearch& args, std::int64_t i) { return args.places ? args.places[i] : args.begin + i; }

bool within(const MgranSearch& args) {
  if (args.begin < 0 || args.gallery < 0 || args.held < 0) return false;
  if (!args.places) return args.begin <= args.held && args.gallery <= args.held - args.begin;
  return std::all_of(args.places, args.places + args.gallery,
                     [&args](std::int64_t one) { return one >= 0 && one < args.held; });
}

// Distances are looked at so many at a time, to see whether any of them is near enough.
constexpr std::int64_t kBlock = 64;
using Best = std::pair<float, std::int64_t>;
constexpr std::int64_t kNothing = std::numeric_limits<std::int64_t>::max();

void join(const MgranSearch& args, const SearchKernels& kernels, std::int64_t query, std::vector<float>& far,
          std::vector<Best>& best) {
  float* distance = args.distance + query * args.k;
  std::int64_t* index = args.index + query * args.k;
  for (std::int32_t i = 0; i < args.k; ++i) best[i] = {distance[i], index[i] < 0 ? kNothing : index[i]};
  // The worst of the best is on top.
  std::make_heap(best.begin(), best.end());
  kernels.fill(args, query, far.data());
  for (std::int64_t begin = 0; begin < args.gallery; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, args.gallery);
    if (!kernels.any_below(far.data() + begin, end - begin, best.front().first)) continue;
    for (std::int64_t i = begin; i < end; ++i) {
      // Places rise: of those at one distance the ones before are nearer.
      if (!(far[i] < best.front().first)) continue;
      std::pop_heap(best.begin(), best.end());
      best.back() = {far[i], place(args, i)};
      std::push_heap(best.begin(), best.end());
    }
  }
  std::sort_heap(best.begin(), best.end());
  for (std::int32_t i = 0; i < args.k; ++i) {
    distance[i] = best[i].first;
    index[i] = best[i].second == kNothing ? -1 : best[i].second;
  }
}

}  // namespace

extern "C" int mgran_search_products_cpu(const MgranSearch* given, int threads) {
  const MgranSearch& args = *given;
  if (!within(args) || args.queries < 0 || args.width < 0) return MGRAN_UNSUPPORTED;
  const SearchKernels kernels = chosen();
  threads = static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), std::max<std::int64_t>(args.gallery, 1)));
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (std::int64_t i = 0; i < args.gallery; ++i)
    kernels.products(args.entries + place(args, i) * args.width, args.query, args.queries, args.width, args.values + i,
                     args.gallery);
  return MGRAN_OK;
}

extern "C" int mgran_search_first_cpu(const MgranSearch* given, int threads) {
  const MgranSearch& args = *given;
  if (!within(args) || args.queries < 0 || args.k < 1 ||
      (args.metric != MGRAN_EUCLIDEAN && args.metric != MGRAN_COSINE))
    return MGRAN_UNSUPPORTED;
  const SearchKernels kernels = chosen();
  threads = static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), std::max<std::int64_t>(args.queries, 1)));
  try {
    // Allocated out here: an exception must not leave an OpenMP region.
    std::vector<std::vector<float>> far(threads, std::vector<float>(args.gallery));
    std::vector<std::vector<Best>> best(threads, std::vector<Best>(args.k));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (std::int64_t query = 0; query < args.queries; ++query)
      join(args, kernels, query, far[mgran::thread_number()], best[mgran::thread_number()]);
  } catch (const std::bad_alloc&) {
    return MGRAN_NO_MEMORY;
  }
  return MGRAN_OK;
}
