// `shots` on the CPU. Each gallery picture is placed among the query's right matches; how many of a person's pictures
// come before a match is then a running sum, and the chance of each rank a Poisson-binomial distribution.
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 warns of variables that its own headers leave uninitialised on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "../shots.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "threads.h"

namespace mgran {
template <typename T>
struct ShotsKernels {
  std::int64_t (*fill)(const MgranShots&, std::int64_t, T*);
  bool (*places)(const T*, std::int64_t, const T*, std::int64_t, std::int32_t*);
  void (*add_variable)(double*, double*, std::int64_t, double);
};
}  // namespace mgran

#define MGRAN_NAMESPACE shots_portable
#define MGRAN_TARGET
#include "shots_rows.h"

#if MGRAN_X86
#define MGRAN_NAMESPACE shots_avx2
#define MGRAN_TARGET MGRAN_AVX2
#include "shots_rows.h"

#define MGRAN_NAMESPACE shots_avx512
#define MGRAN_TARGET MGRAN_AVX512
#include "shots_rows.h"
#endif

namespace {

using mgran::ShotsKernels;

// What a thread works on: one query's row, and its right matches.
template <typename T>
struct Scratch {
  std::vector<T> distances, at;
  std::vector<std::pair<T, std::int64_t>> matches;  // distance, entry
  std::vector<std::int32_t> places;                 // of each entry: how many matches come before it
  std::vector<std::int64_t> nearer;                 // of one person's entries: how many come before each match
  std::vector<double> mass, before;                 // [matches, ranks], [ranks]

  Scratch(const MgranShots& args, std::int64_t most)
      : distances(args.gallery),
        at(most),
        places(args.gallery),
        nearer(most),
        mass(most * args.ranks),
        before(args.ranks) {
    matches.reserve(most);
  }
};

// Of matches at an entry's own distance, those with a lower index come before it.
template <typename T>
std::int64_t place_of(const Scratch<T>& scratch, std::int64_t entry, bool tied) {
  std::int64_t place = scratch.places[entry];
  const std::int64_t count = static_cast<std::int64_t>(scratch.matches.size());
  if (tied)
    while (place < count && scratch.matches[place] < std::make_pair(scratch.distances[entry], entry)) ++place;
  return place;
}

template <typename T>
void rank_one(const ShotsKernels<T>& kernels, const MgranShots& args, std::int64_t query, Scratch<T>& scratch) {
  double* found = args.found + query * args.ranks;
  std::fill_n(found, args.ranks, std::numeric_limits<double>::quiet_NaN());
  args.first[query] = 0;
  T* distances = scratch.distances.data();
  args.nan[query] = kernels.fill(args, query, distances);
  const std::int64_t own = args.persons[query];
  if (args.nan[query] >= 0 || own < 0) return;
  auto& matches = scratch.matches;
  matches.clear();
  for (std::int64_t i = args.begins[own]; i < args.begins[own + 1]; ++i) {
    const std::int64_t entry = args.members[i];
    if (!args.query_cameras || args.query_cameras[query] != args.gallery_cameras[entry])
      matches.emplace_back(distances[entry], entry);
  }
  if (matches.empty()) return;
  std::sort(matches.begin(), matches.end());
  const std::int64_t count = static_cast<std::int64_t>(matches.size());
  for (std::int64_t k = 0; k < count; ++k) scratch.at[k] = matches[k].first;
  const bool tied = kernels.places(distances, args.gallery, scratch.at.data(), count, scratch.places.data());
  std::fill_n(scratch.mass.begin(), count * args.ranks, 0.0);
  for (std::int64_t k = 0; k < count; ++k) scratch.mass[k * args.ranks] = 1.0;
  std::int64_t before_first = 0;
  for (std::int64_t person = 0; person < args.people; ++person) {
    if (person == own) continue;
    const std::int64_t begin = args.begins[person], end = args.begins[person + 1];
    std::fill_n(scratch.nearer.begin(), count, 0);
    bool some = false;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t place = place_of(scratch, args.members[i], tied);
      if (place == count) continue;
      ++scratch.nearer[place];
      some = true;
    }
    if (!some) continue;
    before_first += scratch.nearer[0];
    std::int64_t nearer = 0;
    for (std::int64_t k = 0; k < count; ++k) {
      nearer += scratch.nearer[k];
      if (nearer)
        kernels.add_variable(scratch.mass.data() + k * args.ranks, scratch.before.data(), args.ranks,
                             static_cast<double>(nearer) / static_cast<double>(end - begin));
    }
  }
  std::fill_n(found, args.ranks, 0.0);
  for (std::int64_t k = 0; k < count; ++k) {
    double upto = 0;
    for (std::int64_t rank = 0; rank < args.ranks; ++rank) {
      upto += scratch.mass[k * args.ranks + rank];
      found[rank] += upto;
    }
  }
  for (std::int64_t rank = 0; rank < args.ranks; ++rank)
    found[rank] = std::min(found[rank] / static_cast<double>(count), 1.0);
  args.first[query] = before_first + 1;
}

template <typename T>
void run(const MgranShots& args, int threads) {
  const auto kernels =
      mgran::choose<ShotsKernels<T>()>(mgran::shots_portable::kernels<T>, MGRAN_ONLY_X86(mgran::shots_avx2::kernels<T>),
                                       MGRAN_ONLY_X86(mgran::shots_avx512::kernels<T>))();
  std::int64_t most = 0;
  for (std::int64_t query = 0; query < args.queries; ++query) {
    const std::int64_t own = args.persons[query];
    if (own >= 0) most = std::max(most, args.begins[own + 1] - args.begins[own]);
  }
  threads = static_cast<int>(std::min<std::int64_t>(std::max(threads, 1), args.queries));
  // Allocated out here: an exception must not leave an OpenMP region.
  std::vector<Scratch<T>> scratches(threads, Scratch<T>(args, most));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) if (threads > 1)
  for (std::int64_t query = 0; query < args.queries; ++query)
    rank_one(kernels, args, query, scratches[mgran::thread_number()]);
}

}  // namespace

extern "C" int mgran_shots_cpu(const MgranShots* given, int threads) {
  const MgranShots& args = *given;
  if (args.metric < MGRAN_DISTANCES || args.metric > MGRAN_COSINE || args.ranks < 1) return MGRAN_UNSUPPORTED;
  if (args.begins[0] != 0 || !std::is_sorted(args.begins, args.begins + args.people + 1)) return MGRAN_UNSUPPORTED;
  const auto within = [](std::int64_t low, std::int64_t high) {
    return [low, high](std::int64_t value) { return value >= low && value < high; };
  };
  if (!std::all_of(args.members, args.members + args.begins[args.people], within(0, args.gallery)) ||
      !std::all_of(args.persons, args.persons + args.queries, within(-1, args.people)))
    return MGRAN_UNSUPPORTED;
  if (args.queries == 0) return MGRAN_OK;
  try {
    args.is_double ? run<double>(args, threads) : run<float>(args, threads);
  } catch (const std::bad_alloc&) {
    return MGRAN_NO_MEMORY;
  }
  return MGRAN_OK;
}
