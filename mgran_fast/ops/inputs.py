"""``inputs``: crops and region map -> the aligned inputs of the trunk. The reference runs on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mgran_fast.ops import checks
from mgran_fast.reference import inputs as reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def inputs(
    crops: torch.Tensor,
    region_map: torch.Tensor,
    scale: float = 1 / 256,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    regions: int = 3,
) -> torch.Tensor:
    """The 1 + R aligned inputs of each person: the whole person, then each region alone.

    (scale * pixel - mean) / std where the input's region is, exactly 0 elsewhere. A person whose region map
    is empty has the whole crop as global input, and all-zero regions.

    Args:
        crops: uint8 [N, H, W, 3], RGB.
        region_map: uint8 [N, H, W], values 0 (background) to R.
        scale: what a pixel (0..255) is multiplied by; the published system's is 1/256.
        mean, std: for each channel, in units of the scaled pixel; 0 and 1 when not given.
        dtype: float32, float16 or bfloat16.
        regions: R, the number of regions of the map's layout.

    Returns:
        [N, 1 + R, 3, H, W] with the channels innermost in memory, so that ``.flatten(0, 1)`` is a
        channels_last batch.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device, mean or std.
    """
    checks.tensor("crops", crops, (None, None, None, 3), (torch.uint8,))
    checks.tensor("region_map", region_map, tuple(crops.shape[:3]), (torch.uint8,))
    checks.same_device(crops=crops, region_map=region_map)
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
    if regions < 0:
        raise ValueError(f"regions must not be negative, not {regions}")
    mean, std = channels("mean", mean, 0.0), channels("std", std, 1.0)
    if not all(s > 0 for s in std):
        raise ValueError(f"std must be positive, not {std}")
    return reference.inputs(crops, region_map, float(scale), mean, std, dtype, regions)


def channels(name: str, values: Sequence[float] | None, default: float) -> tuple[float, float, float]:
    """One number a channel. Raises ValueError."""
    given = (default,) * 3 if values is None else tuple(float(v) for v in values)
    if len(given) != 3:
        raise ValueError(f"{name} must have one number for each of the 3 channels, not {values!r}")
    return given[0], given[1], given[2]
