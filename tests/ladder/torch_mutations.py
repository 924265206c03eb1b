"""Injected bugs of the Python side and of the CPU kernels, for the rung "torch": the ops as torch sees them."""

from __future__ import annotations

from mutations import Mutation

_RUNG = ("torch",)

TORCH_MUTATIONS = (
    Mutation(
        "gem-gradient-of-another-power",
        "mgran_fast/reference/pooling.py",
        "ratio.pow(power - 1.0)",
        "ratio.pow(power)",
        _RUNG,
    ),
    Mutation(
        "maximum-ties-not-shared",
        "mgran_fast/reference/pooling.py",
        "slope / largest.sum((2, 3), keepdim=True).clamp(min=1) * largest",
        "slope * largest",
        _RUNG,
    ),
    Mutation(
        "fake-forgets-the-memory-format",
        "mgran_fast/ops/pooling.py",
        "return torch.empty_like(features, memory_format=torch.channels_last)",
        "return torch.empty(features.shape, dtype=features.dtype, device=features.device)",
        _RUNG,
    ),
    Mutation(
        "fake-of-another-shape",
        "mgran_fast/ops/crops.py",
        "return frame.new_empty((boxes.shape[0], height, width, 3))",
        "return frame.new_empty((boxes.shape[0], width, height, 3))",
        _RUNG,
    ),
    Mutation(
        "number-of-people-baked-in",
        "mgran_fast/ops/checks.py",
        "if any(count != first for count in others):",
        "if any(int(count) != int(first) for count in others):",
        _RUNG,
    ),
    Mutation(
        "op-writes-into-its-argument",
        "mgran_fast/reference/inputs.py",
        "    return torch.where(where[..., None], pixels[:, None], zero).permute(0, 1, 4, 2, 3)\n",
        "    where = where.clone()\n    region_map.zero_()\n"
        "    return torch.where(where[..., None], pixels[:, None], zero).permute(0, 1, 4, 2, 3)\n",
        _RUNG,
    ),
    Mutation(
        "gradient-in-another-dtype",
        "mgran_fast/reference/pooling.py",
        "return torch.where(visible, result, 0.0).to(features.dtype)",
        "return torch.where(visible, result, 0.0).to(dtype)",
        _RUNG,
    ),
    Mutation(
        "crop-tap-off-by-half-a-pixel",
        "mgran_fast/reference/crops.py",
        "(high - low)[:, None] / target - 0.5\n",
        "(high - low)[:, None] / target\n",
        _RUNG,
    ),
    Mutation(
        "tie-goes-to-the-later-limb",
        "mgran_fast/reference/regions.py",
        "(distance < best)",
        "(distance <= best)",
        _RUNG,
    ),
    Mutation(
        "strides-ignored",
        "mgran_fast/ops/crops.py",
        "        rows = frame.contiguous()\n",
        "        rows = frame\n",
        _RUNG,
    ),
    Mutation(
        "batchnorm-statistics-of-the-wrong-rows",
        "mgran_fast/reference/batchnorm.py",
        "x.unflatten(0, (x.shape[0] // groups, groups))",
        "x.unflatten(0, (groups, x.shape[0] // groups)).transpose(0, 1)",
        _RUNG,
    ),
    Mutation(
        "batchnorm-result-in-planes",
        "mgran_fast/ops/batchnorm.py",
        "return torch.empty_like(x, memory_format=torch.channels_last)",
        "return torch.empty(x.shape, dtype=x.dtype, device=x.device)",
        _RUNG,
    ),
)
