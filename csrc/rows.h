// Launch ABI of `rows` on the CPU: matrices whose rows are gathered by an index, and summed back by its inverse.
// Definition: mgran_fast/reference/rows.py.
#pragma once
#include "abi.h"

extern "C" {

struct MgranRows {
  const void* x;  // gather: [rows, channels] of `dtype`, rows `pitch` elements apart; total: [count, channels]
  const std::int32_t* index;  // gather, invert: [count], each in -1 .. rows - 1; -1 is a row of zeros
  std::int32_t* starts;       // [rows + 1]: where a row's members begin; total reads, invert writes it
  std::int32_t* members;      // [starts[rows]] at most `count`, each in 0 .. count - 1; likewise
  const void* base;           // total: [rows, channels], what the sums begin with; or null for zeros
  void* out;                  // gather: [count, channels]; total: [rows, channels]; written completely
  std::int64_t rows, count, channels;
  std::int64_t pitch;  // gather: may be less than channels, where rows overlap
  std::int32_t dtype;
};

// An index, start or member out of its range is MGRAN_UNSUPPORTED, and nothing is written to `out`.
int mgran_rows_gather_cpu(const MgranRows* args, int threads);
int mgran_rows_total_cpu(const MgranRows* args, int threads);
int mgran_rows_invert_cpu(const MgranRows* args, int threads);
}
