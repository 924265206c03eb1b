"""Evaluating a model: embed query and gallery, rank by a rule, count what was odd."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mgran_fast.data import Masks, Record
from mgran_fast.errors import DataError
from mgran_fast.metrics import protocols
from mgran_fast.metrics.cameras import CameraPair, camera_pairs
from mgran_fast.metrics.distances import Numbers
from mgran_fast.metrics.embedding import Embedded, Network, Progress, embed
from mgran_fast.metrics.problem import Problem
from mgran_fast.metrics.protocols import Rule
from mgran_fast.metrics.ranking import Ranking, Top, nearest_right, rank, top
from mgran_fast.metrics.rerank import rerank
from mgran_fast.metrics.shots import ShotRanking, rank_shots
from mgran_fast.metrics.statistics import Interval, intervals
from mgran_fast.metrics.verification import Roc, roc


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes:
        ranking: by the rule; a :class:`ShotRanking` has no mAP, its ``map`` is None.
        query: the queries; of multiple ones the vectors are the means that were ranked, and a part is visible where
            one of the pictures shows it.
        gallery: all of it, whatever the protocol draws.
        rule: how it was scored.
        pictures: what the multiple queries were made of, see :func:`mgran_fast.metrics.protocols.further`; None for
            single queries.
        alone: int64, the places in ``query`` of multiple queries that have no picture but their own.
        distances: float32 [Q, G], of re-ranking; None where those of the vectors count.
    """

    ranking: Ranking | ShotRanking
    query: Embedded
    gallery: Embedded
    rule: Rule = field(default_factory=Rule)
    pictures: Embedded | None = None
    alone: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    distances: torch.Tensor | None = None

    @property
    def embedded(self) -> tuple[Embedded, ...]:
        """All that was embedded: the queries, their further pictures if there are any, the gallery."""
        return (self.query, *([] if self.pictures is None else [self.pictures]), self.gallery)

    @property
    def details(self) -> dict[str, Any]:
        """The rule for a program, :attr:`mgran_fast.metrics.protocols.Rule.details`, and "standard_error" of the ranks
        where some galleries were drawn."""
        found = self.rule.details
        if isinstance(self.ranking, ShotRanking) and self.ranking.draws > 1:
            error = self.ranking.error
            found["standard_error"] = {f"rank{k}": float(error[k - 1]) for k in (1, 5, 10)}
        return found

    @property
    def counts(self) -> dict[str, int]:
        """How many pictures were embedded and how many of them were odd; those without a person, and what multiple
        queries were made of, where there are any."""
        absent = sum(len(one.without_person) for one in self.embedded)
        return {
            "queries": len(self.query),
            **({} if self.pictures is None else {"pictures of queries": len(self.pictures)}),
            "gallery": len(self.gallery),
            "empty masks": sum(one.empty_masks for one in self.embedded),
            "no keypoints": sum(one.no_keypoints for one in self.embedded),
            "unreadable pictures": sum(one.problems.count for one in self.embedded),
            "queries without a match": len(self.ranking.unmatched),
            **({} if self.pictures is None else {"queries without further pictures": len(self.alone)}),
            **({"crops without a person": absent} if absent else {}),
        }

    def figures(self, ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
        """ "rank1" and so on, and "map" and "minp" where the protocol has them, as fractions."""
        found = {f"rank{k}": self.ranking.at(k) for k in ranks}
        if isinstance(self.ranking, Ranking):
            found.update(map=self.ranking.map, minp=self.ranking.minp)
        return found

    def problems(self) -> list[str]:
        """One line for each picture that could not be read."""
        return [line for one in self.embedded for line in one.problems.lines()]

    def top(self, k: int = 10) -> Top:
        """The first k gallery pictures of each query; indices count in ``gallery``."""
        return top(**self.asked, k=k)

    def nearest_right(self, queries: Sequence[int]) -> tuple[list[int], list[float]]:
        """The nearest right match of some queries: its place in ``gallery``, -1 without one, and its distance."""
        at = torch.tensor(queries, dtype=torch.int64)
        some = {name: getattr(self.query, name)[at] for name in ("vectors", "visible", "persons", "cameras")}
        distances = None if self.distances is None else self.distances[at]
        asked = _asked(dataclasses.replace(self.query, **some), self.gallery, self.rule, distances)
        places, away = nearest_right(Problem.of(**asked))
        return places.tolist(), away.tolist()

    # What follows is computed once: the console, the report and a program's output all want it.
    @functools.cached_property
    def intervals(self) -> dict[str, Interval]:
        """How sure the figures are, see :func:`mgran_fast.metrics.statistics.intervals`."""
        return intervals(self.ranking)

    @functools.cached_property
    def roc(self) -> Roc | None:
        """The ROC curve of all pairs; None where there are no pairs of two people."""
        try:
            return roc(**self.asked)
        except ValueError:
            return None

    @functools.cached_property
    def camera_pairs(self) -> list[CameraPair]:
        """Figures by camera; none where cameras do not count, or the protocol draws a gallery."""
        if not (self.rule.cameras and self.rule.has_ap):
            return []
        return camera_pairs(**self.asked, ap=self.rule.ap, ties=self.rule.ties)

    @property
    def asked(self) -> dict[str, Any]:
        """What was ranked, as arguments of :func:`mgran_fast.rank` and its like."""
        return _asked(self.query, self.gallery, self.rule, self.distances)


def evaluate(
    network: Network,
    query: Sequence[Record],
    gallery: Sequence[Record],
    masks: Masks | None,
    rule: Rule | None = None,
    *,
    multi_query: Sequence[Record] | None = None,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Rank ``gallery`` for each of ``query`` by the distance of embeddings.

    Args:
        network, masks, batch_size, workers: see :func:`mgran_fast.metrics.embedding.embed`.
        rule: how to score; by default Market-1501's single queries.
        multi_query: further pictures for multiple queries, see :func:`mgran_fast.metrics.protocols.merge`: those of a
            query's person and camera take its place. Single queries do not look at it.
        progress: called with (pictures done, pictures in all).

    Raises:
        DataError: a picture is twice in the gallery, no query at all has a match in it, or no further picture is of a
            query.
    """
    rule = Rule() if rule is None else rule
    _once(gallery)
    lists = [query, gallery]
    if rule.queries == "multiple":
        more = protocols.further(query, multi_query or ())
        if not more:
            raise DataError("no picture for multiple queries is of a query's person and camera; take single queries")
        lists.insert(1, more)
    total, parts, before = sum(map(len, lists)), [], 0
    for records in lists:

        def step(done: int, _: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, total)

        parts.append(
            embed(
                network, records, masks, batch_size=batch_size, workers=workers, progress=step, flip=rule.flip,
            )
        )  # fmt: skip
        before += len(records)
    queries, entries = parts[0], parts[-1]
    pictures, alone = None, torch.zeros(0, dtype=torch.int64)
    if rule.queries == "multiple":
        pictures = parts[1]
        queries, alone = merge_embedded(queries, pictures)
    distances = rerank(queries.vectors, entries.vectors, metric=rule.metric) if rule.reranked else None
    asked = _asked(queries, entries, rule, distances)
    ranking: Ranking | ShotRanking
    try:
        if rule.has_ap:
            ranking = rank(**asked, ap=rule.ap, ties=rule.ties)
        else:
            ranking = rank_shots(**asked, draws=rule.draws, seed=rule.seed)
    except ValueError as error:
        raise DataError(str(error)) from None
    return Evaluation(ranking, queries, entries, rule, pictures, alone, distances)


def merge_embedded(query: Embedded, pictures: Embedded) -> tuple[Embedded, torch.Tensor]:
    """``query`` as multiple queries of ``pictures``, and the places of those that have none, int64."""
    keys, others = (torch.stack([one.persons, one.cameras], dim=1) for one in (query, pictures))
    vectors, counts = protocols.merge(query.vectors, keys, pictures.vectors, others)
    shown, _ = protocols.merge(query.visible.float(), keys, pictures.visible.float(), others)
    return dataclasses.replace(query, vectors=vectors, visible=shown > 0), (counts == 0).nonzero()[:, 0]


def _once(gallery: Sequence[Record]) -> None:
    """Refuse a gallery with a picture that is in it twice: it would count as two matches, or as two mistakes."""
    seen: set[Any] = set()
    for record in gallery:
        if record.path in seen:
            raise DataError(f"{record.path}: twice in the gallery; leave one of the two out")
        seen.add(record.path)


def _asked(query: Embedded, gallery: Embedded, rule: Rule, distances: torch.Tensor | None) -> dict[str, Any]:
    """The vectors, or distances in their place, and who is on the pictures."""
    compared: dict[str, Numbers | str | None] = {"distances": distances}
    if distances is None:
        compared = {"query": query.vectors, "gallery": gallery.vectors, "metric": rule.metric}
        if rule.visible:
            compared.update(query_visibility=query.visible, gallery_visibility=gallery.visible)
    return {
        **compared,
        "query_ids": query.persons.numpy(),
        "gallery_ids": gallery.persons.numpy(),
        "query_cameras": query.cameras.numpy() if rule.cameras else None,
        "gallery_cameras": gallery.cameras.numpy() if rule.cameras else None,
    }
