"""Verification: are two pictures of one person? The ROC curve over all pairs of a query and a gallery entry.

A pair counts as of one person when its distance is at most a threshold. What a ranking leaves out as junk is left out
here too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mgran_fast.metrics.distances import Numbers
from mgran_fast.metrics.hits import sorted_in_place
from mgran_fast.metrics.problem import UNSAID, Cameras, Problem
from mgran_fast.metrics.ranking import Floats


@dataclass(frozen=True, eq=False)
class Roc:
    """How many pairs of one person are accepted, and how many of two, at each threshold.

    Attributes:
        threshold: float64 [K], rising: the distances of the pairs of one person. Other thresholds accept as many pairs
            of one person as the one below them, and no fewer of two.
        true: float64 [K], the true positive rate: the share of the pairs of one person that are accepted.
        false: float64 [K], the false positive rate: the share of the pairs of two.
        positives, negatives: how many pairs there are of one person, and of two.
        auc: the area under the curve: the chance that a pair of one person is nearer than a pair of two, where equal
            distances count half.
    """

    threshold: Floats
    true: Floats
    false: Floats
    positives: int
    negatives: int
    auc: float

    def at(self, false: float) -> float:
        """The largest true positive rate at no more than this false positive rate."""
        found = self._reached(false)
        return float(self.true[found - 1]) if found else 0.0

    def threshold_at(self, false: float) -> float:
        """The threshold that :meth:`at` takes; -inf where even the nearest pair of one person accepts too many."""
        found = self._reached(false)
        return float(self.threshold[found - 1]) if found else -np.inf

    def _reached(self, false: float) -> int:
        """How many thresholds have at most this false positive rate."""
        if not 0 <= false <= 1:
            raise ValueError(f"a rate is from 0 to 1, not {false}")
        return int(np.searchsorted(self.false, false, side="right"))


@torch.no_grad()
def roc(
    query: Numbers | None = None,
    gallery: Numbers | None = None,
    *,
    distances: Numbers | None = None,
    query_ids: Numbers,
    gallery_ids: Numbers,
    query_cameras: Cameras = UNSAID,
    gallery_cameras: Cameras = UNSAID,
    metric: str = "euclidean",
    query_visibility: Numbers | None = None,
    gallery_visibility: Numbers | None = None,
    chunk: int | None = None,
) -> Roc:
    """The ROC curve of all pairs, exactly, in the memory of a chunk and of the pairs of one person.

    Arguments and errors are those of :func:`mgran_fast.rank`. The distances are computed twice: for the pairs of one
    person, which are the steps of the curve, and for those of two, which are counted between them.
    """
    problem = Problem.of(
        query, gallery, distances=distances, query_ids=query_ids, gallery_ids=gallery_ids, query_cameras=query_cameras,
        gallery_cameras=gallery_cameras, metric=metric, query_visibility=query_visibility,
        gallery_visibility=gallery_visibility,
    )  # fmt: skip
    positive = torch.cat([distance[right] for distance, right, _ in problem.chunks(chunk)]).sort().values
    if not len(positive):
        raise ValueError(problem.why_unmatched())
    steps, counts = positive.unique_consecutive(return_counts=True)
    nearer, upto = torch.zeros_like(counts), torch.zeros_like(counts)
    negatives = 0
    for distance, right, junk in problem.chunks(chunk):
        left_out = right.logical_or_(junk)
        count = int((~left_out).sum())
        negatives += count
        # Sorting all of them and looking the few steps up is cheaper than looking up each of them.
        ordered = sorted_in_place(distance.masked_fill_(left_out, torch.inf).reshape(1, -1))[0]
        nearer += torch.searchsorted(ordered, steps)
        # What was left out lies infinitely far, behind what may be there.
        upto += torch.searchsorted(ordered, steps, right=True).clamp(max=count)
    if not negatives:
        raise ValueError("there is no pair of two people: the gallery shows no other person than the query's")
    accepted = counts.cumsum(0).double() / len(positive)
    auc = 1 - float(((nearer + upto).double() * counts).sum()) / (2 * negatives * len(positive))
    false = upto.double() / negatives
    return Roc(
        steps.double().cpu().numpy(), accepted.cpu().numpy(), false.cpu().numpy(), len(positive), negatives, auc
    )  # fmt: skip
