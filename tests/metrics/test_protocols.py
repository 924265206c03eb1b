"""Multiple queries, the words for protocols, and evaluating a model by each of them."""

from __future__ import annotations

import dataclasses
import json
import math
import re
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
from mgran_fast.metrics.distances import visible
from mgran_fast.metrics.embedding import embed, with_mirror
from mgran_fast.metrics.evaluation import Evaluation, evaluate
from mgran_fast.metrics.protocols import Rule, further, merge
from mgran_fast.metrics.ranking import Ranking, rank
from mgran_fast.metrics.rerank import rerank
from mgran_fast.metrics.shots import ShotRanking, rank_shots
from mgran_fast.model import MGRAN

SIZE = (32, 16)
SHOT = Rule(SINGLE_GALLERY_SHOT)
MULTIPLE = Rule(queries="multiple")


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
        model, tiny.query, tiny.gallery, masks, MULTIPLE, batch_size=50,
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
    assert (found.rule, single.rule) == (MULTIPLE, Rule())
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
    found = evaluate(model, copied.query, copied.gallery, masks, MULTIPLE, multi_query=records)
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
    exact = evaluate(model, tiny.query, tiny.gallery, masks, SHOT)
    want = rank_shots(exact.query.vectors, exact.gallery.vectors, **labels(exact))
    assert isinstance(exact.ranking, ShotRanking)
    assert np.array_equal(exact.ranking.cmc, want.cmc)
    assert exact.figures() == {f"rank{k}": want.at(k) for k in (1, 5, 10)}
    assert exact.counts == evaluate(model, tiny.query, tiny.gallery, masks).counts
    drawn = evaluate(model, tiny.query, tiny.gallery, masks, Rule(SINGLE_GALLERY_SHOT, draws=7, seed=3))
    assert isinstance(drawn.ranking, ShotRanking)
    assert np.array_equal(
        drawn.ranking.each,
        rank_shots(drawn.query.vectors, drawn.gallery.vectors, **labels(drawn), draws=7, seed=3).each,
    )
    assert drawn.details["draws"] == 7
    assert drawn.details["standard_error"]["rank1"] == drawn.ranking.error[0]
    rule = Rule(SINGLE_GALLERY_SHOT, "multiple")
    both = evaluate(model, tiny.query, tiny.gallery, masks, rule, multi_query=tiny.gallery)
    assert both.details["queries"] == "multiple"


