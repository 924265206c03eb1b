"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

from mgran_fast.report.page import CameraRow, RankedList, Report, Scores, write
from mgran_fast.report.parts import Comparison, Part
from mgran_fast.report.pictures import CropView, Match, Query

__all__ = [
    "CameraRow",
    "Comparison",
    "CropView",
    "Match",
    "Part",
    "Query",
    "RankedList",
    "Report",
    "Scores",
    "write",
]
