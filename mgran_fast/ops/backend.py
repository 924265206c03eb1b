"""Which implementation of an op runs, and why.

Each op has one native implementation for each kind of device beside its reference: C++ in the extension on the
CPU, CUDA C++ in the extension or Triton on the GPU. The extension may be missing (a source tree that was never
built) or lack CUDA (built without nvcc), and Triton may not be installed: then the reference runs, and a debug
line of the logger ``mgran_fast.ops`` says so, once. ``MGRAN_BACKEND=reference`` forces the reference;
``MGRAN_BACKEND=native`` makes a missing native implementation an error. On the CPU,
``MGRAN_CPU=portable|avx2|avx512`` keeps the kernels from using any newer instruction set.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from types import ModuleType

from mgran_fast.errors import DataError

logger = logging.getLogger("mgran_fast.ops")

CHOICES = ("auto", "native", "reference")
INSTRUCTION_SETS = ("portable", "avx2", "avx512")
#: The ops whose GPU implementation is Triton: ``mgran_fast.kernels.<module>``.
TRITON = {"batchnorm": "batchnorm", "pooling": "pooling", "pointwise": "pointwise", "stem": "stem"}


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    # torch comes first: it brings the OpenMP runtime that the extension then shares with it.
    importlib.import_module("torch")
    try:
        module = importlib.import_module("mgran_fast._C")
    except ImportError as error:
        return None, f"the extension mgran_fast._C does not import ({error})"
    most = os.environ.get("MGRAN_CPU", "").lower()
    if most:
        if most not in INSTRUCTION_SETS:
            raise ValueError(f"MGRAN_CPU must be one of {', '.join(INSTRUCTION_SETS)}, not {most!r}")
        module.limit_isa(most)
    return module, ""


@functools.cache
def _load_triton(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"mgran_fast.kernels.{name}"), ""
    except ImportError as error:
        return None, f"the Triton kernels mgran_fast.kernels.{name} do not import ({error})"


def extension() -> ModuleType | None:
    """The compiled module mgran_fast._C, or None where it is not built."""
    return _load()[0]


def requested() -> str:
    """The value of MGRAN_BACKEND: auto, native or reference. Raises ValueError for anything else."""
    choice = os.environ.get("MGRAN_BACKEND", "auto").lower() or "auto"
    if choice not in CHOICES:
        raise DataError(f"MGRAN_BACKEND must be one of {', '.join(CHOICES)}, not {choice!r}")
    return choice


def why_not_native(op: str, device: str) -> str:
    """Why the native implementation of ``op`` cannot run on ``device`` ("cpu", "cuda"); empty when it can."""
    return _find(op, device)[1]


def _find(op: str, device: str) -> tuple[ModuleType | None, str]:
    if device == "cuda" and op in TRITON:
        return _load_triton(TRITON[op])
    module, reason = _load()
    if module is None:
        return None, reason
    if not hasattr(module, f"{op}_{device}"):
        if device == "cuda" and module.cuda is None:
            return None, "mgran_fast was built without CUDA"
        return None, f"there is no native {op} for {device}"
    return module, ""


def native(op: str, device: str) -> ModuleType | None:
    """The module that shall run ``op`` on ``device``, None when the reference shall.

    It is the extension, or the module of Triton kernels of an op in :data:`TRITON` on the GPU.
    Raises RuntimeError when MGRAN_BACKEND=native and there is none.
    """
    choice = requested()
    module, reason = (None, "MGRAN_BACKEND=reference") if choice == "reference" else _find(op, device)
    _log(op, device, reason)
    if module is None and choice == "native":
        raise RuntimeError(f"MGRAN_BACKEND=native, but the reference would run {op} on {device}: {reason}")
    return module


@functools.cache
def _log(op: str, device: str, reason: str) -> None:
    logger.debug("%s on %s: %s", op, device, f"reference, since {reason}" if reason else "native")
