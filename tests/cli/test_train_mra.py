"""mgran-fast train-mra: learn, resume, measure; every mistake is one line that says what to do."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mgran_fast.cli import common, mra_data
from mgran_fast.data import DataSet
from mgran_fast.data.folder import list_pictures
from mgran_fast.errors import DataError
from mgran_fast.mra.estimate import Estimate
from mgran_fast.mra.regionnet import RegionNet

Cli = Callable[..., Any]

SMALL = (
    "--size", "64x32", "--working-size", "64x32", "--channels", "8", "--workers", "0", "--precision", "float32",
    "--batch-size", "6", "--batches", "2",
)  # fmt: skip


@dataclasses.dataclass
class Trained:
    folder: Path
    arguments: tuple[Any, ...]


@pytest.fixture(scope="module")
def trained(tiny: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The folder of a finished run."""
    from mgran_fast.train.mra.config import MRAConfig
    from mgran_fast.train.mra.run import train

    folder = tmp_path_factory.mktemp("trained") / "run"
    config = MRAConfig(
        size=(64, 32), working_size=(64, 32), channels=8, epochs=1, batch_size=6, batches=2, workers=0,
        precision="float32",
    )  # fmt: skip
    train(mra_data.open_set(str(tiny.root), part="train").pictures, config, folder)
    return Trained(folder, ("train-mra", "--data", tiny.root, "--output", folder, *SMALL))


