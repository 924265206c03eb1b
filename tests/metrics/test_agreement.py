"""Agreement of estimates with labels: figures that one can compute by hand, and what is not defined."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mgran_fast.data import Problems
from mgran_fast.data.folder import read_folder
from mgran_fast.data.labels import crops
from mgran_fast.data.synthetic import write
from mgran_fast.layouts import KEYPOINTS
from mgran_fast.metrics.agreement import Agreement, agreement, joined, measure
from mgran_fast.mra.estimate import Estimate

SHOULDERS, HIPS = (5, 6), (11, 12)


def person(n: int = 1, **changes: torch.Tensor) -> Estimate:
    """n people whose torso is 10 pixels long on either side, every keypoint visible, the left half their mask."""
    mask = torch.zeros(n, 8, 6)
    mask[:, :, :3] = 1
    keypoints = torch.ones(n, 17, 3)
    keypoints[:, SHOULDERS, 1], keypoints[:, HIPS, 1] = 2.0, 12.0
    return Estimate(changes.get("mask", mask), changes.get("keypoints", keypoints), torch.ones(n))


def moved(x: float, joint: int = 0) -> Estimate:
    keypoints = person().keypoints.clone()
    keypoints[:, joint, 0] += x
    return person(keypoints=keypoints)


def test_the_reference_agrees_with_itself() -> None:
    found = agreement(person(3), person(3))
    assert len(found) == 3
    assert found.mean_iou == 1.0
    assert found.within(0.0) == 1.0
    assert bool(found.visible.all())


def test_intersection_over_union() -> None:
    mask = torch.zeros(1, 8, 6)
    mask[:, :4, :4] = 0.5  # at the threshold is inside; 12 pixels in both, 24 + 16 - 12 in either
    assert agreement(person(mask=mask), person()).mean_iou == pytest.approx(12 / 28)
    assert agreement(person(mask=mask - 1e-3), person()).mean_iou == 0.0


def test_empty_masks() -> None:
    empty = torch.zeros(1, 8, 6)
    assert agreement(person(mask=empty), person(mask=empty)).mean_iou == 1.0
    assert agreement(person(mask=empty), person()).mean_iou == 0.0
    assert agreement(person(), person(mask=empty)).mean_iou == 0.0


def test_nan_is_background_and_no_keypoint() -> None:
    mask = torch.full((1, 8, 6), math.nan)
    assert agreement(person(mask=mask), person()).mean_iou == 0.0
    for value in (math.nan, math.inf):
        found = agreement(moved(value), person())
        assert found.keypoint_error[0, 0] == math.inf
        assert found.within() == pytest.approx(16 / 17)


@pytest.mark.parametrize(("distance", "share"), [(1.9, 1.0), (2.0, 1.0), (2.1, 16 / 17)])
def test_the_torso_is_the_unit(distance: float, share: float) -> None:
    found = agreement(moved(distance), person())
    assert float(found.keypoint_error[0, 0]) == pytest.approx(distance / 10)
    assert found.within(0.2) == pytest.approx(share)


def test_the_torso_is_the_mean_of_its_known_sides() -> None:
    keypoints = person().keypoints.clone()
    keypoints[:, HIPS[0], 1] = 32.0  # left 30, right 10
    assert float(agreement(moved(10.0), person(keypoints=keypoints)).keypoint_error[0, 0]) == pytest.approx(0.5)
    keypoints[:, HIPS[0], 2] = 0.0
    assert float(agreement(moved(10.0), person(keypoints=keypoints)).keypoint_error[0, 0]) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["unknown", "no length"])
def test_without_a_torso_nothing_counts(kind: str) -> None:
    keypoints = person().keypoints.clone()
    if kind == "unknown":
        keypoints[:, SHOULDERS, 2] = 0.0
    else:
        keypoints[..., 1] = 2.0
    found = agreement(person(), person(keypoints=keypoints))
    assert bool(found.keypoint_error.isnan().all())
    assert not bool(found.visible.any())
    assert math.isnan(found.within())


def test_hidden_keypoints_do_not_count() -> None:
    keypoints = person().keypoints.clone()
    keypoints[:, 0, 2], keypoints[:, 1, 2] = 0.4, 0.5
    found = agreement(moved(100.0), person(keypoints=keypoints))
    assert found.visible[0].tolist() == [False] + [True] * 16
    assert found.within() == 1.0


def test_people_without_labels() -> None:
    known = torch.tensor([True, False])
    empty = person(2, mask=torch.zeros(2, 8, 6))
    found = agreement(empty, person(2), has_mask=known, has_keypoints=~known)
    assert found.iou.tolist()[0] == 0
    assert math.isnan(found.iou.tolist()[1])
    assert found.mean_iou == 0.0
    assert found.visible.any(1).tolist() == [False, True]
    none = agreement(empty, person(2), has_mask=known & False, has_keypoints=known & False)
    assert math.isnan(none.mean_iou)
    assert math.isnan(none.within())


def test_shapes_must_be_equal() -> None:
    with pytest.raises(ValueError, match=r"mask: the estimate is \[1, 4, 6\], the reference is \[1, 8, 6\]"):
        agreement(person(mask=torch.zeros(1, 4, 6)), person())


def test_batches_are_joined() -> None:
    parts = [agreement(moved(3.0), person()), agreement(person(2), person(2))]
    found = joined(parts)
    assert len(found) == 3
    assert found.within() == pytest.approx(50 / 51)
    nothing = joined([])
    assert len(nothing) == 0
    assert math.isnan(nothing.mean_iou)
    assert isinstance(nothing, Agreement)
    assert nothing.keypoint_error.shape == (0, len(KEYPOINTS))


class Known:
    """An estimator that is told the answer, batch after batch."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers

    def __call__(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        n = len(crops)
        chosen, self.answers = self.answers[:n], self.answers[n:]
        keypoints = torch.stack([one.keypoints for one in chosen])
        return Estimate(torch.stack([one.mask for one in chosen]) / 255, keypoints, torch.ones(n))


def test_measuring_an_estimator_on_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "data", people=(2, 0), cameras=1, views=2, size=(32, 16))
    found = crops(read_folder(tmp_path / "data").pictures, (64, 32))
    told: list[tuple[int, int]] = []
    known = Known([found[i] for i in range(4)])
    right = measure(known, found, batch_size=3, progress=lambda *at: told.append(at))
    assert right.mean_iou == 1.0
    assert right.within(1e-6) == 1.0
    assert int(right.visible.sum()) > 20
    assert told == [(3, 4), (4, 4)]
    wrong = measure(Known([found[i] for i in (3, 2, 1, 0)]), found)
    assert wrong.mean_iou < 0.95
    # The first picture becomes unreadable: it is told, and the others are measured.
    found.pictures[0].path.write_bytes(b"")
    problems = Problems()
    assert len(measure(Known([found[i] for i in (1, 2, 3)]), found, problems=problems)) == 3
    assert problems.count == 1
