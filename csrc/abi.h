// What every launch ABI shares: status codes and element types. Plain C, no torch.
//
// Every function of the ABI returns a status. The caller has checked shapes and types; sizes may be 0.
#pragma once
#include <cstdint>

enum {
  MGRAN_OK = 0,
  MGRAN_NO_MEMORY = 1,    // the host ran out of memory
  MGRAN_UNSUPPORTED = 2,  // an argument that the kernel has no code for
  MGRAN_LAUNCH = 3,       // CUDA refused the launch
};

enum { MGRAN_FLOAT32 = 0, MGRAN_FLOAT16 = 1, MGRAN_BFLOAT16 = 2 };
