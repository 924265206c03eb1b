"""Ranking with a single gallery shot, the classic protocol of CUHK03: one random picture of each gallery person.

For a query, junk is left out as in `mgran_fast.metrics.ranking`. Then each person contributes one of the pictures that
are left, drawn with equal chances, and the rank of the right person is found among as many pictures as there are
people. What counts is the mean of the CMC over all draws. There are two ways to it:

    expected    the mean itself. Let the drawn picture of the right person be given. Another person's drawn picture is
                nearer with the probability p = (pictures of that person that are nearer) / (pictures of that person),
                independently of all others, so that the number of nearer people is a sum of independent Bernoulli
                variables, and P(rank <= k) the chance that it is at most k - 1 (Poisson-binomial distribution). The
                mean over the right person's pictures is the answer: no draw, no sampling noise.
    sampled     the mean over some draws, which is what the field reports; each query draws for itself.

This protocol has no mAP: a list has one right picture. The definitions are spelled out in
`mgran_fast.reference.shots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch

from mgran_fast.metrics.distances import Numbers, rows_per_chunk
from mgran_fast.metrics.hits import sorted_where
from mgran_fast.metrics.native import module_for, run
from mgran_fast.metrics.problem import UNSAID, Cameras, Problem
from mgran_fast.metrics.ranking import Bools, Floats, Ints

__all__ = ["ShotRanking", "rank_shots"]

#: Counts of pictures (rows x right pictures x people) and chances (right pictures x ranks) worked on at once.
CHUNK_COUNTS = 2**22
CHUNK_CHANCES = 2**17


@dataclass(frozen=True, eq=False)
class ShotRanking:
    """How well Q queries find their people when each gallery person contributes one random picture.

    Attributes:
        cmc: float64 [K]: ``cmc[k - 1]`` is the chance, in the mean over the valid queries, that the right person is
            among the first k. With fewer than K people the end is flat.
        found: float64 [Q, K], the chance of each query; NaN for a query without a right match.
        first: int64 [Q], the 1-based rank of the nearest right match when nothing is drawn and all pictures are
            ranked, for lists of pictures; 0 for a query without one. No figure depends on it.
        each: float64 [N, K], the CMC of each of N draws; N = 0 where ``cmc`` is the exact expectation.
    """

    cmc: Floats
    found: Floats
    first: Ints
    each: Floats

    @property
    def draws(self) -> int:
        """How many draws were made; 0 for the exact expectation."""
        return len(self.each)

    @property
    def valid(self) -> Bools:
        """bool [Q]: the query has a right match in the gallery, so it counts."""
        return self.first > 0

    @property
    def unmatched(self) -> Ints:
        """int64, the indices of the queries without a right match; they are in no mean."""
        return np.flatnonzero(self.first == 0).astype(np.int64)

    @property
    def map(self) -> None:
        """None: the protocol has no mean average precision."""
        return

    @property
    def minp(self) -> None:
        """None: the protocol has no mean inverse negative penalty."""
        return

    @property
    def error(self) -> Floats:
        """float64 [K], the standard error of ``cmc``: 0 for the exact expectation, NaN for a single draw."""
        if self.draws < 2:
            return np.full(len(self.cmc), np.nan if self.draws else 0.0)
        error: Floats = self.each.std(axis=0, ddof=1) / np.sqrt(self.draws)
        return error

    def at(self, k: int) -> float:
        """Rank-k as a fraction, for 1 <= k <= K."""
        if not 1 <= k <= len(self.cmc):
            raise ValueError(f"k must be from 1 to {len(self.cmc)}, not {k}; max_rank sets how far ranks are counted")
        return float(self.cmc[k - 1])

    def summary(self, ranks: Sequence[int] = (1, 5, 10)) -> dict[str, float | int]:
        """The numbers that papers report, as fractions: ``rank1``...; then the counts. There is no ``map``."""
        scores: dict[str, float | int] = {f"rank{k}": self.at(k) for k in ranks}
        return {**scores, "queries": len(self.first), "unmatched": len(self.unmatched)}


@torch.no_grad()
def rank_shots(
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
    draws: int | None = None,
    seed: int = 0,
    max_rank: int = 50,
    chunk: int | None = None,
) -> ShotRanking:
    """Rank one random picture of each gallery person for each query: the exact expectation, or the mean of draws.

    Of two pictures at the same distance the one with the lower gallery index is nearer. All arithmetic after the
    distances is in float64, on the CPU. Every identity but -1 is one person, 0 too.

    Args:
        draws: None for the exact expectation; else how often pictures are drawn, at least once.
        seed: at least 0; query i draws from a generator of its own, of (seed, i), so that ``chunk`` does not matter.
        max_rank: K, the length of the CMC curve.
        chunk: queries per step at most.

    The others are those of :func:`mgran_fast.rank`, as are the errors.

    Raises:
        TypeError: an argument is not of numbers, or not of the right kind of numbers.
        ValueError: arguments are missing, doubled, empty, of shapes that do not fit, out of range, or hold NaN; or no
            query at all has a right match.
    """
    if max_rank < 1:
        raise ValueError(f"max_rank must be at least 1, not {max_rank}")
    if draws is not None and draws < 1:
        raise ValueError(f"draws must be at least 1, or None for the exact expectation, not {draws}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, not {seed}")
    problem = Problem.of(
        query, gallery, distances=distances, query_ids=query_ids, gallery_ids=gallery_ids, query_cameras=query_cameras,
        gallery_cameras=gallery_cameras, metric=metric, query_visibility=query_visibility,
        gallery_visibility=gallery_visibility,
    )  # fmt: skip
    people = _People.of(problem.gallery_ids.numpy())
    module = None if draws is not None else module_for("shots", problem)
    if module is not None:
        found, first = _native(module, problem, people, max_rank, chunk)
        hits = np.zeros((0, max_rank))
    else:
        found, first, hits = _by_chunks(problem, people, draws, seed, max_rank, chunk)
    valid = first > 0
    if not valid.any():
        raise ValueError(problem.why_unmatched())
    each = hits / int(valid.sum())
    cmc = found[valid].mean(axis=0) if draws is None else each.mean(axis=0)
    return ShotRanking(cmc, found, first, each)


def _native(
    module: ModuleType, problem: Problem, people: _People, max_rank: int, chunk: int | None
) -> tuple[Floats, Ints]:
    """What :func:`_expected` gives, of all queries."""
    q = problem.shape[0]
    begins = torch.from_numpy(np.append(people.begins, len(people.entries)))
    found = torch.empty((q, max_rank), dtype=torch.float64)
    first = torch.empty(q, dtype=torch.int64)
    rows = {"persons": torch.from_numpy(people.numbers_of(problem.query_ids.numpy())), "found": found, "first": first}
    run(
        module, "shots", problem, chunk, rows, begins=begins, members=torch.from_numpy(people.entries),
        people=len(people.sizes), ranks=max_rank,
    )  # fmt: skip
    return found.numpy(), first.numpy()


def _by_chunks(
    problem: Problem, people: _People, draws: int | None, seed: int, max_rank: int, chunk: int | None
) -> tuple[Floats, Ints, Floats]:
    """In plain torch and NumPy: the chances of each query, its nearest match, and how many were found in each draw."""
    # The tables of a query are as large as the most pictures of one person and the number of people say.
    most = CHUNK_COUNTS // ((int(people.sizes.max(initial=0)) + 1) * max(1, len(people.sizes)))
    step = max(1, min(rows_per_chunk(chunk, problem.shape[1]), most))
    found = np.full((problem.shape[0], max_rank), np.nan)
    first = np.zeros(problem.shape[0], dtype=np.int64)
    hits = np.zeros((draws or 0, max_rank))
    start = 0
    for distance, right, junk in problem.chunks(step):
        rows = slice(start, start + len(distance))
        distance, right, junk = distance.cpu(), right.cpu(), junk.cpu()
        if draws is None:
            found[rows], first[rows] = _expected(distance, right, junk, people, max_rank)
        else:
            for row in range(len(distance)):
                places = _places(distance[row], junk[row])
                matches = right[row].numpy().nonzero()[0]
                if len(matches):
                    generator = np.random.default_rng((seed, start + row))
                    ranks = _drawn(places, matches, people, draws, generator)
                    reached = ranks[:, None] <= np.arange(1, max_rank + 1)
                    hits += reached
                    found[start + row], first[start + row] = reached.mean(axis=0), places[matches].min() + 1
        start = rows.stop
    return found, first, hits


@dataclass(frozen=True, eq=False)
class _People:
    """Who is in the gallery, identity -1 left out.

    Attributes:
        ids: int64 [P], their identities, rising.
        number: int64 [G], each entry's person counted from 0; P, one too many, for identity -1.
        sizes: int64 [P], how many entries each has.
        entries: int64, the entries of the first person, then those of the second ...
        begins: int64 [P], where in ``entries`` each person's begin.
    """

    ids: Ints
    number: Ints
    sizes: Ints
    entries: Ints
    begins: Ints

    @classmethod
    def of(cls, ids: Ints) -> _People:
        somebody = ids != -1
        people, number, sizes = np.unique(ids[somebody], return_inverse=True, return_counts=True)
        numbers = np.full(len(ids), len(sizes))
        numbers[somebody] = number
        entries = numbers.argsort(kind="stable")[: int(somebody.sum())]
        return cls(people, numbers, sizes, entries, sizes.cumsum() - sizes)

    def numbers_of(self, ids: Ints) -> Ints:
        """The number of each identity's person, int64, -1 where nobody has it."""
        at = np.searchsorted(self.ids, ids)
        known = at < len(self.ids)
        known[known] = self.ids[at[known]] == ids[known]
        return np.where(known, at, -1)


