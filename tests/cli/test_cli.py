"""The commands, from the shell to the report."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import mgran_fast
from mgran_fast.cli import app, common, job
from mgran_fast.data import DataSet
from mgran_fast.errors import DataError
from mgran_fast.model import MGRAN
from mgran_fast.mra import Estimate

Cli = Callable[..., Any]
COMMANDS = (
    "train", "train-mra", "evaluate", "export", "masks", "demo", "doctor", "cost", "reproduce", "ablate", "search",
    "extract", "bench", "bench-report", "bench-compare",
)  # fmt: skip


def plain(text: str) -> str:
    """Without colours and the borders that help pages draw."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


# --- help and version -----------------------------------------------------------------------------------------


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert {command.name or command.callback.__name__ for command in app.registered_commands} == set(COMMANDS)  # type: ignore[union-attr]
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", result.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300", "TERM": "dumb"})
    assert result.exit_code == 0
    assert f"Example: mgran-fast {command}" in plain(result.stdout)
    assert "--json" in plain(result.stdout)


def test_no_command_shows_the_help(cli: Cli) -> None:
    outcome = cli()
    assert outcome.code in (0, 2)
    assert "Usage" in outcome.out + outcome.err


def test_the_shell_completes() -> None:
    def completed(words: str) -> set[str]:
        asked = {"_MGRAN_FAST_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        return set(CliRunner().invoke(app, [], env=asked, prog_name="mgran-fast").stdout.split())

    assert completed("mgran-fast ex") == {"export", "extract"}
    assert completed("mgran-fast extract --pro") == {"--processes"}


def test_version(cli: Cli) -> None:
    outcome = cli("--version")
    assert (outcome.code, outcome.out) == (0, f"mgran-fast {mgran_fast.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["train"],
        ["train", "--data", "x", "--epochs", "many"],
        ["train", "--data", "x", "--nonsense"],
        ["evaluate", "--data", "x", "--batch-size", "0"],
        ["evaluate", "--data", "x", "--workers", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_leaves_with_2(arguments: list[str], cli: Cli) -> None:
    outcome = cli(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert "--help" in plain(outcome.err)


# --- train ----------------------------------------------------------------------------------------------------


def test_training_prints_one_json_object(trained: Any) -> None:
    found = trained.outcome.json
    assert set(found) == {"untrained", "trained", "scored", "counts", "epochs", "seconds", "model", "report"}
    assert (found["scored"]["protocol"], found["scored"]["ap"]) == ("market", "hits")
    for name in ("untrained", "trained"):
        assert set(found[name]) == {"rank1", "rank5", "rank10", "map", "minp"}
        assert all(0 <= value <= 1 for value in found[name].values())
    assert found["epochs"] == 1
    assert found["counts"]["queries"] == 8
    assert found["counts"]["gallery"] == 8
    assert set(found["seconds"]) == {"evaluate before", "train", "evaluate after"}
    assert Path(found["model"]) == trained.folder / "model.safetensors"
    assert Path(found["report"]) == trained.folder / "report.html"


def test_training_tells_people_what_happens(trained: Any) -> None:
    lines = trained.outcome.err.splitlines()
    assert lines[0] == "data: 24 training pictures of 6 people, 8 queries, 8 in the gallery"
    assert any(line.startswith("before training: Rank-1 ") for line in lines)
    epoch = r"epoch 1/1: \d+ s, loss \d+\.\d{3}, training accuracy \d+\.\d %, \d+ persons/s, \d+ % waiting for data"
    assert any(re.fullmatch(epoch, line) for line in lines)
    assert lines[-1].startswith("report: ")
    assert "Warning" not in trained.outcome.err
    assert "Lightning" not in trained.outcome.err


def test_training_leaves_a_report_and_a_model(trained: Any) -> None:
    page = (trained.folder / "report.html").read_text(encoding="utf-8")
    assert "6 people" in page
    assert "8 queries" in page
    assert "mgran-fast train --data" in page
    assert "queries without a match" in page
    model = MGRAN.from_file(trained.folder / "model.safetensors", layout="region", num_classes=6)
    assert model.size == (32, 16)


def test_training_leaves_its_history(trained: Any) -> None:
    table = [line.split(",") for line in (trained.folder / "history.csv").read_text().splitlines()]
    last = dict(zip(table[0], map(float, table[-1]), strict=True))
    assert last["epoch"] == 1
    assert last["rank1"] == pytest.approx(trained.outcome.json["trained"]["rank1"], rel=1e-5)
    assert last["map"] == pytest.approx(trained.outcome.json["trained"]["map"], rel=1e-5)
    assert (trained.folder / "curves.png").is_file()


def test_resuming_a_finished_run(trained: Any, tiny: DataSet, quick: tuple[str, ...], tmp_path: Path, cli: Cli) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "run", copy_function=os.link)
    (folder / "report.html").unlink()
    outcome = cli("train", "--data", tiny.root, "--output", folder, "--resume", "--json", *quick)
    assert outcome.code == 0, outcome.err
    assert outcome.json["trained"] == trained.outcome.json["trained"]
    assert (folder / "report.html").is_file()


def test_without_masks_the_package_makes_them(copied: Path, quick: tuple[str, ...], tmp_path: Path, cli: Cli) -> None:
    shutil.rmtree(copied / "masks")
    (copied / "keypoints.json").unlink()
    arguments = ("train", "--data", copied, "--output", tmp_path / "run", "--json", *quick)
    outcome = cli(*arguments)
    assert outcome.code == 0, outcome.err
    made = tmp_path / "run" / "regions"
    assert f"RegionNet makes {made}" in outcome.err
    assert sorted(file.name for file in made.iterdir()) == [
        "bounding_box_test.sqlite",
        "bounding_box_train.sqlite",
        "query.sqlite",
    ]
    assert not (copied / "regions").exists()
    # On the fly, without the cache, the maps are the same but for the crop that the estimator sees.
    checkpoint = tmp_path / "run" / "model.safetensors"
    found = cli("evaluate", "--data", copied, "--checkpoint", checkpoint, "--workers", "0", "--json")
    assert found.code == 0, found.err
    assert "RegionNet makes the masks" in found.err
    cached = cli("evaluate", "--data", copied, "--checkpoint", checkpoint, "--workers", "0", "--masks", made, "--json")
    assert cached.json["map"] == pytest.approx(outcome.json["trained"]["map"], abs=1e-9)


def test_bad_pictures_are_in_the_report(copied: Path, quick: tuple[str, ...], tmp_path: Path, cli: Cli) -> None:
    train = sorted((copied / "bounding_box_train").iterdir())
    gallery = sorted((copied / "bounding_box_test").iterdir())
    train[2].write_bytes(b"")
    gallery[5].write_bytes(gallery[5].read_bytes()[:200])
    config = [*quick, "--batches", "4"]
    outcome = cli("train", "--data", copied, "--output", tmp_path / "run", "--json", "--blur-faces", *config)
    assert outcome.code == 0, outcome.err
    assert outcome.json["counts"]["unreadable pictures"] == 1
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for path in (train[2], gallery[5]):
        assert path.name in page
        assert f"{path}: the picture cannot be read" in outcome.err
    assert "unreadable pictures: 1" in outcome.err


def test_pretrained_weights_are_taken(tiny: DataSet, quick: tuple[str, ...], tmp_path: Path, cli: Cli) -> None:
    torch.manual_seed(3)
    weights = MGRAN(trunk="resnet18").ma.trunk.state_dict()
    torch.save(weights, tmp_path / "resnet18.pth")
    outcome = cli(
        "train", "--data", tiny.root, "--output", tmp_path / "run", "--weights", tmp_path / "resnet18.pth",
        "--layout", "none", "--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225", "--json", *quick,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "before training" in outcome.json
    model = MGRAN.from_file(tmp_path / "run" / "model.safetensors")
    assert model.mean == pytest.approx((0.485, 0.456, 0.406))
    assert model.layout.name == "none"


def test_ctrl_c_says_how_to_go_on(
    tiny: DataSet, quick: tuple[str, ...], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(line: dict[str, float], epochs: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mgran_fast.cli.endings.epoch", interrupt)
    outcome = cli("train", "--data", tiny.root, "--output", tmp_path / "run", *quick)
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == "mgran-fast: interrupted; the run goes on with --resume"


# --- evaluate -------------------------------------------------------------------------------------------------


def test_evaluating_gives_what_training_said(trained: Any, tiny: DataSet, tmp_path: Path, cli: Cli) -> None:
    outcome = cli(
        "evaluate", "--data", tiny.root, "--checkpoint", trained.folder / "model.safetensors", "--workers", "0",
        "--report", tmp_path / "deep" / "page.html", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = outcome.json
    for name, value in trained.outcome.json["trained"].items():
        assert found[name] == pytest.approx(value)
    of_training = {"training pictures without a mask": 0, "training pictures without keypoints": 0}
    assert {**found["counts"], **of_training} == trained.outcome.json["counts"]
    assert found["report"] == str(tmp_path / "deep" / "page.html")
    page = (tmp_path / "deep" / "page.html").read_text(encoding="utf-8")
    for name in ("queries", "gallery", "empty masks", "no keypoints", "unreadable pictures"):
        assert name in page


def test_exporting(trained: Any, tmp_path: Path, cli: Cli) -> None:
    checkpoint = tmp_path / "model.safetensors"
    shutil.copy(trained.folder / "model.safetensors", checkpoint)
    outcome = cli("export", checkpoint, "--format", "torch", "--kernels", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["path"] == str(tmp_path / "model.pt2")
    assert outcome.json["error"] < 1e-5
    assert (tmp_path / "model.pt2").is_file()
    assert "embeddings float32 [N, 2048]" in outcome.err.replace("\n", " ")
    for words in (("--format", "tflite"), ("--kernels",)):
        outcome = cli("export", checkpoint, *words)
        assert outcome.code == 1
        assert words[0] in outcome.err


def test_exporting_an_engine(trained: Any, copied: Path, tmp_path: Path, cli: Cli) -> None:
    checkpoint = tmp_path / "model.safetensors"
    shutil.copy(trained.folder / "model.safetensors", checkpoint)
    pictures = copied / "query"
    outcome = cli("export", checkpoint, "--format", "engine", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json == {
        "path": str(tmp_path / "model.engine.safetensors"), "format": "engine", "precision": "bfloat16",
        "device": outcome.json["device"],
    }  # fmt: skip
    outcome = cli(
        "export", checkpoint, "--format", "engine", "--precision", "int8", "--calibrate", pictures, "--output",
        tmp_path / "int8.safetensors", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.json["people"] == len(list(pictures.glob("*.jpg")))
    assert set(outcome.json["cosines"]) == {"global", "head", "upper body", "lower body", "all"}
    extractor = mgran_fast.FeatureExtractor(tmp_path / "int8.safetensors")
    assert extractor.engine.precision == "int8"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jpg").write_bytes(b"no picture")
    for words, told in (
        (("--precision", "int8"), "--precision and --calibrate are for --format engine"),
        (("--format", "engine", "--precision", "int8"), "--precision int8 and --calibrate PICTURES go together"),
        (("--format", "engine", "--calibrate", pictures), "go together"),
        (("--format", "engine", "--precision", "int4"), "int4"),
        (("--format", "engine", "--output", checkpoint / "below"), "below: cannot be written"),
        (("--format", "torch", "--output", checkpoint / "below"), "below: cannot be written"),
        (
            ("--format", "engine", "--precision", "int8", "--calibrate", tmp_path / "empty"),
            "not one picture could be read",
        ),
    ):
        outcome = cli("export", checkpoint, *words)
        assert outcome.code == 1
        assert told in outcome.err.replace("\n", " ")


def test_evaluating_without_training_pictures_and_report(trained: Any, copied: Path, cli: Cli) -> None:
    shutil.rmtree(copied / "bounding_box_train")
    outcome = cli(
        "evaluate", "--data", copied, "--checkpoint", trained.folder / "model.safetensors", "--workers", "0"
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.out == "", "a table is for people"
    assert "Rank-1" in outcome.err
    assert "run on copied" in outcome.err


def test_unmatched_queries_are_told(trained: Any, copied: Path, tmp_path: Path, cli: Cli) -> None:
    for path in (copied / "bounding_box_test").glob("0007_*"):
        path.unlink()
    outcome = cli(
        "evaluate", "--data", copied, "--checkpoint", trained.folder / "model.safetensors", "--workers", "0",
        "--report", tmp_path / "page.html", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.json["counts"]["queries without a match"] == 2
    assert "queries without a match: 2" in outcome.err
    assert "0007_c1_00.jpg" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_crops_without_a_person_are_counted_and_listed(trained: Any, copied: Path, tmp_path: Path, cli: Cli) -> None:
    arguments = ("evaluate", "--data", copied, "--checkpoint", trained.folder / "model.safetensors", "--workers", "0")
    before = cli(*arguments, "--json")
    assert "crops without a person" not in before.json["counts"]
    blank = Image.new("L", (16, 32))
    blank.save(copied / "masks" / "query" / "0007_c1_00.png")
    entries = json.loads((copied / "keypoints.json").read_text(encoding="utf-8"))
    entries["bounding_box_test/0008_c2_01.jpg"]["presence"] = 0.2
    (copied / "keypoints.json").write_text(json.dumps(entries), encoding="utf-8")
    outcome = cli(*arguments, "--report", tmp_path / "page.html", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["counts"]["crops without a person"] == 2
    assert outcome.json["counts"]["gallery"] == before.json["counts"]["gallery"], "nobody is lost"
    assert "crops without a person: 2" in outcome.err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "0007_c1_00.jpg: nobody found" in page
    assert "0008_c2_01.jpg: nobody found" in page


def test_masks_may_lie_elsewhere(trained: Any, copied: Path, tmp_path: Path, cli: Cli) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(copied / "masks", elsewhere)
    shutil.move(copied / "keypoints.json", elsewhere)
    outcome = cli(
        "evaluate", "--data", copied, "--checkpoint", trained.folder / "model.safetensors", "--workers", "0",
        "--masks", elsewhere, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.json["map"] == pytest.approx(trained.outcome.json["trained"]["map"])


def test_an_estimator_makes_the_masks(
    trained: Any, copied: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(copied / "masks")

    class Everything:
        """Calls every pixel the person."""

        def __call__(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
            n, height, width = crops.shape[:3]
            assert (height, width) == (256, 128), "an estimator sees more than the 32x16 pixels of the trunk"
            return Estimate(torch.ones(n, height, width), torch.zeros(n, 17, 3), torch.ones(n))

    asked = []

    def from_file(path: str) -> Everything:
        asked.append(path)
        return Everything()

    monkeypatch.setattr("mgran_fast.mra.maskrcnn.MaskRCNN.from_file", from_file)
    monkeypatch.setattr("mgran_fast.mra.named.read_format", lambda path: "mgran_fast.MaskRCNN")
    page = tmp_path / "page.html"
    outcome = cli(
        "evaluate", "--data", copied, "--checkpoint", trained.folder / "model.safetensors", "--workers", "0",
        "--mra", "detector.safetensors", "--report", page, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert asked == ["detector.safetensors"]
    counts = outcome.json["counts"]
    assert counts["empty masks"] == 0
    assert counts["no keypoints"] == counts["queries"] + counts["gallery"]
    assert "mask, outlined" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--mra", "nowhere.safetensors"), "nowhere.safetensors: no such file"),
        (("--mra", "torchvision"), "put the .pth files there"),
        (("--mra", "torchvision", "--masks", "."), "--masks and --mra: give one or the other"),
    ],
)
def test_no_estimator(
    options: tuple[str, ...],
    words: str,
    trained: Any,
    tiny: DataSet,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    model = trained.folder / "model.safetensors"
    outcome = cli("evaluate", "--data", tiny.root, "--checkpoint", model, "--workers", "0", *options)
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert words in outcome.err


# --- demo and doctor ------------------------------------------------------------------------------------------


def test_demo_may_be_typed_twice(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgran_fast.cli.demo.SIZE", (32, 16))
    monkeypatch.setattr("mgran_fast.cli.demo.PEOPLE", (8, 3))
    monkeypatch.setattr("mgran_fast.cli.demo.CAMERAS", 2)
    monkeypatch.setattr("mgran_fast.cli.demo.VIEWS", 2)
    monkeypatch.setattr("mgran_fast.cli.job.settings", partial(job.settings, batches=1, precision="float32"))
    first = cli("demo", "--output", tmp_path / "demo", "--epochs", "1", "--json")
    assert first.code == 0, first.err
    assert first.json["epochs"] == 1
    page = tmp_path / "demo" / "report.html"
    assert "MGRAN on synthetic people" in page.read_text(encoding="utf-8")
    before = page.stat().st_mtime_ns
    second = cli("demo", "--output", tmp_path / "demo", "--epochs", "1", "--json")
    assert second.code == 0, second.err
    assert second.json["trained"] == first.json["trained"]
    assert page.stat().st_mtime_ns > before
    assert "drawing 11 people as 2 cameras see them" in first.err


def test_doctor(cli: Cli) -> None:
    outcome = cli("doctor")
    assert outcome.code == 0
    assert f"torch: {torch.__version__.split('+')[0]}" in outcome.err
    assert re.search(r"regions on cpu: (native|reference: .+)", outcome.err)


def test_doctor_json(cli: Cli) -> None:
    found = cli("doctor", "--json").json
    assert found == json.loads(json.dumps(mgran_fast.doctor()))
    assert {"python", "packages", "extras", "extension", "devices", "ops", "advice"} <= set(found)
    assert set(found["ops"]) >= {"crops", "regions", "inputs", "align", "pooling", "conv", "network"}


def test_doctor_tells_of_a_forced_backend(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRAN_BACKEND", "reference")
    assert cli("doctor", "--json").json["ops"]["regions"]["cpu"] == "reference: MGRAN_BACKEND=reference"


# --- the small helpers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "size"), [("256x128", (256, 128)), ("384X192", (384, 192)), ("1x1", (1, 1))])
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert common.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "256", "256x", "x128", "256x0", "-1x5", "256x128x3", "2.5x1", "256*128"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(DataError, match="write height x width in pixels, for example 256x128"):
        common.parse_size(text)


def test_channels() -> None:
    assert common.parse_channels("--mean", None) is None
    assert common.parse_channels("--mean", "0.5, 0.25,0") == (0.5, 0.25, 0.0)
    for text in ("", "1", "1,2", "1,2,3,4", "a,b,c"):
        with pytest.raises(DataError, match=r"--mean .*: write one number for red, green and blue"):
            common.parse_channels("--mean", text)
