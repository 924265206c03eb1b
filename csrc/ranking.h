// Launch ABI of `ranking` on the CPU: the ranks of the right matches in each query's list, and what follows from them.
// Definition: mgran_fast/reference/ranking.py.
#pragma once
#include "abi.h"

extern "C" {

// How a distance comes out of what is given: it is the distance; or the product of two embeddings, with their squared
// lengths, or the inverses of their lengths, as terms.
enum { MGRAN_DISTANCES = 0, MGRAN_EUCLIDEAN = 1, MGRAN_COSINE = 2 };
// Which of several entries at one distance comes first: the lower index, the wrong ones, or the right ones.
enum { MGRAN_TIES_INDEX = 0, MGRAN_TIES_PESSIMISTIC = 1, MGRAN_TIES_OPTIMISTIC = 2 };

struct MgranRanking {
  const void* values;                   // [queries, gallery] float32, or float64 where `is_double`
  const void* query_terms;              // [queries] likewise; unless they are distances
  const void* gallery_terms;            // [gallery]
  const std::int64_t* begins;           // [queries]: where in `members` the gallery entries of the query's person begin
  const std::int64_t* ends;             // [queries]: and end
  const std::int64_t* members;          // [count]: gallery entries; those of a person rise
  const std::int64_t* nobody;           // [nobodies]: gallery entries that are junk for every query
  const std::int64_t* query_cameras;    // [queries]; null for both: no camera rule
  const std::int64_t* gallery_cameras;  // [gallery]
  double* ap;                           // [queries]: average precision; NaN without a match
  double* inp;                          // [queries]: inverse negative penalty; NaN likewise
  std::int64_t* first;                  // [queries]: the 1-based rank of the first match; 0 without one
  std::int64_t* nan;                    // [queries]: the first entry whose distance is NaN, or -1; with one, the
                                        // query's other results are of no meaning
  std::int64_t queries, gallery, count, nobodies;
  std::int32_t is_double, metric, ties;
  std::int32_t trapezoid;  // average precision by trapezoids rather than at the hits
};

// A member or nobody out of its range, or begins and ends that are no range, are MGRAN_UNSUPPORTED.
int mgran_ranking_cpu(const MgranRanking* args, int threads);
}
