"""Injected bugs of the CPU kernels that only strange arguments show, for the rung "fuzz"."""

from __future__ import annotations

from mutations import Mutation

_RUNG = ("fuzz",)

FUZZ_MUTATIONS = (
    Mutation(
        "crops-frame-read-past-its-end",
        "csrc/cpu/crops.cpp",
        "  columns.end = std::min(most + 2, args.frame_width);\n",
        "  columns.end = most + 2;\n",
        _RUNG,
    ),
    Mutation(
        "crops-float-too-large-for-an-integer",
        "csrc/device/crops.h",
        "  position = position < -2.0 ? -2.0 : position > end ? end : position;\n",
        "  position = position < -2.0 ? -2.0 : position;\n",
        _RUNG,
    ),
    Mutation(
        "conv-one-row-beyond-the-grid",
        "csrc/cpu/cells.h",
        "row >= layer_.height ||",
        "row > layer_.height ||",
        _RUNG,
    ),
    Mutation(
        "network-kernel-beyond-the-grid",
        "csrc/cpu/reach.h",
        "      const std::int32_t end = std::min(first + g.kernel, from.width);\n      for (std::int32_t x = "
        "std::max(first, 0); x < end; ++x) wide[x] |= line[column];\n",
        "      const std::int32_t end = first + g.kernel;\n      for (std::int32_t x = "
        "std::max(first, 0); x < end; ++x) wide[x] |= line[column];\n",
        _RUNG,
    ),
    Mutation(
        "network-workspace-too-small",
        "csrc/cpu/plan.cpp",
        "    bytes[layer] = (bytes[layer] + kAlignment - 1) / kAlignment * kAlignment;\n",
        "    bytes[layer] = bytes[layer] / 2;\n",
        _RUNG,
    ),
    Mutation(
        "align-keypoints-of-another-person",
        "csrc/cpu/align.cpp",
        "  regions.keypoints += n * 51;\n",
        "  regions.keypoints += n * 510;\n",
        _RUNG,
    ),
)
