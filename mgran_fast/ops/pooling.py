"""``pooling``: masked region pooling of feature maps. The reference runs on every device."""

from __future__ import annotations

import torch

from mgran_fast.ops import checks
from mgran_fast.reference import pooling as reference

MODES = ("mean", "max", "gem")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def pooling(
    features: torch.Tensor,
    region_map: torch.Tensor,
    region: torch.Tensor,
    mode: str = "mean",
    *,
    power: float = 3.0,
) -> torch.Tensor:
    """Pool each row's features over the cells of its own region, by the share of their pixels in the region.

    With w a cell's share and x its features: ``mean`` is sum(w x) / sum(w); ``gem`` is
    (sum(w max(x, 1e-6)^p) / sum(w))^(1/p) (generalised mean, Radenovic et al. 2018); ``max`` is the largest x
    of the cells with w > 0. A row whose region has no pixel gives 0.

    Args:
        features: [B, C, h, w], floating point; channels_last is the fast layout. Differentiable.
        region_map: uint8 [N, H, W] with B a multiple of N: rows b of person b // (B / N).
        region: int64 [B]: the region each row is pooled under, 0 for the whole person (or the whole crop of a
            person whose map is empty).
        mode: mean, max or gem.
        power: the p of ``gem``, positive.

    Returns:
        [B, C] in the features' dtype; sums are taken in float32.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device, mode or power.
    """
    checks.tensor("features", features, (None, None, None, None), DTYPES)
    checks.tensor("region_map", region_map, (None, None, None), (torch.uint8,))
    checks.tensor("region", region, (features.shape[0],), (torch.int64,))
    checks.same_device(features=features, region_map=region_map)
    people = len(region_map)
    if (people == 0) != (len(features) == 0) or (people and len(features) % people):
        raise ValueError(f"features has {len(features)} rows, which is no multiple of region_map's {people} people")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if not power > 0:
        raise ValueError(f"power must be positive, not {power!r}")
    return reference.pooling(features, region_map, region, mode, float(power))
