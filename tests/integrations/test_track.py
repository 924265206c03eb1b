"""docs/examples/track.py: who was hidden is found again, a stranger is not taken for them; MOTChallenge's files."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mgran_fast import MGRAN, DataError
from mgran_fast.data.synthetic import render

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "track.py"


@pytest.fixture(scope="module")
def track() -> Any:
    spec = importlib.util.spec_from_file_location("track_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["track_example"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network that knows the statistics of some pictures: it tells people apart by their colours."""
    torch.manual_seed(0)
    model = MGRAN(size=(64, 32), trunk="resnet18").train()
    model.ma.neck.momentum = 1.0
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    crops = np.stack([render(person, 1, view, size=(128, 64)).crop for person in range(10, 26) for view in range(2)])
    with torch.no_grad():
        # Running statistics are taken over: once for the trunk, and of what it then answers for the neck.
        for _ in range(2):
            model(torch.from_numpy(crops))
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model.eval().save(path)
    return path


def rows(path: Path) -> list[list[float]]:
    return [[float(value) for value in line.split(",")] for line in path.read_text().splitlines()]


def test_people_keep_their_identities(track: Any, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "tracks.txt"
    assert track.main(["--checkpoint", str(checkpoint), "--distance", "0.65", "--output", str(output)]) == 0
    said = capsys.readouterr().out
    assert "4 identities" in said
    assert "everybody kept one identity" in said
    # The first person is out of sight for long, and the fourth comes meanwhile.
    found = rows(output)
    first = [int(row[0]) for row in found if row[1] == 1]
    assert max(np.diff(first)) > 10
    assert first[-1] == 90
    assert {row[1] for row in found} == {1, 2, 3, 4}
    assert all(len(row) == 10 and row[4] > 0 and row[5] > 0 for row in found)
    assert [row[0] for row in found] == sorted(row[0] for row in found)
    # By overlap alone it fails on the same boxes.
    options = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / "other.txt")]
    assert track.main([*options, "--no-appearance"]) == 1
    said = capsys.readouterr().out
    assert "5 identities" in said
    assert "identities were lost or exchanged" in said
    assert [row[:1] + row[2:] for row in rows(tmp_path / "other.txt")] == [row[:1] + row[2:] for row in found]


def test_a_folder_with_boxes(track: Any, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "img1"
    folder.mkdir()
    lines = []
    for number, frame in enumerate(list(track.drawn())[:3], 1):
        Image.fromarray(frame.pixels).save(folder / f"{number:06d}.png")
        for left, top, right, bottom in frame.boxes.tolist():
            lines.append(f"{number},-1,{left},{top},{right - left},{bottom - top},0.9,-1,-1,-1")
        lines.append(f"{number},-1,300,10,50,100,0.2,-1,-1,-1")
    boxes, output = tmp_path / "det.txt", tmp_path / "out" / "tracks.txt"
    boxes.write_text("\n".join(lines))
    given = ["--checkpoint", str(checkpoint), "--frames", str(folder), "--boxes", str(boxes), "--output", str(output)]
    assert track.main(given) == 0
    found = rows(output)
    # Three people in three frames; the uncertain box is left out.
    assert [row[:2] for row in found] == [[frame, identity] for frame in (1, 2, 3) for identity in (1, 2, 3)]
    wanted = [[float(value) for value in line.split(",")] for line in lines if ",0.9," in line]
    assert [row[2:6] for row in found] == [row[2:6] for row in wanted]
    boxes.write_text("1,-1,0,0,5\n")
    with pytest.raises(DataError, match=r"det\.txt, line 1: wanted frame,id,left"):
        track.main(given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no picture"):
        track.main([*given[:3], str(tmp_path / "empty"), *given[4:]])
    with pytest.raises(SystemExit):
        track.main(given[:4])


def test_the_tracker_by_hand(track: Any) -> None:
    looks = torch.eye(3)
    boxes = np.array([[0, 0, 10, 20], [100, 0, 110, 20]], np.float32)
    tracker = track.Tracker(0.5, memory=3)
    assert tracker.update(boxes, looks[:2]) == [1, 2]
    # Places decide while both are in sight, whatever the order.
    assert tracker.update(boxes[::-1] + 1, looks[[1, 0]]) == [2, 1]
    # The first is lost; who comes in their place looks otherwise.
    assert tracker.update(boxes[1:], looks[1:2]) == [2]
    assert tracker.update(boxes, looks[[2, 1]]) == [3, 2]
    # Found again elsewhere, within the memory and not after it.
    elsewhere = boxes[:1] + 50
    assert tracker.update(elsewhere, looks[:1]) == [1]
    for _ in range(4):
        assert tracker.update(boxes[:0], looks[:0]) == []
    assert tracker.update(elsewhere, looks[:1]) == [4]
    # Half of two equal boxes over three halves.
    assert track.overlaps(np.array([[0, 0, 10, 10]], np.float32), np.array([5, 0, 15, 10])).tolist() == pytest.approx(
        [1 / 3]
    )