def _expected(
    distance: torch.Tensor, right: torch.Tensor, junk: torch.Tensor, people: _People, max_rank: int
) -> tuple[Floats, Ints]:
    """P(rank <= k), float64 [n, K], NaN without a match, and the rank of the nearest match among all, int64 [n]."""
    chances = np.full((len(distance), max_rank), np.nan)
    values, columns, counts = sorted_where(right, distance)
    matches = values.shape[1]
    if matches == 0:
        return chances, np.zeros(len(distance), dtype=np.int64)
    # How many right pictures are nearer than each entry: those at less distance, and of those at its own distance the
    # ones with a lower index.
    nearer = torch.searchsorted(values, distance)
    upto = torch.searchsorted(values, distance, right=True)
    other = ~(right | junk)
    row, column = ((upto > nearer) & other).nonzero(as_tuple=True)
    low, high = nearer[row, column], torch.minimum(upto[row, column], counts[row])
    for match in range(matches):
        nearer[row, column] += (low <= match) & (match < high) & (columns[row, match] < column)
    # Pictures of each person by the number of right pictures before them; summed up, those before each right picture.
    total = len(people.sizes)
    key = (torch.arange(len(distance))[:, None] * (matches + 1) + nearer) * total + torch.from_numpy(people.number)
    cells = (len(distance), matches + 1, total)
    table = np.bincount(key[other].numpy(), minlength=int(np.prod(cells))).reshape(cells).cumsum(axis=1)
    held = (torch.arange(matches) < counts[:, None]).numpy()
    shares = table[:, :matches][held] / people.sizes
    tails = np.concatenate(
        [_tails(block, max_rank) for block in np.array_split(shares, -(-len(shares) * max_rank // CHUNK_CHANCES))]
    )
    owners = held.nonzero()[0]
    valid = counts.numpy() > 0
    begins = np.flatnonzero(np.diff(owners, prepend=-1))
    chances[valid] = np.add.reduceat(tails, begins, axis=0) / counts.numpy()[valid, None]
    return np.minimum(chances, 1.0), np.where(valid, table[:, 0].sum(axis=1) + 1, 0)


def _tails(shares: Floats, max_rank: int) -> Floats:
    """P(S <= k - 1), k = 1 ... K, float64 [R, K], of sums S of independent Bernoulli variables [R, P]."""
    # mass[s] = P(S = s) of the variables so far; sums of K and more are of no interest.
    mass = np.zeros((max_rank, len(shares)))
    mass[0] = 1.0
    for share in shares.T[(shares > 0).any(axis=0)]:
        less = mass[:-1] * share
        mass *= 1.0 - share
        mass[1:] += less
    tails: Floats = mass.cumsum(axis=0).T
    return tails


def _places(distance: torch.Tensor, junk: torch.Tensor) -> Ints:
    """The place of each entry [G] in the ranking, from 0, junk last."""
    order = distance.masked_fill(junk, torch.inf).numpy().argsort(kind="stable")
    # Entries that are infinitely far come before junk all the same.
    order = order[junk.numpy()[order].argsort(kind="stable")]
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


def _drawn(places: Ints, matches: Ints, people: _People, draws: int, generator: np.random.Generator) -> Ints:
    """The rank of the right person in each draw, int64 [draws]."""
    right = places[matches[generator.integers(0, len(matches), draws)]]
    drawn = people.entries[people.begins + generator.integers(0, people.sizes, (draws, len(people.sizes)))]
    nearer = places[drawn] < right[:, None]
    nearer[:, people.number[matches[0]]] = False
    ranks: Ints = 1 + nearer.sum(axis=1)
    return ranks
