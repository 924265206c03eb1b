"""Injected bugs of the Triton kernels: rung ``interpret`` runs them, rung ``triton`` reads their machine code."""

from __future__ import annotations

from mutations import Mutation

_FILE = "kernels/pooling.py"
_GEM = '{"kernel": "forward", "mode": "gem", "bytes": 4, "capability": 75, "channels": 2048, "cells": 128, '
_RUN, _READ = ("interpret",), ("triton",)

TRITON_MUTATIONS = (
    Mutation(
        "triton_region_wraps_at_256",
        _FILE,
        "wanted = tl.where((chosen < 0) | (chosen > 255), -1, chosen).to(tl.int32)",
        "wanted = (chosen & 255).to(tl.int32)",
        _RUN,
    ),
    Mutation(
        "triton_cells_do_not_overlap",
        _FILE,
        "((j + 1) * map_width + width - 1) // width",
        "(j + 1) * map_width // width",
        _RUN,
    ),
    Mutation("triton_rows_of_another_person", _FILE, "row // rows_per_person", "row % rows_per_person", _RUN),
    Mutation(
        "triton_an_empty_map_is_no_crop",
        _FILE,
        "(total == 0) & (chosen == 0), 1.0",
        "(total == 0) & (chosen == 0), 0.0",
        _RUN,
    ),
    Mutation(
        "triton_every_empty_row_is_the_crop",
        _FILE,
        "tl.where((total == 0) & (chosen == 0),",
        "tl.where(total == 0,",
        _RUN,
    ),
    Mutation(
        "triton_background_leaks_in",
        _FILE,
        "mask = (weight > 0)[:, None] & (channel",
        "mask = (weight >= 0)[:, None] & (channel",
        _RUN,
    ),
    Mutation("triton_nan_is_dropped", _FILE, "tl.where(broken > 0,", "tl.where(broken > 1,", _RUN),
    Mutation(
        "triton_sums_in_16_bits", _FILE, "tl.sum(acc, 0) / total\n", "tl.sum(acc.to(tl.float16), 0) / total\n", _RUN
    ),
    Mutation(
        "triton_gem_is_not_scaled",
        _FILE,
        "largest = _clamp(pooled, _SMALLEST)",
        "largest = _clamp(pooled, _SMALLEST) * 0.0 + 1.0",
        _RUN,
    ),
    Mutation("triton_maxima_do_not_share", _FILE, "factor / tl.maximum(reduced, 1.0)", "factor / 1.0", _RUN),
    Mutation(
        "triton_gem_gradient_of_the_rounded", _FILE, "factor *= _power(reduced / total,", "factor *= _power(1.0,", _RUN
    ),
    Mutation("triton_gem_gradient_below_the_clamp", _FILE, "tl.where(x < _SMALLEST, 0.0, slope)", "slope", _RUN),
    Mutation(
        "triton_zeros_are_not_written",
        _FILE,
        "mask=(cell < cells)[:, None] & exists",
        "mask=(weight > 0)[:, None] & exists",
        _RUN,
    ),
    Mutation(
        "triton_last_channel_is_lost",
        _FILE,
        "pooled.to(out.dtype.element_ty), mask=channel < channels)",
        "pooled.to(out.dtype.element_ty), mask=channel < channels - 1)",
        _RUN,
    ),
    Mutation(
        "triton_tile_too_large",
        "kernels/pooling.json",
        _GEM + '"block_cells": 16,',
        _GEM + '"block_cells": 128,',
        _READ,
    ),
    Mutation(
        "triton_narrow_loads",
        _FILE,
        "tl.load(features + cell[:, None] * channels + channel[None, :], mask=mask",
        "tl.load(features + cell[:, None] * channels + (channel ^ 1)[None, :], mask=mask",
        _READ,
    ),
    Mutation(
        "triton_narrow_stores",
        _FILE,
        "at = cell[:, None] * channels + channel[None, :]",
        "at = cell[:, None] * channels + (channel ^ 1)[None, :]",
        _READ,
    ),
    Mutation(
        "triton_atomic_stores",
        _FILE,
        "tl.store(out + row * channels + channel, pooled",
        "tl.atomic_add(out + row * channels + channel, pooled",
        _READ,
    ),
)
