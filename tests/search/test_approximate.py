"""Approximate search: all lists give what an exact search gives, a few give most of it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from mgran_fast import Gallery, MGRANError

faiss = pytest.importorskip("faiss")


def crowd(count: int = 4000, width: int = 32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    people = torch.randn(-(-count // 8), width, generator=generator)
    return people.repeat(8, 1)[:count] + 0.3 * torch.randn(count, width, generator=generator)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_against_an_exact_search(metric: str) -> None:
    held, query = crowd(), crowd(50, seed=1) + crowd()[:50]
    gallery = Gallery(metric=metric)
    gallery.add(held, [str(i) for i in range(4000)], cameras=[i % 3 for i in range(4000)])
    gallery.index(lists=40)
    exact = gallery.search(query, k=10)
    whole = gallery.search(query, k=10, approximate=True, probes=40)
    assert np.array_equal(whole.index, exact.index)
    assert whole.distance == pytest.approx(exact.distance, abs=1e-4)
    some = gallery.search(query, k=10, approximate=True, probes=8)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(some.index, exact.index, strict=True)])
    assert 0.5 < recall <= 1
    assert (np.diff(some.distance[:, :5], axis=1) >= 0).all()
    filtered = gallery.search(query, k=10, approximate=True, probes=40, cameras=[1], not_cameras=[2])
    assert np.array_equal(filtered.index, gallery.search(query, k=10, cameras=[1]).index)
    few = gallery.search(query[:1], k=4000, approximate=True, probes=40, cameras=["nowhere"])
    assert (few.index == -1).all()
    assert few.entries == ((),)


def test_what_changes_the_gallery_changes_the_index() -> None:
    gallery, query = Gallery(), crowd(3, seed=2)
    gallery.add(crowd(), [str(i) for i in range(4000)])
    gallery.index()
    gallery.add(query, ["a", "b", "c"])
    assert gallery.search(query, k=1, approximate=True, probes=1000).index[:, 0].tolist() == [4000, 4001, 4002]
    gallery.remove(["b"])
    with pytest.raises(ValueError, match="no index: call"):
        gallery.search(query, approximate=True)
    gallery.index()
    assert gallery.search(query[2], k=1, approximate=True, probes=1000).entries[0][0].name == "c"
    gallery.add(-query[:1], ["c"], replace=True)
    with pytest.raises(ValueError, match="after a removal or a replacement, again"):
        gallery.search(query, approximate=True)
    with pytest.raises(ValueError, match="lists must be from 1 to 4002, the number of entries, not 5000"):
        gallery.index(lists=5000)


def test_without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    gallery = Gallery()
    gallery.add(torch.ones(2, 3), ["a", "b"])
    with pytest.raises(MGRANError, match=r"FAISS, which is not installed: pip install 'mgran_fast\[faiss\]'"):
        gallery.index()
