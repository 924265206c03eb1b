// Launch ABI of `batchnorm` on the CPU, forward and backward (on the GPU it is Triton: kernels/batchnorm.py).
// Definition: mgran_fast/reference/batchnorm.py.
#pragma once
#include "abi.h"

extern "C" {

// Forward: the statistics, then y. Backward: the sums, then the gradients. Together they read what they share once.
enum { MGRAN_BATCHNORM_SUM = 1, MGRAN_BATCHNORM_WRITE = 2 };

struct MgranBatchnorm {
  const void* x;         // [rows, cells, channels] of `dtype`: channels innermost, contiguous
  const void* residual;  // as x, or null
  const void* grad;      // backward: the gradient of y, as x
  void* out;             // as x: forward y, backward the gradient of x; written completely
  void* out_residual;    // backward: as x, the gradient of the residual; or null
  const float* weight;   // [channels]; forward, with both phases
  const float* bias;     // [channels]
  float* mean;           // [groups, channels], like the next four; forward's first phase writes mean and var,
  float* var;            // both phases together also write the other three
  float* invstd;
  float* scale;                   // weight * invstd
  float* shift;                   // bias - mean * scale
  float* grad_bias;               // [groups, channels]: backward's first phase writes the sums of dz
  float* grad_weight;             // [groups, channels]: and of dz * (x - mean) * invstd
  const float* grad_bias_mean;    // [groups, channels]: what backward's second phase alone reads: the sums over
  const float* grad_weight_mean;  // the number of cells that they were taken over
  const float* counts;            // [rows, cells]: how many equal cells each one stands for, above 0; or null: one
  std::int64_t rows, cells, channels;
  std::int32_t groups;  // row r is of group r % groups; rows is a multiple of it
  std::int32_t dtype, relu, phases;
  float eps;
};

int mgran_batchnorm_cpu(const MgranBatchnorm* args, int threads);
int mgran_batchnorm_backward_cpu(const MgranBatchnorm* args, int threads);
}