def test_learning_and_measuring(cli: Cli, tiny: DataSet, tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = cli(
        "train-mra", "--data", tiny.root, "--synthetic", 1, "--test", tiny.root, "--test", "synthetic:1:5",
        "--output", output, "--epochs", 2, "--evaluate-every", 1, *SMALL, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = done.json
    assert found["tests"].keys() == {str(tiny.root), "synthetic:1:5"}
    assert [one["people"] for one in found["tests"].values()] == [16, 12]
    for one in found["tests"].values():
        assert 0 <= one["iou"] <= 1
        assert 0 <= one["keypoints"] <= 1
        assert one["visible_keypoints"] > 0
    assert found["epochs"] == len(found["history"]) == 2
    assert f"iou {tiny.root}" in found["history"][0]
    assert found["model"] == str(output / "model.safetensors")
    assert "epoch 2/2" in done.err
    assert "keypoints within 0.2 torso" in done.err
    assert "24 pictures, 24 people, 24 with a mask, 24 with keypoints" in done.err
    # Measured alone, the file gives the same figures.
    alone = cli(
        "train-mra", "--epochs", 0, "--weights", output / "model.safetensors", "--test", tiny.root,
        "--test", "synthetic:1:5", "--output", output, *SMALL, "--json",
    )  # fmt: skip
    assert alone.code == 0, alone.err
    assert alone.json == {"tests": found["tests"]}


def test_a_run_goes_on(cli: Cli, trained: Trained) -> None:
    again = cli(*trained.arguments, "--epochs", 1)
    assert again.code == 1
    assert "holds a run already; continue it with --resume" in again.err
    resumed = cli(*trained.arguments, "--epochs", 1, "--resume", "--json")
    assert resumed.code == 0, resumed.err
    assert resumed.json["epochs"] == 1
    other = cli(*trained.arguments, "--epochs", 2, "--resume")
    assert other.code == 1
    assert "cannot resume, the run has epochs=1 and you ask for 2" in other.err


def test_starting_from_a_file(cli: Cli, trained: Trained, tiny: DataSet, tmp_path: Path) -> None:
    weights = trained.folder / "model.safetensors"
    done = cli(
        "train-mra", "--data", tiny.root, "--weights", weights, "--output", tmp_path / "run", *SMALL, "--epochs", 1,
        "--learning-rate", "1e-12", "--weight-decay", 0,
    )  # fmt: skip
    assert done.code == 0, done.err
    before, after = RegionNet.from_file(weights), RegionNet.from_file(tmp_path / "run" / "model.safetensors")
    assert all(
        torch.allclose(a, b, atol=1e-5)
        for a, b in zip(before.network.parameters(), after.network.parameters(), strict=True)
    )


class Teacher:
    """Everything red is the person."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {}

    def __call__(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        return Estimate(crops[..., 0] / 255, torch.ones(len(crops), 17, 3), torch.ones(len(crops)))


def test_a_teacher_labels_what_has_no_labels(
    cli: Cli, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(common, "open_estimator", lambda name: asked.append(name) or Teacher())
    paths = list_pictures(copied, "train")
    table = json.loads((copied / "keypoints.json").read_text())
    for path in paths[:5]:
        place = path.relative_to(copied)
        (copied / "masks" / place.with_suffix(".png")).unlink()
        del table[place.as_posix()]
    (copied / "keypoints.json").write_text(json.dumps(table))
    arguments = ("train-mra", "--data", copied, "--output", tmp_path / "run", "--epochs", 1, *SMALL)
    done = cli(*arguments, "--teacher", "somebody")
    assert done.code == 0, done.err
    assert asked == ["somebody"]
    assert "24 pictures, 24 people, 24 with a mask" in done.err
    made = sorted(path.stem for path in (tmp_path / "run" / "labels").rglob("*.png"))
    assert made == sorted(path.stem for path in paths[:5])
    # And a folder without any labels.
    shutil.rmtree(copied / "masks")
    (copied / "keypoints.json").unlink()
    without = cli(*arguments[:3], "--output", tmp_path / "other", *arguments[5:])
    assert without.code == 1
    assert "there is no folder masks/ in it" in without.err
    assert "--teacher" in without.err
    every = cli(*arguments[:3], "--output", tmp_path / "other", *arguments[5:], "--teacher", "somebody")
    assert every.code == 0, every.err
    assert len(list((tmp_path / "other" / "labels").rglob("*.png"))) == 24


def test_a_coco_file(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(4):
        Image.new("RGB", (60, 80), (60 * number, 90, 0)).save(pictures / f"{number}.jpg")
    keypoints = [value for i in range(17) for value in (20 + i % 2 * 10, 10 + 4 * (i // 2), 2)]
    person = {"category_id": 1, "bbox": [10, 5, 30, 70], "segmentation": [[10, 5, 40, 5, 40, 75, 10, 75]]}
    (tmp_path / "people.json").write_text(
        json.dumps(
            {
                "images": [{"id": n, "file_name": f"{n}.jpg", "width": 60, "height": 80} for n in range(4)],
                "annotations": [{**person, "image_id": n, "keypoints": keypoints} for n in range(3)],
            }
        )
    )
    done = cli(
        "train-mra", "--data", tmp_path / "people.json", "--pictures", pictures, "--test", tmp_path / "people.json",
        "--output", tmp_path / "run", *SMALL, "--batch-size", 4, "--epochs", 1, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "people: 4 pictures, 3 people, 3 with a mask, 3 with keypoints" in done.err
    (found,) = done.json["tests"].values()
    assert (found["people"], found["masks"], found["visible_keypoints"]) == (3, 3, 51)


def test_nothing_to_compare_is_null(cli: Cli, copied: Path, trained: Trained) -> None:
    shutil.rmtree(copied / "masks")
    (copied / "masks").mkdir()
    done = cli(
        "train-mra", "--epochs", 0, "--weights", trained.folder / "model.safetensors", "--test", copied, *SMALL,
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    (found,) = done.json["tests"].values()
    assert (found["masks"], found["iou"]) == (0, None)
    assert found["keypoints"] is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to learn from: give --data, or --synthetic PEOPLE"),
        (["--epochs", 0], "--epochs 0 wants a --test"),
        (["--epochs", 0, "--data", "x", "--test", "y"], "--epochs 0 measures only: leave out --data"),
        (["--epochs", 0, "--mra", "a", "--weights", "b", "--test", "synthetic:1"], "--mra and --weights: give one"),
        (["--data", "x", "--mra", "a"], "--mra is for --epochs 0"),
        (["--data", "no-such-folder"], "no-such-folder: no such folder; give a folder of crops, or a COCO file"),
        (["--data", "none.json"], "none.json: no such file"),
        (["--data", "none.json", "--teacher", "regionnet"], "--teacher labels folders of pictures"),
        (["--synthetic", 1, "--test", "synthetic:x"], "--test synthetic:x: write synthetic:PEOPLE"),
        (["--synthetic", 1, "--test", "synthetic:1:2:3"], "write synthetic:PEOPLE or synthetic:PEOPLE:SEED"),
        (["--synthetic", -1], "-1 synthetic people: ask for one or more"),
        (["--synthetic", 1, "--size", "64"], "--size 64: write height x width"),
        (["--synthetic", 1, "--working-size", "64"], "--working-size 64: write height x width"),
        (["--synthetic", 1, "--learning-rate", 0], "learning_rate must be positive"),
        (["--synthetic", 1, "--model", "unet"], "model must be one of regionnet, maskrcnn"),
        (["--synthetic", 1, "--mode", "detect"], "regionnet learns from crops"),
        (["--synthetic", 1, "--model", "maskrcnn", "--weights", "pretrained"], "comes with no weights"),
        (["--synthetic", 1, "--weights", "none.safetensors"], "none.safetensors: no such file"),
        (["--synthetic", 1, "--trunk-weights", "none.pth"], "none.pth: no such file"),
        (["--synthetic", 1, "--trunk-weights", "a", "--weights", "b"], "--trunk-weights is for a new regionnet"),
    ],
)
def test_mistakes(arguments: list[Any], words: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = cli("train-mra", *arguments)
    assert done.code == 1, done.err
    assert words in done.err
    assert done.err.count("\n") <= 2
    assert done.out == ""


def test_weights_of_another_kind(cli: Cli, trained: Trained, tiny: DataSet, tmp_path: Path) -> None:
    weights = trained.folder / "model.safetensors"
    done = cli(
        "train-mra", "--data", tiny.root, "--model", "maskrcnn", "--weights", weights, "--output", tmp_path / "r"
    )
    assert done.code == 1
    assert "was not written by MaskRCNN" in done.err


def test_synthetic_names() -> None:
    assert mra_data.parse_synthetic("synthetic:40:7") == (40, 7)
    assert mra_data.parse_synthetic("synthetic:40") == (40, 1)
    assert mra_data.parse_synthetic("data/synthetic") is None
    assert mra_data.parse_synthetic("synthetic") is None
    with pytest.raises(DataError, match="for example synthetic:50:7"):
        mra_data.parse_synthetic("synthetic:-4")
