"""Labels made by an estimator: written once, taken up again, equal whatever interrupts the work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mgran_fast.data import DataSet, Problems
from mgran_fast.data.folder import list_pictures, read_folder
from mgran_fast.errors import DataError
from mgran_fast.mra.estimate import Estimate
from mgran_fast.train.mra.teacher import teach


class Teacher(torch.nn.Module):
    """The mask is where a crop is red, keypoint k lies at (k, k) pixels; counts what it is shown."""

    def __init__(self, bias: float = 0.0, stop: int | None = None) -> None:
        super().__init__()
        self.bias, self.stop, self.shown = torch.nn.Parameter(torch.tensor(bias)), stop, 0

    def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        if self.stop is not None and self.shown >= self.stop:
            raise KeyboardInterrupt
        self.shown += len(crops)
        places = torch.arange(17.0)[:, None].expand(17, 2)
        keypoints = torch.cat((places, torch.full((17, 1), 0.5)), 1).expand(len(crops), 17, 3)
        return Estimate(crops[..., 0] / 255, keypoints, torch.full((len(crops),), 0.75))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def pictures(tiny: DataSet, tmp_path: Path) -> Path:
    """The training pictures alone, 32x16 pixels."""
    shutil.copytree(tiny.root / "bounding_box_train", tmp_path / "pictures" / "bounding_box_train")
    return tmp_path / "pictures"


def test_labels_of_a_teacher(pictures: Path, tmp_path: Path) -> None:
    paths, told = list_pictures(pictures), []
    teach(
        Teacher(), paths, pictures, tmp_path / "labels", size=(64, 32), batch_size=7,
        progress=lambda *at: told.append(at),
    )  # fmt: skip
    found = read_folder(pictures, labels=[tmp_path / "labels"])
    assert len(found.pictures) == len(paths) == 24
    assert told[-1] == (24, 24)
    for one in found.pictures[:5]:
        assert one.presence.tolist() == [0.75]
        # The teacher saw the crop at twice its size.
        assert one.keypoints[0, 3].tolist() == [1.5, 1.5, 0.5]
        assert one.source is not None
        assert one.source.mask(0).shape == (64, 32), "a mask keeps the rows that the teacher gave"
        enlarged = Image.fromarray(one.read()).resize((32, 64), Image.Resampling.BILINEAR)
        assert np.abs(one.source.mask(0).astype(int) - np.array(enlarged)[..., 0]).max() <= 1
    assert not list((tmp_path / "labels").glob("*.jsonl"))


@pytest.mark.parametrize("broken", [False, True])
def test_interrupted_and_taken_up(broken: bool, pictures: Path, tmp_path: Path) -> None:
    paths = list_pictures(pictures)
    teach(Teacher(), paths, pictures, tmp_path / "whole", size=(32, 16), batch_size=4)
    output = tmp_path / "labels"
    with pytest.raises(KeyboardInterrupt):
        teach(Teacher(stop=8), paths, pictures, output, size=(32, 16), batch_size=4)
    if broken:
        # Killed in the middle of a line.
        with open(output / "keypoints.partial.jsonl", "a") as lines:
            lines.write('["bounding_box_train/0003')
    again = Teacher()
    teach(again, paths, pictures, output, size=(32, 16), batch_size=4)
    assert again.shown == 16, "what was written is not estimated again"
    assert contents(output) == contents(tmp_path / "whole")
    third = Teacher()
    teach(third, paths, pictures, output, size=(32, 16))
    assert third.shown == 0


def test_another_teacher_or_size(pictures: Path, tmp_path: Path) -> None:
    paths, output = list_pictures(pictures)[:2], tmp_path / "labels"
    teach(Teacher(), paths, pictures, output, size=(32, 16))
    before = contents(output)
    for teacher, size in ((Teacher(1.0), (32, 16)), (Teacher(), (64, 32))):
        with pytest.raises(DataError, match="holds labels of another teacher or of another --size"):
            teach(teacher, paths, pictures, output, size=size)
    assert contents(output) == before
    (output / "teacher.json").write_text("{")
    with pytest.raises(DataError, match="another teacher"):
        teach(Teacher(), paths, pictures, output, size=(32, 16))


def test_bad_pictures_get_no_labels(pictures: Path, tmp_path: Path) -> None:
    paths = list_pictures(pictures)[:3]
    paths[1].write_bytes(b"none")
    problems = Problems()
    teach(Teacher(), paths, pictures, tmp_path / "labels", size=(32, 16), problems=problems)
    assert problems.count == 1
    table = json.loads((tmp_path / "labels" / "keypoints.json").read_text())
    assert sorted(table) == [paths[i].relative_to(pictures).as_posix() for i in (0, 2)]


def test_an_answer_that_is_no_number_spoils_its_own_picture_only(pictures: Path, tmp_path: Path) -> None:
    class Broken(Teacher):
        def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
            found = super().forward(crops)
            keypoints, mask, presence = found.keypoints.clone(), found.mask.clone(), found.presence.clone()
            keypoints[0, 3, 1], mask[2, 0, 0], presence[3] = torch.nan, torch.inf, torch.nan
            return Estimate(mask, keypoints, presence)

    paths, problems = list_pictures(pictures)[:6], Problems()
    teach(Broken(), paths, pictures, tmp_path / "labels", size=(32, 16), problems=problems)
    assert [line.split(": ")[0] for line in problems.lines()] == [str(paths[i]) for i in (0, 2, 3)]
    assert all("not finite" in line for line in problems.lines())
    found = read_folder(pictures, labels=[tmp_path / "labels"])
    assert [one.path for one in found.pictures] == [paths[i] for i in (1, 4, 5)]


def test_where_nothing_can_be_written(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"labels: cannot be written \(Not a directory\)"):
        teach(Teacher(), list_pictures(pictures), pictures, tmp_path / "file" / "labels")
