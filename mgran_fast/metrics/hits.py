"""Where the right matches stand in each query's list, and what follows from it: AP, INP and the first match.

On the CPU the native kernel ``ranking`` does all of it (`csrc/ranking.h`); plain torch, a chunk of queries at a time,
on a GPU or where the extension is not built.
"""

from __future__ import annotations

from types import ModuleType

import torch

from mgran_fast.metrics.native import module_for, run
from mgran_fast.metrics.problem import Problem

#: The definitions of average precision, and what comes first of entries at one distance, in the order of
#: csrc/ranking.h: see `mgran_fast.reference.ranking`.
AP = ("hits", "trapezoid")
TIES = ("index", "pessimistic", "optimistic")
#: AP and INP, float64 [Q], NaN without a match, and the rank of the first match, int64 [Q], 0 without one.
Scores = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def score(problem: Problem, ap: str, ties: str, chunk: int | None) -> Scores:
    """Rank the gallery for each query. Raises ValueError where a distance is NaN."""
    module = module_for("ranking", problem)
    if module is not None:
        return _native(module, problem, ap, ties, chunk)
    parts = []
    for distance, right, junk in problem.chunks(chunk):
        ranks, counts = hit_ranks(distance, right, junk, ties)
        parts.append(scores(ranks.cpu(), counts.cpu(), ap))
    average, inverse, first = (torch.cat(part) for part in zip(*parts, strict=True))
    return average, inverse, first


def _native(module: ModuleType, problem: Problem, ap: str, ties: str, chunk: int | None) -> Scores:
    # Gallery entries person by person, so that a query's matches are found without looking at all.
    by_person = problem.gallery_ids.argsort(stable=True)
    people = problem.gallery_ids[by_person]
    begins = torch.searchsorted(people, problem.query_ids)
    ends = torch.searchsorted(people, problem.query_ids, right=True)
    ends = torch.where(problem.query_ids == -1, begins, ends)
    nobody = by_person[people == -1]
    average, inverse = (torch.empty(problem.shape[0], dtype=torch.float64) for _ in range(2))
    first = torch.empty(problem.shape[0], dtype=torch.int64)
    rows = {"begins": begins, "ends": ends, "ap": average, "inp": inverse, "first": first}
    run(
        module, "ranking", problem, chunk, rows, members=by_person, nobody=nobody, count=len(by_person),
        nobodies=len(nobody), ties=TIES.index(ties), trapezoid=ap == "trapezoid",
    )  # fmt: skip
    return average, inverse, first


def sorted_where(mask: torch.Tensor, distance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The entries of each row where ``mask`` [n, G] holds, sorted by distance, then by column.

    Returns distances [n, m], padded with infinity, columns int64 [n, m], padded with 0, and counts int64 [n];
    m is the largest count.
    """
    row, column = mask.nonzero(as_tuple=True)
    counts = mask.sum(dim=1)
    slot = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    width = int(counts.max())
    values = distance.new_full((len(mask), width), torch.inf)
    values[row, slot] = distance[row, column]
    columns = column.new_zeros(len(mask), width)
    columns[row, slot] = column
    # Stable: the slots are in the order of the columns, and padding comes after entries that are infinitely far.
    values, by_distance = values.sort(dim=1, stable=True)
    return values, columns.gather(1, by_distance), counts


def first_of(
    distance: torch.Tensor, k: int, left_out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first k of each row by distance and then column: as :func:`sorted_where`, but no more than k of a row.

    What is left out, bool [n, G], must lie infinitely far; counts are of all up to the distance of the k-th.
    Of several at one distance topk takes any. So it only tells how far the k-th is; all up to there are put in order.
    """
    last = distance.topk(min(k, distance.shape[1]), dim=1, largest=False).values[:, -1:]
    near = distance <= last
    values, columns, counts = sorted_where(near if left_out is None else near & ~left_out, distance)
    return values[:, :k], columns[:, :k], counts


def hit_ranks(
    distance: torch.Tensor, right: torch.Tensor, junk: torch.Tensor, ties: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The 1-based ranks of the right matches, ascending, int64 [n, m] (padding: anything), and their counts [n].

    Sorting the distances alone is far cheaper than an argsort: a match has as many entries before it as distances
    are smaller. Only rows where something else lies at the distance of a match need the order of the entries too.
    """
    values, columns, counts = sorted_where(right, distance)
    slot = torch.arange(values.shape[1], device=values.device)
    held = slot < counts[:, None]
    # Junk comes last, and is not among what lies infinitely far.
    ordered = sorted_in_place(distance.masked_fill(junk, torch.inf))
    before = torch.searchsorted(ordered, values)
    upto = torch.searchsorted(ordered, values, right=True).minimum((~junk).sum(dim=1, keepdim=True))
    # Right matches at one distance, and which of them each is.
    begin = torch.searchsorted(values, values)
    alike = torch.searchsorted(values, values, right=True).minimum(counts[:, None]) - begin
    ranks = before + 1 + slot - begin
    wrong = upto - before - alike
    if ties == "pessimistic":
        ranks += wrong
    elif ties == "index":
        tied = ((wrong > 0) & held).any(dim=1)
        if bool(tied.any()):
            order = distance[tied].argsort(dim=1, stable=True)
            places = (~junk[tied]).gather(1, order).cumsum(dim=1)
            of_column = torch.empty_like(places).scatter_(1, order, places)
            ranks[tied] = of_column.gather(1, columns[tied])
    return ranks, counts


def sorted_in_place(distance: torch.Tensor) -> torch.Tensor:
    """``distance`` with its rows sorted, in place where possible."""
    if distance.device.type == "cpu":
        # torch sorts indices along, which takes many times as long.
        distance.numpy().sort(axis=1)
        return distance
    return distance.sort(dim=1).values


def scores(ranks: torch.Tensor, counts: torch.Tensor, ap: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """AP and INP, float64 [n], NaN without a match, and the rank of the first match, int64 [n], 0 without one."""
    if ranks.shape[1] == 0:
        nothing = torch.full((len(ranks),), torch.nan, dtype=torch.float64)
        return nothing, nothing.clone(), torch.zeros(len(ranks), dtype=torch.int64)
    hit = torch.arange(1, ranks.shape[1] + 1)
    place = ranks.double()
    precision = hit / place
    if ap == "trapezoid":
        above = torch.where(ranks > 1, (hit - 1) / (place - 1).clamp(min=1), 1.0)
        precision = (precision + above) / 2
    end = (counts - 1).clamp(min=0)[:, None]
    # A running sum adds in one order whatever the padding, so a chunk does not change the last bit.
    average = precision.cumsum(dim=1).gather(1, end)[:, 0].div(counts).masked_fill(counts == 0, torch.nan)
    last = ranks.gather(1, end)[:, 0]
    inverse = torch.where(counts > 0, counts / last.double(), torch.nan)
    return average, inverse, torch.where(counts > 0, ranks[:, 0], 0)
