"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

from mgran_fast.report.page import CameraRow, RankedList, Report, Scores, write
from mgran_fast.report.pictures import CropView, Match, Query

__all__ = ["CameraRow", "CropView", "Match", "Query", "RankedList", "Report", "Scores", "write"]
