"""Distances between embeddings, and how well they rank a gallery."""

from __future__ import annotations

from mgran_fast.metrics.distances import cosine, euclidean, visible
from mgran_fast.metrics.ranking import Ranking, Top, rank, top
from mgran_fast.metrics.rerank import rerank
from mgran_fast.metrics.shots import ShotRanking, rank_shots

__all__ = ["Ranking", "ShotRanking", "Top", "cosine", "euclidean", "rank", "rank_shots", "rerank", "top", "visible"]
