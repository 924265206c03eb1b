// Launch ABI of `align`: crops, masks and keypoints -> aligned inputs in one go, without the region map in memory
// unless it is asked for. Equals `regions` followed by `inputs`.
#pragma once
#include "inputs.h"
#include "regions.h"

extern "C" {

struct MgranAlign {
  MgranRegions regions;  // map: [people, height, width], or null: not written
  MgranInputs inputs;    // crops, out, dtype, scale, mean, std; people, pixels and regions as in `regions`; map unused
};

int mgran_align_cpu(const MgranAlign* args, int threads);

// Launched on `stream` (a cudaStream_t); no synchronisation, no allocation. Needs regions.workspace alone.
int mgran_align_cuda(const MgranAlign* args, void* stream);
}
