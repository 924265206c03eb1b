"""Distances between embeddings, and how well they rank a gallery."""

from __future__ import annotations

from mgran_fast.metrics.distances import cosine, euclidean, visible
from mgran_fast.metrics.ranking import Ranking, Top, rank, top

__all__ = ["Ranking", "Top", "cosine", "euclidean", "rank", "top", "visible"]
