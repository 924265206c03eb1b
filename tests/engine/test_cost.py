"""What a pass costs on paper, against sums by hand."""

from __future__ import annotations

from collections import Counter as Sums
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast import ops
from mgran_fast.engine.cost import DTYPES, GPUS, Cost, Counter, Part, costs, size_of
from mgran_fast.engine.program import program
from mgran_fast.ma.trunk import Trunk

SIZE = (64, 32)
FOUR, BATCH, ENGINE = "four eager float32 calls", "eager, one batch", "engine"
SMALL: dict[str, Any] = {"size": SIZE, "trunk": "resnet18"}


def launches(cost: Cost) -> Sums[str]:
    found: Sums[str] = Sums()
    for part in cost.parts:
        found[part.name] += part.launches
    return found


def moved(cost: Cost, name: str) -> int:
    return sum(part.bytes for part in cost.parts if part.name == name)


# --- operations and launches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trunk", "last_stride", "precision"),
    [("resnet18", 1, "bfloat16"), ("resnet18", 2, "float32"), ("resnet50", 1, "float16"), ("resnet50", 2, "bfloat16")],
)
@pytest.mark.parametrize("shape", ["full", "single"])
def test_operations_are_the_programs(trunk: str, last_stride: int, precision: str, shape: str) -> None:
    size = (50, 37)
    found = costs(3, size, trunk, last_stride=last_stride, shape=shape, dtype=DTYPES[precision])
    image = 2 * program(Trunk(trunk, last_stride=last_stride).eval()).multiply_adds(size)
    inputs = 4 if shape == "full" else 1
    wanted = {FOUR: 3 * 4 * image, BATCH: 3 * inputs * image, ENGINE: 3 * inputs * image}
    assert {name: cost.operations for name, cost in found.items()} == wanted


def test_launches_of_a_resnet50() -> None:
    found = costs(8)
    # 16 blocks of three convolutions: two products, of which the last takes the shortcut in, and cuDNN's 3x3.
    engine = launches(found[ENGINE])
    assert [engine.pop(name) for name in ("stem", "pointwise", "convolution", "pooling")] == [4, 32, 16, 2]
    # Visibility, BNNeck and norm; what a profile showed of them, all in all, was 22.
    assert 10 <= engine.total() <= 22
    for name, times in ((BATCH, 1), (FOUR, 4)):
        eager = launches(found[name])
        norms = sum(count for kind, count in eager.items() if "batch_norm" in kind)
        assert eager["convolution"] == norms == 53 * times
        assert (eager["relu_"], eager["add_"], eager["max_pool2d_with_indices"]) == (49 * times, 16 * times, times)
        assert eager["inputs"] == 2
        assert eager["pooling"] == 2 * times


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("shape", ["full", "single"])
def test_the_engine_launches_and_moves_less(precision: str, shape: str) -> None:
    found = costs(2, **SMALL, shape=shape, dtype=DTYPES[precision])
    assert [cost.dtype for cost in found.values()] == [torch.float32, DTYPES[precision], DTYPES[precision]]
    for what in ("launches", "bytes"):
        four, batch, engine = (getattr(found[name], what) for name in (FOUR, BATCH, ENGINE))
        assert four > batch > engine > 0


def test_people_cost_bytes_and_operations_but_no_launches() -> None:
    one, two, four = (costs(people, **SMALL) for people in (1, 2, 4))
    for name in one:
        assert one[name].launches == two[name].launches == four[name].launches
        assert (two[name].operations, four[name].operations) == (2 * one[name].operations, 4 * one[name].operations)
        # Weights are read once, however many there are.
        a_person = two[name].bytes - one[name].bytes
        assert four[name].bytes == one[name].bytes + 3 * a_person
        assert 0 < a_person < one[name].bytes


# --- bytes by hand ------------------------------------------------------------------------------------------------

# Of a ResNet-18 at 64x32, whose first stage leaves 16x8 cells of 64 channels: cells and channels read and made, kernel.
CONVOLUTIONS = [
    *[(128, 64, 128, 64, 3)] * 4,
    (128, 64, 32, 128, 3), *[(32, 128, 32, 128, 3)] * 3, (128, 64, 32, 128, 1),
    (32, 128, 8, 256, 3), *[(8, 256, 8, 256, 3)] * 3, (32, 128, 8, 256, 1),
    (8, 256, 8, 512, 3), *[(8, 512, 8, 512, 3)] * 3, (8, 256, 8, 512, 1),
]  # fmt: skip
#: Cells times channels at the end of each of the eight blocks, where a residual is added.
RESIDUALS = (*[128 * 64] * 2, *[32 * 128] * 2, *[8 * 256] * 2, *[8 * 512] * 2)


