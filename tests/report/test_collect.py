"""From an evaluation to the parts of its report."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import mgran_fast
from mgran_fast.data import DataSet, MaskFiles, read_market
from mgran_fast.data.records import SINGLE_GALLERY_SHOT
from mgran_fast.data.synthetic import write
from mgran_fast.metrics.evaluation import Evaluation, evaluate
from mgran_fast.metrics.protocols import Rule
from mgran_fast.metrics.ranking import Ranking
from mgran_fast.model import MGRAN
from mgran_fast.mra.estimate import Estimate
from mgran_fast.report import collect

SIZE = (32, 16)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Stored twice as large as the model looks at it."""
    return write(tmp_path_factory.mktemp("tiny") / "data", people=(0, 4), cameras=2, views=2, size=(64, 32))


@pytest.fixture(scope="module")
def model() -> MGRAN:
    torch.manual_seed(0)
    return MGRAN(size=SIZE, trunk="resnet18").eval()


@pytest.fixture(scope="module")
def evaluation(model: MGRAN, tiny: DataSet) -> Evaluation:
    return evaluate(model, tiny.query, tiny.gallery, MaskFiles(tiny.root))


@pytest.fixture
def copied(tiny: DataSet, tmp_path: Path) -> DataSet:
    return read_market(shutil.copytree(tiny.root, tmp_path / "copied"), need=("query", "gallery"))


def test_scores(evaluation: Evaluation) -> None:
    scores = collect.scores("trained", evaluation)
    assert scores.name == "trained"
    assert scores.rank == {k: evaluation.ranking.at(k) for k in (1, 5, 10)}
    assert scores.map == evaluation.ranking.map
    assert list(scores.cmc) == evaluation.ranking.cmc.tolist()


def test_a_single_gallery_shot_has_no_map(model: MGRAN, tiny: DataSet) -> None:
    found = evaluate(
        model,
        tiny.query,
        tiny.gallery,
        MaskFiles(tiny.root),
        Rule(SINGLE_GALLERY_SHOT, "multiple"),
        multi_query=tiny.gallery,
    )
    scores = collect.scores("trained", found)
    assert scores.map is None
    assert scores.rank == {k: found.ranking.at(k) for k in (1, 5, 10)}
    assert collect.protocol(found).startswith(found.rule.text)
    assert "show all gallery pictures, none are drawn" in collect.protocol(found)
    assert "one picture of its query" in collect.protocol(found)
    # The lists are of all pictures, and the nearest right one stands where they have it.
    lists = collect.ranked_lists(collect.Pictures(model, MaskFiles(tiny.root)), tiny, found, queries=100, k=20)
    for one in lists:
        assert one.first_right == [match.right for match in one.matches].index(True) + 1
    assert collect.protocol(evaluate(model, tiny.query, tiny.gallery, MaskFiles(tiny.root))).endswith("at hits")


def test_nobody_in_pictures_of_multiple_queries(tiny: DataSet, model: MGRAN) -> None:
    more = dataclasses.replace(tiny, multi_query=(dataclasses.replace(tiny.gallery[0], person=99), *tiny.gallery[:3]))
    found = evaluate(
        model, more.query, more.gallery, MaskFiles(tiny.root), Rule(queries="multiple"), multi_query=more.multi_query
    )
    assert found.pictures is not None
    nobody = dataclasses.replace(found.pictures, without_person=torch.tensor([1]))
    lines = collect.without_person(more, dataclasses.replace(found, pictures=nobody))
    assert [line.partition(":")[0] for line in lines] == [tiny.gallery[1].path.name]


def test_environment() -> None:
    found = collect.environment()
    assert found["mgran_fast"] == mgran_fast.__version__
    assert found["torch"] == torch.__version__
    assert found["device"]
    assert all(isinstance(value, str) for value in found.values())


