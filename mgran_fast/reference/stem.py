"""The trunk's first stage on aligned inputs, in plain torch: 7x7 convolution, ReLU, max pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast.reference.inputs import everyone

#: Of the convolution; a row of the kernel is packed with one more pixel, whose weights are 0.
KERNEL, STRIDE, PADDING, WIDE, CHANNELS = 7, 2, 3, 8, 4
#: What the fourth channel of an input holds in its region: it carries the mean that a normalisation subtracts.
INSIDE = 255


def pack(weight: torch.Tensor) -> torch.Tensor:
    """[D, 4, 7, 7] -> [D, 7 * 32], in the order in which the kernel reads: row, pixel, channel."""
    d = weight.shape[0]
    rows = weight.new_zeros(d, KERNEL, WIDE, CHANNELS)
    rows[:, :, :KERNEL] = weight.permute(0, 2, 3, 1)
    return rows.flatten(1)


def unpack(packed: torch.Tensor) -> torch.Tensor:
    """What :func:`pack` packed."""
    return packed.view(-1, KERNEL, WIDE, CHANNELS)[:, :, :KERNEL].permute(0, 3, 1, 2)


def stem(
    crops: torch.Tensor, region_map: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, first: int, inputs: int
) -> torch.Tensor:
    """maxpool(relu(convolution(inputs) + bias)): [N * inputs, D, h, w] in the weights' dtype, channels_last.

    crops uint8 [N, H, W, 3], region_map uint8 [N, H, W], weight [D, 7 * 32] of :func:`pack`, bias [D]. The inputs are
    the bytes of the regions first to first + inputs - 1 and :data:`INSIDE` in a fourth channel, 0 elsewhere. Summed in
    float32, in float64 for float64 weights; rounded before the maximum is taken, which changes nothing.
    """
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    people, height, width = region_map.shape
    wanted = torch.arange(first, first + inputs, device=region_map.device)[None, :, None, None]
    inside = torch.where(wanted == 0, everyone(region_map)[:, None], region_map[:, None] == wanted)
    marked = torch.cat((crops, torch.full_like(crops[..., :1], INSIDE)), -1).permute(0, 3, 1, 2)
    images = (marked[:, None] * inside[:, :, None]).view(people * inputs, CHANNELS, height, width)
    y = F.conv2d(images.to(wide), unpack(weight).to(wide), bias.to(wide), STRIDE, PADDING).relu().to(weight.dtype)
    return F.max_pool2d(y, 3, 2, 1).contiguous(memory_format=torch.channels_last)
