"""Bugs that rung f must see in the machine code: the results stay right, and the kernel becomes slow."""

from __future__ import annotations

from mutations import Mutation

COMPILE_MUTATIONS = (
    # Its result is wanted: the memory has to answer, and RED becomes ATOM.
    Mutation(
        "atomic with a result",
        "csrc/cuda/regions.cu",
        "if (value > 0) atomicMax(to, value);",
        "if (value > 0 && atomicMax(to, value) > plan.height + plan.width) *to = 0;",
        ("compile",),
    ),
    # The vectors leave one element at a time.
    Mutation(
        "scalar stores of the inputs",
        "csrc/cuda/inputs_tile.cuh",
        "*reinterpret_cast<uint4*>(to) = pack(shown);",
        "for (int k = 0; k < kVector; ++k) to[k] = shown[k];",
        ("compile",),
    ),
    Mutation(
        "loads of 8 bytes",
        "csrc/cuda/inputs.cu",
        "const uint4 v = __ldg(reinterpret_cast<const uint4*>(map + at));",
        "const uint2* half = reinterpret_cast<const uint2*>(map + at);\n"
        "      const uint2 low = __ldg(half), high = __ldg(half + 1);\n"
        "      const uint4 v = make_uint4(low.x, low.y, high.x, high.y);",
        ("compile",),
    ),
    # 32 registers a thread: too few.
    Mutation(
        "launch bounds that force spills",
        "csrc/cuda/regions.cu",
        "__launch_bounds__(kRegionsThreads) label(",
        "__launch_bounds__(kRegionsThreads, 16) label(",
        ("compile",),
    ),
    # An index that is known at run time alone puts the array into the stack.
    Mutation(
        "array in local memory",
        "csrc/cuda/inputs_tile.cuh",
        "#pragma unroll\n    for (int k = 0; k < kVector; ++k) {\n      value[k]",
        "#pragma unroll 1\n    for (int k = 0; k < kVector; ++k) {\n      value[k]",
        ("compile",),
    ),
    Mutation(
        "twice the shared memory",
        "csrc/cuda/inputs.cu",
        "constexpr int kInputsTile = 2048;",
        "constexpr int kInputsTile = 4096;",
        ("compile",),
    ),
)
