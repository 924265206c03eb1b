// Launch ABI of `search` on the CPU: the nearest entries of a gallery, in two steps. Definition:
// mgran_fast/reference/search.py.
#pragma once
#include "abi.h"
#include "ranking.h"

extern "C" {

struct MgranSearch {
  const float* query;          // products: [queries, width]
  const float* entries;        // products: [held, width]
  const std::int64_t* places;  // [gallery]: the entries that may be found, rising; null: `begin` and those after it
  float* values;               // [queries, gallery]: products writes, first reads
  const float* query_terms;    // first: [queries], as in MgranRanking
  const float* gallery_terms;  // first: [gallery], of the entries that may be found
  // first: the nearest of each query so far, nearest first, infinitely far and -1 where there are fewer; those of this
  // call join them.
  float* distance;      // [queries, k]
  std::int64_t* index;  // [queries, k]
  std::int64_t queries, gallery, width, held, begin;
  std::int32_t k, metric;
};

// A place out of its range is MGRAN_UNSUPPORTED.
int mgran_search_products_cpu(const MgranSearch* args, int threads);
// Of two at one distance the one with the lower place is nearer.
int mgran_search_first_cpu(const MgranSearch* args, int threads);
}
