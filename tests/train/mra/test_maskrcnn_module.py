"""What the detector is given: crops as pictures with one box, mirrored pictures with mirrored labels."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from mgran_fast.data.labels import LabelledBatch
from mgran_fast.layouts import KEYPOINTS
from mgran_fast.train.mra.config import MRAConfig
from mgran_fast.train.mra.maskrcnn import MaskRCNNModule, _prepared, targets


def batch() -> LabelledBatch:
    masks = torch.zeros(3, 8, 6, dtype=torch.uint8)
    masks[0, :, :2] = 255
    keypoints = torch.zeros(3, 17, 3)
    keypoints[0, KEYPOINTS.index("left_wrist")] = torch.tensor([1.0, 2.0, 0.9])
    keypoints[0, KEYPOINTS.index("nose")] = torch.tensor([2.0, 1.0, 0.2])
    return LabelledBatch(
        crops=torch.zeros(3, 8, 6, 3, dtype=torch.uint8),
        masks=masks,
        keypoints=keypoints,
        has_mask=torch.tensor([True, False, True]),
        has_keypoints=torch.tensor([True, False, True]),
        presence=torch.tensor([1.0, 0.5, 0.49]),
        indices=torch.arange(3),
    )


def test_a_crop_is_the_box_of_its_person_or_nobodys() -> None:
    found = targets(batch())
    assert [one["boxes"].tolist() for one in found] == [[[0, 0, 6, 8]], [[0, 0, 6, 8]], []]
    assert [one["has_mask"].tolist() for one in found] == [[True], [False], []]
    assert torch.equal(found[0]["masks"], batch().masks[:1])
    assert [len(one["keypoints"]) for one in found] == [1, 1, 0]


def test_unsure_keypoints_teach_nothing() -> None:
    found = _prepared(targets(batch())[0], 6, False)
    assert found["keypoints"][0, KEYPOINTS.index("nose")].tolist() == [0, 0, 0]
    assert found["keypoints"][0, KEYPOINTS.index("left_wrist"), 2] > 0.8


def test_a_mirrored_target() -> None:
    target = {**targets(batch())[0], "boxes": torch.tensor([[1.0, 0.0, 3.0, 8.0]])}
    found = _prepared(target, 6, True)
    assert found["boxes"].tolist() == [[3, 0, 5, 8]]
    assert found["masks"][0, 0].tolist() == [0, 0, 0, 0, 255, 255]
    assert found["keypoints"][0, KEYPOINTS.index("right_wrist")].tolist()[:2] == [5, 2]
    assert int((found["keypoints"][..., 2] > 0).sum()) == 1
    again = _prepared(found, 6, True)
    assert torch.equal(again["boxes"], target["boxes"])
    assert torch.equal(again["masks"], target["masks"])


class Detector(torch.nn.Module):
    """Keeps the sizes of what it is calibrated with."""

    def __init__(self) -> None:
        super().__init__()
        self.calibrated: list[int] = []

    def calibrate(self, pictures: torch.Tensor) -> None:
        self.calibrated.append(len(pictures))

    def losses(self, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        return {"loss_mask": torch.zeros(())}


def test_calibrated_once_with_the_first_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch without pictures counts as a step of Lightning's."""
    config, detector, step = MRAConfig(model="maskrcnn"), Detector(), [0]
    monkeypatch.setattr(MaskRCNNModule, "global_step", property(lambda self: step[0]))
    monkeypatch.setattr(MaskRCNNModule, "log_dict", lambda *_, **__: None)
    module = MaskRCNNModule(detector, config, 9, calibrate=True)  # type: ignore[arg-type]
    fields = {name: value[:0] for name, value in vars(batch()).items() if isinstance(value, torch.Tensor)}
    assert module.training_step(dataclasses.replace(batch(), **fields), 0) is None
    for step[0] in (1, 2):
        module.training_step(batch(), step[0])
    assert detector.calibrated == [3]
    # Nor a resumed run.
    again = MaskRCNNModule(detector, config, 9, calibrate=True)  # type: ignore[arg-type]
    again.on_load_checkpoint({})
    again.training_step(batch(), 3)
    assert detector.calibrated == [3]
