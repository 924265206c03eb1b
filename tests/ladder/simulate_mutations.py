"""Injected bugs for the rung of simulate.py: caught by values, by the simulator's own checks, or by bytes moved."""

from __future__ import annotations

from mutations import Mutation

_INPUTS, _TILE, _MEMORY = "csrc/cuda/inputs.cu", "csrc/cuda/inputs_tile.cuh", "csrc/cuda/memory.cuh"
_REGIONS, _LABELS = "csrc/cuda/regions.cu", "csrc/cuda/regions_tile.cuh"
_ALIGN, _CROPS, _POOLING = "csrc/cuda/align.cu", "csrc/cuda/crops.cu", "kernels/pooling.py"
_POINTWISE, _STEM = "kernels/pointwise.py", "kernels/stem.py"


def _bug(name: str, file: str, old: str, new: str) -> Mutation:
    return Mutation(f"simulate-{name}", file, old, new, ("simulate",))


SIMULATE_MUTATIONS = (
    _bug(
        "inputs-no-barrier",
        _INPUTS,
        "  fill_values<T, kInputsThreads>(norm, values);\n  __syncthreads();\n",
        "  fill_values<T, kInputsThreads>(norm, values);\n",
    ),
    _bug(
        "inputs-divergent-barrier",
        _INPUTS,
        "(norm, values);\n  __syncthreads();\n",
        "(norm, values);\n  if (static_cast<int>(threadIdx.x) < count) __syncthreads();\n",
    ),
    _bug(
        "inputs-misaligned-store",
        _TILE,
        "const bool vectors = aligned16(out) && step % kVector == 0;",
        "const bool vectors = true;",
    ),
    _bug(
        "inputs-tail-one-too-many",
        _TILE,
        "e < elements; e += kThreads",
        "e <= elements; e += kThreads",
    ),
    # Right to the bit, but neighbouring threads store half sectors.
    _bug(
        "inputs-threads-far-apart",
        _TILE,
        "  for (int v = threadIdx.x; v < whole; v += kThreads) {\n",
        "  for (int w = threadIdx.x; w < whole; w += kThreads) {\n"
        "    const int v = whole % 32 ? w : w % 32 * (whole / 32) + w / 32;\n",
    ),
    _bug(
        "load-misaligned",
        _MEMORY,
        "  if (aligned16(global)) {\n    const uint4* from",
        "  if (count > 0) {\n    const uint4* from",
    ),
    _bug("regions-no-atomic", _REGIONS, "atomicMin(to, value);", "*to = min(*to, value);"),
    _bug(
        "regions-no-barrier-before-boxes",
        _REGIONS,
        "  __syncthreads();\n  if (thread >= 4 * groups) return;\n",
        "  if (thread >= 4 * groups) return;\n",
    ),
    _bug(
        "regions-shared-array-too-small",
        _REGIONS,
        "boxes, [kWarps][MGRAN_MAX_REGIONS][4]",
        "boxes, [kWarps - 1][MGRAN_MAX_REGIONS][4]",
    ),
    _bug(
        "regions-ballot-of-some",
        _LABELS,
        "const unsigned all = __ballot_sync(kWholeWarp, usable);",
        "const unsigned all = usable ? __ballot_sync(kWholeWarp, usable) : 0u;",
    ),
    _bug(
        "align-no-barrier",
        _ALIGN,
        "labels);\n  __syncthreads();\n  if (plan.map)",
        "labels);\n  if (plan.map)",
    ),
    _bug(
        "crops-right-border",
        _CROPS,
        "column.first >= -1 && column.first < frame_width - 1;",
        "column.first >= -1 && column.first < frame_width;",
    ),
    _bug(
        "crops-no-barrier",
        _CROPS,
        "  __syncthreads();\n  std::uint8_t* corner",
        "  std::uint8_t* corner",
    ),
    _bug(
        "pooling-one-channel-too-many",
        _POOLING,
        "pooled.to(out.dtype.element_ty), mask=channel < channels)",
        "pooled.to(out.dtype.element_ty), mask=channel <= channels)",
    ),
    _bug(
        "pooling-cell-past-the-end",
        _POOLING,
        "    weight = tl.load(weights + cell, mask=cell < cells, other=0.0)\n    return",
        "    weight = tl.load(weights + cell)\n    return",
    ),
    # NaN of other regions leaks in.
    _bug(
        "pooling-loads-every-cell",
        _POOLING,
        "mask=mask, other=other).to(tl.float32)",
        "mask=(channel < channels)[None, :] & (weight >= 0)[:, None], other=other).to(tl.float32)",
    ),
    _bug(
        "product-residual-past-the-end",
        _POINTWISE,
        "tl.load(residual + at, mask=inside, other=0.0)",
        "tl.load(residual + at, mask=(output < outs)[None, :], other=0.0)",
    ),
    _bug("product-rows-past-the-end", _POINTWISE, "tl.minimum(row, rows - 1)", "row"),
    _bug("product-other-rows-overwritten", _POINTWISE, "(output < outs)[None, :]", "(output < outs + 1)[None, :]"),
    _bug(
        "product-weights-past-the-end",
        _POINTWISE,
        "mask=inside[:, None], other=0.0)",
        "mask=(start + channel <= channels)[:, None], other=0.0)",
    ),
    _bug(
        "stem-inputs-past-the-end",
        _STEM,
        "mask=(at < rows * 2 * pairs)[:, None]",
        "mask=(at <= rows * 2 * pairs)[:, None]",
    ),
    _bug("stem-position-past-the-end", _STEM, "tl.minimum(position, positions - 1)", "position"),
    _bug(
        "stem-pools-past-the-end", _STEM, "(at < cells) & (y >= 0) & (y < grid_height) &", "(at < cells) & (y >= 0) &"
    ),
)
