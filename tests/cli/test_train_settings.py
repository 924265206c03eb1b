"""mgran-fast train: where settings come from, and which of them counts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mgran_fast.cli import WORKERS, app
from mgran_fast.cli.train import EXTRA, missing_extra
from mgran_fast.data import DataSet
from mgran_fast.errors import MGRANError
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.machines import Machines

Cli = Callable[..., Any]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the command would have trained; nothing is."""
    from mgran_fast.cli import job

    calls: list[dict[str, Any]] = []

    def note(dataset: DataSet, masks: object, config: TrainConfig, output: Path, **options: Any) -> dict[str, Any]:
        calls.append({"dataset": dataset, "config": config, "output": output, **options})
        return {}

    monkeypatch.setattr(job, "train_and_evaluate", note)
    return calls


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 120\nsize: [384, 128]\nmetric_loss: circle\nworkers: 0\nmean: [0.5, 0.5, 0.5]\n")
    return path


def printed(cli: Cli, *arguments: object) -> TrainConfig:
    """The settings that --print-config tells."""
    outcome = cli("train", "--print-config", *arguments)
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    found = yaml.safe_load(outcome.out)
    assert list(found) == list(TrainConfig.kinds()), "all of them, in their order"
    return TrainConfig(**TrainConfig.checked(found, "printed"))


def test_without_a_file_the_defaults_hold(cli: Cli) -> None:
    assert printed(cli) == TrainConfig(workers=WORKERS)


def test_a_file_holds_where_no_option_is_given(mine: Path, cli: Cli) -> None:
    want = TrainConfig(epochs=120, size=(384, 128), metric_loss="circle", workers=0, mean=(0.5, 0.5, 0.5))
    assert printed(cli, "--config", mine) == want


def test_options_and_set_override_the_file(mine: Path, cli: Cli) -> None:
    config = printed(
        cli, "--config", mine, "--epochs", "7", "--size", "64x32", "--mean", "0,0,0", "--schedule", "steps",
        "--milestones", "3,5", "--compile", "--set", "circle-scale=64", "--set", "batches=9", "--workers", "3",
    )  # fmt: skip
    assert config == TrainConfig(
        epochs=7, size=(64, 32), mean=(0.0, 0.0, 0.0), metric_loss="circle", schedule="steps", milestones=(3.0, 5.0),
        compile=True, circle_scale=64.0, batches=9, workers=3,
    )  # fmt: skip


def test_an_option_may_take_back_what_the_file_turned_on(mine: Path, cli: Cli) -> None:
    mine.write_text("compile: true\nrecompute: true\nbatches: 5\n")
    config = printed(cli, "--config", mine, "--no-compile", "--set", "batches=null")
    assert (config.compile, config.recompute, config.batches) == (False, True, None)


def test_what_is_printed_is_a_file(mine: Path, cli: Cli, tmp_path: Path) -> None:
    first = cli("train", "--config", mine, "--seed", "3", "--print-config").out
    (tmp_path / "again.yaml").write_text(first)
    assert cli("train", "--config", tmp_path / "again.yaml", "--print-config").out == first


#: Values that are no defaults, for every option that names a setting.
OTHER = {
    "--layout": "part", "--shape": "single", "--size": "64x32", "--trunk": "resnet18", "--last-stride": "2",
    "--mean": "0.1,0.2,0.3", "--std": "0.1,0.2,0.3", "--pooling": "gem", "--statistics": "per_input", "--epochs": "2",
    "--people": "4", "--pictures": "2", "--batches": "3", "--sampler": "camera", "--accumulate": "2", "--erase": "0.1",
    "--jitter": "0.1", "--identity-loss": "oim", "--label-smoothing": "0.2", "--metric-loss": "circle",
    "--margin": "0.4", "--optimizer": "sgd", "--learning-rate": "1e-3", "--weight-decay": "0", "--clip": "1",
    "--schedule": "steps", "--milestones": "0.5,1", "--ema": "0.9", "--precision": "bf16", "--workers": "1",
    "--evaluate-every": "1", "--checkpoint-minutes": "2", "--seed": "4",
}  # fmt: skip


def test_every_option_reaches_its_setting(cli: Cli) -> None:
    words = [word for pair in OTHER.items() for word in pair]
    config = printed(cli, *words, "--recompute", "--compile")
    names = {name.removeprefix("--").replace("-", "_") for name in OTHER} | {"recompute", "compile"}
    same = {name for name in names if getattr(config, name) == getattr(TrainConfig(), name)}
    assert not same
    assert {name for name in TrainConfig.kinds() if getattr(config, name) != getattr(TrainConfig(), name)} == names
    assert (config.size, config.milestones, config.std) == ((64, 32), (0.5, 1.0), (0.1, 0.2, 0.3))


