"""Ranking, re-ranking and search, on random embeddings about a centre for each person."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mgran_fast.bench import peers
from mgran_fast.bench.case import OURS, Case, Prepared, Setting, Sizes, close
from mgran_fast.metrics.distances import euclidean
from mgran_fast.metrics.ranking import rank
from mgran_fast.metrics.rerank import rerank
from mgran_fast.metrics.shots import rank_shots
from mgran_fast.search.gallery import Gallery

NUMPY, CYTHON, FAISS = "NumPy, a query at a time", "torchreid, Cython", "FAISS, exact"
#: Pictures of each person in a gallery, as in Market-1501.
PICTURES, CAMERAS, K = 21, 6, 10


def cases(sizes: Sizes) -> list[Case]:
    """Ranking from distances and from embeddings, a single gallery shot, re-ranking, search."""
    at = {"queries": sizes.queries, "gallery": sizes.gallery}
    fewer, gallery = sizes.reranked
    some = sizes.galleries[len(sizes.galleries) // 2]
    return [
        Case("ranking", "ranking", (OURS, NUMPY, CYTHON), ranked(sizes.queries, sizes.gallery), at, rounds=(1, 3, 9)),
        Case("ranking", "ranking from embeddings", (OURS, "the matrix product alone"), _embedded, at, rounds=(1, 3, 5)),
        Case("ranking", "single gallery shot", (OURS, "ten draws, NumPy"), _shots,
             {"queries": min(20, sizes.queries), "gallery": sizes.gallery}),
        Case("ranking", "re-ranking", (OURS, "NumPy, dense", "torchreid, NumPy"), _reranked,
             {"queries": fewer, "gallery": gallery}, rounds=(1, 2, 3)),
        Case("ranking", "search", (OURS, "NumPy", FAISS), searched(sizes.asked, some),
             {"queries": sizes.asked, "gallery": some}),
    ]  # fmt: skip


def problem(queries: int, gallery: int, width: int = 0) -> dict[str, Any]:
    """Labels, and distances [Q, G] of embeddings of 64 numbers; or, with a width, embeddings as query and gallery."""
    generator = torch.Generator().manual_seed(0)
    people = max(2, gallery // PICTURES)
    found: dict[str, Any] = {}
    centres = torch.randn(people, width or 64, generator=generator)
    for side, count in (("query", queries), ("gallery", gallery)):
        own = torch.randint(0, people, (count,), generator=generator)
        found[f"{side}_ids"] = own.numpy()
        found[f"{side}_cameras"] = torch.randint(0, CAMERAS, (count,), generator=generator).numpy()
        found[side] = 1.5 * torch.randn(count, centres.shape[1], generator=generator) + centres[own]
    if not width:
        found["distances"] = torch.cdist(found.pop("query"), found.pop("gallery")).numpy()
    return found


def ranked(queries: int, gallery: int) -> Callable[[Setting, Sequence[str]], Prepared]:
    """CMC, AP and INP of every query from given distances; the answers are the mean average precision."""

    def make(setting: Setting, names: Sequence[str]) -> Prepared:
        given = problem(queries, gallery)
        ways: dict[str, Callable[[], object]] = {
            OURS: lambda: rank(**given).map,
            NUMPY: lambda: peers.by_rows(**given),
        }
        if CYTHON in names:
            cython = importlib.import_module("torchreid.metrics.rank_cylib.rank_cy")
            order = ("distances", "query_ids", "gallery_ids", "query_cameras", "gallery_cameras")
            ways[CYTHON] = lambda: cython.evaluate_cy(*(given[name] for name in order), 50)[1]
        return Prepared(ways, close(1e-4), queries, None, 4 * queries * gallery)

    return make


def _embedded(setting: Setting, names: Sequence[str]) -> Prepared:
    sizes = setting.sizes
    given = problem(sizes.queries, sizes.gallery, 2048)
    query, gallery = given["query"], given["gallery"]
    ways = {OURS: lambda: rank(**given).map, "the matrix product alone": lambda: query @ gallery.T}
    work = 2.0 * query.numel() * len(gallery)
    # The product is a floor and no peer: it ranks nothing.
    return Prepared(ways, None, sizes.queries, work, 4 * (query.numel() + gallery.numel()))


def _shots(setting: Setting, names: Sequence[str]) -> Prepared:
    given = problem(min(20, setting.sizes.queries), setting.sizes.gallery)
    ways = {OURS: lambda: rank_shots(**given).at(1), "ten draws, NumPy": lambda: peers.ten_draws(**given)}
    # Ten draws tell the expectation up to their spread.
    return Prepared(ways, close(0.15), len(given["query_ids"]))


def _reranked(setting: Setting, names: Sequence[str]) -> Prepared:
    queries, gallery = setting.sizes.reranked
    given = problem(queries, gallery, 64)
    query, entries = given["query"], given["gallery"]
    between = euclidean(query, query), euclidean(query, entries), euclidean(entries, entries)
    among, across, within = (one.numpy() for one in between)
    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: rerank(distances=between),
        "NumPy, dense": lambda: peers.dense_rerank(among, across, within),
    }
    if "torchreid, NumPy" in names:
        torchreid = importlib.import_module("torchreid.utils.rerank")
        ways["torchreid, NumPy"] = lambda: torchreid.re_ranking(across, among, within)
    return Prepared(ways, close(1e-4), queries)


def searched(queries: int, entries: int) -> Callable[[Setting, Sequence[str]], Prepared]:
    """The nearest ten of a gallery; the answers are their places."""

    def make(setting: Setting, names: Sequence[str]) -> Prepared:
        width = setting.sizes.width
        generator = torch.Generator().manual_seed(0)
        rows = torch.nn.functional.normalize(torch.randn(entries, width, generator=generator), dim=1)
        asked = torch.nn.functional.normalize(rows[:queries] + 0.05 * torch.randn(queries, width, generator=generator))
        gallery = Gallery()
        gallery.add(rows, [str(i) for i in range(entries)])
        held, query = rows.numpy(), asked.numpy()
        squares = np.square(held).sum(axis=1)
        ways: dict[str, Callable[[], object]] = {
            OURS: lambda: gallery.search(asked, K).index,
            "NumPy": lambda: peers.first_k(query, held, squares, K),
        }
        if FAISS in names:
            faiss = importlib.import_module("faiss")
            index = faiss.IndexFlatL2(width)
            index.add(held)
            threads = torch.get_num_threads()

            def by_faiss() -> object:
                faiss.omp_set_num_threads(threads)
                return index.search(query, K)[1]

            ways[FAISS] = by_faiss
        return Prepared(ways, _same_places, queries, 2.0 * queries * entries * width, 4 * entries * width)

    return make


def _same_places(ours: Any, theirs: Any) -> bool:
    """Entries that are equally far up to rounding may change places."""
    return ours.shape == theirs.shape and float(np.mean(np.asarray(ours) == np.asarray(theirs))) > 0.98