def test_what_is_told(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    found = evaluate(model, tiny.query, tiny.gallery, masks)
    usual = {
        "queries": "single", "metric": "euclidean", "visible": False, "flip": False, "reranked": False,
        "cameras": True, "draws": None, "seed": None,
    }  # fmt: skip
    assert found.details == {"protocol": "market", "ap": "hits", "ties": "index", "rule": Rule().text, **usual}
    assert set(found.figures()) == {"rank1", "rank5", "rank10", "map", "minp"}
    area = evaluate(model, tiny.query, tiny.gallery, masks, Rule(ap="trapezoid"))
    assert area.figures()["map"] < found.figures()["map"]
    assert "AP is the area under the precision-recall curve in trapezoids" in area.rule.text
    shot = evaluate(model, tiny.query, tiny.gallery, masks, SHOT)
    assert shot.details == {"protocol": "single-gallery-shot", "ap": None, "ties": None, "rule": SHOT.text, **usual}
    assert "NaN" not in json.dumps([shot.details, shot.figures()], allow_nan=False)


def test_a_reranked_gallery(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    for protocol in (MARKET, SINGLE_GALLERY_SHOT):
        found = evaluate(model, tiny.query, tiny.gallery, masks, Rule(protocol, reranked=True))
        want = rerank(found.query.vectors, found.gallery.vectors)
        assert found.distances is not None
        assert torch.equal(found.distances, want)
        assert (found.details["reranked"], "k-reciprocal" in found.rule.text) == (True, True)
        ranked = rank(distances=want, **labels(found))
        assert found.ranking.first.tolist() == ranked.first.tolist()
        # What is shown is what was ranked.
        shown = found.top(3)
        assert shown.distance[0, 0] == want[0, shown.index[0, 0]]
    plain = evaluate(model, tiny.query, tiny.gallery, masks)
    assert (plain.distances, "k-reciprocal" in plain.rule.text) == (None, False)


def test_the_rule_chooses_what_is_compared(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    plain = evaluate(model, tiny.query, tiny.gallery, masks)
    seen = evaluate(model, tiny.query, tiny.gallery, masks, Rule(visible=True, metric="cosine", ties="pessimistic"))
    distances = visible(
        plain.query.vectors, plain.gallery.vectors, plain.query.visible, plain.gallery.visible, metric="cosine"
    )
    want = rank(distances=distances, ties="pessimistic", **labels(plain))
    assert isinstance(seen.ranking, Ranking)
    assert seen.ranking.ap.tolist() == want.ap.tolist()
    assert (seen.ranking.ties, seen.rule.text.count("that both pictures show")) == ("pessimistic", 1)
    # By one camera all are junk, unless nobody knows the cameras.
    blind = [[dataclasses.replace(one, camera=0) for one in part] for part in (tiny.query, tiny.gallery)]
    with pytest.raises(DataError, match="mgran-fast evaluate --no-cameras"):
        evaluate(model, *blind, masks)
    found = evaluate(model, *blind, masks, Rule(cameras=False))
    free = rank(
        plain.query.vectors, plain.gallery.vectors, query_ids=plain.query.persons, gallery_ids=plain.gallery.persons,
        query_cameras=None, gallery_cameras=None,
    )  # fmt: skip
    assert found.ranking.first.tolist() == free.first.tolist()
    assert "whatever the camera" in found.rule.text


def test_the_flip_test_takes_the_mean_of_both(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    plain, both = embed(model, tiny.query, masks), embed(model, tiny.query, masks, flip=True)
    assert evaluate(model, tiny.query, tiny.gallery, masks, Rule(flip=True)).query.vectors.equal(both.vectors)
    assert (both.vectors - plain.vectors).abs().max() > 1e-3
    assert both.vectors.norm(dim=1).numpy() == pytest.approx(1.0, abs=1e-5)
    # A picture and its mirror image have the same pair of vectors; of arms and legs the left one is the right one then.
    torch.manual_seed(0)
    for layout in ("region", "part", "none"):
        parts = MGRAN(layout=layout, size=SIZE, trunk="resnet18").eval()
        encode = with_mirror(parts.encode, parts.layout)
        crops = torch.randint(0, 256, (3, *SIZE, 3), dtype=torch.uint8)
        maps = torch.randint(0, 1 + max(1, parts.layout.regions), (3, *SIZE), dtype=torch.uint8)
        maps[0] = maps[0].clamp(max=1)
        exchanged = torch.tensor([*parts.layout.flip, 1])[maps.flip(2).long()].to(torch.uint8)
        with torch.no_grad():
            found, mirrored = encode(crops, region_map=maps), encode(crops.flip(2), region_map=exchanged)
            one = parts.encode(crops, region_map=maps), parts.encode(crops.flip(2), region_map=exchanged)
        assert (found.vector - mirrored.vector).abs().max() < 1e-5
        sums = sum(F.normalize(each.embeddings, dim=2) * each.visible[..., None] for each in one)
        want = concatenate(sums, one[0].visible | one[1].visible)
        assert (found.vector - want).abs().max() < 1e-5
        assert found.visible.sum(dim=1).tolist()[0] <= 3


def test_words() -> None:
    assert Rule().text.startswith("Market-1501 single query: each query ranks the whole gallery")
    assert "same camera; Euclidean distance; AP is the mean precision at hits" in Rule().text
    assert "the mean vector of all pictures" in Rule(queries="multiple").text
    odd = Rule(ties="pessimistic", metric="cosine", visible=True, flip=True, cameras=False).text
    assert "vectors are means of a picture and its mirror image; each query ranks" in odd
    assert (
        "whatever the camera; cosine distance of the parts that both pictures show; at one distance wrong first" in odd
    )
    exact, drawn = SHOT.text, Rule(SINGLE_GALLERY_SHOT, draws=10).text
    assert "exact expectation" in exact
    assert "mean of 10 draws" in drawn
    for text in (exact, drawn):
        assert "no mAP" in text
        assert "AP is" not in text
        assert "\n" not in text


def test_bad_arguments(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    for options, message in (
        ({"queries": "both"}, "queries must be one of single, multiple, not 'both'"),
        ({"ties": "random"}, "ties must be one of index, pessimistic, optimistic, not 'random'"),
        ({"ties": "optimistic", "protocol": SINGLE_GALLERY_SHOT}, "ties must be index for single-gallery-shot"),
        ({"metric": "manhattan"}, "metric must be one of euclidean, cosine, not 'manhattan'"),
        ({"reranked": True, "visible": True}, "take one of the two"),
        ({"protocol": "cuhk"}, "protocol must be one of market, single-gallery-shot, not 'cuhk'"),
        ({"ap": "area"}, "ap must be one of hits, trapezoid, not 'area'"),
        ({"draws": 3}, "only single-gallery-shot draws; not 3 for market"),
        ({"draws": 0, "protocol": SINGLE_GALLERY_SHOT}, "draws must be at least 1"),
        ({"seed": -1, "protocol": SINGLE_GALLERY_SHOT}, "seed must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Rule(**options)
    for more in ([], None, [dataclasses.replace(tiny.query[0], person=99)]):
        with pytest.raises(DataError, match="no picture for multiple queries"):
            evaluate(model, tiny.query, tiny.gallery, masks, MULTIPLE, multi_query=more)
    with pytest.raises(DataError, match=f"{re.escape(str(tiny.gallery[3].path))}: twice in the gallery"):
        evaluate(model, tiny.query, [*tiny.gallery, tiny.gallery[3]], masks)
    with pytest.raises(DataError, match="no query has a right match"):
        evaluate(
            model, tiny.query[:1], [one for one in tiny.gallery if one.person != tiny.query[0].person], masks,
            SHOT,
        )  # fmt: skip
