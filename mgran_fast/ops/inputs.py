"""``inputs``: crops and region map -> the aligned inputs of the trunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mgran_fast.ops import backend, checks
from mgran_fast.ops.launch import DTYPES, launch
from mgran_fast.ops.library import register
from mgran_fast.reference import inputs as reference

# A region map holds one byte a pixel.
MOST_REGIONS = 255
LEAST_FLOAT32, MOST_FLOAT32 = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


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
    if not 0 <= regions <= MOST_REGIONS:
        raise ValueError(f"regions must be 0 to {MOST_REGIONS}, not {regions}")
    scale, means, stds = normalization(scale, mean, std, dtype)
    result: torch.Tensor = _op(crops, region_map, scale, means, stds, dtype, regions)
    return result


def normalization(
    scale: float, mean: Sequence[float] | None, std: Sequence[float] | None, dtype: torch.dtype
) -> tuple[float, tuple[float, float, float], tuple[float, float, float]]:
    """The checked scale, mean and std. Raises TypeError or ValueError."""
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
    means, stds = channels("mean", mean, 0.0), channels("std", std, 1.0)
    # The kernels compute in float32: a number must be finite there, and std must not round to 0.
    if not all(abs(v) < MOST_FLOAT32 for v in (scale, *means)):
        raise ValueError(f"scale and mean must be finite float32 numbers, not {scale} and {means}")
    if not all(LEAST_FLOAT32 <= s < MOST_FLOAT32 for s in stds):
        raise ValueError(f"std must be positive, not {stds}")
    return float(scale), means, stds


def channels(name: str, values: Sequence[float] | None, default: float) -> tuple[float, float, float]:
    """One number a channel. Raises ValueError."""
    given = (default,) * 3 if values is None else tuple(float(v) for v in values)
    if len(given) != 3:
        raise ValueError(f"{name} must have one number for each of the 3 channels, not {values!r}")
    return given[0], given[1], given[2]


def empty(people: int, regions: int, height: int, width: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory for aligned inputs: [people, 1 + regions, 3, height, width], channels innermost."""
    memory = torch.empty((people, 1 + regions, height, width, 3), dtype=dtype, device=device)
    return memory.permute(0, 1, 4, 2, 3)


def _implementation(
    crops: torch.Tensor,
    region_map: torch.Tensor,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    regions: int,
) -> torch.Tensor:
    people, height, width = region_map.shape
    module = backend.native("inputs", crops.device.type)
    if module is None:
        return reference.inputs(crops, region_map, scale, mean, std, dtype, regions)
    out = empty(people, regions, height, width, dtype, crops.device)
    workspace = None
    if crops.device.type == "cuda":
        workspace = torch.empty(people, dtype=torch.int32, device=crops.device)
    launch(
        module,
        "inputs",
        crops.device,
        crops=crops.contiguous(),
        map=region_map.contiguous(),
        out=out,
        workspace=workspace,
        people=people,
        pixels=height * width,
        regions=regions,
        dtype=DTYPES[dtype],
        scale=scale,
        mean=tuple(mean),
        std=tuple(std),
    )
    return out


def _fake(
    crops: torch.Tensor,
    region_map: torch.Tensor,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    regions: int,
) -> torch.Tensor:
    people, height, width = region_map.shape
    return empty(people, regions, height, width, dtype, crops.device)


_op = register(
    "inputs(Tensor crops, Tensor region_map, float scale, float[] mean, float[] std, ScalarType dtype, int regions)"
    " -> Tensor",
    _implementation,
    _fake,
)
