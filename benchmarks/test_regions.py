"""regions: against the same in plain torch, on people and on noise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mgran_fast import layouts, ops
from mgran_fast.reference import regions as reference

PEOPLE, SIZE = 64, (256, 128)
#: A standing person, in shares of the crop's width and height.
STANDING = (
    (0.50, 0.10), (0.53, 0.08), (0.47, 0.08), (0.56, 0.09), (0.44, 0.09), (0.65, 0.20), (0.35, 0.20), (0.70, 0.35),
    (0.30, 0.35), (0.70, 0.48), (0.30, 0.48), (0.60, 0.50), (0.40, 0.50), (0.60, 0.72), (0.40, 0.72), (0.60, 0.92),
    (0.40, 0.92),
)  # fmt: skip


def people(kind: str, mask_size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    extent = torch.tensor([float(SIZE[1]), float(SIZE[0]), 1.0])
    if kind == "noise":
        mask = torch.rand(PEOPLE, *mask_size, generator=generator)
        return mask, torch.rand(PEOPLE, 17, 3, generator=generator) * extent
    points = torch.tensor([[(*point, 1.0) for point in STANDING]]).repeat(PEOPLE, 1, 1)
    points[..., :2] += 0.03 * torch.randn(PEOPLE, 17, 2, generator=generator)
    height, width = mask_size
    y = (torch.arange(height) + 0.5)[:, None] / height - 0.5
    x = (torch.arange(width) + 0.5)[None] / width - 0.5
    # An ellipse that fills about half of the crop, soft at its edge.
    mask = torch.sigmoid(20 * (1 - (y / 0.47) ** 2 - (x / 0.35) ** 2)).expand(PEOPLE, height, width).contiguous()
    return mask, points * extent


@pytest.mark.parametrize("kind", ["people", "noise"])
@pytest.mark.parametrize("mask_size", [(256, 128), (64, 32)], ids=["full masks", "quarter masks"])
@pytest.mark.parametrize("layout", ["region", "box"])
def test_regions(compare: Callable[..., None], kind: str, mask_size: tuple[int, int], layout: str) -> None:
    mask, keypoints = people(kind, mask_size)
    assert len(STANDING) == len(layouts.KEYPOINTS)
    compare(
        f"regions, {PEOPLE} {kind}, layout {layout}, masks {mask_size[0]}x{mask_size[1]}",
        {
            "ours": lambda: ops.regions(mask, keypoints, SIZE, layout),
            "plain torch": lambda: reference.regions(mask, keypoints, SIZE, layout),
        },
        bars={"plain torch": 30.0},
        count=PEOPLE,
    )
