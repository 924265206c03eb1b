"""Settings: what is refused, YAML, and what a resumed run must agree on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from mgran_fast.errors import CheckpointError, DataError
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.mra.config import MRAConfig
from mgran_fast.train.settings import Settings


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
        ({"precision": "float16"}, "precision must be one of auto, bf16, f16, float32, not 'float16'"),
        ({"accumulate": 0}, "accumulate must be at least 1, not 0"),
        ({"head_rate": 0.0}, "head_rate must be positive"),
        ({"oim_temperature": 0.0}, "oim_temperature must be positive"),
        ({"oim_momentum": 1.0}, r"oim_momentum must be in \[0, 1\)"),
        ({"circle_scale": float("nan")}, "circle_scale must be positive"),
        ({"circle_margin": -0.1}, "circle_margin must not be negative"),
        ({"gamma": 0.0}, "gamma must be positive"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"ema": 1.0}, r"ema must be in \[0, 1\)"),
        ({"floor": 1.5}, r"floor must be in \[0, 1\]"),
        ({"clip": -1.0}, "clip must not be negative"),
        ({"checkpoint_minutes": float("inf")}, "checkpoint_minutes must not be negative"),
        ({"identity_weight": -1.0}, "identity_weight must not be negative"),
        ({"identity_loss": "arcface"}, "identity_loss must be one of softmax, oim, not 'arcface'"),
        ({"metric_loss": "contrastive"}, "metric_loss must be one of triplet, soft_triplet, circle, none"),
        ({"optimizer": "lamb"}, "optimizer must be one of adamw, adam, sgd"),
        ({"schedule": "linear"}, "schedule must be one of cosine, steps"),
        ({"sampler": "random"}, "sampler must be one of pk, balanced, camera"),
        ({"schedule": "steps"}, r"milestones must be rising epochs between 0 and 60 .*\[20, 35\], not \[\]"),
        ({"schedule": "steps", "milestones": (40.0, 20.0)}, r"not \[40.0, 20.0\]"),
        ({"schedule": "steps", "milestones": (20.0, 60.0)}, r"not \[20.0, 60.0\]"),
        ({"schedule": "steps", "milestones": (float("nan"),)}, r"not \[nan\]"),
        ({"identity_weight": 0.0, "metric_loss": "none"}, "identity_weight and metric_weight are both 0"),
        ({"identity_weight": 0.0, "metric_weight": 0.0}, "identity_weight and metric_weight are both 0"),
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
    config = TrainConfig(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), size=(64, 32), milestones=(5.0, 1e-7))
    config.save(tmp_path / "settings.yaml", "abc")
    config.check_resume(tmp_path / "settings.yaml", "abc")
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]
    assert yaml.safe_load((tmp_path / "settings.yaml").read_text())["data"] == "abc"
    assert TrainConfig.from_yaml(tmp_path / "settings.yaml") == config, "a run's own file makes another such run"


@pytest.mark.parametrize(
    "change",
    [
        {"layout": "part"}, {"size": (64, 32)}, {"trunk": "resnet18"}, {"last_stride": 2}, {"statistics": "per_input"},
        {"pooling": "gem"}, {"scale": 1 / 255}, {"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}, {"epochs": 61},
        {"people": 8}, {"pictures": 8}, {"batches": 3}, {"learning_rate": 1e-3}, {"weight_decay": 0.0},
        {"warmup": 0.0}, {"seed": 1}, {"label_smoothing": 0.0}, {"margin": 0.5}, {"metric_weight": 0.5}, {"flip": 0.0},
        {"pad": 0.0}, {"erase": 0.0}, {"jitter": 0.1}, {"sampler": "camera"}, {"accumulate": 2}, {"ema": 0.9},
        {"identity_loss": "oim"}, {"metric_loss": "circle"}, {"optimizer": "sgd"}, {"clip": 1.0}, {"compile": True},
    ],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_other_settings_do_not_resume(change: dict[str, Any], tmp_path: Path) -> None:
    TrainConfig().save(tmp_path / "settings.yaml")
    with pytest.raises(CheckpointError, match=f"cannot resume, the run has {next(iter(change))}=.*--output"):
        TrainConfig(**change).check_resume(tmp_path / "settings.yaml")


def test_what_does_not_change_the_run_may_change(tmp_path: Path) -> None:
    TrainConfig().save(tmp_path / "settings.yaml")
    TrainConfig(workers=0, evaluate_every=1, checkpoint_minutes=10.0).check_resume(tmp_path / "settings.yaml")


def test_precision_may_change_from_or_to_automatic(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    for before, now in (("auto", "bf16"), ("float32", "auto"), ("bf16", "bf16")):
        TrainConfig(precision=before).save(path)
        TrainConfig(precision=now).check_resume(path)
    with pytest.raises(CheckpointError, match="the run has precision='bf16' and you ask for 'float32'"):
        TrainConfig(precision="float32").check_resume(path)


def test_other_data_does_not_resume(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    TrainConfig().save(path, "abc")
    TrainConfig().check_resume(path, "abc")
    with pytest.raises(CheckpointError, match="the run was made with other training pictures or people") as caught:
        TrainConfig().check_resume(path, "abd")
    assert "\n" not in str(caught.value)


def test_settings_are_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.yaml"
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
    path = tmp_path / "settings.yaml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"settings\.yaml: cannot resume") as caught:
        TrainConfig().check_resume(path)
    assert "\n" not in str(caught.value)


def test_settings_of_an_earlier_version(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"epochs": 60}')
    with pytest.raises(CheckpointError, match=r"of an earlier version of mgran_fast \(settings\.json\)") as caught:
        TrainConfig().check_resume(tmp_path / "settings.yaml")
    assert "\n" not in str(caught.value)


def test_settings_younger_than_a_run_have_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("epochs: 60\ndata: abc\n")
    TrainConfig().check_resume(path, "abc")
    with pytest.raises(CheckpointError, match=r"the run has ema=0\.0 and you ask for 0\.5"):
        TrainConfig(ema=0.5).check_resume(path, "abc")
    path.write_text("epochs: 60\nwarp: 3\ndata: abc\n")
    with pytest.raises(CheckpointError, match="not readable \\(no setting 'warp'"):
        TrainConfig().check_resume(path, "abc")


# --- YAML -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(mean=(0.1, 1 / 3, 1e-9), milestones=(1.5, 20.0), batches=7, compile=True, learning_rate=1e-12),
        MRAConfig(),
        MRAConfig(whole_pictures=True, model="maskrcnn", batches=3),
    ],
    ids=lambda config: type(config).__name__,
)
def test_yaml_goes_round(config: Settings, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert type(config).from_yaml(path) == config
    assert len(path.read_text().splitlines()) == len(config.kinds()), "a line a setting, lists too"


def test_a_file_names_some_settings(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "# of mine\nepochs: 120\nlearning_rate: 1e-3\nweight_decay: 0\nsize: [384, 128]\nmean: null\nsampler: camera\n"
    )
    config = TrainConfig.from_yaml(path, epochs=10, seed=3)
    assert config == TrainConfig(
        epochs=10, learning_rate=1e-3, weight_decay=0.0, size=(384, 128), sampler="camera", seed=3
    )
    assert type(config.weight_decay) is float
    path.write_text("")
    assert TrainConfig.from_yaml(path) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pepole: 3", "no setting 'pepole'; the nearest is 'people'"),
        ("metric-loss: circle", "no setting 'metric-loss'; the nearest is 'metric_loss'"),
        ("xyzzy: 3", "no setting 'xyzzy'; there are layout, shape, size"),
        ("3: 3", "no setting 3; there are"),
        ("epochs: many", "epochs must be a whole number, not 'many'"),
        ("epochs: 3.5", r"epochs must be a whole number, not 3\.5"),
        ("epochs: true", "epochs must be a whole number, not True"),
        ("epochs: null", "epochs must be a whole number, not None"),
        ("batches: x", "batches must be a whole number or null, not 'x'"),
        ("learning_rate: fast", "learning_rate must be a number, not 'fast'"),
        ("learning_rate: true", "learning_rate must be a number, not True"),
        ("learning_rate: .nan", "learning_rate must be positive, not nan"),
        ("compile: 1", "compile must be true or false, not 1"),
        ("trunk: 50", "trunk must be text, not 50"),
        ("size: 256x128", "size must be a list of 2 whole numbers, not '256x128'"),
        ("size: [256]", r"size must be a list of 2 whole numbers, not \[256\]"),
        ("size: [256, 128.5]", r"size must be a list of 2 whole numbers, not \[256, 128\.5\]"),
        ("mean: 0.5", r"mean must be a list of 3 numbers or null, not 0\.5"),
        ("milestones: 40", "milestones must be a list of numbers, not 40"),
        ("trunk: vgg16", "trunk must be one of"),
        ("warmup: 1.0", r"warmup must be in \[0, 1\), not 1\.0"),
        ("layout: limbs", "layout must be one of"),
        ("epochs: 3\nepochs: 4", "epochs is given twice"),
        ("- epochs", "settings are lines of KEY: VALUE"),
        ("epochs", "settings are lines of KEY: VALUE"),
        ("epochs: [", r"no YAML \(line 1: "),
        ("epochs: 3\n\tpeople: 4", r"no YAML \(line 2: "),
        ("seed: !!python/object/apply:os.getpid []", r"no YAML \(line 1: could not determine a constructor"),
        ("\x00", r"no YAML \("),
        ("\xff", "no text in UTF-8"),
        ("mean: &a [*a, *a, *a]", "mean must be a list of 3 numbers or null"),
        ("trunk: [" + "x, " * 10000 + "]", "trunk must be text, not"),
        ("trunk: " + "[" * 10000, "no YAML"),
    ],
    ids=lambda value: value[:20],
)
def test_wrong_files(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=words) as caught:
        TrainConfig.from_yaml(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.yaml: cannot be read \(No such file or directory\)"):
        TrainConfig.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        TrainConfig.from_yaml(tmp_path)


def test_what_overrides_a_file_is_not_blamed_on_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 3\n")
    with pytest.raises(DataError, match=r"^people must be at least 2, not 1$"):
        TrainConfig.from_yaml(path, people=1)
    path.write_text("epochs: 0\n")
    with pytest.raises(DataError, match=r"mine\.yaml: epochs must be at least 1"):
        TrainConfig.from_yaml(path, people=4)
    assert TrainConfig.from_yaml(path, epochs=2).epochs == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gamma=0.5", {"gamma": 0.5}),
        ("learning_rate=1e-3", {"learning_rate": 1e-3}),
        ("head-rate=10", {"head_rate": 10.0}),
        ("milestones=[40, 70]", {"milestones": (40.0, 70.0)}),
        ("compile=true", {"compile": True}),
        ("batches=null", {"batches": None}),
        ("metric_loss=none", {"metric_loss": "none"}),
        (" gamma = 0.5", {"gamma": 0.5}),
    ],
)
def test_one_setting_in_text(text: str, found: dict[str, Any]) -> None:
    assert TrainConfig.parse(text) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gamma", "--set gamma: write KEY=VALUE, for example gamma=0.1"),
        ("gama=1", "--set gama=1: no setting 'gama'; the nearest is 'gamma'"),
        ("gamma=big", "--set gamma=big: gamma must be a number, not 'big'"),
        ("gamma=", "--set gamma=: gamma must be a number, not None"),
        ("milestones=[1", r"--set milestones=\[1: line 1: "),
    ],
)
def test_one_setting_in_wrong_text(text: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        TrainConfig.parse(text)
    assert "\n" not in str(caught.value)
