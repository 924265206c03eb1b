"""Which implementation of an op runs, and why.

Each op has one native implementation for each kind of device beside its reference. The extension may be
missing (a source tree that was never built) or may lack CUDA (built without nvcc): then the reference runs,
and a debug line of the logger ``mgran_fast.ops`` says so, once. ``MGRAN_BACKEND=reference`` forces the
reference; ``MGRAN_BACKEND=native`` makes a missing native implementation an error.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from types import ModuleType

logger = logging.getLogger("mgran_fast.ops")

CHOICES = ("auto", "native", "reference")


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    # torch comes first: it brings the OpenMP runtime that the extension then shares with it.
    importlib.import_module("torch")
    try:
        return importlib.import_module("mgran_fast._C"), ""
    except ImportError as error:
        return None, f"the extension mgran_fast._C does not import ({error})"


def extension() -> ModuleType | None:
    """The compiled module mgran_fast._C, or None where it is not built."""
    return _load()[0]


def requested() -> str:
    """The value of MGRAN_BACKEND: auto, native or reference. Raises ValueError for anything else."""
    choice = os.environ.get("MGRAN_BACKEND", "auto").lower() or "auto"
    if choice not in CHOICES:
        raise ValueError(f"MGRAN_BACKEND must be one of {', '.join(CHOICES)}, not {choice!r}")
    return choice


def why_not_native(op: str, device: str) -> str:
    """Why the native implementation of ``op`` cannot run on ``device`` ("cpu", "cuda"); empty when it can."""
    module, reason = _load()
    if module is None:
        return reason
    if not hasattr(module, f"{op}_{device}"):
        if device == "cuda" and module.cuda is None:
            return "mgran_fast was built without CUDA"
        return f"there is no native {op} for {device}"
    return ""


def native(op: str, device: str) -> ModuleType | None:
    """The extension when it shall run ``op`` on ``device``, None when the reference shall.

    Raises RuntimeError when MGRAN_BACKEND=native and there is none.
    """
    choice = requested()
    reason = "MGRAN_BACKEND=reference" if choice == "reference" else why_not_native(op, device)
    _log(op, device, reason)
    if not reason:
        return extension()
    if choice == "native":
        raise RuntimeError(f"MGRAN_BACKEND=native, but the reference would run {op} on {device}: {reason}")
    return None


@functools.cache
def _log(op: str, device: str, reason: str) -> None:
    logger.debug("%s on %s: %s", op, device, f"reference, since {reason}" if reason else "native")
