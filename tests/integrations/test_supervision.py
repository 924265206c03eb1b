"""Embeddings of supervision's detections, with the real package."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mgran_fast import FeatureExtractor
from mgran_fast.integrations.supervision import embed


@pytest.fixture(scope="module")
def sv() -> Any:
    return pytest.importorskip("supervision")


@pytest.fixture
def detections(sv: Any, scene: Any) -> Any:
    confidence = np.linspace(0.5, 0.9, 5, dtype=np.float32)
    return sv.Detections(
        xyxy=scene.boxes, mask=scene.masks, confidence=confidence, data={"name": np.array(list("abcde"))}
    )


def test_embeddings_come_with_the_detections(sv: Any, extractor: FeatureExtractor, scene: Any, detections: Any) -> None:
    found = embed(extractor, scene.bgr, detections)
    want = extractor.extract(scene.frame, boxes=scene.boxes)
    assert np.abs(found.data["embedding"] - want.vectors.numpy()).max() < 1e-5
    assert np.array_equal(found.data["visible"], want.visible.numpy())
    assert np.array_equal(
        embed(extractor, scene.frame, detections, bgr=False).data["embedding"], found.data["embedding"]
    )
    # What was there stays, and what was given is as it was.
    assert found.data["name"].tolist() == list("abcde")
    assert found.confidence is detections.confidence
    assert list(detections.data) == ["name"]
    # A selection takes its rows along.
    some = found[found.confidence > 0.65]
    assert len(some) == 3
    assert np.array_equal(some.data["embedding"], found.data["embedding"][2:])
    merged = sv.Detections.merge([found[:1], found[3:]])
    assert np.array_equal(merged.data["visible"], found.data["visible"][[0, 3, 4]])


def test_masks(sv: Any, extractor: FeatureExtractor, scene: Any, detections: Any) -> None:
    with_masks = embed(extractor, scene.bgr, detections, masks=True).data
    without = embed(extractor, scene.bgr, detections).data
    assert with_masks["embedding"].shape == without["embedding"].shape
    assert np.abs(with_masks["embedding"] - without["embedding"]).max() > 1e-3
    with pytest.raises(ValueError, match="the detections have no masks"):
        embed(extractor, scene.bgr, sv.Detections(xyxy=scene.boxes), masks=True)


@pytest.mark.parametrize("masks", [False, True])
def test_nobody(sv: Any, extractor: FeatureExtractor, scene: Any, masks: bool) -> None:
    found = embed(extractor, scene.bgr, sv.Detections.empty(), masks=masks)
    assert found.data["embedding"].shape == (0, extractor.dim)
    assert found.data["visible"].shape == (0, 4)
