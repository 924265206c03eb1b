"""The side-by-side suite: every op, MRA and MA, a training step, ranking, the whole way, and how cost grows."""

from __future__ import annotations

from mgran_fast.bench.case import FULL, Case, Sizes
from mgran_fast.bench.suite import growth, ma, mra, ops, pipeline, ranking, training

#: Groups of races, in the order in which they run.
GROUPS = ("ops", "MRA", "MA", "training", "ranking", "pipeline", "growth")


def cases(sizes: Sizes = FULL, *, quick: bool = False, device: str = "cpu") -> list[Case]:
    """All races; nothing is made yet.

    Args:
        sizes: how much each race handles.
        quick: without what takes long to be made: compilers, quantisers.
        device: "cpu" or "cuda".
    """
    found = [
        *ops.cases(sizes, quick=quick, device=device),
        *mra.cases(sizes, quick=quick),
        *ma.cases(sizes, quick=quick, device=device),
        *training.cases(sizes, quick=quick, device=device),
        *ranking.cases(sizes),
        *pipeline.cases(sizes, quick=quick, device=device),
        *growth.cases(sizes, quick=quick, device=device),
    ]
    return sorted(found, key=lambda case: GROUPS.index(case.group))
