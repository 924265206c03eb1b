"""Search: embeddings that are kept, and the nearest of them."""

from __future__ import annotations

from mgran_fast.search.found import Entry, Found
from mgran_fast.search.gallery import Gallery

__all__ = ["Entry", "Found", "Gallery"]
