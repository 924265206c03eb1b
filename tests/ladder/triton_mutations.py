"""Injected bugs of the Triton kernels: rung ``interpret`` runs them, rung ``triton`` reads their machine code."""

from __future__ import annotations

from mutations import Mutation

_FILE = "kernels/pooling.py"
_GEM = '{"kernel": "forward", "mode": "gem", "bytes": 4, "capability": 75, "channels": 2048, "cells": 128, '
_POINTWISE, _STEM = "kernels/pointwise.py", "kernels/stem.py"
_AMPERE = '{"capability": 80, "rows": 65536, "channels": 64, "outs": 256, "residual": false, "shortcut": false, '
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
    Mutation(
        "triton_product_shortcut_of_another_row",
        _POINTWISE,
        "image * shortcut_height + (cell // width) * stride",
        "image * shortcut_height + (cell // width)",
        _RUN,
    ),
    Mutation(
        "triton_product_shortcut_of_another_image",
        _POINTWISE,
        "image, cell = from_row // cells,",
        "image, cell = from_row // cells // 2,",
        _RUN,
    ),
    Mutation("triton_product_last_row_is_lost", _POINTWISE, "(row < rows)[:, None]", "(row < rows - 1)[:, None]", _RUN),
    Mutation(
        "triton_product_no_residual", _POINTWISE, "        acc += tl.load(residual", "        tl.load(residual", _RUN
    ),
    Mutation("triton_product_relu_drops_nan", _POINTWISE, "acc < 0, 0.0, acc", "acc > 0, acc, 0.0", _RUN),
    Mutation(
        "triton_product_a_channel_too_many",
        _POINTWISE,
        "inside = start + channel < channels",
        "inside = start + channel <= channels",
        _RUN,
    ),
    Mutation(
        "triton_stem_border_is_not_zero",
        _STEM,
        "inside = pictured & tl.where",
        "inside = (pixel == pixel) & tl.where",
        _RUN,
    ),
    Mutation("triton_stem_no_marker", _STEM, "colour.to(tl.float32), _INSIDE)", "colour.to(tl.float32), 0.0)", _RUN),
    Mutation("triton_stem_the_next_region", _STEM, "wanted = first + i", "wanted = first + i + 1", _RUN),
    Mutation("triton_stem_an_empty_map_is_no_crop", _STEM, "(region != 0) | crop", "region != 0", _RUN),
    Mutation(
        "triton_stem_another_person",
        _STEM,
        "pixel = person * height * width +",
        "pixel = (person // 2) * height * width +",
        _RUN,
    ),
    Mutation(
        "triton_stem_last_pixel_is_not_seen",
        _STEM,
        "mask=at < pixels, other=0)",
        "mask=at < pixels - 1, other=0)",
        _RUN,
    ),
    Mutation("triton_stem_six_rows", _STEM, "for dy in range(_KERNEL)", "for dy in range(_KERNEL - 1)", _RUN),
    Mutation(
        "triton_stem_pooling_has_no_border",
        _STEM,
        "(cell // pooled_width) * _POOL_STRIDE - 1,",
        "(cell // pooled_width) * _POOL_STRIDE,",
        _RUN,
    ),
    Mutation("triton_stem_pooling_drops_nan", _STEM, "tl.PropagateNan.ALL", "tl.PropagateNan.NONE", _RUN),
    Mutation(
        "triton_product_narrow_loads",
        _POINTWISE,
        "            b = tl.load(weights_at[None, :] + (start + channel)[:, None])\n",
        "            b = tl.load(weights_at[None, :] + (start + (channel ^ 1))[:, None])\n",
        _READ,
    ),
    Mutation(
        "triton_product_no_tensor_cores",
        _POINTWISE,
        "acc = tl.dot(a, b, acc)",
        'acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")',
        _READ,
    ),
    Mutation(
        "triton_product_tile_too_large",
        "kernels/pointwise.json",
        _AMPERE + '"block_rows": 128, "block_outs": 64,',
        _AMPERE + '"block_rows": 128, "block_outs": 256,',
        _READ,
    ),
    Mutation(
        "triton_product_stages_too_many",
        "kernels/pointwise.json",
        _AMPERE + '"block_rows": 128, "block_outs": 64, "block_channels": 32, "num_warps": 4, "num_stages": 3',
        _AMPERE + '"block_rows": 128, "block_outs": 64, "block_channels": 32, "num_warps": 4, "num_stages": 16',
        _READ,
    ),
    Mutation(
        "triton_stem_narrow_stores",
        _STEM,
        "at = position.to(tl.int64)[:, None] * outs + output[None, :]",
        "at = position.to(tl.int64)[:, None] * outs + (output ^ 1)[None, :]",
        _READ,
    ),
)