def test_bytes_of_a_resnet18s_convolutions() -> None:
    people = 3
    images = 4 * people
    found = costs(people, **SMALL)
    cells = sum(read * channels + made * outs for read, channels, made, outs, _ in CONVOLUTIONS)
    weights = sum(outs * channels * k * k for _, channels, _, outs, k in CONVOLUTIONS)
    biases = sum(outs for *_, outs, k in CONVOLUTIONS if k == 3)
    # A shortcut's convolution has no bias; the block's last one adds it as a residual.
    wanted = 2 * (images * (cells + sum(RESIDUALS)) + weights + biases)
    assert moved(found[ENGINE], "convolution") == wanted
    assert launches(found[ENGINE])["convolution"] == len(CONVOLUTIONS) == 19
    # The eager model's first convolution is one of them, and biases and residuals are operators apart.
    cells, weights = cells + 64 * 32 * 3 + 32 * 16 * 64, weights + 64 * 3 * 7 * 7
    assert moved(found[BATCH], "convolution") == 2 * (images * cells + weights)
    assert moved(found[BATCH], "add_") == 2 * 3 * images * sum(RESIDUALS)
    assert moved(found[FOUR], "convolution") == 4 * (images * cells + 4 * weights)


def test_bytes_of_the_stem_and_of_pooling() -> None:
    found = costs(1, **SMALL, shape="single")[ENGINE]
    pixels, packed, made, pooled = 64 * 32, 70 * 40 * 4, 32 * 16 * 64, 16 * 8 * 64
    weights = 2 * 64 * 7 * 32 + 4 * 64
    assert moved(found, "stem") == 3 * pixels + 2 * pixels + 2 * 4 + 2 * (2 * packed + 2 * made + pooled) + weights
    # Four regions of 4x2 cells: features, map, region twice, shares written and read, the sums.
    assert moved(found, "pooling") == 4 * (2 * 8 * 512 + pixels + 2 * 8 + 2 * 4 * 8 + 2 * 512)


def test_a_block_with_a_product_for_its_shortcut() -> None:
    found = costs(1, SIZE, "resnet50", shape="single")[ENGINE]
    # conv1 of the first block, and its conv3 with the shortcut's product: 64 -> 256, twice.
    first, last = [part for part in found.parts if part.name == "pointwise"][:2]
    assert first == ("pointwise", 1, 2 * (128 * 64 + 64 * 64 + 128 * 64) + 4 * 64, 2 * 128 * 64 * 64)
    read = 128 * 64 + 128 * 64 + 2 * 64 * 256
    assert last == ("pointwise", 1, 2 * (read + 128 * 256) + 4 * 256, 2 * 128 * 256 * (64 + 64))


# --- the counter ----------------------------------------------------------------------------------------------------


def test_views_and_memory_are_free() -> None:
    with Counter() as counter:
        x = torch.empty(2, 3, 4)
        x.view(6, 4).t()[1:].unsqueeze(0).expand(5, 3, 6).detach()
        torch.empty_like(x).flatten()
        torch.add(torch.empty(0), 1)
    assert counter.parts == []


def test_operators_of_torch() -> None:
    x, weight, bias = torch.rand(2, 3, 8, 6), torch.rand(5, 3, 3, 3), torch.rand(5)
    y = 2 * 5 * 6 * 4
    with Counter() as counter, torch.no_grad():
        F.conv2d(x, weight)
        F.conv2d(x, weight, bias)
        x.relu_()
        torch.rand(4, 7) @ torch.rand(7, 2)
    plain, biased, relu, *_, product = counter.parts
    assert plain == ("convolution", 1, 4 * (288 + 135 + y), 2 * y * 27)
    # The bias is read, and the result once more read and written.
    assert biased == ("convolution", 2, 4 * (288 + 135 + 5 + 3 * y), 2 * y * 27)
    assert relu == ("relu_", 1, 4 * 2 * 288, 0)
    assert product == ("mm", 1, 4 * (28 + 14 + 8), 2 * 4 * 7 * 2)


def test_an_unknown_op_of_ours_is_not_guessed() -> None:
    with Counter(), pytest.raises(NotImplementedError, match=r"the cost of mgran_fast\.regions is not known"):
        ops.regions(torch.ones(1, 8, 4), torch.zeros(1, 17, 3), (8, 4))


def test_size_of_repeated_memory() -> None:
    x = torch.zeros(3, 1, dtype=torch.int16)
    assert size_of([x, {"y": (x.expand(3, 9), None, 5)}]) == 2 * 3 + 2 * 3
    assert size_of(torch.zeros(3, 0)) == 0


def test_floors() -> None:
    a100, h100 = GPUS
    assert (a100.name, h100.name) == ("A100", "H100")

    def cost(moved: float, done: float, dtype: torch.dtype) -> Cost:
        return Cost(dtype, (Part("a", 1, int(moved), 0), Part("b", 1, 0, int(done))))

    assert h100.floor(cost(3.35e9, 9e11, torch.bfloat16)) == pytest.approx(1e-3)
    assert h100.floor(cost(3.35e9, 2 * 9.89e11, torch.float16)) == pytest.approx(2e-3)
    assert a100.floor(cost(1, 1.56e11, torch.float32)) == pytest.approx(1e-3)
    assert a100.floor(cost(2.04e9, 1, torch.float32)) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shape": "crop"}, "shape must be one of full, single, not 'crop'"),
        ({"dtype": torch.float64}, "dtype must be one of bfloat16, float16, float32, not torch.float64"),
        ({"people": 0}, "there must be people and pixels to count: 0 people, 256 x 128"),
        ({"size": (0, 8)}, "there must be people and pixels to count: 8 people, 0 x 8"),
        ({"trunk": "vgg"}, "trunk must be one of resnet18"),
        ({"last_stride": 3}, "last_stride must be 1 or 2, not 3"),
    ],
)
def test_what_cannot_be_counted(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        costs(**options)
