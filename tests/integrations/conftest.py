"""A small model, the extractor made of it, and a frame with drawn people in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from mgran_fast import MGRAN, FeatureExtractor
from mgran_fast.data.synthetic import render

SIZE = (64, 32)


@pytest.fixture(scope="session")
def model() -> MGRAN:
    torch.manual_seed(0)
    return MGRAN(size=SIZE, trunk="resnet18").eval()


@pytest.fixture(scope="session")
def extractor(model: MGRAN) -> FeatureExtractor:
    return FeatureExtractor(model, device="cpu", batch_size=3)


@dataclass(frozen=True)
class Scene:
    """A frame uint8 [H, W, 3], RGB; boxes float32 [N, 4]; masks bool [N, H, W]."""

    frame: npt.NDArray[np.uint8]
    boxes: npt.NDArray[np.float32]
    masks: npt.NDArray[np.bool_]

    @property
    def bgr(self) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(self.frame[..., ::-1])


@pytest.fixture(scope="session")
def scene() -> Scene:
    """Five people, the last one partly outside of the frame."""
    frame = np.full((200, 320, 3), (70, 90, 110), np.uint8)
    boxes: list[tuple[int, ...]] = []
    masks: Any = np.zeros((5, *frame.shape[:2]), bool)
    for i in range(5):
        view = render(i, 0, 0, size=(120, 60))
        left, top = 10 + 60 * i, 40
        right = min(left + 60, frame.shape[1])
        shown = view.mask[:, : right - left] > 0.5
        frame[top : top + 120, left:right][shown] = view.crop[:, : right - left][shown]
        masks[i, top : top + 120, left:right] = shown
        boxes.append((left, top, left + 60 + (20 if i == 4 else 0), top + 120))
    return Scene(frame, np.array(boxes, np.float32), masks)
