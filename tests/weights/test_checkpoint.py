"""MGRAN checkpoints: what goes in comes out, and nothing else is taken for one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mgran_fast import MGRAN, CheckpointError
from mgran_fast.layouts import Band, Layout, Limb
from mgran_fast.weights import checkpoint

SIZE = (32, 16)


def build(num_classes: int = 3, layout: str = "region", **options: Any) -> MGRAN:
    """A model as after training: no number is that of a fresh one."""
    torch.manual_seed(0)
    model = MGRAN(num_classes, layout, **{"size": SIZE, "trunk": "resnet18", **options})
    for tensor in (*model.ma.parameters(), *model.ma.buffers()):
        if tensor.is_floating_point():
            tensor.data.copy_(torch.rand_like(tensor) * 0.1 + 0.05)
        elif tensor.ndim == 0:
            tensor.fill_(7)
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[MGRAN, Path]:
    model, path = build().eval(), tmp_path_factory.mktemp("saved") / "model.safetensors"
    model.save(path, notes={"data": "twelve people", "epoch": "7"})
    return model, path


def rewritten(source: Path, target: Path, *, without: str = "", **metadata: str) -> Path:
    """The checkpoint with other metadata, or without one of its tensors."""
    with safe_open(source, framework="pt") as file:
        kept = {**(file.metadata() or {}), **metadata}
    tensors = {key: tensor for key, tensor in load_file(source).items() if key != without}
    save_file(tensors, target, metadata={key: value for key, value in kept.items() if value})
    return target


def test_everything_comes_back(saved: tuple[MGRAN, Path]) -> None:
    model, path = saved
    again = MGRAN.from_file(path)
    assert not again.training
    assert again.config == model.config
    mine, theirs = model.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert theirs[key].dtype == tensor.dtype
        assert torch.equal(theirs[key], tensor), key
    # Safetensors keep no strides: the memory format is made anew.
    assert again.ma.trunk.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    crops = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    masks = torch.ones(2, *SIZE)
    with torch.no_grad():
        assert torch.equal(again(crops, masks), model(crops, masks))


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "part", "num_classes": 0},
        {"layout": "none", "statistics": "per_input", "last_stride": 2},
        {"pooling": "gem", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "scale": 1 / 255},
        {"threshold": 0.25, "keypoint_threshold": 0.1, "size": (48, 24)},
    ],
)
def test_every_option_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    model = build(**options)
    model.save(tmp_path / "model.safetensors")
    again = MGRAN.from_file(str(tmp_path / "model.safetensors"))
    assert again.config == model.config
    for name, value in options.items():
        kept = again.config[name]
        assert (tuple(kept) if isinstance(kept, list) else kept) == value
    assert again.ma.pooling == model.ma.pooling
    assert again.ma.trunk.bn1.statistics == model.ma.trunk.bn1.statistics


def test_notes(saved: tuple[MGRAN, Path], tmp_path: Path) -> None:
    config, notes = checkpoint.describe(saved[1])
    assert notes == {"data": "twelve people", "epoch": "7"}
    assert config == saved[0].config
    saved[0].save(tmp_path / "plain")
    assert checkpoint.describe(tmp_path / "plain")[1] == {}


def test_the_estimator_is_not_in_the_file_and_is_given_on_loading(saved: tuple[MGRAN, Path], tmp_path: Path) -> None:
    estimator = torch.nn.Linear(2, 2)
    build(mra=estimator).save(tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(saved[1]).keys()
    assert MGRAN.from_file(saved[1]).mra is None
    assert MGRAN.from_file(saved[1], mra=estimator).mra is estimator


def test_what_the_caller_relies_on(saved: tuple[MGRAN, Path]) -> None:
    path = saved[1]
    assert MGRAN.from_file(path, layout="region", num_classes=3).num_classes == 3
    with pytest.raises(CheckpointError, match="made with layout='region', wanted layout='part'") as caught:
        MGRAN.from_file(path, layout="part")
    assert str(path) in str(caught.value)
    for classes in (0, 4):
        with pytest.raises(CheckpointError, match=f"made with num_classes=3, wanted num_classes={classes}"):
            MGRAN.from_file(path, num_classes=classes)


def test_saving_makes_the_folder_and_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "first" / "model.safetensors"
    build(num_classes=3).save(path)
    build(num_classes=2).save(path)
    assert MGRAN.from_file(path).num_classes == 2
    assert os.listdir(path.parent) == ["model.safetensors"]


@pytest.mark.parametrize("failure", ["write", "replace"])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    build(num_classes=3).save(path)
    before = path.read_bytes()

    def disk_full(descriptor: int) -> None:
        raise OSError("No space left on device")

    def no_replacing(source: Path, target: Path) -> None:
        raise PermissionError("the target is open elsewhere")

    if failure == "write":
        monkeypatch.setattr(os, "fsync", disk_full)
    else:
        monkeypatch.setattr(os, "replace", no_replacing)
    with pytest.raises(OSError, match=r"No space left|open elsewhere"):
        build(num_classes=2).save(path)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    assert path.read_bytes() == before


# --- what is no checkpoint ------------------------------------------------------------------------------------


def refused(path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        MGRAN.from_file(path)
    # One line that names the file.
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "model.safetensors", "no such checkpoint; mgran-fast train writes one")
    refused(tmp_path, "no such checkpoint")


@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80\x02}q\x00.", bytes(1000), b"\xff" * 64])
def test_bytes_that_are_no_safetensors(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refused(path, "not a safetensors file")


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(build().ma.state_dict(), path)
    refused(path, "not a safetensors file")


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.9999])
def test_a_truncated_file(share: float, saved: tuple[MGRAN, Path], tmp_path: Path) -> None:
    content, path = saved[1].read_bytes(), tmp_path / "model.safetensors"
    path.write_bytes(content[: int(len(content) * share)])
    refused(path, "not a safetensors file")


def test_somebody_elses_safetensors(saved: tuple[MGRAN, Path], tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "plain")
    refused(tmp_path / "plain", "no MGRAN checkpoint: its format is None")
    refused(
        rewritten(saved[1], tmp_path / "other", format="somebody/1"), "no MGRAN checkpoint: its format is 'somebody/1'"
    )


@pytest.mark.parametrize("config", ["", "{", "3", "[1, 2]", "null"])
def test_a_damaged_configuration(config: str, saved: tuple[MGRAN, Path], tmp_path: Path) -> None:
    refused(rewritten(saved[1], tmp_path / "damaged", config=config), "its configuration is damaged")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layout": "limbs"}, "this version cannot build its model: layout must be one of"),
        ({"trunk": "resnet9"}, "this version cannot build its model: trunk must be one of"),
        ({"colour": "red"}, "this version cannot build its model: .*unexpected keyword argument 'colour'"),
        ({"size": None}, "this version cannot build its model"),
        ({"trunk": "resnet34"}, "its weights do not fit its own configuration"),
        ({"num_classes": 4}, "its weights do not fit its own configuration"),
    ],
)
def test_a_configuration_of_another_version(
    change: dict[str, Any], words: str, saved: tuple[MGRAN, Path], tmp_path: Path
) -> None:
    config = json.dumps({**saved[0].config, **change})
    refused(rewritten(saved[1], tmp_path / "other", config=config), words)


def test_a_missing_tensor(saved: tuple[MGRAN, Path], tmp_path: Path) -> None:
    path = rewritten(saved[1], tmp_path / "short", without="neck.weight")
    refused(path, r"do not fit its own configuration.*neck\.weight")


def test_a_layout_of_your_own_must_be_registered_before_loading(tmp_path: Path) -> None:
    limbs = (Limb(1, "neck", "pelvis", 1.0),)
    mine = Layout("test-checkpoint-trunk", ("trunk",), (0, 1), limbs, bands=(Band(1, 0, 24),))
    build(layout=mine, num_classes=0).save(tmp_path / "model.safetensors")  # type: ignore[arg-type]
    assert MGRAN.from_file(tmp_path / "model.safetensors").layout is mine
    config = json.dumps({**build().config, "layout": "test-checkpoint-unknown"})
    path = rewritten(tmp_path / "model.safetensors", tmp_path / "unknown", config=config)
    refused(path, "layout must be one of .* not 'test-checkpoint-unknown'")
