// What lets one header serve g++ (the CPU kernels and their tests) and nvcc (the CUDA kernels).
#pragma once

#if defined(__CUDACC__)
#define MGRAN_HD __host__ __device__ __forceinline__
#else
#define MGRAN_HD inline
#endif
