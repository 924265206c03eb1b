"""``stem``: crops and region map -> the trunk's first stage, for inference."""

from __future__ import annotations

import torch

from mgran_fast.ops import backend, checks
from mgran_fast.ops.library import register
from mgran_fast.reference import stem as reference

#: What the kernel computes in; the reference takes float32 and float64 as well.
KERNEL_DTYPES = (torch.float16, torch.bfloat16)
DTYPES = (*KERNEL_DTYPES, torch.float32, torch.float64)
PACKED = reference.KERNEL * reference.WIDE * reference.CHANNELS


def stem(
    crops: torch.Tensor, region_map: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, first: int, inputs: int
) -> torch.Tensor:
    """maxpool(relu(convolution(aligned inputs) + bias)): 7x7 with stride 2, then 3x3 with stride 2.

    The inputs are the crop's bytes where the input's region is, 0 elsewhere, with a fourth channel of 255 in the
    region: weights that have taken in scale, mean and deviation give what normalised inputs would.

    Args:
        crops: uint8 [N, H, W, 3], RGB.
        region_map: uint8 [N, H, W].
        weight: [D, 7 * 32] of :func:`mgran_fast.reference.stem.pack`, floating point.
        bias: float32 [D].
        first, inputs: each person has the inputs first to first + inputs - 1; 0 is the whole person, or the whole crop
            of a person whose map is empty.

    Returns:
        [N * inputs, D, h, w] in the weights' dtype, channels_last.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, device or region.
    """
    checks.tensor("crops", crops, (None, None, None, 3), (torch.uint8,))
    checks.tensor("region_map", region_map, tuple(crops.shape[:3]), (torch.uint8,))
    checks.tensor("weight", weight, (None, PACKED), DTYPES)
    checks.tensor("bias", bias, (weight.shape[0],), (torch.float32,))
    checks.same_device(crops=crops, region_map=region_map, weight=weight, bias=bias)
    if not (first >= 0 and inputs >= 1 and first + inputs <= 256):
        raise ValueError(f"the inputs {first} to {first + inputs - 1} are none that a map of bytes has")
    if 0 in region_map.shape[1:]:
        raise ValueError(f"crops have no pixels: their shape is {list(crops.shape)}")
    result: torch.Tensor = _op(crops, region_map, weight, bias, first, inputs)
    return result


def _implementation(
    crops: torch.Tensor, region_map: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, first: int, inputs: int
) -> torch.Tensor:
    module = backend.native("stem", crops.device.type) if weight.dtype in KERNEL_DTYPES else None
    if module is None:
        return reference.stem(crops, region_map, weight, bias, first, inputs)
    out: torch.Tensor = module.forward(
        crops.contiguous(), region_map.contiguous(), weight.contiguous(), bias.contiguous(), first, inputs
    )
    return out


def _fake(
    crops: torch.Tensor, region_map: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, first: int, inputs: int
) -> torch.Tensor:
    people, height, width = region_map.shape
    # Convolution and pooling both halve, rounding up.
    grid = ((height + 1) // 2 + 1) // 2, ((width + 1) // 2 + 1) // 2
    return weight.new_empty((people * inputs, *grid, weight.shape[0])).permute(0, 3, 1, 2)


_op = register(
    "stem(Tensor crops, Tensor region_map, Tensor weight, Tensor bias, int first, int inputs) -> Tensor",
    _implementation,
    _fake,
)
