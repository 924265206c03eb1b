"""A tiny data set, and the settings of runs that take seconds."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import torchvision

from mgran_fast.data import DataSet
from mgran_fast.data.synthetic import write
from mgran_fast.train.config import TrainConfig


class Settings(Protocol):
    def __call__(self, **changes: Any) -> TrainConfig: ...


@pytest.fixture(scope="module", autouse=True)
def no_gpu(without_gpu: None) -> None:
    """Trains on the CPU everywhere."""


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """Until the module ends a ResNet-18 has few channels, so that writing its state takes no time."""
    spec = importlib.util.spec_from_file_location("narrow", Path(__file__).with_name("narrow.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "resnet18", module.narrow)
        yield


@pytest.fixture(scope="module")
def fast_files() -> Iterator[None]:
    """Until the module ends nothing waits for the disk, and no curves are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mgran_fast.weights.files._sync", lambda path, access: None)
        patch.setattr("mgran_fast.train.curves.draw", lambda rows, path: None)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """6 training people with 4 pictures each, 4 test people. Tests that break files work on a copy."""
    return write(tmp_path_factory.mktemp("tiny") / "data", people=(6, 4), cameras=2, views=2, size=(32, 16))


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Makes a TrainConfig whose epochs are two batches of 3 people with 2 pictures each."""

    def make(**changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "size": (32, 16), "trunk": "resnet18", "epochs": 3, "people": 3, "pictures": 2, "batches": 2,
            "workers": 0, "evaluate_every": 0, "precision": "float32",
        }  # fmt: skip
        return TrainConfig(**{**values, **changes})

    return make
