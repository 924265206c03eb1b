"""crops: against a loop of cv2.resize over the same boxes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mgran_fast import ops
from mgran_fast.bench.suite.ops import by_opencv

PEOPLE, SIZE, FRAME = 64, (256, 128), (1080, 1920)


def test_crops(compare: Callable[..., None]) -> None:
    pytest.importorskip("cv2")
    generator = torch.Generator().manual_seed(0)
    frame = torch.randint(0, 256, (*FRAME, 3), dtype=torch.uint8, generator=generator)
    # People of 60 to 140 by 150 to 420 pixels, wholly inside of the frame, at whole pixels.
    extent = torch.tensor([60, 150]) + (torch.rand(PEOPLE, 2, generator=generator) * torch.tensor([80, 270])).int()
    corner = (torch.rand(PEOPLE, 2, generator=generator) * (torch.tensor([FRAME[1], FRAME[0]]) - extent)).int()
    boxes = torch.cat([corner, corner + extent], 1)
    peer = by_opencv(frame.numpy(), boxes.tolist(), SIZE)
    boxes = boxes.float()
    assert int((ops.crops(frame, boxes, SIZE).int() - peer().int()).abs().max()) <= 1
    compare(
        f"crops, {PEOPLE} boxes of a {FRAME[1]}x{FRAME[0]} frame",
        {"ours": lambda: ops.crops(frame, boxes, SIZE), "cv2.resize": peer},
        bars={"cv2.resize": 2.0},
        count=PEOPLE,
    )
