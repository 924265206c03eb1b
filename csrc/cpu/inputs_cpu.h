// `inputs` on the CPU for the other kernels of this folder.
#pragma once
#include "../inputs.h"

namespace mgran {

// mgran_inputs_cpu for an output whose memory is prepared already (inputs_pages.h), perhaps as a part of a larger
// one. `stream`: stores go past the caches wherever alignment allows.
int inputs_prepared(const MgranInputs& args, int threads, bool stream);

// Bytes of an element of `dtype`, 0 for an unknown one.
inline std::int64_t element_bytes(std::int32_t dtype) {
  return dtype == MGRAN_FLOAT32 ? 4 : dtype == MGRAN_FLOAT16 || dtype == MGRAN_BFLOAT16 ? 2 : 0;
}

inline std::int64_t inputs_bytes(const MgranInputs& args) {
  return args.people * (1 + static_cast<std::int64_t>(args.regions)) * args.pixels * 3 * element_bytes(args.dtype);
}

}  // namespace mgran
