// Launch ABI of `shots` on the CPU: ranking with a single gallery shot, the exact expectation over all draws.
// Definition: mgran_fast/reference/shots.py.
#pragma once
#include "abi.h"
#include "ranking.h"

extern "C" {

struct MgranShots {
  const void* values;  // as in MgranRanking, like the next two
  const void* query_terms;
  const void* gallery_terms;
  const std::int64_t* persons;          // [queries]: the query's person, in 0 .. people - 1, or -1: not in the gallery
  const std::int64_t* begins;           // [people + 1]: where in `members` the gallery entries of each person begin
  const std::int64_t* members;          // [begins[people]]: gallery entries; those of a person rise
  const std::int64_t* query_cameras;    // [queries]; null for both: no camera rule
  const std::int64_t* gallery_cameras;  // [gallery]
  double* found;                        // [queries, ranks]: the chance that the right person is among the first k;
                                        // NaN without a match
  std::int64_t* first;                  // [queries]: the 1-based rank of the nearest match among all pictures, or 0
  std::int64_t* nan;                    // [queries]: the first entry whose distance is NaN, or -1
  std::int64_t queries, gallery, people, ranks;
  std::int32_t is_double, metric;
};

// A person or member out of its range, or begins that fall, are MGRAN_UNSUPPORTED.
int mgran_shots_cpu(const MgranShots* args, int threads);
}
