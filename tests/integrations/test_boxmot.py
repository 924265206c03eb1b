"""BoxMOT's adapter: against BoxMOT 25 where it is installed, and against what BoxMOT 25 asks of it everywhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mgran_fast import FeatureExtractor, MGRANError, ops
from mgran_fast.integrations import frames
from mgran_fast.integrations.boxmot import ReID, corners
from mgran_fast.metrics.embedding import ESTIMATED_SIZE


# The contract in small: what BoxMOT 25 hands to an AppearanceEncoder.
@dataclass(frozen=True)
class Values:
    values: torch.Tensor


@dataclass(frozen=True)
class Frame:
    image: torch.Tensor  # uint8 [3, H, W], RGB, contiguous


@dataclass(frozen=True)
class Detections:
    geometry: Values
    masks: Values | None = None


def given(scene: Any, masks: bool = False) -> tuple[Frame, Detections]:
    image = torch.from_numpy(np.ascontiguousarray(scene.frame.transpose(2, 0, 1)))
    shown = Values(torch.from_numpy(scene.masks)) if masks else None
    return Frame(image), Detections(Values(torch.from_numpy(scene.boxes)), shown)


def accepted(features: NDArray[np.float32], rows: int, dim: int) -> NDArray[np.float32]:
    """What BoxMOT's trackers check and do with features."""
    assert isinstance(features, np.ndarray)
    assert features.dtype == np.float32
    assert features.shape == (rows, dim)
    assert np.isfinite(features).all()
    norms = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    assert (norms > 1e-12).all()
    return np.asarray(features / norms, np.float32)


def test_features_are_those_of_the_rgb_frame(extractor: FeatureExtractor, scene: Any) -> None:
    reid = ReID(extractor)
    assert reid.device == torch.device("cpu")
    assert reid.input_shape == ESTIMATED_SIZE
    assert reid.embedding_dim == extractor.dim
    found = accepted(reid.get_features(scene.boxes, scene.bgr), 5, extractor.dim)
    want = extractor(scene.frame, boxes=scene.boxes).numpy()
    assert np.abs(found - want).max() < 1e-5
    # The other order of the channels is another picture.
    assert np.abs(found - extractor(scene.bgr, boxes=scene.boxes).numpy()).max() > 1e-2
    # Rows of detections, and frames that are views of larger ones.
    rows = np.concatenate([scene.boxes, np.ones((5, 2), np.float32)], 1)
    wide = np.zeros((200, 400, 3), np.uint8)
    wide[:, :320] = scene.bgr
    assert np.array_equal(found, accepted(reid.get_features(rows, wide[:, :320]), 5, extractor.dim))


