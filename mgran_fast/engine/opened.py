"""From a file to an engine, whatever the file holds."""

from __future__ import annotations

import os

import torch

from mgran_fast.engine import file
from mgran_fast.engine.engine import Engine
from mgran_fast.engine.optimize import optimize
from mgran_fast.model import MGRAN
from mgran_fast.mra.estimate import Estimator


def open_engine(
    path: str | os.PathLike[str],
    precision: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    *,
    mra: Estimator | None = None,
) -> Engine:
    """The engine of a checkpoint, in a precision, or the one that :meth:`mgran_fast.Engine.save` wrote, as it is.

    Args:
        path: a safetensors file of either kind.
        precision: of a checkpoint, as for :func:`mgran_fast.optimize`; None for float32. An engine has its own.
        device: where it runs: by default a GPU where there is one.
        mra: the estimator of masks and keypoints, None for the package's own.

    Raises:
        CheckpointError: no such file, neither of the two, or damaged.
        ValueError: a precision for an engine, or one that does not go here; int8 for a checkpoint.
    """
    if file.is_engine(path):
        if precision is not None:
            raise ValueError(f"{path}: an engine has its precision; leave precision out")
        return Engine.from_file(path, mra=mra, device=device)
    if precision in ("int8", torch.int8):
        raise ValueError(
            "int8 takes crops to calibrate on: give an engine that was saved,"
            ' optimize(model, "int8", calibration=...).save(path)'
        )
    return engine_of(MGRAN.from_file(path, mra=mra), precision, device)


def engine_of(
    model: MGRAN, precision: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> Engine:
    """The engine of a model, which is moved to where it runs. Arguments and ValueError as for :func:`open_engine`."""
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    return optimize(model.to(where), torch.float32 if precision is None else precision)
