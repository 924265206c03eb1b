"""The ops: checked, registered with torch, each with a reference and, where built, a kernel."""

from __future__ import annotations

from mgran_fast.ops.align import Aligned, align
from mgran_fast.ops.batchnorm import batchnorm
from mgran_fast.ops.crops import crops
from mgran_fast.ops.inputs import inputs
from mgran_fast.ops.pointwise import pointwise
from mgran_fast.ops.pooling import MODES as POOLING_MODES
from mgran_fast.ops.pooling import pooling
from mgran_fast.ops.regions import regions, visibility
from mgran_fast.ops.stem import stem

__all__ = [
    "POOLING_MODES",
    "Aligned",
    "align",
    "batchnorm",
    "crops",
    "inputs",
    "pointwise",
    "pooling",
    "regions",
    "stem",
    "visibility",
]
