"""Candidates from an inverted file of FAISS: a few lists of it are looked at, not the whole gallery."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import torch

from mgran_fast.errors import MGRANError

#: Rows that are copied to FAISS at once, and rows for each list that the lists' centres are learned from.
_BLOCK, _LEARNED = 2**16, 64


class InvertedFile:
    """An index of embeddings, held in half precision by FAISS.

    Args:
        vectors: float32 [N, D], the embeddings.
        metric: "euclidean" or "cosine".
        lists: how many lists they are shared out among; None for about four times the root of N.

    Raises:
        MGRANError: FAISS is not installed.
        ValueError: there are fewer embeddings than lists.
    """

    def __init__(self, vectors: torch.Tensor, metric: str, lists: int | None) -> None:
        self._faiss = _faiss()
        count, width = vectors.shape
        self.lists = max(1, round(4 * math.sqrt(count)) if lists is None else lists)
        if lists is None:
            self.lists = min(self.lists, max(1, count // _LEARNED))
        if not 1 <= self.lists <= count:
            raise ValueError(f"lists must be from 1 to {count}, the number of entries, not {lists}")
        self._cosine = metric == "cosine"
        kind = self._faiss.METRIC_INNER_PRODUCT if self._cosine else self._faiss.METRIC_L2
        centres = (self._faiss.IndexFlatIP if self._cosine else self._faiss.IndexFlatL2)(width)
        half = self._faiss.ScalarQuantizer.QT_fp16
        self._index = self._faiss.IndexIVFScalarQuantizer(centres, width, self.lists, half, kind)
        self._centres = centres  # FAISS does not keep it alive
        self._faiss.omp_set_num_threads(torch.get_num_threads())
        chosen = torch.linspace(0, count - 1, min(count, _LEARNED * self.lists)).long()
        # FAISS warns on standard error of few rows for each list; that the caller chose.
        self._index.cp.min_points_per_centroid = 1
        self._index.cp.seed = 0
        self._index.train(self._array(vectors[chosen]))
        self.add(vectors)

    def add(self, vectors: torch.Tensor) -> None:
        """Add embeddings [n, D] behind those that are here."""
        for block in vectors.split(_BLOCK):
            self._index.add(self._array(block))

    def candidates(self, query: torch.Tensor, k: int, lists: int, places: torch.Tensor | None) -> torch.Tensor:
        """Places of about the ``k`` nearest of each query, int64 [Q, k], in no order that counts; -1 for none.

        Args:
            query: float32 [Q, D].
            lists: how many lists to look at.
            places: int64, the entries that may be found; None for all.
        """
        parameters = self._faiss.SearchParametersIVF(nprobe=min(lists, self.lists))
        if places is not None:
            allowed = np.zeros(self._index.ntotal, dtype=bool)
            allowed[places.numpy()] = True
            # Held by a name: FAISS keeps a pointer to it.
            bits = np.packbits(allowed, bitorder="little")
            selector = self._faiss.IDSelectorBitmap(bits)
            parameters.sel = selector
        self._faiss.omp_set_num_threads(torch.get_num_threads())
        _, found = self._index.search(self._array(query), k, params=parameters)
        return torch.from_numpy(found)

    def _array(self, vectors: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        vectors = vectors.cpu().float()
        if self._cosine:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return vectors.contiguous().numpy()


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise MGRANError(
            "approximate search takes FAISS, which is not installed: pip install 'mgran_fast[faiss]'"
        ) from error
    module: ModuleType = faiss
    return module
