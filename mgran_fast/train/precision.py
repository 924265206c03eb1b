"""Which number format training runs in."""

from __future__ import annotations

from typing import Literal

import torch

from mgran_fast.errors import DataError
from mgran_fast.mra.inference import computes


def computes_bf16(device: str) -> bool:
    """Whether ``device`` ("cpu" or "cuda") has instructions for bfloat16, rather than emulating them slowly."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without such instructions bfloat16 is emulated, and slower than float32.
    return computes(torch.bfloat16, torch.device("cpu"))


def lightning_precision(precision: str, device: str) -> Literal["bf16-mixed", "16-mixed", "32-true"]:
    """Lightning's name for auto, bf16, f16 or float32 on ``device``. Raises DataError for f16 on a CPU."""
    if precision == "f16":
        if device != "cuda":
            raise DataError("precision f16 is for GPUs: take bf16 or float32 on a CPU")
        return "16-mixed"
    bf16 = precision == "bf16" or (precision == "auto" and computes_bf16(device))
    return "bf16-mixed" if bf16 else "32-true"
