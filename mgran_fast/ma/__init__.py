"""Multi-feature Alignment: the trunk that all inputs share, region pooling, and the head."""

from __future__ import annotations

from mgran_fast.ma.embedding import concatenate
from mgran_fast.ma.network import MA, SHAPES, MAOutput
from mgran_fast.ma.trunk import TRUNKS, Trunk

__all__ = ["MA", "SHAPES", "TRUNKS", "MAOutput", "Trunk", "concatenate"]
