"""Injected bugs of the CPU kernels, for the variants of emulate.py: cpu, cpu-asan, cpu-tsan."""

from __future__ import annotations

from mutations import Mutation

_CPU = "csrc/cpu"

CPU_MUTATIONS = (
    Mutation(
        "cpu-crops-shared-scratch",
        f"{_CPU}/crops.cpp",
        "*scratches[mgran::thread_number()]",
        "*scratches[0 * mgran::thread_number()]",
        ("cpu-tsan",),
    ),
    Mutation(
        "cpu-crops-fourth-byte",
        f"{_CPU}/crops.cpp",
        "3 * (static_cast<std::int64_t>(most) + 2) + 1 <= row;",
        "3 * (static_cast<std::int64_t>(most) + 2) <= row;",
        ("cpu", "cpu-asan"),
    ),
    Mutation(
        "cpu-crops-row-end",
        f"{_CPU}/crops_rows.h",
        "if (outputs - i >= 32) {",
        "if (outputs - i >= 16) {",
        ("cpu", "cpu-asan"),
        isa=1,
    ),
    Mutation(
        "cpu-regions-shared-scratch",
        f"{_CPU}/regions.cpp",
        "Scratch& scratch = scratches[mgran::thread_number()];",
        "Scratch& scratch = scratches[0 * mgran::thread_number()];",
        ("cpu-tsan",),
    ),
    Mutation(
        "cpu-regions-no-barrier",
        f"{_CPU}/regions.cpp",
        "#pragma omp for schedule(dynamic, 1)\n    for (std::int64_t item",
        "#pragma omp for schedule(dynamic, 1) nowait\n    for (std::int64_t item",
        ("cpu-tsan",),
    ),
    Mutation(
        "cpu-regions-row-end",
        f"{_CPU}/regions_rows.h",
        "for (; x < width; ++x) out[x] = values[x] >= least",
        "for (; x <= width; ++x) out[x] = values[x] >= least",
        ("cpu", "cpu-asan"),
    ),
    Mutation(
        "cpu-inputs-last-piece",
        f"{_CPU}/inputs.cpp",
        "const std::int64_t last = std::min(first + piece, args.pixels);",
        "const std::int64_t last = first + piece;",
        ("cpu", "cpu-asan"),
    ),
    Mutation(
        "cpu-inputs-map-end",
        f"{_CPU}/inputs.cpp",
        "for (; p + 256 <= pixels; p += 256) {",
        "for (; p < pixels; p += 256) {",
        ("cpu", "cpu-asan"),
    ),
    Mutation(
        "cpu-inputs-vector-end",
        f"{_CPU}/inputs_blocks.h",
        "for (; p + kBlock <= span.pixels; p += kBlock) inputs_block",
        "for (; p < span.pixels; p += kBlock) inputs_block",
        ("cpu", "cpu-asan"),
        isa=2,
    ),
    Mutation(
        "cpu-align-shared-map",
        f"{_CPU}/align.cpp",
        "scratch.data() + mgran::thread_number() * pixels;",
        "scratch.data() + 0 * mgran::thread_number();",
        ("cpu-tsan",),
    ),
    Mutation(
        "cpu-pooling-shared-shares",
        f"{_CPU}/pooling.cpp",
        "shares[mgran::thread_number()];",
        "shares[0 * mgran::thread_number()];",
        ("cpu-tsan",),
    ),
    Mutation(
        "cpu-pooling-channels-end",
        f"{_CPU}/pooling.cpp",
        "task.channels = channels / kernels.width * kernels.width;",
        "task.channels = (channels + kernels.width - 1) / kernels.width * kernels.width;",
        ("cpu",),
    ),
    Mutation(
        "cpu-pooling-cells-outside",
        f"{_CPU}/pooling_shares.h",
        "        if (pixels == 0) continue;\n",
        "",
        ("cpu",),
    ),
    Mutation(
        "cpu-pooling-bins-do-not-overlap",
        f"{_CPU}/pooling_shares.h",
        "static_cast<std::int32_t>((end + count - 1) / count)",
        "static_cast<std::int32_t>(std::max(end / count, begin / count + 1))",
        ("cpu",),
    ),
    Mutation(
        "cpu-pooling-gradient-unwritten",
        f"{_CPU}/pooling_rows.h",
        "V::template save<kStream>(grad + c, V::set(0.0f), T{});",
        "(void)grad;",
        ("cpu",),
    ),
    Mutation(
        "cpu-batchnorm-sums-of-the-block-before",
        f"{_CPU}/batchnorm.cpp",
        "        std::fill_n(task.sums, 2 * plan.block, 0.0f);\n",
        "",
        ("cpu",),
    ),
    Mutation(
        "cpu-batchnorm-another-group",
        f"{_CPU}/batchnorm.cpp",
        "made.group = row % args.groups;",
        "made.group = row / (args.rows / args.groups);",
        ("cpu",),
    ),
    Mutation(
        "cpu-batchnorm-means-of-pieces-alike",
        f"{_CPU}/batchnorm.cpp",
        "sums[(i * 2 + 1) * plan.block + c] + away * away * count * more / total;",
        "sums[(i * 2 + 1) * plan.block + c];",
        ("cpu",),
    ),
    Mutation(
        "cpu-batchnorm-last-channels-unwritten",
        f"{_CPU}/batchnorm.cpp",
        "if (task.channels) (portable.*run)(task);",
        "if (task.channels && task.sums) (portable.*run)(task);",
        ("cpu",),
        isa=1,
    ),
    Mutation(
        "cpu-batchnorm-shared-sums",
        f"{_CPU}/batchnorm.cpp",
        "task.sums = sums.data() + i * 2 * plan.block;",
        "task.sums = sums.data() + 0 * i * plan.block;",
        ("cpu-tsan",),
    ),
)
