"""Miniatures of published sets, and runs of a second."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import torchvision

from mgran_fast.data import DataSet
from mgran_fast.data.sets import miniature, open_set
from mgran_fast.reproduce.runs import Training
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.machines import Machines

NARROW = Path(__file__).parents[1] / "train" / "narrow.py"


class Settings(Protocol):
    def __call__(self, **changes: Any) -> TrainConfig: ...


@pytest.fixture(scope="module", autouse=True)
def no_gpu(without_gpu: None) -> None:
    """Trains on the CPU everywhere."""


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Until the module ends a ResNet-18 has few channels, nothing waits for the disk, and no curves are drawn."""
    spec = importlib.util.spec_from_file_location("narrow", NARROW)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "resnet18", module.narrow)
        patch.setattr("mgran_fast.weights.files._sync", lambda path, access: None)
        patch.setattr("mgran_fast.train.curves.draw", lambda rows, path: None)
        yield


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Settings of a run of a second, which looks at no masks."""
    return {
        "size": (32, 16), "trunk": "resnet18", "epochs": 1, "people": 2, "pictures": 2, "batches": 1, "workers": 0,
        "evaluate_every": 0, "precision": "float32", "layout": "none", "schedule": "cosine", "milestones": (),
    }  # fmt: skip


@pytest.fixture(scope="session")
def here() -> Training:
    """One process on the CPU."""
    return Training(Machines(devices=1, accelerator="cpu"))


@pytest.fixture(scope="session")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature of Market-1501 with ``gt_bbox``; tests that break it take a copy."""
    folder = tmp_path_factory.mktemp("market") / "data"
    miniature("market1501", folder, size=(32, 16))
    return folder


@pytest.fixture(scope="session")
def cuhk03(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature of CUHK03's raw files."""
    folder = tmp_path_factory.mktemp("cuhk03") / "data"
    miniature("cuhk03-classic", folder, size=(32, 16))
    return folder


@pytest.fixture(scope="session")
def dataset(market: Path) -> DataSet:
    return open_set("market1501", market, counts="any")
