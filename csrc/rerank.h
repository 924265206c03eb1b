// Launch ABI of `rerank` on the CPU: k-reciprocal re-ranking in five steps, each for all pictures (queries, then
// gallery). Definition: mgran_fast/reference/rerank.py.
#pragma once
#include "abi.h"

extern "C" {

struct MgranRerank {
  const float* values;       // nearest: [rows, width] distances; pairs: [queries, width] embeddings
  const float* gallery;      // pairs: [rows - queries, width] embeddings
  std::int32_t* neighbours;  // [rows, k]: of each picture the k nearest, itself among them, nearest first; nearest
                             // writes it, expand and mean read it
  float* largest;            // nearest: [rows], the largest distance of each row
  // A sparse vector for each picture: pairs and mean read those of all rows, jaccard those of the queries.
  const std::int64_t* starts;  // [rows + 1]
  const std::int32_t* members;
  const float* weights;
  // What is written: expand the members of each row, rising; pairs the product of each row and each of its members;
  // mean the vectors, or their lengths alone.
  std::int32_t* counts;            // [rows]
  std::int32_t* out_members;       // expand: [rows, capacity]; mean: [out_starts[rows]], or null: counts alone
  const std::int64_t* out_starts;  // mean: [rows + 1]
  float* out_weights;              // pairs: [starts[rows]]; mean: as out_members
  // jaccard: the gallery's vectors by member.
  const std::int64_t* column_starts;  // [columns + 1]
  const std::int32_t* column_rows;    // gallery entries, in 0 .. width - 1
  const float* column_weights;
  float* out;  // jaccard: [rows, width], written completely
  std::int64_t rows, width, columns, queries;
  std::int32_t k;         // neighbours of a picture
  std::int32_t few;       // expand: how many of them a candidate's own neighbours are; mean: over how many it goes
  std::int32_t capacity;  // expand: k * (1 + few) suffices
};

// Numbers that lead out of the arrays are MGRAN_UNSUPPORTED.
int mgran_rerank_nearest_cpu(const MgranRerank* args, int threads);
int mgran_rerank_expand_cpu(const MgranRerank* args, int threads);
int mgran_rerank_pairs_cpu(const MgranRerank* args, int threads);
int mgran_rerank_mean_cpu(const MgranRerank* args, int threads);
int mgran_rerank_jaccard_cpu(const MgranRerank* args, int threads);
}
