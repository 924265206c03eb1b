"""The errors that people make: one line that names the file or the argument and says what to do."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mgran_fast.data import DataSet

Cli = Callable[..., Any]
Quick = tuple[str, ...]


def told(outcome: Any, *words: str, alone: bool = True) -> str:
    """The one line of an error, which holds ``words``; ``alone``: nothing was told before it."""
    assert outcome.code == 1, outcome.err
    assert outcome.out == "", "an error is no result"
    assert "Traceback" not in outcome.err
    lines = outcome.err.splitlines()
    assert [line.startswith("mgran-fast: ") for line in lines] == [False] * (len(lines) - 1) + [True], outcome.err
    assert len(lines) == 1 or not alone, outcome.err
    for word in words:
        assert word in lines[-1]
    return str(lines[-1])


@pytest.fixture
def train(cli: Cli, quick: Quick, tmp_path: Path) -> Cli:
    """Runs ``train`` with quick settings, which the arguments may change."""
    return lambda data, *arguments: cli("train", "--data", data, "--output", tmp_path / "run", *quick, *arguments)


@pytest.fixture
def evaluate(cli: Cli, trained: Any) -> Cli:
    """Runs ``evaluate`` on the checkpoint of a finished run."""
    checkpoint = trained.folder / "model.safetensors"
    return lambda data, *arguments: cli(
        "evaluate", "--data", data, "--checkpoint", checkpoint, "--workers", "0", *arguments
    )


# --- folders --------------------------------------------------------------------------------------------------


def test_missing_folder(train: Cli, evaluate: Cli, tmp_path: Path) -> None:
    for command in (train, evaluate):
        told(command(tmp_path / "nowhere"), str(tmp_path / "nowhere"), "no such folder; give the folder that holds")


def test_missing_query_folder(train: Cli, evaluate: Cli, copied: Path) -> None:
    shutil.rmtree(copied / "query")
    for command in (train, evaluate):
        told(command(copied), str(copied), "no folder query; a data set holds bounding_box_train, query")


def test_the_real_command_tells_it_too(shell: Cli, tmp_path: Path) -> None:
    told(shell("train", "--data", tmp_path / "nowhere", "--json"), str(tmp_path / "nowhere"), "no such folder")


def test_empty_folder(train: Cli, copied: Path) -> None:
    for path in (copied / "bounding_box_train").iterdir():
        path.rename(path.with_name(f"picture_{path.name}"))
    told(train(copied), "bounding_box_train: no usable picture", "0002_c1s1_000451_03.jpg")


def test_an_output_that_is_a_file(train: Cli, tiny: DataSet, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    told(train(tiny.root), f"{tmp_path / 'run'}: a file, not a folder; choose another --output", alone=False)


def test_more_people_than_there_are(train: Cli, tiny: DataSet, tmp_path: Path) -> None:
    outcome = train(tiny.root, "--people", 7)
    told(outcome, "6 training people, but --people 7; ask for fewer", alone=False)
    assert "before training" not in outcome.err, "told before the first evaluation, not after it"
    assert not (tmp_path / "run").exists()


# --- masks and keypoints --------------------------------------------------------------------------------------


def test_a_wrong_masks_folder(evaluate: Cli, copied: Path, tmp_path: Path) -> None:
    told(evaluate(copied, "--masks", tmp_path), f"{tmp_path / 'masks'}: no such folder", "layout 'none'", alone=False)


def test_masks_of_another_aspect(train: Cli, evaluate: Cli, copied: Path) -> None:
    for path in (copied / "masks").rglob("*.png"):
        Image.new("L", (64, 64), 255).save(path)
    for command in (train, evaluate):
        outcome = command(copied)
        told(outcome, "none of 8 pictures could be read", "the mask is 64x64 (height x width)", alone=False)


def test_training_masks_of_another_aspect(train: Cli, copied: Path, tmp_path: Path) -> None:
    for path in (copied / "masks" / "bounding_box_train").iterdir():
        Image.new("L", (64, 64), 255).save(path)
    told(train(copied), f"{copied}: not one training picture could be used", "aspect ratios differ", alone=False)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be an object"),
        (json.dumps({"query/a.jpg": {"keypoints": [[1, 2, 3]]}}), "1 keypoints, expected the 17"),
        (json.dumps({"query/a.jpg": {"keypoints": [[1, 2, 7]] * 17}}), "scores must be between 0 and 1"),
    ],
)
def test_broken_keypoints(text: str, words: str, train: Cli, evaluate: Cli, copied: Path) -> None:
    (copied / "keypoints.json").write_text(text)
    for command in (train, evaluate):
        told(command(copied), str(copied / "keypoints.json"), words, alone=False)


# --- checkpoints ----------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_layout(evaluate: Cli, tiny: DataSet) -> None:
    told(evaluate(tiny.root, "--layout", "part"), "model.safetensors: made with layout='region', wanted layout='part'")


def test_no_checkpoint(cli: Cli, tiny: DataSet, tmp_path: Path) -> None:
    outcome = cli("evaluate", "--data", tiny.root, "--checkpoint", tmp_path / "none.safetensors")
    told(outcome, f"{tmp_path / 'none.safetensors'}: no such checkpoint; mgran-fast train writes one")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\xff" * 1000], ids=["empty", "text", "bytes"])
def test_not_a_checkpoint(content: bytes, cli: Cli, tiny: DataSet, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    told(cli("evaluate", "--data", tiny.root, "--checkpoint", path), f"{path}: not a safetensors file")


def test_broken_weights(train: Cli, tiny: DataSet, tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    path.write_bytes(b"not weights")
    told(train(tiny.root, "--weights", path), f"{path}: not readable as weights", alone=False)
    told(train(tiny.root, "--weights", tmp_path / "no.pth"), "no.pth: no such file; --weights wants", alone=False)


def test_no_masks_are_made_for_a_run_that_cannot_start(
    cli: Cli, trained: Any, tiny: DataSet, quick: Quick, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained.folder, tmp_path / "there", copy_function=os.link))
    data = shutil.copytree(tiny.root, tmp_path / "data", ignore=shutil.ignore_patterns("masks", "keypoints.json"))
    outcome = cli("train", "--data", data, "--output", folder, *quick)
    told(outcome, f"{folder}: holds a run already; continue it with --resume", alone=False)
    assert not (folder / "regions").exists()


def test_a_run_that_is_there_already(cli: Cli, trained: Any, tiny: DataSet, quick: Quick, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "there", copy_function=os.link)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    arguments = ("train", "--data", tiny.root, "--output", folder, *quick)
    outcome = cli(*arguments)
    told(outcome, f"{folder}: holds a run already; continue it with --resume", alone=False)
    assert "before training" not in outcome.err, "told before the first evaluation, not after it"
    outcome = cli(*arguments, "--resume", "--epochs", 2)
    told(outcome, f"{folder}: cannot resume, the run has epochs=1 and you ask for 2", alone=False)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    (folder / "checkpoints" / "last.ckpt").unlink()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"broken")
    outcome = cli(*arguments, "--resume")
    told(outcome, "last.ckpt: cannot resume, the state of the run cannot be read", alone=False)


# --- arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "256"], "--size 256: write height x width in pixels"),
        (["--mean", "0.5"], "--mean 0.5: write one number for red, green and blue"),
        (["--mean", "nan,0,0"], "mean must be three finite numbers"),
        (["--std", "1,0,1"], "std must be positive"),
        (["--layout", "limbs"], "layout must be one of box, none, part, region, not 'limbs'"),
        (["--trunk", "vgg16"], "trunk must be one of resnet18, resnet34"),
        (["--pooling", "sum"], "pooling must be one of mean, max, gem"),
        (["--statistics", "mine"], "statistics must be one of joint, per_input"),
        (["--precision", "half"], "precision must be one of auto, bf16, f16, float32"),
        (["--epochs", "0"], "epochs must be at least 1, not 0"),
        (["--people", "1"], "people must be at least 2"),
        (["--batches", "0"], "batches must be at least 1"),
        (["--erase", "2"], "erase must be in [0, 1], not 2.0"),
        (["--learning-rate", "-1"], "learning_rate must be positive"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_arguments(arguments: list[str], words: str, train: Cli, tiny: DataSet, tmp_path: Path) -> None:
    told(train(tiny.root, *arguments), words)
    assert not (tmp_path / "run").exists()


def test_demo_with_wrong_arguments(cli: Cli, tmp_path: Path) -> None:
    told(cli("demo", "--output", tmp_path / "demo", "--epochs", "0"), "epochs must be at least 1, not 0")
    assert not (tmp_path / "demo").exists(), "nothing was drawn"


def test_a_run_that_diverges(train: Cli, tiny: DataSet) -> None:
    told(
        train(tiny.root, "--learning-rate", "1e30"),
        "the loss is no number at step",
        "lower the learning rate",
        alone=False,
    )


def test_training_without_its_packages(train: Cli, tiny: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mgran_fast.train.run", "mgran_fast.train.module", "mgran_fast.cli.job"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(sys.modules["mgran_fast.cli"], "job", raising=False)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)
    told(train(tiny.root), "not installed (pytorch_lightning): pip install 'mgran_fast[train]'")
