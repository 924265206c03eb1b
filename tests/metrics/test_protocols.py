"""Multiple queries, the words for protocols, and evaluating a model by each of them."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mgran_fast.data import DataSet, MaskFiles, Record, read_market
from mgran_fast.data.records import MARKET, SINGLE_GALLERY_SHOT
from mgran_fast.errors import DataError
from mgran_fast.ma.embedding import concatenate
from mgran_fast.metrics.evaluation import Evaluation, embed, evaluate
from mgran_fast.metrics.protocols import describe, further, merge
from mgran_fast.metrics.ranking import Ranking, rank
from mgran_fast.metrics.rerank import rerank
from mgran_fast.metrics.shots import ShotRanking, rank_shots
from mgran_fast.model import MGRAN

SIZE = (32, 16)


def labels(found: Evaluation) -> dict[str, np.ndarray]:
    return {
        "query_ids": found.query.persons.numpy(),
        "gallery_ids": found.gallery.persons.numpy(),
        "query_cameras": found.query.cameras.numpy(),
        "gallery_cameras": found.gallery.cameras.numpy(),
    }


# --- the vector of a multiple query ---------------------------------------------------------------------------


def test_the_mean_of_unit_vectors_by_hand() -> None:
    own = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    keys = torch.tensor([[1, 1], [1, 2], [7, 1], [2, 2]])
    # Their lengths do not matter. Of person 1, camera 1 there are two; person 9 was not asked for.
    pictures = torch.tensor([[3.0, 0.0], [0.0, 0.5], [0.0, -2.0], [1.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    others = torch.tensor([[1, 1], [1, 1], [1, 2], [9, 1], [2, 2], [2, 2]])
    merged, counts = merge(own, keys, pictures, others)
    half = math.sqrt(0.5)
    # Two pictures that contradict each other leave nothing, and no NaN.
    want = [[half, half], [0.0, -1.0], [0.6, 0.8], [0.0, 0.0]]
    assert merged.numpy() == pytest.approx(np.array(want), abs=1e-7)
    assert merged.dtype == torch.float32
    assert counts.tolist() == [2, 1, 0, 2]


def test_the_order_is_that_of_the_mean_similarity_of_the_pictures() -> None:
    """Parts that are hidden in some pictures included: this is why the plain mean is right for them."""
    generator = torch.Generator().manual_seed(0)

    def people(n: int) -> torch.Tensor:
        visible = torch.rand(n, 4, generator=generator) < 0.6
        visible[:, 0] = True
        return concatenate(torch.randn(n, 4, 8, generator=generator), visible)

    pictures, gallery = people(5), people(200)
    merged, _ = merge(people(1), torch.tensor([[1, 1]]), pictures, torch.ones(5, 2, dtype=torch.int64))
    similar = (gallery.double() @ pictures.double().T).mean(dim=1)
    distance = (gallery.double() - merged.double()).norm(dim=1)
    assert distance.argsort().tolist() == (-similar).argsort().tolist()
    assert float(merged.norm()) == pytest.approx(1.0, abs=1e-6)


def test_a_part_that_no_picture_shows_stays_hidden_and_the_others_weigh_as_they_are_seen() -> None:
    seen = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    pictures = concatenate(torch.ones(4, 3, 2), seen)
    merged, _ = merge(pictures[:1], torch.tensor([[1, 1]]), pictures, torch.ones(4, 2, dtype=torch.int64))
    parts = merged.view(3, 2).norm(dim=1)
    assert parts[2] == 0
    # One of four pictures shows the second part, at 1 / sqrt(2); the first is at 1 in the three others.
    assert float(parts[1] / parts[0]) == pytest.approx(1 / (1 + 3 * math.sqrt(2)), rel=1e-5)


def test_further_pictures_are_those_of_person_and_camera() -> None:
    query = [Record(Path("q"), 1, 1), Record(Path("r"), 2, 2)]
    pictures = [Record(Path(str(i)), person, camera) for i, (person, camera) in enumerate([(1, 1), (1, 2), (2, 2)])]
    assert further(query, pictures) == [pictures[0], pictures[2]]


# --- evaluating a model ---------------------------------------------------------------------------------------


def test_multiple_queries(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    lonely = (tiny.query[0].person, tiny.query[0].camera)
    # The gallery's pictures serve; of one person and camera there are none, and person 99 is nobody's query.
    more = [record for record in tiny.gallery if (record.person, record.camera) != lonely]
    steps: list[tuple[int, int]] = []
    found = evaluate(
        model, tiny.query, tiny.gallery, masks, batch_size=50,
        multi_query=[*more, dataclasses.replace(more[0], person=99)],
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert steps == [(8, 38), (22, 38), (38, 38)]
    single = evaluate(model, tiny.query, tiny.gallery, masks)
    assert found.alone.tolist() == [0]
    assert torch.equal(found.query.vectors[0], single.query.vectors[0]), "it keeps its own"
    # Some are shorter before, or 0: an untrained network has parts that are all 0.
    pictures = F.normalize(embed(model, more, masks).vectors.double(), dim=1)
    for q, record in enumerate(tiny.query[1:], 1):
        mine = [i for i, one in enumerate(more) if (one.person, one.camera) == (record.person, record.camera)]
        assert len(mine) == 2
        mean = pictures[mine].mean(dim=0)
        assert (found.query.vectors[q] - F.normalize(mean, dim=0)).abs().max() < 1e-5
    assert isinstance(found.ranking, Ranking)
    want = rank(found.query.vectors, found.gallery.vectors, **labels(found))
    assert found.ranking.ap.tolist() == want.ap.tolist()
    assert found.ranking.map != evaluate(model, tiny.query, tiny.gallery, masks).ranking.map
    of_multiple = {"pictures of queries": 14, "queries without further pictures": 1}
    assert found.counts == {**single.counts, **of_multiple}
    assert (found.queries, single.queries) == ("multiple", "single")
    # The lists to look at are of the same vectors.
    first = found.top(1)
    assert [int(place) for place in first.right[:, 0]] == [int(place == 1) for place in found.ranking.first]


def test_broken_pictures_of_multiple_queries_are_counted(tiny: DataSet, model: MGRAN, tmp_path: Path) -> None:
    copied = read_market(shutil.copytree(tiny.root, tmp_path / "copied"), need=("query", "gallery"))
    masks, more = MaskFiles(copied.root), tmp_path / "more"
    records = []
    for record in copied.gallery[:4]:
        path = more / record.path.name
        more.mkdir(exist_ok=True)
        shutil.copy(record.path, path)
        records.append(dataclasses.replace(record, path=path))
    records[0].path.write_bytes(b"")
    found = evaluate(model, copied.query, copied.gallery, masks, multi_query=records)
    assert found.counts["unreadable pictures"] == 1
    assert str(records[0].path) in found.problems()[0]
    assert found.counts["pictures of queries"] == 3
    assert found.counts["empty masks"] == 3, "there are no masks of these copies"
    # One of the queries has its whole crop only, the other parts are hidden; all the rest keep their own.
    assert found.query.visible.sum(dim=1).tolist()[:2] == [1, 1]
    assert torch.equal(found.query.visible[2:], embed(model, copied.query, masks).visible[2:])
    assert len(found.alone) == 6


def test_a_single_gallery_shot(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    exact = evaluate(model, tiny.query, tiny.gallery, masks, protocol=SINGLE_GALLERY_SHOT)
    want = rank_shots(exact.query.vectors, exact.gallery.vectors, **labels(exact))
    assert isinstance(exact.ranking, ShotRanking)
    assert np.array_equal(exact.ranking.cmc, want.cmc)
    assert exact.figures() == {f"rank{k}": want.at(k) for k in (1, 5, 10)}
    assert exact.counts == evaluate(model, tiny.query, tiny.gallery, masks).counts
    drawn = evaluate(model, tiny.query, tiny.gallery, masks, protocol=SINGLE_GALLERY_SHOT, draws=7, seed=3)
    assert isinstance(drawn.ranking, ShotRanking)
    assert np.array_equal(
        drawn.ranking.each,
        rank_shots(drawn.query.vectors, drawn.gallery.vectors, **labels(drawn), draws=7, seed=3).each,
    )
    assert drawn.details["draws"] == 7
    assert drawn.details["standard_error"]["rank1"] == drawn.ranking.error[0]
    both = evaluate(model, tiny.query, tiny.gallery, masks, protocol=SINGLE_GALLERY_SHOT, multi_query=tiny.gallery)
    assert both.details["queries"] == "multiple"


def test_what_is_told(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    found = evaluate(model, tiny.query, tiny.gallery, masks)
    assert found.details == {
        "protocol": "market", "queries": "single", "reranked": False, "ap": "hits", "rule": found.rule
    }  # fmt: skip
    assert found.rule == describe(MARKET)
    assert set(found.figures()) == {"rank1", "rank5", "rank10", "map", "minp"}
    area = evaluate(model, tiny.query, tiny.gallery, masks, ap="trapezoid")
    assert area.figures()["map"] < found.figures()["map"]
    assert "AP is the area under the precision-recall curve in trapezoids" in area.rule
    shot = evaluate(model, tiny.query, tiny.gallery, masks, protocol=SINGLE_GALLERY_SHOT)
    assert shot.details == {
        "protocol": "single-gallery-shot", "queries": "single", "reranked": False, "ap": None, "draws": None,
        "rule": shot.rule,
    }  # fmt: skip
    assert "NaN" not in json.dumps([shot.details, shot.figures()], allow_nan=False)


def test_a_reranked_gallery(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    for protocol in (MARKET, SINGLE_GALLERY_SHOT):
        found = evaluate(model, tiny.query, tiny.gallery, masks, protocol=protocol, reranked=True)
        want = rerank(found.query.vectors, found.gallery.vectors)
        assert found.distances is not None
        assert torch.equal(found.distances, want)
        assert (found.details["reranked"], "k-reciprocal" in found.rule) == (True, True)
        ranked = rank(distances=want, **labels(found))
        assert found.ranking.first.tolist() == ranked.first.tolist()
        # What is shown is what was ranked.
        shown = found.top(3)
        assert shown.distance[0, 0] == want[0, shown.index[0, 0]]
    plain = evaluate(model, tiny.query, tiny.gallery, masks)
    assert (plain.distances, "k-reciprocal" in plain.rule) == (None, False)


def test_words() -> None:
    assert describe(MARKET).startswith("Market-1501 single query: each query ranks the whole gallery")
    assert "AP is the mean precision at hits" in describe(MARKET)
    assert "the mean vector of all pictures" in describe(MARKET, "multiple")
    exact, drawn = describe(SINGLE_GALLERY_SHOT), describe(SINGLE_GALLERY_SHOT, draws=10)
    assert "exact expectation" in exact
    assert "mean of 10 draws" in drawn
    for text in (exact, drawn):
        assert "no mAP" in text
        assert "AP is" not in text
        assert "\n" not in text


def test_bad_arguments(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    for options, message in (
        ({"protocol": "cuhk"}, "protocol must be one of market, single-gallery-shot, not 'cuhk'"),
        ({"ap": "area"}, "ap must be one of hits, trapezoid, not 'area'"),
        ({"draws": 3}, "only single-gallery-shot draws; not 3 for market"),
        ({"draws": 0, "protocol": SINGLE_GALLERY_SHOT}, "draws must be at least 1"),
        ({"seed": -1, "protocol": SINGLE_GALLERY_SHOT}, "seed must be at least 0"),
        ({"multi_query": []}, "no picture for multiple queries"),
        ({"multi_query": [dataclasses.replace(tiny.query[0], person=99)]}, "no picture for multiple queries"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(model, tiny.query, tiny.gallery, masks, **options)
    with pytest.raises(DataError, match="no query has a right match"):
        evaluate(
            model, tiny.query[:1], [one for one in tiny.gallery if one.person != tiny.query[0].person], masks,
            protocol=SINGLE_GALLERY_SHOT,
        )  # fmt: skip
