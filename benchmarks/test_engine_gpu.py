"""The MA engine on a GPU against general ways to run the same trunk, in the same precision; skipped without one.

ResNet-50, crops of 256x128, four inputs each, crops and maps on the device. Every contestant waits for its result, so
host and device time both count.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mgran_fast import MGRAN, ops, optimize
from mgran_fast.ma import concatenate

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # torch.compile's own
]

SIZE = (256, 128)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def say(text: str) -> None:
    """Shown with -s."""
    sys.stdout.write(text + "\n")


@pytest.fixture
def threads() -> int:
    """Of the host: as torch has them."""
    return torch.get_num_threads()


@functools.cache
def people(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    from mgran_fast.data.synthetic import render

    views = [render(person, 0, 0, size=SIZE) for person in range(8)]
    crops, masks, keypoints = (
        torch.stack([torch.from_numpy(getattr(view, name)) for view in views]) for name in ("crop", "mask", "keypoints")
    )
    region_map = ops.regions(masks, keypoints, SIZE)
    again = -(-count // 8)
    return crops.repeat(again, 1, 1, 1)[:count].cuda(), region_map.repeat(again, 1, 1)[:count].cuda()


def model_of() -> MGRAN:
    torch.manual_seed(0)
    return MGRAN().eval().cuda()


def waiting(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        result = run()
        torch.cuda.synchronize()
        return result

    return call


def around(
    model: MGRAN, trunk: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype, count: int, four: bool = False
) -> Callable[[], torch.Tensor]:
    """From crops to embeddings with a trunk, by our own ops in front and behind; in four calls or in one."""
    crops, region_map = people(count)
    region = torch.arange(4, device="cuda").repeat(count)

    @torch.no_grad()
    def run() -> torch.Tensor:
        inputs = ops.inputs(crops, region_map, model.scale, model.mean, model.std, dtype=dtype)
        if four:
            features = torch.stack([trunk(inputs[:, i].contiguous()) for i in range(4)], 1).flatten(0, 1)
        else:
            features = trunk(inputs.flatten(0, 1))
        pooled = ops.pooling(features, region_map, region, model.ma.pooling).unflatten(0, (-1, 4))
        visible = ops.visibility(region_map, model.layout)
        return concatenate(model.ma.neck(pooled, visible), visible)

    return run


def trunk_of(model: MGRAN, dtype: torch.dtype, layout: torch.memory_format) -> Any:
    trunk = type(model.ma.trunk)(model.config["trunk"], last_stride=model.config["last_stride"]).eval()
    trunk.load_state_dict(model.ma.trunk.state_dict())
    return trunk.cuda().to(dtype).to(memory_format=layout)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [1, 8, 32])
@pytest.mark.parametrize("precision", DTYPES)
def test_engine(compare: Callable[..., None], request: pytest.FixtureRequest, precision: str, count: int) -> None:
    mode = request.config.getoption("--compile-mode")
    model, dtype = model_of(), DTYPES[precision]
    crops, region_map = people(count)
    want = model.cpu()(crops[:2].cpu(), region_map=region_map[:2].cpu())
    model.cuda()
    engine, apart = (optimize(model, dtype, graphs=graphs) for graphs in (True, False))
    plain = trunk_of(model, torch.float32, torch.contiguous_format)
    contestants = {
        "ours": lambda: engine(crops, region_map=region_map),
        "ours, without graphs": lambda: apart(crops, region_map=region_map),
        "four eager float32 calls": around(model, plain, torch.float32, count, four=True),
        "eager, the four inputs in one batch": around(model, trunk_of(model, dtype, torch.channels_last), dtype, count),
    }
    if mode != "none":
        torch.compiler.reset()
        compiled = torch.compile(trunk_of(model, dtype, torch.channels_last), mode=mode, dynamic=False)
        peer = around(model, compiled, dtype, count)
        try:
            peer()
            contestants[f"torch.compile, {mode}"] = peer
        except Exception as error:  # a compiler that does not run here is named, and left out
            say(f"torch.compile is left out: {type(error).__name__}: {str(error)[:200]}")
    for name, run in contestants.items():
        cosine = torch.cosine_similarity(run()[:2].cpu(), want)
        assert cosine.min() > 0.99, f"{name} computes something else: cosine {cosine.min():.4f}"
    general = [name for name in contestants if not name.startswith("ours")]
    compare(
        f"MA of {count} people on {torch.cuda.get_device_name()}, {precision}",
        {name: waiting(run) for name, run in contestants.items()},
        bars={"|".join(general): 1.15 if count == 8 else 1.0},
        count=count,
    )


@pytest.mark.parametrize("precision", DTYPES)
def test_first_result_and_memory(precision: str) -> None:
    """Seconds from a model to the first embeddings of 8 people, and the peak of the device's memory."""
    model, dtype = model_of(), DTYPES[precision]
    crops, region_map = people(8)
    with torch.no_grad():
        model(crops, region_map=region_map)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        model(crops, region_map=region_map)
    eager = torch.cuda.max_memory_allocated()
    start = time.perf_counter()
    engine = optimize(model, dtype)
    model.cpu()
    torch.cuda.reset_peak_memory_stats()
    engine(crops, region_map=region_map)
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated()
    say(f"\n{precision}: first result after {first:.2f} s; peak {peak >> 20} MB, of the eager model {eager >> 20} MB")
    assert peak <= eager
