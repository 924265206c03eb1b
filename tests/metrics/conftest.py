"""What the tests of evaluation share: a few pictures, and a model of their size."""

from __future__ import annotations

import pytest
import torch

from mgran_fast.data import DataSet
from mgran_fast.data.synthetic import write
from mgran_fast.model import MGRAN

SIZE = (32, 16)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write(tmp_path_factory.mktemp("tiny") / "data", people=(0, 4), cameras=2, views=3, size=SIZE)


@pytest.fixture(scope="module")
def model() -> MGRAN:
    torch.manual_seed(0)
    return MGRAN(size=SIZE, trunk="resnet18").eval()
