"""A gallery against all distances, spelled out; what is refused, and that nothing is lost then."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
import torch

from mgran_fast import Gallery
from mgran_fast.metrics import cosine, euclidean, visible
from mgran_fast.search import nearest as blocks
from mgran_fast.search.columns import moment


def vectors(count: int, width: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def filled(count: int = 40, **options: Any) -> Gallery:
    """Entry i is called ei, shows person i % 5 by camera i % 3, after i hours; of every seventh none is known."""
    gallery = Gallery(**options)
    known = [i % 7 != 6 for i in range(count)]
    gallery.add(
        vectors(count),
        [f"e{i}" for i in range(count)],
        persons=[i % 5 if yes else None for i, yes in enumerate(known)],
        cameras=[f"c{i % 3}" if yes else None for i, yes in enumerate(known)],
        times=[3600 * i if yes else None for i, yes in enumerate(known)],
    )
    return gallery


def wanted(distances: torch.Tensor, allowed: np.ndarray, k: int) -> list[list[int]]:
    return [[int(i) for i in row.argsort(stable=True) if allowed[i]][:k] for row in distances]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("block", [1, 7 * 24, 2**24])
@pytest.mark.parametrize("few", [0, 8])
@pytest.mark.usefixtures("implementation")
def test_the_nearest_are_those_of_all_distances(
    metric: str, block: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", block)
    monkeypatch.setattr(blocks, "_FEW", few)
    gallery, query = filled(metric=metric), vectors(6, seed=1)
    distances = (euclidean if metric == "euclidean" else cosine)(query, vectors(40))
    found = gallery.search(query, k=9)
    assert found.index.tolist() == wanted(distances, np.ones(40, bool), 9)
    assert found.distance == pytest.approx(distances.gather(1, torch.from_numpy(found.index)).numpy(), abs=1e-5)
    assert [[entry.name for entry in row] for row in found.entries] == [[f"e{i}" for i in row] for row in found.index]
    one = gallery.search(query[2], k=9)
    assert one.index.tolist() == found.index[2:3].tolist()


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("few", [0, 8])
def test_filters(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_FEW", few)
    gallery, query = filled(), vectors(3, seed=2)
    distances = euclidean(query, vectors(40))
    i = np.arange(40)
    known = i % 7 != 6
    cases: list[tuple[dict[str, Any], np.ndarray]] = [
        ({"cameras": ["c1"]}, known & (i % 3 == 1)),
        ({"cameras": ["c1", "c2", "elsewhere"]}, known & (i % 3 != 0)),
        ({"not_cameras": ["c0"]}, ~known | (i % 3 != 0)),
        ({"cameras": []}, np.zeros(40, bool)),
        ({"since": 3600 * 10}, known & (i >= 10)),
        ({"until": "1970-01-01T10:00:00"}, known & (i < 10)),
        ({"since": datetime(1970, 1, 1, 3, tzinfo=timezone.utc), "until": np.datetime64("1970-01-01T12")},
         known & (i >= 3) & (i < 12)),
        # One hour east of Greenwich it is four when it is three there.
        ({"since": datetime(1970, 1, 1, 4, tzinfo=timezone(timedelta(hours=1))), "not_cameras": ["c2"]},
         known & (i >= 3) & (i % 3 != 2)),
    ]  # fmt: skip
    for filters, allowed in cases:
        found = gallery.search(query, k=50, **filters)
        want = wanted(distances, allowed, 50)
        assert [[place for place in row if place >= 0] for row in found.index.tolist()] == want, filters
        assert np.array_equal(np.isinf(found.distance), found.index == -1)
        assert [len(row) for row in found.entries] == [int(allowed.sum())] * 3
    assert gallery.search(query, k=1, cameras=["elsewhere"]).entries == ((), (), ())


def test_entries_tell_what_is_known() -> None:
    gallery = filled()
    (entry, *_), _ = gallery.search(vectors(40)[[8, 13]], k=2).entries
    assert (entry.name, entry.person, entry.camera) == ("e8", "3", "c2")
    assert entry.time == datetime(1970, 1, 1, 8, tzinfo=timezone.utc)
    assert entry.distance == pytest.approx(0, abs=1e-2)
    unknown = gallery.search(vectors(40)[13], k=1).entries[0][0]
    assert (unknown.name, unknown.person, unknown.camera, unknown.time) == ("e13", None, None, None)
    assert gallery.persons[:7] == ["0", "1", "2", "3", "4", "0", None]
    assert gallery.cameras[5:8] == ["c2", None, "c1"]
    assert np.isnat(gallery.times).tolist() == [i % 7 == 6 for i in range(40)]
    assert ("e8" in gallery, "e40" in gallery, len(gallery)) == (True, False, 40)


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize("few", [0, 8])
def test_ties_go_to_the_one_that_was_added_first(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", 4 * 3)
    monkeypatch.setattr(blocks, "_FEW", few)
    gallery = Gallery()
    gallery.add(torch.tensor([[1.0, 0, 0], [2.0, 0, 0]]).repeat(10, 1), [str(i) for i in range(20)])
    found = gallery.search(torch.tensor([1.0, 0, 0]), k=12)
    assert found.index.tolist() == [[*range(0, 20, 2), 1, 3]]


def test_adding_one_by_one_and_removing() -> None:
    gallery, want = Gallery(), filled()
    for i in range(40):
        known = i % 7 != 6
        gallery.add(
            vectors(40)[i : i + 1], [f"e{i}"], persons=[i % 5 if known else None],
            cameras=[f"c{i % 3}" if known else None], times=[3600 * i if known else None],
        )  # fmt: skip
    assert torch.equal(gallery.embeddings, want.embeddings)
    assert (gallery.names, gallery.persons, gallery.cameras) == (want.names, want.persons, want.cameras)
    gallery.remove(f"e{i}" for i in range(0, 40, 4))
    kept = [i for i in range(40) if i % 4]
    assert gallery.names == tuple(f"e{i}" for i in kept)
    assert torch.equal(gallery.embeddings, vectors(40)[kept])
    assert gallery.persons == [want.persons[i] for i in kept]
    assert np.array_equal(np.isnat(gallery.times), [i % 7 == 6 for i in kept])
    query = vectors(2, seed=3)
    found = gallery.search(query, k=5)
    distances = euclidean(query, vectors(40)[kept])
    assert found.index.tolist() == wanted(distances, np.ones(30, bool), 5)
    with pytest.raises(ValueError, match="1 of 2 names are not in the gallery, first 'e0'"):
        gallery.remove(["e1", "e0"])
    assert len(gallery) == 30
    gallery.remove(gallery.names)
    assert (len(gallery), gallery.search(query).entries) == (0, ((), ()))
    mine = vectors(3)
    gallery.add(mine, ["a", "b", "c"])
    mine.zero_()
    assert torch.equal(gallery.embeddings, vectors(3)), "nobody else's memory"


def test_replacing() -> None:
    gallery = filled(visible := 10)
    gallery.add(
        vectors(3, seed=5), ["e4", "new", "e0"], persons=["x", "y", None], cameras=["k", "k", "k"], times=[1, 2, None],
        replace=True,
    )  # fmt: skip
    assert len(gallery) == visible + 1
    assert gallery.names[-1] == "new"
    assert torch.equal(gallery.embeddings[[4, 10, 0]], vectors(3, seed=5))
    assert [gallery.persons[i] for i in (4, 10, 0)] == ["x", "y", None]
    assert gallery.times[[4, 10]].astype("datetime64[s]").astype(int).tolist() == [1, 2]
    assert gallery.search(vectors(3, seed=5), k=1).index[:, 0].tolist() == [4, 10, 0]


def test_parts_that_both_show() -> None:
    generator = torch.Generator().manual_seed(4)
    seen, asked = (torch.randint(0, 2, (n, 4), generator=generator) for n in (30, 5))
    held, query = vectors(30), vectors(5, seed=6)
    gallery = Gallery()
    gallery.add(held.view(30, 4, 6), [str(i) for i in range(30)], visible=seen)
    distances = visible(query, held, asked, seen)
    found = gallery.search(query, k=30, visible=asked)
    assert found.index.tolist() == wanted(distances, np.ones(30, bool), 30)
    assert gallery.search(query, k=30).index.tolist() == wanted(euclidean(query, held), np.ones(30, bool), 30)
    for change, words in (
        ({"visible": asked[:, :3]}, "visible of the query has 3 parts, the gallery 4"),
        ({"visible": asked[:2]}, r"visible of the query must be 0 and 1, \[5, P\]"),
        ({"visible": asked * 2}, "must be 0 and 1"),
        ({"visible": asked, "approximate": True}, "take one of the two"),
    ):
        with pytest.raises(ValueError, match=words):
            gallery.search(query, **change)
    with pytest.raises(ValueError, match="visible is missing"):
        gallery.add(query, list("abcde"))
    with pytest.raises(ValueError, match="entries of this gallery have none"):
        filled().add(query, list("abcde"), visible=asked)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"names": ["a", "b", "a"]}, ValueError, "'a' is named twice"),
        ({"names": ["e7", "b", "e3"]}, ValueError, "2 of 3 names are in the gallery already, first 'e7': remove them"),
        ({"names": ["a", "b"]}, ValueError, "names has 2 values for 3 embeddings"),
        ({"persons": [1]}, ValueError, "persons has 1 values for 3 embeddings"),
        ({"cameras": [1, 2, 3, 4]}, ValueError, "cameras has 4 values for 3 embeddings"),
        ({"times": ["yesterday"] * 3}, ValueError, "'yesterday' is no time: write it as 2026-11-27T08:30:00"),
        ({"times": [float("nan")] * 3}, ValueError, "nan is no time: give seconds since 1970"),
        ({"embeddings": vectors(3, 23)}, ValueError, "embeddings has 23 numbers a row and the gallery 24.*same model"),
        ({"embeddings": vectors(3).int()}, TypeError, "embeddings must be floating point, not torch.int32"),
        ({"embeddings": vectors(3)[0]}, ValueError, r"embeddings must be \[N, D\] or \[N, P, D\], not \[24\]"),
        ({"embeddings": vectors(3).log()}, ValueError, r"holds NaN.*first in row 0.*\('a'\); nothing was added"),
    ],
)
def test_what_is_refused_changes_nothing(change: dict[str, Any], error: type[Exception], words: str) -> None:
    gallery = filled()
    arguments: dict[str, Any] = {"embeddings": vectors(3), "names": ["a", "b", "c"]}
    with pytest.raises(error, match=words):
        gallery.add(**{**arguments, **change})
    assert (len(gallery), len(gallery.persons), len(gallery.times), len(gallery.embeddings)) == (40,) * 4
    gallery.add(**arguments)
    assert len(gallery) == 43


def test_bad_queries() -> None:
    gallery = filled()
    for query, options, words in (
        (vectors(1, 23), {}, "query has 23 numbers a row and the gallery 24"),
        (vectors(1).log(), {}, "query holds NaN"),
        (vectors(1), {"k": 0}, "k must be at least 1"),
        (vectors(1), {"probes": 0}, "probes must be at least 1"),
        (vectors(1), {"cameras": "door"}, "must be lists of cameras, not one text"),
        (vectors(1), {"since": "noon"}, "'noon' is no time"),
        (vectors(1), {"approximate": True}, r"no index: call index\(\) first"),
    ):
        with pytest.raises(ValueError, match=words):
            gallery.search(query, **options)
    with pytest.raises(ValueError, match="metric must be one of euclidean, cosine"):
        Gallery(metric="hamming")
    with pytest.raises(ValueError, match="the gallery is empty"):
        Gallery().index()


def test_moments() -> None:
    want = np.datetime64("2026-11-27T07:30:00", "us")
    zone = timezone(timedelta(hours=1))
    for value in (
        "2026-11-27T07:30:00", "2026-11-27T07:30:00Z", "2026-11-27T08:30:00+01:00", "2026-11-27 07:30", want,
        datetime(2026, 11, 27, 7, 30), datetime(2026, 11, 27, 8, 30, tzinfo=zone), want.astype(int) / 1e6,
    ):  # fmt: skip
        assert moment(value) == want, value
    assert np.isnat(moment(None))
