"""What the tests of evaluation share: a few pictures, a model of their size, and both ways to rank on a CPU."""

from __future__ import annotations

import os

import pytest
import torch

from mgran_fast.data import DataSet
from mgran_fast.data.synthetic import write
from mgran_fast.model import MGRAN
from mgran_fast.ops import backend

SIZE = (32, 16)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write(tmp_path_factory.mktemp("tiny") / "data", people=(0, 4), cameras=2, views=3, size=SIZE)


@pytest.fixture(scope="module")
def model() -> MGRAN:
    torch.manual_seed(0)
    return MGRAN(size=SIZE, trunk="resnet18").eval()


@pytest.fixture(params=["native", "reference"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernels, then plain torch. Skips kernels that are not built, unless MGRAN_EXPECT_NATIVE says they must be."""
    if request.param == "native" and backend.extension() is None:
        assert os.environ.get("MGRAN_EXPECT_NATIVE") != "1", "the extension is not built"
        pytest.skip("the extension is not built")
    monkeypatch.setenv("MGRAN_BACKEND", request.param)
    return str(request.param)
