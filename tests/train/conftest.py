"""A tiny data set, and the settings of runs that take seconds."""

from __future__ import annotations

from typing import Any, Protocol

import pytest

from mgran_fast.data import DataSet
from mgran_fast.data.synthetic import write
from mgran_fast.train.config import TrainConfig


class Settings(Protocol):
    def __call__(self, **changes: Any) -> TrainConfig: ...


@pytest.fixture(scope="module", autouse=True)
def no_gpu(without_gpu: None) -> None:
    """Trains on the CPU everywhere."""


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
