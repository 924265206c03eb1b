"""regions: the kernel beside its reference, on one batch of a ReID engine. Run by ``make bench``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mgran_fast import ops
from mgran_fast.ops import backend
from mgran_fast.reference import regions as reference

PEOPLE, MASK, SIZE = 16, (128, 64), (256, 128)


@pytest.mark.parametrize("implementation", ["native", "reference"])
@pytest.mark.parametrize("layout", ["region", "box"])
def test_regions(benchmark: Any, layout: str, implementation: str) -> None:
    """Masks of 128x64 to maps of 256x128, 16 people, torch's number of threads."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(PEOPLE, *MASK, generator=generator)
    keypoints = torch.rand(PEOPLE, 17, 3, generator=generator) * torch.tensor([SIZE[1], SIZE[0], 1.0])
    if implementation == "native" and backend.native("regions", "cpu") is None:
        pytest.skip("the extension is not built")
    run: Callable[..., torch.Tensor] = ops.regions if implementation == "native" else reference.regions
    benchmark.group = f"regions, {layout}, {PEOPLE} people"
    map_ = benchmark(run, mask, keypoints, SIZE, layout)
    assert map_.shape == (PEOPLE, *SIZE)
