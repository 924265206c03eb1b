"""Settings: what is refused, and what a resumed run must agree on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.errors import CheckpointError
from mgran_fast.train.config import TrainConfig


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"people": 1}, "people must be at least 2, not 1"),
        ({"pictures": 1}, "pictures must be at least 2, not 1"),
        ({"batches": 0}, "batches must be at least 1, or None, not 0"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"evaluate_every": -1}, "evaluate_every must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"size": (0, 16)}, "size must be"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive"),
        ({"scale": -1.0}, "scale must be positive"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"margin": float("nan")}, "margin must not be negative"),
        ({"pad": -1.0}, "pad must not be negative"),
        ({"warmup": 1.0}, r"warmup must be in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"label_smoothing must be in \[0, 1\)"),
        ({"erase": 1.1}, r"erase must be in \[0, 1\]"),
        ({"flip": float("nan")}, r"flip must be in \[0, 1\]"),
        ({"jitter": 2.0}, r"jitter must be in \[0, 1\]"),
        ({"precision": "float16"}, "precision must be one of auto, bf16, float32, not 'float16'"),
        ({"trunk": "vgg16"}, "trunk must be one of resnet18, .*, not 'vgg16'"),
        ({"last_stride": 3}, "last_stride must be one of 1, 2, not 3"),
        ({"pooling": "sum"}, "pooling must be one of mean, max, gem, not 'sum'"),
        ({"statistics": "none"}, "statistics must be one of joint, per_input, not 'none'"),
        ({"layout": "limbs"}, "layout must be one of box, none, part, region"),
        ({"mean": (0.0, float("nan"), 0.0)}, "mean must be three finite numbers"),
        ({"std": (1.0, 1.0)}, "std must be three finite numbers"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be positive"),
    ],
)
def test_wrong_settings(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainConfig(**change)


def test_defaults_are_the_published_scale_and_the_usual_schedule() -> None:
    config = TrainConfig()
    assert (config.layout, config.size, config.trunk, config.scale) == ("region", (256, 128), "resnet50", 1 / 256)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 1  # type: ignore[misc]


def test_saved_settings_resume_themselves(tmp_path: Path) -> None:
    config = TrainConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), size=(64, 32))
    config.save(tmp_path / "settings.json")
    config.check_resume(tmp_path / "settings.json")
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    saved = json.loads((tmp_path / "settings.json").read_text())
    assert saved.pop("data") == ""
    assert TrainConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}) == config


@pytest.mark.parametrize(
    "change",
    [
        {"layout": "part"}, {"size": (64, 32)}, {"trunk": "resnet18"}, {"last_stride": 2}, {"statistics": "per_input"},
        {"pooling": "gem"}, {"scale": 1 / 255}, {"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}, {"epochs": 61},
        {"people": 8}, {"pictures": 8}, {"batches": 3}, {"learning_rate": 1e-3}, {"weight_decay": 0.0},
        {"warmup": 0.0}, {"seed": 1}, {"label_smoothing": 0.0}, {"margin": 0.5}, {"triplet": 0.5}, {"flip": 0.0},
        {"pad": 0.0}, {"erase": 0.0}, {"jitter": 0.1},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_other_settings_do_not_resume(change: dict[str, Any], tmp_path: Path) -> None:
    TrainConfig().save(tmp_path / "settings.json")
    with pytest.raises(CheckpointError, match=f"cannot resume, the run has {next(iter(change))}=.*--output"):
        TrainConfig(**change).check_resume(tmp_path / "settings.json")


def test_what_does_not_change_the_run_may_change(tmp_path: Path) -> None:
    TrainConfig().save(tmp_path / "settings.json")
    TrainConfig(workers=0, evaluate_every=1).check_resume(tmp_path / "settings.json")


def test_precision_may_change_from_or_to_automatic(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    for before, now in (("auto", "bf16"), ("float32", "auto"), ("bf16", "bf16")):
        TrainConfig(precision=before).save(path)
        TrainConfig(precision=now).check_resume(path)
    with pytest.raises(CheckpointError, match="the run has precision='bf16' and you ask for 'float32'"):
        TrainConfig(precision="float32").check_resume(path)


def test_other_data_does_not_resume(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    TrainConfig().save(path, "abc")
    TrainConfig().check_resume(path, "abc")
    with pytest.raises(CheckpointError, match="the run was made with other training pictures or people") as caught:
        TrainConfig().check_resume(path, "abd")
    assert "\n" not in str(caught.value)


def test_settings_are_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.json"
    TrainConfig().save(path)
    before = path.read_text()

    def killed(*names: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        TrainConfig(seed=1).save(path)
    assert path.read_text() == before


@pytest.mark.parametrize("text", [None, "", "{", "[]", "null", "\xff"])
def test_unreadable_settings(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"settings\.json: cannot resume") as caught:
        TrainConfig().check_resume(path)
    assert "\n" not in str(caught.value)
