// What every CUDA source file includes in place of the CUDA runtime: under nvcc it is the CUDA runtime, under any
// other compiler the emulator of tests/emulator, so that tests run the very file that is shipped.
//
//   mgran::launch(kernel<T>, grid, block, dynamic_shared_bytes, stream, arguments...)   -> cudaError_t
//   MGRAN_SHARED(float, tile, [4][32]);   static shared memory (the emulator poisons it)
//   MGRAN_DYNAMIC_SHARED(float, tile);    float* to the dynamic shared memory, 16-byte aligned
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <utility>

#define MGRAN_SHARED(T, name, ...) __shared__ T name __VA_ARGS__
#define MGRAN_DYNAMIC_SHARED(T, name)                             \
  extern __shared__ __align__(16) unsigned char mgran_dynamic_[]; \
  T* name = reinterpret_cast<T*>(mgran_dynamic_)

namespace mgran {

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, cudaStream_t stream,
                   Arguments&&... arguments) {
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  return cudaGetLastError();
}

}  // namespace mgran
#else
#include "emulator.h"
#endif
