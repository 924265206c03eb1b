"""A single gallery shot, one query at a time: the definitions that `mgran_fast.metrics.shots` must equal.

Junk is left out, and of two pictures at the same distance the one with the lower gallery index is nearer, as in
`mgran_fast.reference.ranking`. Each person of the gallery then contributes one of the pictures that are left, drawn
with equal chances and independently; the rank of the right person is 1 + the number of other people whose picture is
nearer than the one drawn of the right person.

    enumerated   P(rank <= k) by going through all draws, each of which has the same chance
    expected     the same, person by person: with the right person's picture given, the number of nearer people is a sum
                 of independent variables that are 1 with the share of each person's pictures that are nearer

A query without a right picture cannot be answered. It is left out of the mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

from mgran_fast.reference.ranking import order


def enumerated(
    distances: Sequence[float],
    person: int,
    camera: int | None,
    people: Sequence[int],
    cameras: Sequence[int] | None,
    max_rank: int,
) -> list[Fraction] | None:
    """P(rank <= k) for k = 1 ... max_rank, exact; None without a right match. Takes as long as there are draws."""
    place, pictures = _pictures(distances, person, camera, people, cameras)
    if person not in pictures:
        return None
    draws = list(itertools.product(*pictures.values()))
    at = list(pictures).index(person)
    ranks = [1 + sum(place[index] < place[draw[at]] for index in draw) for draw in draws]
    return [Fraction(sum(rank <= k for rank in ranks), len(draws)) for k in range(1, max_rank + 1)]


def expected(
    distances: Sequence[float],
    person: int,
    camera: int | None,
    people: Sequence[int],
    cameras: Sequence[int] | None,
    max_rank: int,
) -> list[Fraction] | None:
    """The same as :func:`enumerated`, in a time that grows with the square of the number of people."""
    place, pictures = _pictures(distances, person, camera, people, cameras)
    if person not in pictures:
        return None
    total = [Fraction(0)] * max_rank
    right = pictures.pop(person)
    for mine in right:
        # chance[s]: that exactly s of the people so far are nearer.
        chance = [Fraction(1)]
        for theirs in pictures.values():
            share = Fraction(sum(place[index] < place[mine] for index in theirs), len(theirs))
            both = zip([*chance, Fraction(0)], [Fraction(0), *chance], strict=True)
            chance = [stay * (1 - share) + come * share for stay, come in both]
        for k in range(1, max_rank + 1):
            total[k - 1] += sum(chance[:k], Fraction(0)) / len(right)
    return total


def rank(
    distances: Sequence[Sequence[float]],
    query_ids: Sequence[int],
    gallery_ids: Sequence[int],
    query_cameras: Sequence[int] | None,
    gallery_cameras: Sequence[int] | None,
    *,
    max_rank: int = 50,
) -> tuple[list[Fraction], list[list[Fraction] | None]]:
    """The mean CMC over the queries with a match, and :func:`expected` of each query, by ``distances`` [Q, G]."""
    each = []
    for query, person in enumerate(query_ids):
        camera = None if query_cameras is None else query_cameras[query]
        each.append(expected(distances[query], person, camera, gallery_ids, gallery_cameras, max_rank))
    found = [one for one in each if one is not None]
    return [sum(column, Fraction(0)) / len(found) for column in zip(*found, strict=True)], each


def _pictures(
    distances: Sequence[float], person: int, camera: int | None, people: Sequence[int], cameras: Sequence[int] | None
) -> tuple[dict[int, int], dict[int, list[int]]]:
    """The place of each gallery index in the ranking, and the indices of each person; without junk."""
    ranked = order(distances, person, camera, people, cameras)
    pictures: dict[int, list[int]] = {}
    for index in ranked:
        pictures.setdefault(people[index], []).append(index)
    return {index: place for place, index in enumerate(ranked)}, pictures
