"""What BoxMOT's trackers wait for before the network runs: boxes of a BGR frame as the network's input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mgran_fast import MGRAN, FeatureExtractor, ops
from mgran_fast.integrations.boxmot import corners
from mgran_fast.integrations.frames import cut

PEOPLE, SIZE, FRAME = 64, (256, 128), (1080, 1920)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WHAT = f"{PEOPLE} boxes of a {FRAME[1]}x{FRAME[0]} BGR frame"


class Peers:
    """The usual ways: one box after the other with OpenCV."""

    def __init__(self, cv2: Any) -> None:
        generator = np.random.default_rng(0)
        self.cv2, self.frame = cv2, generator.integers(0, 256, (*FRAME, 3), dtype=np.uint8)
        # People of 60 to 140 by 150 to 420 pixels, wholly inside of the frame, at whole pixels.
        extent = generator.integers((60, 150), (140, 420), (PEOPLE, 2))
        corner = generator.integers((0, 0), np.array(FRAME[::-1]) - extent)
        self.boxes = np.concatenate([corner, corner + extent], 1).astype(np.float32)
        self.mean, self.std = (255 * torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))

    def crop(self, box: list[int]) -> Any:
        left, top, right, bottom = box
        crop = self.cv2.cvtColor(self.frame[top:bottom, left:right], self.cv2.COLOR_BGR2RGB)
        return self.cv2.resize(crop, SIZE[::-1], interpolation=self.cv2.INTER_LINEAR)

    def as_bytes(self) -> torch.Tensor:
        """uint8 [N, h, w, 3]."""
        return torch.from_numpy(np.stack([self.crop(box) for box in self.boxes.astype(int).tolist()]))

    def by_torch(self) -> torch.Tensor:
        """float32 [N, 3, h, w], stacked, and then normalised."""
        return self.as_bytes().permute(0, 3, 1, 2).float().sub_(self.mean).div_(self.std)

    def by_numpy(self) -> torch.Tensor:
        """The same."""
        mean, std = (values.numpy().reshape(3) for values in (self.mean, self.std))
        pixels = (self.as_bytes().numpy().astype(np.float32) - mean) / std
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def each(self) -> torch.Tensor:
        """The same, normalised box by box, while a crop is in the cache; not stacked."""
        made = torch.empty(PEOPLE, 3, *SIZE)
        for target, box in zip(made, self.boxes.astype(int).tolist(), strict=True):
            target.copy_(torch.from_numpy(self.crop(box)).permute(2, 0, 1)).sub_(self.mean).div_(self.std)
        return made


@pytest.fixture
def peers(threads: int) -> Peers:
    cv2 = pytest.importorskip("cv2")
    cv2.setNumThreads(threads)
    return Peers(cv2)


@pytest.fixture(scope="module")
def extractor() -> FeatureExtractor:
    return FeatureExtractor(MGRAN(size=SIZE, trunk="resnet18"), device="cpu")


def test_as_the_engine_reads_them(
    compare: Callable[..., None], memory: str, extractor: FeatureExtractor, peers: Peers
) -> None:
    """Bytes: the engine folds the normalisation into its first convolution. Other networks want floats."""

    def ours() -> torch.Tensor:
        return cut(extractor, peers.frame, corners(peers.boxes), bgr=True)

    assert int((ours().int() - peers.as_bytes().int()).abs().max()) <= 1
    compare(
        f"BoxMOT's input, {WHAT}, bytes, {memory}",
        {"ours": ours, "cv2 per box": peers.as_bytes, "cv2 per box, normalised": peers.by_torch},
        bars={"cv2 per box, normalised": 3.0},
        count=PEOPLE,
    )


def test_as_floats(compare: Callable[..., None], memory: str, extractor: FeatureExtractor, peers: Peers) -> None:
    """Like with like once more: all write normalised float32."""
    whole = torch.ones(PEOPLE, *SIZE, dtype=torch.uint8)

    def ours() -> torch.Tensor:
        crops = cut(extractor, peers.frame, corners(peers.boxes), bgr=True)
        return ops.inputs(crops, whole, 1 / 255, MEAN, STD, regions=0)[:, 0]

    contestants = {"ours": ours, "torch": peers.by_torch, "numpy": peers.by_numpy, "each box": peers.each}
    want = peers.by_torch()
    for other in contestants.values():
        # One grey level, divided by the smallest standard deviation.
        assert float((other() - want).abs().max()) <= 1.01 / 255 / min(STD)
    compare(f"BoxMOT's input, {WHAT}, float32, {memory}", contestants, bars={"torch|numpy": 3.0}, count=PEOPLE)
