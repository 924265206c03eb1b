"""Ranking at the size of Market-1501, 3,368 queries in a gallery of 15,913: from distances, and from embeddings.

Peers: NumPy a query at a time, as toolkits do it, and torchreid's Cython where it can be imported. The memory of both
ways is that of a process of its own.
"""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgran_fast import rank
from mgran_fast.bench import paired, peers
from mgran_fast.metrics import euclidean, rank_shots, rerank

QUERIES, GALLERY, PEOPLE, CAMERAS, WIDTH = 3368, 15913, 750, 6, 2048
# What is ranked, and how many MB beyond the input were wanted.
MODES = {"distances": 100, "embeddings": 300, "re-ranking": 1000}

# What a process of its own does with an input that it reads: it prints the MB that ranking takes beyond it. A few
# queries come first, so that loading code does not count.
MEMORY = """
import sys
import torch
from mgran_fast import rank
from mgran_fast.metrics import euclidean, rank_shots, rerank
def kilobytes(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(row.split()[1] for row in lines if row.startswith(name)))
given = torch.load(sys.argv[1])
first = {k: v[:64] if k in ("distances", "query", "query_ids", "query_cameras") else v for k, v in given.items()}
if sys.argv[2] == "re-ranking":
    given = {"distances": tuple(given.values())}
    first = {"distances": tuple(matrix[:64, :64].clone() for matrix in given["distances"])}
call = rerank if sys.argv[2] == "re-ranking" else rank
call(**first)
open("/proc/self/clear_refs", "w").write("5")  # the peak is from now on
before = kilobytes("VmRSS")
result = call(**given)
print((kilobytes("VmHWM") - before) / 1024)
"""


def labels() -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    return {
        "query_ids": generator.integers(0, PEOPLE, QUERIES),
        "gallery_ids": generator.integers(0, PEOPLE, GALLERY),
        "query_cameras": generator.integers(0, CAMERAS, QUERIES),
        "gallery_cameras": generator.integers(0, CAMERAS, GALLERY),
    }


def given(mode: str) -> dict[str, Any]:
    """Embeddings about a centre for each person, so that lists look like those of a model that learned something."""
    found: dict[str, Any] = labels()
    generator = torch.Generator().manual_seed(0)
    width = WIDTH if mode == "embeddings" else 64
    centres = torch.randn(PEOPLE, width, generator=generator)
    for side in ("query", "gallery"):
        own = centres[torch.from_numpy(found[f"{side}_ids"])]
        found[side] = own + 1.5 * torch.randn(own.shape, generator=generator)
    if mode == "distances":
        found["distances"] = torch.cdist(found.pop("query"), found.pop("gallery")).numpy()
    return found


def all_distances() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of queries to queries, queries to the gallery, and the gallery to itself, float32."""
    found = given("embeddings")
    query, gallery = found["query"][:, :64], found["gallery"][:, :64]
    return euclidean(query, query), euclidean(query, gallery), euclidean(gallery, gallery)


def test_distances(compare: Callable[..., None]) -> None:
    problem = given("distances")
    contestants: dict[str, Callable[[], object]] = {
        "ours": lambda: rank(**problem),
        "NumPy, a query at a time": lambda: peers.by_rows(**problem),
        "NumPy, the argsort alone": lambda: np.argsort(problem["distances"], axis=1),
    }
    bar = "NumPy, a query at a time"
    # Of entries at the same distance an unstable sort takes any first.
    assert rank(**problem).map == pytest.approx(peers.by_rows(**problem), rel=1e-5)
    try:
        torchreid = importlib.import_module("torchreid.metrics.rank_cylib.rank_cy")
    except ImportError:
        sys.stdout.write("torchreid's Cython is not there: not raced\n")
    else:
        arguments = [problem[k] for k in ("distances", "query_ids", "gallery_ids", "query_cameras", "gallery_cameras")]
        contestants["torchreid, Cython"] = lambda: torchreid.evaluate_cy(*arguments, 50)
        bar += "|torchreid, Cython"
    compare(f"ranking, {QUERIES} x {GALLERY} distances", contestants, {bar: 1 / 0.15}, count=QUERIES)


def test_single_gallery_shot(compare: Callable[..., None]) -> None:
    problem = given("distances")
    some = {k: v[:20] if k in ("distances", "query_ids", "query_cameras") else v for k, v in problem.items()}
    assert rank_shots(**some).at(1) == pytest.approx(peers.ten_draws(**some), abs=0.15)
    compare(
        f"single gallery shot, exact expectation, 20 x {GALLERY} distances",
        {"ours": lambda: rank_shots(**some), "ten draws a query, NumPy": lambda: peers.ten_draws(**some)},
        {"ten draws a query, NumPy": 100.0},
        count=20,
    )


@pytest.fixture
def two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what takes minutes."""
    monkeypatch.setattr(paired, "WARM_UP", 0)
    monkeypatch.setattr(paired, "race", functools.partial(paired.race, least=2, most=2))


def test_rerank(compare: Callable[..., None], two_rounds: None) -> None:
    """The distances are given; k1 20, k2 6."""
    between = all_distances()
    contestants: dict[str, Callable[[], object]] = {"ours": lambda: rerank(distances=between)}
    bars = {}
    try:
        torchreid = importlib.import_module("torchreid.utils.rerank")
    except ImportError:
        sys.stdout.write("torchreid is not there: not raced\n")
    else:
        queries, middle, gallery = (matrix.numpy() for matrix in between)
        contestants["torchreid, NumPy"] = lambda: torchreid.re_ranking(middle, queries, gallery)
        bars["torchreid, NumPy"] = 10.0
    compare(f"re-ranking, {QUERIES} queries and a gallery of {GALLERY}", contestants, bars, count=QUERIES)


def test_embeddings(compare: Callable[..., None]) -> None:
    problem = given("embeddings")
    query, gallery = problem["query"], problem["gallery"]
    compare(
        f"ranking, {QUERIES} x {GALLERY} embeddings of {WIDTH}",
        {"ours": lambda: rank(**problem), "the matrix product alone": lambda: query @ gallery.T},
        {"the matrix product alone": 1 / 1.3},
        count=QUERIES,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc")
@pytest.mark.parametrize("mode", MODES)
def test_memory(mode: str, board: Any, tmp_path: Path) -> None:
    if mode == "re-ranking":
        problem = dict(zip(("queries", "between", "gallery"), all_distances(), strict=True))
    else:
        problem = {name: torch.as_tensor(value) for name, value in given(mode).items()}
    torch.save(problem, tmp_path / "given.pt")
    del problem
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "given.pt"), mode]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    name = f"ranking, {mode}: memory beyond the input"
    board.rows.append({"name": name, "values": {"MB": float(answer.stdout), "MB wanted, at most": MODES[mode]}})
