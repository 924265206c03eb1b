"""What the tests of the ops share: kernels forced, instruction sets, devices."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from mgran_fast.ops import backend


@pytest.fixture(scope="session")
def extension() -> ModuleType:
    """mgran_fast._C. Skips where it is not built, fails where MGRAN_EXPECT_NATIVE says that it must be."""
    module = backend.extension()
    if module is None:
        assert os.environ.get("MGRAN_EXPECT_NATIVE") != "1", "the extension is not built"
        pytest.skip("the extension is not built")
    return module


@pytest.fixture(scope="session")
def native(extension: ModuleType) -> Callable[..., Any]:
    """``native(op, ...)`` calls the op by its kernel; RuntimeError where the reference would run."""

    def run(op: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        # Not the fixture monkeypatch: that lasts for a test, and hypothesis runs a test many times.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MGRAN_BACKEND", "native")
            return op(*arguments, **options)

    return run


@pytest.fixture(scope="module", params=["portable", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest, extension: ModuleType) -> Iterator[str]:
    """Each instruction set of this machine in turn."""
    best = extension.isa()
    extension.limit_isa(request.param)
    try:
        if extension.isa() != request.param:
            pytest.skip(f"this machine has no {request.param}")
        yield request.param
    finally:
        extension.limit_isa(best)


def _gpu_or_skip(op: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    reason = backend.why_not_native(op, "cuda")
    if reason:
        pytest.skip(reason)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """``device("inputs")`` is "cpu" or "cuda"; skips where the GPU or the op's GPU kernel is missing."""

    def choose(op: str) -> str:
        if request.param == "cuda":
            _gpu_or_skip(op)
        return str(request.param)

    return choose


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
