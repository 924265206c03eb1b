"""inputs and align: against a copy of the bytes that they write, and against the same in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mgran_fast import ops
from mgran_fast.reference import inputs as reference

PEOPLE, SIZE = 64, (256, 128)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (PEOPLE, *SIZE, 3), dtype=torch.uint8, generator=generator)
    # Bands of head, upper and lower body in a box of background.
    map_ = torch.zeros(PEOPLE, *SIZE, dtype=torch.uint8)
    map_[:, 16:60, 40:88], map_[:, 60:130, 24:104], map_[:, 130:248, 32:96] = 1, 2, 3
    return crops, map_


@DTYPES
def test_inputs(compare: Callable[..., None], memory: str, dtype: torch.dtype) -> None:
    crops, map_ = batch()
    written = ops.inputs(crops, map_, dtype=dtype)
    target = torch.empty_like(written)
    # Like with like: where our result goes to memory that is there, so does the copy.
    copies = {"copy": written.clone}
    if memory == "kept memory":
        copies["copy into one place"] = lambda: target.copy_(written)
    compare(
        f"inputs, {PEOPLE} people, {str(dtype).removeprefix('torch.')}, {memory}",
        {
            "ours": lambda: ops.inputs(crops, map_, 1 / 256, MEAN, STD, dtype),
            **copies,
            "plain torch": lambda: reference.inputs(crops, map_, 1 / 256, MEAN, STD, dtype, 3),
        },
        bars={"|".join(copies): 1.0, "plain torch": 5.0},
        count=PEOPLE,
    )


@DTYPES
def test_align(compare: Callable[..., None], memory: str, dtype: torch.dtype) -> None:
    crops, _ = batch()
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(PEOPLE, 64, 32, generator=generator)
    keypoints = torch.rand(PEOPLE, 17, 3, generator=generator) * torch.tensor([128.0, 256.0, 1.0])

    def apart() -> torch.Tensor:
        map_ = ops.regions(mask, keypoints, SIZE)
        return ops.inputs(crops, map_, 1 / 256, MEAN, STD, dtype)

    compare(
        f"align, {PEOPLE} people, {str(dtype).removeprefix('torch.')}, {memory}",
        {
            "ours": lambda: ops.align(crops, mask, keypoints, mean=MEAN, std=STD, dtype=dtype, region_map=False),
            "regions, then inputs": apart,
        },
        count=PEOPLE,
    )
