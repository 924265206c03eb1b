"""``pointwise``: the kernel on a GPU, the reference elsewhere, against plain torch in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast import ops

# images, channels, grid, outs; channels of the shortcut and its stride, or None; whether there is a residual
CASES = [
    (2, 64, (5, 3), 64, None, False),
    (3, 128, (16, 8), 256, None, True),
    (2, 64, (9, 7), 200, (96, 2), False),
    (1, 40, (3, 2), 33, (24, 1), True),
    (1, 1, (1, 1), 1, (1, 3), False),
    (5, 512, (16, 8), 128, None, False),
]
# Of the sum of the terms' sizes: one rounding, and sums in float32.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2.0**-11 + 1e-5, torch.bfloat16: 2.0**-8 + 1e-5}


def arguments(case: Any, dtype: torch.dtype) -> tuple[dict[str, torch.Tensor | None], int]:
    images, channels, (h, w), outs, shortcut, residual = case
    g = torch.Generator().manual_seed(channels + outs)

    def rand(*shape: int) -> torch.Tensor:
        made = torch.randn(shape, generator=g).to(dtype)
        return made.to(memory_format=torch.channels_last) if made.dim() == 4 else made

    second, stride = shortcut or (0, 1)
    return {
        "x": rand(images, channels, h, w),
        "weight": rand(outs, channels),
        "bias": torch.randn(outs, generator=g),
        "residual": rand(images, outs, h, w) if residual else None,
        "shortcut": rand(images, second, h * stride, (w - 1) * stride + 1) if shortcut else None,
        "shortcut_weight": rand(outs, second) if shortcut else None,
    }, stride


def truth(given: dict[str, torch.Tensor | None], stride: int, relu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The answer in float64, and the sizes of the terms that were summed."""
    found = []
    for size in (False, True):
        wide = {key: None if t is None else t.double().abs() if size else t.double() for key, t in given.items()}
        x, weight, bias = wide["x"], wide["weight"], wide["bias"]
        assert x is not None
        assert weight is not None
        assert bias is not None
        y = F.conv2d(x, weight[:, :, None, None], bias)
        if wide["shortcut"] is not None and wide["shortcut_weight"] is not None:
            y = y + F.conv2d(wide["shortcut"], wide["shortcut_weight"][:, :, None, None], stride=stride)
        if wide["residual"] is not None:
            y = y + wide["residual"]
        found.append(y)
    return (found[0].relu() if relu else found[0]), found[1]


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """By torch's default cuDNN rounds float32 to 10 bits of fraction, and the reference on a GPU is plain torch."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("relu", [True, False])
def test_equals_plain_torch(device: Callable[[str], str], case: Any, dtype: torch.dtype, relu: bool) -> None:
    place = device("pointwise")
    given, stride = arguments(case, dtype)
    want, size = truth(given, stride, relu)
    moved = {key: None if t is None else t.to(place) for key, t in given.items()}
    got = ops.pointwise(**moved, stride=stride, relu=relu)  # type: ignore[arg-type]
    assert got.dtype == dtype
    assert got.shape == want.shape
    assert got.is_contiguous(memory_format=torch.channels_last)
    error = (got.cpu().double() - want).abs()
    assert bool((error <= TOLERANCES[dtype] * size).all())


def test_any_layout_and_nobody(device: Callable[[str], str]) -> None:
    place = device("pointwise")
    given, _ = arguments((4, 64, (6, 5), 32, None, True), torch.float16)
    moved = {key: t.to(place) for key, t in given.items() if t is not None}
    want = ops.pointwise(**moved)
    other = {key: t.contiguous() if t.dim() == 4 else t.repeat_interleave(2, 0)[::2] for key, t in moved.items()}
    assert torch.equal(ops.pointwise(**other), want)
    nobody = {key: t[:0] if t.dim() == 4 else t for key, t in moved.items()}
    assert ops.pointwise(**nobody).shape == (0, 32, 6, 5)


def test_nan_stays_nan(device: Callable[[str], str]) -> None:
    place = device("pointwise")
    x = torch.ones(1, 16, 2, 2, dtype=torch.float16, device=place)
    x[0, 3, 1, 0] = torch.nan
    got = ops.pointwise(x, torch.ones(16, 16, dtype=torch.float16, device=place), torch.zeros(16, device=place))
    assert got.isnan().sum() == 16
    assert got[0, :, 1, 0].isnan().all()


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"x": torch.zeros(2, 8, 4)}, ValueError, "x must have the shape"),
        ({"x": torch.zeros(2, 8, 4, 4, dtype=torch.int32)}, TypeError, "x must be"),
        ({"weight": torch.zeros(6, 9)}, ValueError, "weight must have the shape"),
        ({"weight": torch.zeros(6, 8, dtype=torch.float16)}, TypeError, "weight must be float32"),
        ({"bias": torch.zeros(5)}, ValueError, "bias must have the shape"),
        ({"residual": torch.zeros(2, 6, 4, 5)}, ValueError, "residual must have the shape"),
        ({"shortcut": torch.zeros(2, 3, 8, 8)}, ValueError, "comes with shortcut_weight"),
        ({"shortcut": torch.zeros(2, 3, 8, 8), "shortcut_weight": torch.zeros(6, 3)}, ValueError, "does not give"),
        (
            {"shortcut": torch.zeros(2, 3, 8, 8), "shortcut_weight": torch.zeros(6, 3), "stride": 0},
            ValueError,
            "at least 1",
        ),
    ],
)  # fmt: skip
def test_refuses(changed: dict[str, Any], error: type[Exception], words: str) -> None:
    good: dict[str, Any] = {"x": torch.zeros(2, 8, 4, 4), "weight": torch.zeros(6, 8), "bias": torch.zeros(6)}
    with pytest.raises(error, match=words):
        ops.pointwise(**(good | changed))
