"""``network``: windows of a whole trunk equal whole images to the bit where they are pooled, and its definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mgran_fast import ops
from mgran_fast.engine import cpu
from mgran_fast.engine.program import Program, program
from mgran_fast.ma.trunk import Trunk
from mgran_fast.ops.network import Network

Native = Callable[..., Any]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRECISIONS = [torch.float32, torch.bfloat16, torch.uint8]


def trunk(name: str = "resnet18", last_stride: int = 1) -> Trunk:
    torch.manual_seed(3)
    made = Trunk(name, last_stride=last_stride).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.4, 0.8)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            # Backgrounds that are far from 0.
            torch.nn.init.normal_(module.bias, std=0.3)
    return made


def packed(steps: Program, dtype: torch.dtype) -> list[Any]:
    normalisation: dict[str, Any] = {"scale": 1 / 256, "mean": MEAN, "std": STD}
    if dtype != torch.uint8:
        return cpu.float_steps(steps, dtype, **normalisation)
    channels = [4, *(layer[2] for layer in steps.layers((64, 64))[1:-1])]
    g = torch.Generator().manual_seed(1)
    scales = [0.01 + 0.02 * torch.rand(count, generator=g) for count in channels]
    scales[2] = scales[1]  # pooling keeps bytes as they are
    means = [torch.rand(count, generator=g) for count in channels]
    return cpu.byte_steps(steps, [torch.ones(4), *scales[1:]], means, **normalisation)


def people(size: tuple[int, int], seed: int, count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Random crops and maps: rectangles of regions anywhere, at the borders too, nobody, everybody, single pixels."""
    g = torch.Generator().manual_seed(seed)
    h, w = size
    crops = torch.randint(0, 256, (count, h, w, 3), generator=g, dtype=torch.uint8)
    region_map = torch.zeros(count, h, w, dtype=torch.uint8)
    for person in range(count):
        for region in range(1, 4):
            if torch.rand((), generator=g) < 0.2:
                continue
            rows = torch.randint(0, h + 1, (2,), generator=g).sort().values
            columns = torch.randint(0, w + 1, (2,), generator=g).sort().values
            region_map[person, rows[0] : rows[1], columns[0] : columns[1]] = region
    if count > 6:
        # Regions of single pixels among each other, and with a background between them.
        region_map[6:] = torch.randint(0, 4, (count - 6, h, w), generator=g, dtype=torch.uint8)
        region_map[7:][torch.rand((count - 7, h, w), generator=g) < 0.97] = 0
    region_map[0] = 0  # nobody
    region_map[1] = 2  # everybody
    region_map[2] = 0
    region_map[2, h - 1, w - 1] = 3
    region_map[2, 0, 0] = 1
    return crops, region_map


def pooled(network: Network, crops: torch.Tensor, region_map: torch.Tensor, *, windows: bool, mode: str = "mean",
           first: int = 0, inputs: int = 4) -> torch.Tensor:  # fmt: skip
    region = torch.arange(first, first + inputs).repeat(len(crops))
    with network.features(crops, region_map, first, inputs, windows=windows) as features:
        return ops.pooling(features, region_map, region, mode).clone()


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    ("name", "last_stride", "size"),
    [("resnet18", 1, (64, 32)), ("resnet18", 2, (61, 45)), ("resnet50", 1, (40, 23)), ("resnet18", 1, (7, 5))],
)
def test_windows_equal_whole_images_to_the_bit(
    native: Native, dtype: torch.dtype, name: str, last_stride: int, size: tuple[int, int]
) -> None:
    network = native(Network, packed(program(trunk(name, last_stride)), dtype), size)
    for seed in range(2):
        crops, region_map = people(size, seed, 8)
        for mode in ("mean", "max"):
            some = pooled(network, crops, region_map, windows=True, mode=mode)
            assert torch.equal(some, pooled(network, crops, region_map, windows=False, mode=mode))
        assert some.any()
        some = pooled(network, crops, region_map, windows=True, first=2, inputs=1)
        assert torch.equal(some, pooled(network, crops, region_map, windows=False)[2::4])


def test_what_is_computed(native: Native) -> None:
    """Nothing twice, and nothing that nobody asks for; regions without an input of their own count as others."""
    network = native(Network, packed(program(trunk()), torch.float32), (64, 32))
    crops, region_map = people((64, 32), 3)
    one, whole = region_map[1:2], network.work(region_map[1:2]).dense
    # Everybody is region 2: its input is that of the whole person, but the last layer, which is pooled, is its own.
    assert network.work(one[:0]) == (0, 0)
    alone, both = (network.work(one, 0, inputs).computed for inputs in (1, 4))
    last = network.layers[-1][0] * network.layers[-1][1] * 512 * (512 * 9)
    assert both - alone == last
    assert alone == whole // 4
    # Two regions that never meet are computed apart only where both are felt.
    region_map = torch.zeros(1, 64, 32, dtype=torch.uint8)
    region_map[:, :8], region_map[:, 56:] = 1, 3
    apart = network.work(region_map)
    region_map[:, 56:] = 200
    other = network.work(region_map)
    assert apart.computed < 0.75 * apart.dense
    assert other.computed <= apart.computed
    for map_ in (region_map, region_map.clamp(max=3)):
        some = pooled(network, crops[:1], map_, windows=True)
        assert torch.equal(some, pooled(network, crops[:1], map_, windows=False))


def test_more_regions_than_a_set_holds(native: Native) -> None:
    """Whole images, with the same answer."""
    network = native(Network, packed(program(trunk()), torch.float32), (64, 32))
    crops, _ = people((64, 32), 3)
    region_map = (torch.arange(64) // 3).to(torch.uint8)[None, :, None].repeat(2, 1, 32)
    work = network.work(region_map, 0, 18)
    assert work.computed == work.dense
    some = pooled(network, crops[:2], region_map, windows=True, inputs=18)
    assert torch.equal(some, pooled(network, crops[:2], region_map, windows=False, inputs=18))


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_whole_images_equal_the_definition(native: Native, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = packed(program(trunk()), dtype)
    crops, region_map = people((48, 24), 5)
    got = pooled(native(Network, steps, (48, 24)), crops, region_map, windows=True)
    monkeypatch.setenv("MGRAN_BACKEND", "reference")
    want = pooled(Network(steps, (48, 24)), crops, region_map, windows=True)
    assert torch.nn.functional.cosine_similarity(got, want)[want.any(1)].min() > (
        0.9999 if dtype != torch.bfloat16 else 0.999
    )


def test_float32_equals_the_trunk(native: Native) -> None:
    made = trunk("resnet50")
    network = native(Network, packed(program(made), torch.float32), (64, 32))
    crops, region_map = people((64, 32), 7)
    images = ops.inputs(crops, region_map, 1 / 256, MEAN, STD).flatten(0, 1)
    with torch.no_grad():
        want = ops.pooling(made(images), region_map, torch.arange(4).repeat(len(crops)))
    got = pooled(network, crops, region_map, windows=True)
    assert (got - want).abs().max() <= 2e-4 * want.abs().max()
