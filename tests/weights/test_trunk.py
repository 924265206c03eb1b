"""Pretrained trunk weights: torchvision's files as they are, and files that hold something else."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from mgran_fast import MGRAN, CheckpointError
from mgran_fast.weights.trunk import load_trunk


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """torchvision's, with its classifier."""
    torch.manual_seed(1)
    answer: dict[str, torch.Tensor] = torchvision.models.resnet18(weights=None).state_dict()
    assert "fc.weight" in answer
    return answer


@pytest.fixture
def model() -> MGRAN:
    torch.manual_seed(0)
    return MGRAN(2, size=(32, 16), trunk="resnet18")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_torchvisions_weights_load_unchanged(
    suffix: str, state: dict[str, torch.Tensor], model: MGRAN, tmp_path: Path
) -> None:
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    head = {key: tensor.clone() for key, tensor in model.ma.state_dict().items() if not key.startswith("trunk.")}
    load_trunk(model, path)
    loaded = model.ma.trunk.state_dict()
    assert loaded.keys() == {key for key in state if not key.startswith("fc.")}
    for key, tensor in loaded.items():
        assert torch.equal(tensor, state[key]), key
    for key, tensor in head.items():
        assert torch.equal(model.ma.state_dict()[key], tensor), key
    assert model.ma.trunk.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_files_of_the_old_format_load(state: dict[str, torch.Tensor], model: MGRAN, tmp_path: Path) -> None:
    path = tmp_path / "resnet18.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    load_trunk(model, path)
    assert torch.equal(model.ma.trunk.conv1.weight, state["conv1.weight"])


def refused(model: MGRAN, path: Path, words: str) -> None:
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=words) as caught:
        load_trunk(model, path)
    # One line that names the file, and never the advice to open it unsafely.
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_no_file(model: MGRAN, tmp_path: Path) -> None:
    refused(model, tmp_path / "resnet18.pth", "no such file; --weights wants torchvision's .pth or a .safetensors file")
    refused(model, tmp_path, "no such file")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    # The second is read as a pickle that fetches what was never stored: a KeyError in the depths.
    [b"", b"hello world", b"not weights\n", b"PK\x03\x04 garbage", bytes(range(256)), bytes(64), b'{"a": 1}'],
)
def test_bytes_that_are_no_weights(suffix: str, content: bytes, model: MGRAN, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    refused(model, path, "not readable as weights")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file(suffix: str, state: dict[str, torch.Tensor], model: MGRAN, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    content = path.read_bytes()
    for share in (0.1, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        refused(model, path, "not readable as weights")


def test_weights_under_the_wrong_suffix(state: dict[str, torch.Tensor], model: MGRAN, tmp_path: Path) -> None:
    save_file(state, tmp_path / "weights.pth")
    torch.save(state, tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        refused(model, tmp_path / name, "not readable as weights")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(1)], "holds a list, not a state dict"),
        (torch.zeros(3), "holds a Tensor, not a state dict"),
        ({}, "not weights of this trunk: the checkpoint lacks conv1.weight"),
        ({"state_dict": {"conv1.weight": torch.zeros(1)}}, "not a state dict: 'state_dict' is a dict"),
        ({0: torch.zeros(1)}, "not a state dict: 0 is a Tensor"),
    ],
)
def test_tensors_that_are_no_state_dict(content: Any, words: str, model: MGRAN, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    refused(model, tmp_path / "weights.pth", words)


def test_another_trunk(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "resnet18.pth")
    with torch.device("meta"):
        other = MGRAN(trunk="resnet50")
    with pytest.raises(CheckpointError, match="not weights of this trunk: the checkpoint lacks"):
        load_trunk(other, tmp_path / "resnet18.pth")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["torch", "old torch", "pickle"])
def test_no_code_of_the_file_runs(kind: str, state: dict[str, torch.Tensor], model: MGRAN, tmp_path: Path) -> None:
    path, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    content = {**state, "extra": Trap(str(sprung))}
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"extra": Trap(str(sprung))}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "torch")
    refused(model, path, "not readable as weights")
    assert not sprung.exists()
    if kind == "pickle":
        # The trap works where somebody does unpickle it.
        pickle.loads(path.read_bytes())
        assert sprung.exists()
