"""How a checked problem reaches the kernels of rankings, a span of queries at a time."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch

from mgran_fast.metrics.distances import PRODUCT_ROWS
from mgran_fast.metrics.problem import Problem, nan_between
from mgran_fast.ops import backend
from mgran_fast.ops.launch import launch

# As in csrc/ranking.h.
_KINDS = ("distances", "euclidean", "cosine")


def module_for(op: str, problem: Problem) -> ModuleType | None:
    """What shall run ``op``; None for plain torch, which is all there is on a GPU."""
    return backend.native(op, "cpu") if problem.pairs.device.type == "cpu" else None


def run(
    module: ModuleType,
    op: str,
    problem: Problem,
    chunk: int | None,
    per_query: Mapping[str, torch.Tensor],
    **arguments: Any,
) -> None:
    """Call the kernel for all queries.

    Args:
        chunk: queries a call, as :func:`mgran_fast.metrics.distances.rows_per_chunk` takes it.
        per_query: its arguments and results of one row for each query.
        arguments: the others, beyond distances, cameras and their sizes.

    Raises ValueError where a distance is NaN.
    """
    pairs = problem.pairs
    bad = torch.empty(problem.shape[0], dtype=torch.int64)
    rows = {
        **per_query,
        "nan": bad,
        "query_terms": pairs.row_terms,
        "query_cameras": problem.query_cameras,
    }
    for start, stop in problem.spans(chunk, 1 if pairs.kind == "distances" else PRODUCT_ROWS):
        values = pairs.values(start, stop)
        launch(
            module, op, values.device, values=values, gallery_terms=pairs.column_terms,
            gallery_cameras=problem.gallery_cameras, queries=stop - start, gallery=problem.shape[1],
            is_double=values.dtype == torch.float64, metric=_KINDS.index(pairs.kind),
            **{name: None if one is None else one[start:stop] for name, one in rows.items()}, **arguments,
        )  # fmt: skip
        del values  # before the next ones are there
        wrong = (bad[start:stop] >= 0).nonzero()
        if len(wrong):
            query = start + int(wrong[0, 0])
            raise ValueError(nan_between(query, int(bad[query])))
