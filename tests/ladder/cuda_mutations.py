"""Injected bugs of the CUDA sources, for the variants of emulate.py: plain, launches, asan, tsan."""

from __future__ import annotations

from mutations import Mutation

_INPUTS, _TILE, _MEMORY = "csrc/cuda/inputs.cu", "csrc/cuda/inputs_tile.cuh", "csrc/cuda/memory.cuh"
_REGIONS, _LABELS = "csrc/cuda/regions.cu", "csrc/cuda/regions_tile.cuh"
_ALIGN, _CROPS = "csrc/cuda/align.cu", "csrc/cuda/crops.cu"

CUDA_MUTATIONS = (
    Mutation(
        "inputs-no-barrier",
        _INPUTS,
        "  fill_values<T, kInputsThreads>(norm, values);\n  __syncthreads();\n",
        "  fill_values<T, kInputsThreads>(norm, values);\n",
        ("plain", "tsan"),
    ),
    Mutation(
        "inputs-divergent-barrier",
        _INPUTS,
        "  fill_values<T, kInputsThreads>(norm, values);\n  __syncthreads();\n",
        "  fill_values<T, kInputsThreads>(norm, values);\n  if (threadIdx.x < 32u) __syncthreads();\n",
        ("plain", "asan"),
    ),
    Mutation(
        "inputs-vote-of-one-thread",
        _INPUTS,
        "some = __syncthreads_or(seen != 0);",
        "some = seen != 0;",
        ("plain",),
    ),
    Mutation(
        "inputs-map-vector-past-the-end",
        _INPUTS,
        "if (vectors && at + 16 <= pixels) {",
        "if (vectors && at < pixels) {",
        ("plain", "asan"),
    ),
    Mutation(
        "inputs-tail-one-too-many",
        _TILE,
        "e < elements; e += kThreads",
        "e <= elements; e += kThreads",
        ("plain", "asan"),
    ),
    Mutation(
        "inputs-misaligned-store",
        _TILE,
        "const bool vectors = aligned16(out) && step % kVector == 0;",
        "const bool vectors = true;",
        ("asan",),
    ),
    Mutation(
        "load-misaligned",
        _MEMORY,
        "  if (aligned16(global)) {\n    const uint4* from",
        "  if (count > 0) {\n    const uint4* from",
        ("plain",),
    ),
    Mutation(
        "store-misaligned",
        _MEMORY,
        "  if (aligned16(global)) {\n    uint4* to",
        "  if (count > 0) {\n    uint4* to",
        ("asan",),
    ),
    Mutation(
        "grid-too-wide",
        _MEMORY,
        "kMostBlocks = 2147483647;",
        "kMostBlocks = 4294967295;",
        ("launches",),
    ),
    Mutation("regions-no-atomic", _REGIONS, "atomicMin(to, value);", "*to = min(*to, value);", ("tsan",)),
    Mutation(
        "regions-shared-array-too-small",
        _REGIONS,
        "boxes, [kWarps][MGRAN_MAX_REGIONS][4]",
        "boxes, [kWarps - 1][MGRAN_MAX_REGIONS][4]",
        ("plain", "asan"),
    ),
    Mutation(
        "regions-no-barrier-before-boxes",
        _REGIONS,
        "  __syncthreads();\n  if (thread >= 4 * groups) return;\n",
        "  if (thread >= 4 * groups) return;\n",
        ("plain", "tsan"),
    ),
    Mutation(
        "regions-barrier-after-return",
        _REGIONS,
        "  __syncthreads();\n  if (thread >= 4 * groups) return;\n",
        "  if (thread >= 4 * groups) return;\n  __syncthreads();\n",
        ("plain",),
    ),
    Mutation(
        "regions-workspace-not-reset",
        _REGIONS,
        "if (i < numbers) workspace[i] =",
        "if (i < numbers && i % 4 != 3) workspace[i] =",
        ("plain",),
    ),
    Mutation(
        "regions-uninitialised-shared-memory",
        _LABELS,
        "i < kRegionsTile; i += kRegionsThreads) flags[i] = 0;",
        "i < kRegionsTile; i += kRegionsThreads) (void)flags[i];",
        ("plain",),
    ),
    Mutation(
        "regions-no-warp-barrier",
        _LABELS,
        "    __syncwarp();\n    if (lane == 0) find_neck",
        "    if (lane == 0) find_neck",
        ("plain", "tsan"),
    ),
    Mutation(
        "regions-divergent-ballot",
        _LABELS,
        "const unsigned all = __ballot_sync(kWholeWarp, usable);",
        "const unsigned all = usable ? __ballot_sync(kWholeWarp, usable) : 0u;",
        ("plain",),
    ),
    Mutation(
        "regions-mask-vector-past-the-end",
        _LABELS,
        "const int whole = aligned16(tile) ? count / kVector : 0;",
        "const int whole = aligned16(tile) ? (count + kVector - 1) / kVector : 0;",
        ("asan",),
    ),
    Mutation(
        "regions-limb-left-out",
        _LABELS,
        "const float reach = 0.5f * (kRun - 1) + plan.slack;",
        "const float reach = 0.25f * (kRun - 1) + plan.slack;",
        ("plain",),
    ),
    Mutation(
        "align-no-barrier",
        _ALIGN,
        "labels);\n  __syncthreads();\n  if (plan.map)",
        "labels);\n  if (plan.map)",
        ("plain", "tsan"),
    ),
    Mutation(
        "align-no-barrier-before-labels",
        _ALIGN,
        "    __syncthreads();\n    label_tile(",
        "    label_tile(",
        ("plain", "tsan"),
    ),
    Mutation(
        "crops-right-border",
        _CROPS,
        "column.first >= -1 && column.first < frame_width - 1;",
        "column.first >= -1 && column.first < frame_width;",
        ("plain", "asan"),
    ),
    Mutation(
        "crops-no-barrier",
        _CROPS,
        "  __syncthreads();\n  std::uint8_t* corner",
        "  std::uint8_t* corner",
        ("plain", "tsan"),
    ),
    Mutation(
        "crops-shared-array-too-small",
        _CROPS,
        "taps, [kCropRows + kCropColumns]",
        "taps, [kCropRows + kCropColumns - 1]",
        ("plain", "asan"),
    ),
)
