"""``pooling``: masked region pooling of feature maps, with gradients."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from mgran_fast.ops import backend, checks
from mgran_fast.ops.launch import DTYPES, launch
from mgran_fast.ops.library import register
from mgran_fast.reference import pooling as reference

MODES = ("mean", "max", "gem")


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
        [B, C] in the features' dtype; sums are taken in float32 (float64 for float64 features, by the reference).
        Differentiable once in the features; the gradient is channels_last.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device, mode or power.
    """
    checks.tensor("features", features, (None, None, None, None), (*DTYPES, torch.float64))
    checks.tensor("region_map", region_map, (None, None, None), (torch.uint8,))
    checks.tensor("region", region, (features.shape[0],), (torch.int64,))
    checks.same_device(features=features, region_map=region_map)
    rows, people = features.shape[0], region_map.shape[0]
    if (people == 0) != (rows == 0) or (people != 0 and rows % people != 0):
        raise ValueError(f"features has {rows} rows, which is no multiple of region_map's {people} people")
    if features.shape[2] == 0 or features.shape[3] == 0:
        raise ValueError(f"features have no cells: their shape is {list(features.shape)}")
    if people != 0 and (region_map.shape[1] == 0 or region_map.shape[2] == 0):
        raise ValueError(f"region_map has no pixels: its shape is {list(region_map.shape)}")
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if not 0 < power < torch.finfo(torch.float32).max:
        raise ValueError(f"power must be positive and finite, not {power!r}")
    checks.same_device(features=features, region=region)
    result: torch.Tensor
    if torch.is_grad_enabled() and features.requires_grad:
        result = _Pooling.apply(features, region_map, region, mode, float(power))
    else:
        result = _op(features, region_map, region, mode, float(power))
    return result


class _Pooling(torch.autograd.Function):
    """The gradient, outside of the op: less overhead than an autograd formula registered with it."""

    @staticmethod
    def forward(
        ctx: Any, features: torch.Tensor, region_map: torch.Tensor, region: torch.Tensor, mode: str, power: float
    ) -> torch.Tensor:
        out: torch.Tensor = _op(features, region_map, region, mode, power)
        ctx.save_for_backward(features, region_map, region, out)
        ctx.mode, ctx.power = mode, power
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        features, region_map, region, out = ctx.saved_tensors
        return _backward_op(grad, features, region_map, region, out, ctx.mode, ctx.power), None, None, None, None


def _kernel(features: torch.Tensor) -> ModuleType | None:
    # No kernel computes in float64: that is the reference's, for gradcheck.
    return None if features.dtype == torch.float64 else backend.native("pooling", features.device.type)


def _arguments(
    features: torch.Tensor, region_map: torch.Tensor, region: torch.Tensor, mode: str, power: float
) -> dict[str, Any]:
    """What the CPU kernels, forward and backward, want."""
    rows, channels, height, width = features.shape
    return {
        "features": features.contiguous(memory_format=torch.channels_last),
        "map": region_map.contiguous(),
        "region": region.contiguous(),
        "rows": rows,
        "people": len(region_map),
        "channels": channels,
        "size": (height, width),
        "map_size": (region_map.shape[1], region_map.shape[2]),
        "dtype": DTYPES[features.dtype],
        "mode": MODES.index(mode),
        "power": power,
    }


def _implementation(
    features: torch.Tensor, region_map: torch.Tensor, region: torch.Tensor, mode: str, power: float
) -> torch.Tensor:
    module = _kernel(features)
    if module is None:
        return reference.pooling(features, region_map, region, mode, power)
    if features.device.type == "cuda":
        features = features.contiguous(memory_format=torch.channels_last)
        out: torch.Tensor = module.forward(features, region_map.contiguous(), region.contiguous(), mode, power)
        return out
    out = features.new_empty(features.shape[:2])
    arguments = _arguments(features, region_map, region, mode, power)
    launch(module, "pooling", features.device, **arguments, out=out, grad_out=None, grad_features=None)
    return out


def _backward(
    grad: torch.Tensor,
    features: torch.Tensor,
    region_map: torch.Tensor,
    region: torch.Tensor,
    out: torch.Tensor,
    mode: str,
    power: float,
) -> torch.Tensor:
    module = _kernel(features)
    if module is None:
        result = reference.backward(grad, features, region_map, region, mode, power)
        return result.contiguous(memory_format=torch.channels_last)
    grad = grad.contiguous()
    if features.device.type == "cuda":
        features = features.contiguous(memory_format=torch.channels_last)
        gradient: torch.Tensor = module.backward(
            grad, features, region_map.contiguous(), region.contiguous(), out, mode, power
        )
        return gradient
    gradient = _backward_fake(grad, features, region_map, region, out, mode, power)
    arguments = _arguments(features, region_map, region, mode, power)
    launch(module, "pooling_backward", features.device, **arguments, out=out, grad_out=grad, grad_features=gradient)
    return gradient


def _fake(
    features: torch.Tensor, region_map: torch.Tensor, region: torch.Tensor, mode: str, power: float
) -> torch.Tensor:
    return features.new_empty(features.shape[:2])


def _backward_fake(
    grad: torch.Tensor,
    features: torch.Tensor,
    region_map: torch.Tensor,
    region: torch.Tensor,
    out: torch.Tensor,
    mode: str,
    power: float,
) -> torch.Tensor:
    return torch.empty_like(features, memory_format=torch.channels_last)


_op = register(
    "pooling(Tensor features, Tensor region_map, Tensor region, str mode, float power) -> Tensor",
    _implementation,
    _fake,
)
_backward_op = register(
    "pooling_backward(Tensor grad, Tensor features, Tensor region_map, Tensor region, Tensor out, str mode,"
    " float power) -> Tensor",
    _backward,
    _backward_fake,
)