def test_either_is_turned_round(extractor: FeatureExtractor, scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = torch.from_numpy(scene.boxes)
    want = ops.crops(torch.from_numpy(scene.frame), boxes, ESTIMATED_SIZE)
    assert torch.equal(frames.cut(extractor, scene.bgr, boxes, bgr=True), want)
    assert torch.equal(frames.cut(extractor, scene.bgr, boxes[:1], bgr=True), want[:1])
    # Without OpenCV.
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert torch.equal(frames.cut(extractor, scene.bgr, boxes, bgr=True), want)
    assert torch.equal(frames.cut(extractor, scene.bgr, boxes[:1], bgr=True), want[:1])


def test_nobody_and_boxes_outside(extractor: FeatureExtractor, scene: Any) -> None:
    reid = ReID(extractor)
    for none in (np.zeros((0, 4), np.float32), np.zeros((0, 6), np.float32), []):
        accepted(reid.get_features(none, scene.bgr), 0, extractor.dim)
    odd = np.array(
        [[-500, -500, -400, -300], [300, 150, 900, 900], [10, 10, 10, 50], [float("nan"), 0, 5, 5], [-40, 0, 40, 200]],
        np.float32,
    )
    accepted(reid.get_features(odd, scene.bgr), len(odd), extractor.dim)


def test_rows_of_boxes() -> None:
    upright = np.array([[10, 20, 40, 60]], np.float32)
    assert corners(upright).tolist() == corners(np.c_[upright, 0.9, 0, 1, 2]).tolist() == upright.tolist()
    # Centre, width, height, angle.
    assert corners(np.array([[25, 40, 30, 40, 0]])).tolist() == upright.tolist()
    turned = corners(np.array([[25, 40, 40, 30, np.pi / 2, 0.9, 0]]))
    assert turned.numpy() == pytest.approx(upright, abs=1e-4)
    slanted = corners(np.array([[0, 0, 2, 2, -np.pi / 4]], np.float32))
    assert slanted.numpy() == pytest.approx(np.array([[-1, -1, 1, 1]]) * 2**0.5, abs=1e-5)
    for wrong in (np.zeros((2, 3)), np.zeros((1, 10)), np.zeros(4)):
        with pytest.raises(ValueError, match=r"boxes must be \[N, 4\]"):
            corners(wrong)


def test_encode(extractor: FeatureExtractor, scene: Any) -> None:
    reid = ReID(extractor)
    frame, detections = given(scene)
    nobody = Detections(Values(torch.zeros(0, 4)))
    alone = Detections(Values(detections.geometry.values[3:4]))
    found = reid.encode([frame, frame, frame], [detections, nobody, alone])
    assert [tuple(part.shape) for part in found] == [(5, extractor.dim), (0, extractor.dim), (1, extractor.dim)]
    for part in found:
        assert part.dtype == torch.float32
        assert part.device.type == "cpu"
        assert part.is_contiguous()
    want = torch.from_numpy(reid.get_features(scene.boxes, scene.bgr))
    assert float((found[0] - want).abs().max()) < 1e-5
    assert float((found[2] - want[3:4]).abs().max()) < 1e-5
    assert reid.encode([], []) == []
    with pytest.raises(ValueError, match="2 frames and 1 detections"):
        reid.encode([frame, frame], [detections])


def test_masks_are_of_their_own_detection(extractor: FeatureExtractor, scene: Any) -> None:
    boxes = torch.from_numpy(scene.boxes)
    cut = frames.cut_masks(scene.masks, boxes, ESTIMATED_SIZE)
    # As from the whole frame of each mask.
    for mask, box, found in zip(scene.masks, boxes, cut, strict=True):
        whole = torch.from_numpy(mask).to(torch.uint8)[..., None].repeat(1, 1, 3) * 255
        assert torch.equal(found, ops.crops(whole, box[None], ESTIMATED_SIZE)[0, ..., 0])
    assert cut.flatten(1).any(1).all()
    # Fractions of pixels, reaching outside, and wholly outside.
    odd = torch.tensor([[20.3, 39.5, 71.7, 166.2], [-30.5, -10, 60.2, 150], [400, 0, 500, 90], [5, 5, float("inf"), 9]])
    for mask, box, found in zip(scene.masks, odd, frames.cut_masks(scene.masks[:4], odd, (40, 20)), strict=False):
        whole = torch.from_numpy(mask).to(torch.uint8)[..., None].repeat(1, 1, 3) * 255
        assert torch.equal(found, ops.crops(whole, box[None], (40, 20))[0, ..., 0])

    frame, detections = given(scene, masks=True)
    reid = ReID(extractor, masks=True)
    (found,) = reid.encode([frame], [detections])
    crops = ops.crops(torch.from_numpy(scene.frame), boxes, ESTIMATED_SIZE)
    estimate = extractor.alignment.mra(crops)
    want = extractor.engine(crops, cut, estimate.keypoints)
    assert float((found - want).abs().max()) < 1e-5
    # They are used: an empty mask shows no region.
    assert detections.masks is not None
    (other,) = reid.encode(
        [frame], [Detections(detections.geometry, Values(torch.zeros_like(detections.masks.values)))]
    )
    assert float((found - other).abs().max()) > 1e-2
    (empty,) = reid.encode([frame], [Detections(Values(torch.zeros(0, 4)), Values(torch.zeros(0, 200, 320).bool()))])
    assert empty.shape == (0, extractor.dim)
    assert reid.encode([frame], [Detections(Values(torch.zeros(0, 4)))])[0].shape == (0, extractor.dim)
    with pytest.raises(ValueError, match="the detections have none"):
        reid.encode([frame], [given(scene)[1]])
    with pytest.raises(ValueError, match=r"masks must be bool \[N, H, W\] for N = 5 boxes, not \[4, 200, 320\]"):
        frames.cut_masks(scene.masks[:4], boxes, ESTIMATED_SIZE)


def test_without_boxmot(extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boxmot", None)
    monkeypatch.setitem(sys.modules, "boxmot.reid", None)
    with pytest.raises(MGRANError, match="pip install 'boxmot>=25'"):
        _ = ReID(extractor).requirements


def test_boxmot_itself(extractor: FeatureExtractor, scene: Any) -> None:
    pytest.importorskip("boxmot.reid")
    from boxmot import BotSort
    from boxmot.reid import AppearanceEncoder, EncoderRequirements
    from boxmot.structures import Boxes, MaskBatch
    from boxmot.structures import Detections as Found
    from boxmot.structures import Frame as Picture

    frame, detections = given(scene)
    picture = Picture(image=frame.image, sample_id="a")
    found = Found(
        geometry=Boxes(detections.geometry.values),
        scores=torch.full((5,), 0.9),
        class_ids=torch.zeros(5, dtype=torch.int64),
        sample_id="a",
        masks=MaskBatch(torch.from_numpy(scene.masks)),
    )
    for masks in (False, True):
        reid = ReID(extractor, masks=masks)
        assert isinstance(reid, AppearanceEncoder)
        assert reid.requirements == EncoderRequirements(masks=masks)
        found = found.with_embeddings(reid.encode([picture], [found])[0])
    tracker = BotSort(reid_model=ReID(extractor), use_cmc=False)
    rows = np.concatenate([scene.boxes, np.full((5, 1), 0.9, np.float32), np.zeros((5, 1), np.float32)], 1)
    tracks = [np.asarray(tracker.update(rows, scene.bgr)) for _ in range(3)]
    assert [len(some) for some in tracks] == [5, 5, 5]
    assert len(set(tracks[2][:, 4])) == 5
    assert sorted(tracks[0][:, 4]) == sorted(tracks[2][:, 4])
