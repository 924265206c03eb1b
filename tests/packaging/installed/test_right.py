"""That the installed kernels answer as plain torch does, one op after the other, and what is built from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mgran_fast
from mgran_fast import ops
from mgran_fast.metrics import rerank
from mgran_fast.ops import rows

SIZE = (64, 32)
CODE: dict[str, Callable[[], Any]] = {}
#: What equals its reference to the bit.
EXACT = ("crops", "regions", "inputs", "align", "rank")


@pytest.fixture(autouse=True)
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers in every test, and kernels where nothing else is said: a missing one is an error."""
    monkeypatch.setenv("MGRAN_BACKEND", "native")
    torch.manual_seed(0)


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    CODE[function.__name__] = function
    return function


def people(count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Crops uint8 [N, *SIZE, 3], masks [N, 16, 8], keypoints in the crops' pixels."""
    crops = torch.randint(0, 256, (count, *SIZE, 3), dtype=torch.uint8)
    return crops, torch.rand(count, 16, 8), torch.rand(count, 17, 3) * torch.tensor([32.0, 64.0, 1.0])


def tracks() -> dict[str, torch.Tensor]:
    return {
        "query_ids": torch.arange(6) % 3,
        "gallery_ids": torch.arange(40) % 4,
        "query_cameras": torch.zeros(6, dtype=torch.int64),
        "gallery_cameras": torch.arange(40) % 3,
    }


@case
def crops() -> Any:
    frame = torch.randint(0, 256, (120, 160, 3), dtype=torch.uint8)
    return ops.crops(frame, torch.tensor([[10.0, 10, 40, 90], [-20, 5, 170.5, 110]]), SIZE)


@case
def regions() -> Any:
    return ops.regions(*people()[1:], SIZE)


@case
def inputs() -> Any:
    return ops.inputs(people()[0], torch.randint(0, 4, (3, *SIZE), dtype=torch.uint8), dtype=torch.bfloat16)


@case
def align() -> Any:
    return tuple(ops.align(*people()))


@case
def pooling() -> Any:
    features = torch.rand(12, 70, 16, 8, requires_grad=True)
    region_map = torch.randint(0, 4, (3, *SIZE), dtype=torch.uint8)
    pooled = ops.pooling(features, region_map, torch.arange(4).repeat(3), "gem")
    return pooled, *torch.autograd.grad(pooled.square().sum(), features)


@case
def batchnorm() -> Any:
    x, weight, bias = (torch.randn(s, requires_grad=True) for s in ((8, 70, 5, 3), (70,), (70,)))
    mean, var = torch.zeros(70), torch.ones(70)
    y = ops.batchnorm(x, weight, bias, mean, var, torch.randn(8, 70, 5, 3), training=True, relu=True)
    return y, mean, var, *torch.autograd.grad(y.square().sum(), (x, weight, bias))


@case
def gathered() -> Any:
    index = torch.randint(-1, 7, (40,), dtype=torch.int32)
    inverse = rows.invert(index, 7)
    return rows.gather(torch.randn(7, 33), index), *inverse, rows.total(torch.randn(40, 33), inverse)


@case
def rank() -> Any:
    distances = torch.randint(0, 50, (6, 40)).float()  # with ties
    result = mgran_fast.rank(distances=distances, **tracks())
    return torch.tensor([result.map, result.at(1), result.at(5)])


@case
def reranked() -> Any:
    return rerank(torch.randn(6, 16), torch.randn(40, 16), k1=8, k2=3)


@pytest.mark.parametrize("name", CODE)
def test_equal_to_plain_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = []
    for backend in ("native", "reference"):
        monkeypatch.setenv("MGRAN_BACKEND", backend)
        torch.manual_seed(1)
        answers.append(CODE[name]())
    for native, plain in zip(*(one if isinstance(one, tuple) else (one,) for one in answers), strict=True):
        if name in EXACT:
            assert torch.equal(native, plain)
        else:
            torch.testing.assert_close(native, plain, rtol=1e-4, atol=1e-4)


@pytest.fixture
def model() -> mgran_fast.MGRAN:
    """With statistics that a trained one might have."""
    made = mgran_fast.MGRAN(trunk="resnet18", size=SIZE).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.4, 0.8)
            torch.nn.init.normal_(module.running_mean, std=0.1)
    return made


def test_model_out_of_the_box(model: mgran_fast.MGRAN) -> None:
    """Crops and nothing else: RegionNet's weights are in the wheel."""
    with torch.no_grad():
        embeddings = model(people()[0])
    assert embeddings.shape == (3, model.dim)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.99999), (torch.bfloat16, 0.99)])
def test_engine_answers_as_the_model(model: mgran_fast.MGRAN, dtype: torch.dtype, least: float) -> None:
    given = people()
    with torch.no_grad():
        want = model(*given)
    got = mgran_fast.optimize(model, dtype=dtype, device="cpu")(*given)
    assert got.dtype == torch.float32
    assert float((got * want).sum(1).min()) > least


def test_what_is_kept_is_found() -> None:
    embeddings = torch.nn.functional.normalize(torch.randn(20, 16))
    gallery = mgran_fast.Gallery()
    gallery.add(embeddings, [f"{n}.jpg" for n in range(20)])
    assert gallery.search(embeddings[7], k=1).entries[0][0].name == "7.jpg"
