"""The Triton kernels under Triton's interpreter, which runs them on the CPU.

Triton decides at import whether it interprets, so these tests want a process of their own:
``python tests/ladder/interpret.py``. MGRAN_KERNELS names another folder of kernels than the installed one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


def _kernels(name: str) -> ModuleType:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs TRITON_INTERPRET=1 in a process of its own: python tests/ladder/interpret.py")
    pytest.importorskip("triton")
    folder = os.environ.get("MGRAN_KERNELS")
    if not folder:
        return importlib.import_module(f"mgran_fast.kernels.{name}")
    spec = importlib.util.spec_from_file_location(f"other_{name}", Path(folder) / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pooling() -> ModuleType:
    """The module of kernels/pooling.py."""
    return _kernels("pooling")


@pytest.fixture(scope="session")
def pointwise() -> ModuleType:
    """The module of kernels/pointwise.py."""
    return _kernels("pointwise")


@pytest.fixture(scope="session")
def stem() -> ModuleType:
    """The module of kernels/stem.py."""
    return _kernels("stem")


@pytest.fixture(scope="session")
def batchnorm() -> ModuleType:
    """The module of kernels/batchnorm.py."""
    return _kernels("batchnorm")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """New tensors hold NaN: an element that no kernel writes shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
