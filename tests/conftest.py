"""Shared fixtures. Tests need no network, no GPU and no real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Tests run several at a time; each process on one thread keeps them from fighting over the cores. The variable is
# for the processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder cuhk03 below MGRAN_DATA; the test is skipped without it."""
    root = os.environ.get("MGRAN_DATA")
    if not root or not (Path(root) / "cuhk03").is_dir():
        pytest.skip("MGRAN_DATA names no folder with cuhk03")
    return Path(root) / "cuhk03"