def test_a_view_has_mask_and_keypoints_in_pixels_of_the_crop(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    view = collect.Pictures(model, masks).view(tiny.query[1])
    assert view is not None
    assert view.title == f"query/{tiny.query[1].path.name}"
    assert view.crop.shape == (*SIZE, 3)
    assert view.region_map.shape == SIZE
    assert view.layout == "region"
    source = masks.find(tiny.query[1].path, (64, 32))
    assert source is not None
    assert view.mask is not None
    assert view.keypoints is not None
    assert np.allclose(view.mask * 255, source.mask)
    assert np.allclose(view.keypoints[:, :2] * 2, source.keypoints[:, :2])
    assert np.array_equal(view.keypoints[:, 2], source.keypoints[:, 2])


def test_a_view_without_mask_and_of_a_broken_picture(copied: DataSet, model: MGRAN) -> None:
    pictures = collect.Pictures(model, MaskFiles(copied.root))
    pictures.masks.mask_path(copied.query[0].path).unlink()  # type: ignore[union-attr]
    copied.query[1].path.write_bytes(b"")
    view = pictures.view(copied.query[0])
    assert view is not None
    assert view.mask is None
    assert view.keypoints is not None
    assert not view.region_map.any()
    assert pictures.view(copied.query[1]) is None
    assert len(collect.crop_views(pictures, copied.query, 100)) == 7


def test_views_are_spread_evenly(tiny: DataSet, model: MGRAN) -> None:
    pictures = collect.Pictures(model, MaskFiles(tiny.root))
    titles = [view.title for view in collect.crop_views(pictures, tiny.query, 3)]
    assert titles == [f"query/{tiny.query[i].path.name}" for i in (0, 3, 7)]
    assert len(collect.crop_views(pictures, tiny.query, 100)) == len(tiny.query)
    assert collect.crop_views(pictures, tiny.query, 0) == []
    assert collect.crop_views(pictures, (), 5) == []


def test_ranked_lists(tiny: DataSet, model: MGRAN, evaluation: Evaluation) -> None:
    pictures = collect.Pictures(model, MaskFiles(tiny.root))
    lists = collect.ranked_lists(pictures, tiny, evaluation, queries=100, k=20)
    assert len(lists) == len(tiny.query)
    for q, one in enumerate(lists):
        record = tiny.query[q]
        assert (one.query.person, one.query.camera) == (record.person, record.camera)
        assert len(one.matches) == 7, "the picture of the same person and camera is left out"
        distances = [match.distance for match in one.matches]
        assert distances == sorted(distances)
        right = [place for place, match in enumerate(one.matches, 1) if match.right]
        assert right[0] == one.first_right == evaluation.ranking.first[q]
        for match in one.matches:
            assert match.right == (match.person == record.person)
    assert len(collect.ranked_lists(pictures, tiny, evaluation, queries=3, k=2)) == 3


def test_ranked_lists_leave_out_what_vanished(copied: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(copied.root)
    copied.query[2].path.write_bytes(b"")
    evaluation = evaluate(model, copied.query, copied.gallery, masks)
    for record in copied.gallery[:4]:
        record.path.unlink()
    lists = collect.ranked_lists(collect.Pictures(model, masks), copied, evaluation, queries=100, k=20)
    assert [(one.query.person, one.query.camera) for one in lists] == [
        (record.person, record.camera) for i, record in enumerate(copied.query) if i != 2
    ]
    assert all(len(one.matches) in (3, 4) for one in lists)


def test_unmatched_queries_are_named(tiny: DataSet, model: MGRAN) -> None:
    lonely = tiny.query[2].person
    fewer = dataclasses.replace(tiny, gallery=[r for r in tiny.gallery if (r.person, r.camera) != (lonely, 2)])
    evaluation = evaluate(model, fewer.query, fewer.gallery, MaskFiles(tiny.root))
    lines = collect.unmatched(fewer, evaluation)
    name = tiny.query[2].path.name
    assert lines == [f"{name}: person {lonely} has no gallery picture by another camera than 1"]
    lists = collect.ranked_lists(collect.Pictures(model, MaskFiles(tiny.root)), fewer, evaluation, queries=100)
    assert lists[2].first_right is None
    assert not any(match.right for match in lists[2].matches)


class Everything:
    """An estimator that takes the whole crop for the person."""

    def __call__(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        people, height, width = crops.shape[:3]
        return Estimate(torch.ones(people, height, width), torch.zeros(people, 17, 3), torch.ones(people))


def test_regions_of_an_estimator(tiny: DataSet) -> None:
    view = collect.Pictures(MGRAN(size=SIZE, trunk="resnet18", mra=Everything()), None).view(tiny.query[0])
    assert view is not None
    assert view.mask is not None
    assert view.mask.shape == view.crop.shape[:2] == (256, 128), "what the estimator saw, not the trunk's size"
    assert bool((view.mask == 1).all())
    assert view.keypoints is not None
    assert not view.keypoints[:, 2].any()
    assert np.unique(view.region_map).tolist() == [1, 2, 3]


def test_the_worst_mistakes_end_with_the_match_that_was_missed(
    model: MGRAN, tiny: DataSet, evaluation: Evaluation
) -> None:
    pictures = collect.Pictures(model, MaskFiles(tiny.root))
    assert isinstance(evaluation.ranking, Ranking)
    first, ap = evaluation.ranking.first, evaluation.ranking.ap
    lists = collect.mistakes(pictures, tiny, evaluation, queries=100, k=1)
    wrong = sorted((q for q in range(8) if first[q] > 1), key=lambda q: (ap[q], q))
    assert wrong, "an untrained network errs"
    assert [one.first_right for one in lists] == [first[q] for q in wrong]
    for q, one in zip(wrong, lists, strict=True):
        asked = tiny.query[q]
        assert (one.query.person, one.query.camera) == (asked.person, asked.camera)
        shown, missed = one.matches
        assert (shown.rank, shown.right) == (1, False)
        assert (missed.rank, missed.right, missed.person) == (first[q], True, asked.person)
        whole = evaluation.top(16)
        assert missed.distance == pytest.approx(whole.distance[q][first[q] - 1], abs=1e-6)
    # What lies within the list is not shown twice.
    (one,) = collect.mistakes(pictures, tiny, evaluation, queries=1, k=16)
    assert one.first_right == first[wrong[0]]
    assert sum(match.rank == one.first_right for match in one.matches) == 1


def test_mistakes_by_other_rules(model: MGRAN, tiny: DataSet) -> None:
    masks = MaskFiles(tiny.root)
    for rule in (Rule(SINGLE_GALLERY_SHOT), Rule(reranked=True), Rule(visible=True), Rule(cameras=False)):
        found = evaluate(model, tiny.query, tiny.gallery, masks, rule)
        lists = collect.mistakes(collect.Pictures(model, masks), tiny, found, queries=100, k=1)
        wrong = [q for q in range(8) if found.ranking.first[q] > 1]
        assert sorted(one.first_right or 0 for one in lists) == sorted(found.ranking.first[q] for q in wrong)
        whole = found.top(16)
        for one in lists:
            assert one.first_right is not None
            reached = [
                whole.distance[q][one.first_right - 1] for q in wrong if found.ranking.first[q] == one.first_right
            ]
            assert min(abs(one.matches[-1].distance - away) for away in reached) < 1e-6


def test_figures_by_camera_and_the_curve(tiny: DataSet, evaluation: Evaluation, model: MGRAN) -> None:
    named = dataclasses.replace(tiny, camera_names={1: "door"})
    rows = collect.cameras(named, evaluation)
    assert [(row.query, row.gallery, row.queries) for row in rows] == [("door", "2", 4), ("2", "door", 4)]
    free = evaluate(model, tiny.query, tiny.gallery, MaskFiles(tiny.root), Rule(cameras=False))
    assert collect.cameras(tiny, free) == []
    points = collect.roc_points(evaluation)
    curve = evaluation.roc
    assert curve is not None
    assert (points[-1], points[0][0]) == ((1.0, 1.0), pytest.approx(0.1 if curve.negatives < 100 else 0.01))
    assert [true for _, true in points] == sorted(true for _, true in points)
    sure = collect.scores("trained", evaluation).intervals
    assert sure["map"][0] <= evaluation.figures()["map"] <= sure["map"][1]
