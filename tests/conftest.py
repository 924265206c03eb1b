"""Shared fixtures. Tests need no network, no GPU and no real data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from mgran_fast.ops import backend

# Tests run several at a time; each process on one thread keeps them from fighting over the cores. The variable is
# for the processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run and on every machine with the same Hypothesis; a busy one may take its time.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def without_gpu() -> Iterator[None]:
    """Until the module ends torch sees no CUDA device: on the CPU the same training gives the same bits.

    A folder asks for it in an automatic fixture of its own, of the scope "module", so that trainings which several
    tests share run under it as well.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder cuhk03 below MGRAN_DATA; the test is skipped without it."""
    root = os.environ.get("MGRAN_DATA")
    if not root or not (Path(root) / "cuhk03").is_dir():
        pytest.skip("MGRAN_DATA names no folder with cuhk03")
    return Path(root) / "cuhk03"


@pytest.fixture(params=["native", "reference"])
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernels, then plain torch. Skips kernels that are not built, unless MGRAN_EXPECT_NATIVE says they must be."""
    if request.param == "native" and backend.extension() is None:
        assert os.environ.get("MGRAN_EXPECT_NATIVE") != "1", "the extension is not built"
        pytest.skip("the extension is not built")
    monkeypatch.setenv("MGRAN_BACKEND", request.param)
    return str(request.param)


@pytest.fixture
def processor_restored() -> Iterator[None]:
    """Afterwards torch has its threads again, and the kernels all instruction sets."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    module = backend.extension()
    if module is not None:
        module.limit_isa("avx512")
