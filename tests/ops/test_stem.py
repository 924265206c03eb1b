"""``stem``: aligned inputs, first convolution and pooling in one, against the ops that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast import ops
from mgran_fast.engine.cpu import normalising
from mgran_fast.reference import stem as reference

MEAN, STD, SCALE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 256
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
SIZES = [(64, 32), (13, 9), (1, 1), (7, 18), (256, 128)]


def people(size: tuple[int, int], count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """The second person's map is empty."""
    g = torch.Generator().manual_seed(size[0])
    crops = torch.randint(0, 256, (count, *size, 3), dtype=torch.uint8, generator=g)
    region_map = torch.randint(0, 4, (count, *size), dtype=torch.uint8, generator=g)
    region_map[1:2] = 0
    return crops, region_map


def weights(outs: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(outs)
    return torch.randn((outs, 3, 7, 7), generator=g) / 12, torch.randn(outs, generator=g)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """By torch's default cuDNN rounds float32 to 10 bits of fraction, and the reference on a GPU is plain torch."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("first", "inputs"), [(0, 4), (2, 1)])
def test_equals_inputs_convolution_and_pooling(
    device: Callable[[str], str], size: tuple[int, int], dtype: torch.dtype, first: int, inputs: int
) -> None:
    place = device("stem")
    crops, region_map = people(size)
    weight, bias = weights()
    images = ops.inputs(crops, region_map, SCALE, MEAN, STD)[:, first : first + inputs].flatten(0, 1)
    want = F.max_pool2d(F.conv2d(images.double(), weight.double(), bias.double(), 2, 3).relu(), 3, 2, 1)
    packed = reference.pack(normalising(weight.double(), SCALE, MEAN, STD)).to(place, dtype)
    got = ops.stem(crops.to(place), region_map.to(place), packed, bias.to(place), first=first, inputs=inputs)
    assert got.dtype == dtype
    assert got.shape == want.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    error = (got.cpu().double() - want).abs().max()
    assert error <= TOLERANCES[dtype] * want.abs().max()


def test_pack_and_unpack() -> None:
    weight = torch.randn(5, 4, 7, 7)
    assert torch.equal(reference.unpack(reference.pack(weight)), weight)


def test_odd_channels_strides_and_nobody(device: Callable[[str], str]) -> None:
    place = device("stem")
    crops, region_map = people((20, 14), 4)
    weight, bias = weights(30)
    packed = reference.pack(normalising(weight.double(), 1.0, (0.0,) * 3, (1.0,) * 3)).to(place, torch.float16)
    crops, region_map, bias = crops.to(place), region_map.to(place), bias.to(place)
    want = ops.stem(crops, region_map, packed, bias, first=0, inputs=4)
    assert want.shape == (16, 30, 5, 4)
    wide = crops.repeat_interleave(2, 0)[::2], region_map.repeat_interleave(2, 2)[:, :, ::2]
    assert torch.equal(ops.stem(*wide, packed, bias, first=0, inputs=4), want)
    assert ops.stem(crops[:0], region_map[:0], packed, bias, first=0, inputs=4).shape == (0, 30, 5, 4)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"crops": torch.zeros(2, 8, 4, 4, dtype=torch.uint8)}, ValueError, "crops must have the shape"),
        ({"region_map": torch.zeros(2, 8, 5, dtype=torch.uint8)}, ValueError, "region_map must have the shape"),
        ({"region_map": torch.zeros(2, 8, 4)}, TypeError, "region_map must be uint8"),
        ({"weight": torch.zeros(6, 147)}, ValueError, "weight must have the shape"),
        ({"bias": torch.zeros(7)}, ValueError, "bias must have the shape"),
        ({"inputs": 0}, ValueError, "are none"),
        ({"first": 253, "inputs": 4}, ValueError, "are none"),
        (
            {"crops": torch.zeros(2, 0, 4, 3).byte(), "region_map": torch.zeros(2, 0, 4).byte()},
            ValueError,
            "no pixels",
        ),
    ],
)  # fmt: skip
def test_refuses(changed: dict[str, Any], error: type[Exception], words: str) -> None:
    good: dict[str, Any] = {
        "crops": torch.zeros(2, 8, 4, 3, dtype=torch.uint8),
        "region_map": torch.zeros(2, 8, 4, dtype=torch.uint8),
        "weight": torch.zeros(6, 224),
        "bias": torch.zeros(6),
        "first": 0,
        "inputs": 4,
    }
    with pytest.raises(error, match=words):
        ops.stem(**(good | changed))