def test_the_help_tells_the_defaults() -> None:
    command = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    told = {}
    for parameter in command.params:
        name = parameter.name.rstrip("_")
        found = re.search(r" Default: (\S+)\.$", getattr(parameter, "help", None) or "")
        if name in TrainConfig.kinds():
            assert parameter.default is None, f"--{name} must leave to the file what it says"
        if found:
            told[name] = found[1]
    assert len(told) > 25
    for name, text in told.items():
        value = getattr(TrainConfig(), name)
        assert text == ("256x128" if name == "size" else str(value)), name


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--set", "pepole=3"), "--set pepole=3: no setting 'pepole'; the nearest is 'people'"),
        (("--set", "people"), "--set people: write KEY=VALUE"),
        (("--set", "gamma=big"), "--set gamma=big: gamma must be a number, not 'big'"),
        (("--epochs", "3", "--set", "epochs=4"), "--set epochs=4: epochs is given twice"),
        (("--set", "gamma=0.5", "--set", "gamma=0.2"), "--set gamma=0.2: gamma is given twice"),
        (("--people", "1"), "people must be at least 2, not 1"),
        (("--optimizer", "lamb"), "optimizer must be one of adamw, adam, sgd, not 'lamb'"),
        (("--schedule", "steps"), "milestones must be rising epochs between 0 and 60"),
        (("--milestones", "a,b"), "milestones must be a list of numbers"),
        (("--size", "256"), "--size 256: write height x width"),
        (("--config", "nowhere.yaml"), "nowhere.yaml: cannot be read (No such file or directory)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_settings_are_one_line(words: tuple[str, ...], told: str, cli: Cli) -> None:
    for more in (("--print-config",), ("--data", "nowhere")):
        outcome = cli("train", *words, *more)
        assert outcome.code == 1
        assert told in outcome.err
        assert len(outcome.err.splitlines()) == 1
        assert outcome.out == ""


def test_a_wrong_file_is_named(mine: Path, cli: Cli) -> None:
    mine.write_text("epochs: 0\n")
    assert f"{mine}: epochs must be at least 1, not 0" in cli("train", "--print-config", "--config", mine).err
    mine.write_text("epochs: 3\npeopel: 8\n")
    outcome = cli("train", "--data", "nowhere", "--config", mine)
    assert f"{mine}: no setting 'peopel'; the nearest is 'people'" in outcome.err


def test_what_is_trained(asked: list[dict[str, Any]], tiny: DataSet, mine: Path, tmp_path: Path, cli: Cli) -> None:
    outcome = cli(
        "train", "--data", tiny.root, "--output", tmp_path / "run", "--config", mine, "--people", "3",
        "--devices", "2", "--strategy", "ddp", "--accelerator", "cpu",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    (call,) = asked
    assert call["config"] == TrainConfig.from_yaml(mine, people=3)
    assert call["machines"] == Machines(2, 1, "ddp", "cpu")
    assert call["output"] == tmp_path / "run"
    assert call["dataset"].train == tiny.train


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--devices", "0"), "--devices must be 1 or more, or auto, not 0"),
        (("--devices", "all"), "--devices must be 1 or more, or auto, not 'all'"),
        (("--nodes", "0"), "--nodes must be at least 1, not 0"),
        (("--strategy", "horovod"), "--strategy must be one of auto, ddp, fsdp, not 'horovod'"),
    ],
    ids=" ".join,
)
def test_wrong_machines(words: tuple[str, ...], told: str, tiny: DataSet, cli: Cli) -> None:
    outcome = cli("train", "--data", tiny.root, *words)
    assert outcome.code == 1
    assert told in outcome.err


def test_a_resumed_run_has_its_settings(asked: list[dict[str, Any]], tiny: DataSet, tmp_path: Path, cli: Cli) -> None:
    config = TrainConfig(epochs=9, people=3, workers=0, metric_loss="soft_triplet")
    config.save(tmp_path / "settings.yaml", "abc")
    outcome = cli("train", "--data", tiny.root, "--output", tmp_path, "--resume", "--evaluate-every", "1")
    assert outcome.code == 0, outcome.err
    assert asked[0]["config"] == TrainConfig(
        epochs=9, people=3, workers=0, metric_loss="soft_triplet", evaluate_every=1
    )
    assert cli("train", "--data", tiny.root, "--output", tmp_path, "--people", "3").code == 0
    assert asked[1]["config"].epochs == 60, "a new run does not look at an old one"


def test_several_processes_want_masks_beforehand(tiny: DataSet, copied: Path, tmp_path: Path, cli: Cli) -> None:
    (copied / "keypoints.json").unlink()
    (copied / "masks").rename(tmp_path / "elsewhere")
    outcome = cli(
        "train", "--data", copied, "--output", tmp_path / "run", "--people", "4", "--devices", "2",
        "--accelerator", "cpu",
    )  # fmt: skip
    assert outcome.code == 1
    assert f"several processes want them beforehand: mgran-fast masks {copied}" in outcome.err
    assert not (tmp_path / "run").exists()


def test_missing_packages_are_told() -> None:
    for name in EXTRA:
        told = missing_extra(ImportError(name=f"{name}.inside"))
        assert isinstance(told, MGRANError)
        assert "pip install 'mgran_fast[train]'" in str(told)
    other = ImportError(name="numpy")
    assert missing_extra(other) is other
