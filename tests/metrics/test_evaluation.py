"""Evaluating a model: against embeddings computed one by one, with what is odd about pictures counted."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mgran_fast.data import CropDataset, DataSet, MaskFiles, Record, Sample, read_market
from mgran_fast.errors import DataError
from mgran_fast.metrics.embedding import embed
from mgran_fast.metrics.evaluation import evaluate
from mgran_fast.metrics.ranking import rank
from mgran_fast.model import MGRAN
from mgran_fast.mra.estimate import Estimate
from mgran_fast.mra.regionnet import RegionNet
from mgran_fast.reference.ranking import rank as reference_rank

SIZE = (32, 16)


@pytest.fixture
def copied(tiny: DataSet, tmp_path: Path) -> DataSet:
    return read_market(shutil.copytree(tiny.root, tmp_path / "copied"), need=("query", "gallery"))


def one_by_one(model: MGRAN, records: tuple[Record, ...], masks: MaskFiles) -> torch.Tensor:
    rows = []
    for record in records:
        sample = CropDataset([record], masks=masks, size=SIZE, layout="region")[0]
        assert isinstance(sample, Sample)
        with torch.no_grad():
            rows.append(model(sample.crop[None], region_map=sample.region_map[None]))
    return torch.cat(rows)


def test_equals_ranking_embeddings_computed_one_by_one(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    found = evaluate(model, tiny.query, tiny.gallery, masks, batch_size=5)
    query, gallery = one_by_one(model, tiny.query, masks), one_by_one(model, tiny.gallery, masks)
    assert (found.query.vectors - query).abs().max() < 1e-5
    assert (found.gallery.vectors - gallery).abs().max() < 1e-5
    labels = {
        "query_ids": [record.person for record in tiny.query],
        "gallery_ids": [record.person for record in tiny.gallery],
        "query_cameras": [record.camera for record in tiny.query],
        "gallery_cameras": [record.camera for record in tiny.gallery],
    }
    want = rank(query, gallery, **labels)
    assert np.array_equal(found.ranking.first, want.first)
    assert found.ranking.map == pytest.approx(want.map, abs=1e-9)
    assert found.ranking.minp == pytest.approx(want.minp, abs=1e-9)
    assert np.allclose(found.ranking.cmc, want.cmc)
    assert found.query.persons.tolist() == labels["query_ids"]
    assert found.gallery.cameras.tolist() == labels["gallery_cameras"]
    assert found.gallery.indices.tolist() == list(range(16))
    assert found.counts == {
        "queries": 8, "gallery": 16, "empty masks": 0, "no keypoints": 0, "unreadable pictures": 0,
        "queries without a match": 0,
    }  # fmt: skip


def test_top_agrees_with_the_ranking(tiny: DataSet, model: MGRAN) -> None:
    found = evaluate(model, tiny.query, tiny.gallery, MaskFiles(tiny.root))
    best = found.top(20)
    assert best.index.shape == (8, 20)
    for q, first in enumerate(found.ranking.first):
        assert (best.index[q] >= 0).sum() == 14, "the two of the same person and camera are left out"
        assert int(best.right[q].argmax()) + 1 == first
        for place in best.index[q][best.right[q]]:
            assert int(found.gallery.persons[place]) == int(found.query.persons[q])
            assert int(found.gallery.cameras[place]) != int(found.query.cameras[q])


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")  # Python 3.12 and later, of any process
@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (3, 1), (64, 0)])
def test_batch_size_does_not_matter(batch_size: int, workers: int, tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    want = embed(model, tiny.gallery, masks, batch_size=8)
    got = embed(model, tiny.gallery, masks, batch_size=batch_size, workers=workers)
    assert (got.vectors - want.vectors).abs().max() <= 1e-5
    assert torch.equal(got.visible, want.visible)
    assert torch.equal(got.indices, want.indices)


def test_progress_counts_query_and_gallery(tiny: DataSet, model: MGRAN) -> None:
    steps: list[tuple[int, int]] = []
    evaluate(
        model, tiny.query, tiny.gallery, MaskFiles(tiny.root), batch_size=6,
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert steps == [(6, 24), (8, 24), (14, 24), (20, 24), (24, 24)]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_keeps_its_mode(training: bool, tiny: DataSet) -> None:
    torch.manual_seed(1)
    model = MGRAN(size=SIZE, trunk="resnet18").train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    embed(model, tiny.query[:2], MaskFiles(tiny.root))
    assert model.training is training
    with pytest.raises(DataError):
        embed(model, [Record(Path("missing.jpg"), 1, 1)], MaskFiles(tiny.root))
    assert model.training is training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "no running statistics"


# --- what is odd ----------------------------------------------------------------------------------------------


def test_a_query_without_a_match_is_in_no_mean(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    lonely = tiny.query[0].person
    gallery = [r for r in tiny.gallery if r.person != lonely]
    found = evaluate(model, tiny.query, gallery, masks)
    others = evaluate(model, [r for r in tiny.query if r.person != lonely], gallery, masks)
    assert found.ranking.unmatched.tolist() == [0, 1]
    assert found.counts["queries without a match"] == 2
    assert found.counts["queries"] == 8
    assert found.ranking.map == pytest.approx(others.ranking.map, abs=1e-6)
    assert found.ranking.at(1) == others.ranking.at(1)


def test_no_query_with_a_match_is_an_error(tiny: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(tiny.root)
    first, *_, last = sorted({record.person for record in tiny.query})
    query = [record for record in tiny.query if record.person == first]
    with pytest.raises(DataError, match="no query has a right match"):
        evaluate(model, query, [r for r in tiny.gallery if r.person == last], masks)
    one_camera = [dataclasses.replace(record, camera=1) for record in (*tiny.query, *tiny.gallery)]
    with pytest.raises(DataError, match=r"no query has a right match: .* are 1 everywhere") as caught:
        evaluate(model, one_camera[:8], one_camera[8:], masks)
    assert "\n" not in str(caught.value)


def test_bad_pictures_are_left_out_and_counted(copied: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(copied.root)
    whole = evaluate(model, copied.query, copied.gallery, masks)
    truncated, empty, query = copied.gallery[3].path, copied.gallery[10].path, copied.query[7].path
    truncated.write_bytes(truncated.read_bytes()[:300])
    empty.write_bytes(b"")
    query.write_bytes(b"no picture")
    found = evaluate(model, copied.query, copied.gallery, masks, batch_size=1)
    assert found.counts["unreadable pictures"] == 3
    assert (found.counts["queries"], found.counts["gallery"]) == (7, 14)
    assert found.gallery.indices.tolist() == [i for i in range(16) if i not in (3, 10)]
    lines = found.gallery.problems.lines()
    assert [str(truncated) in lines[0], str(empty) in lines[1]] == [True, True]
    kept = whole.gallery.vectors[found.gallery.indices]
    assert (found.gallery.vectors - kept).abs().max() <= 1e-5
    want = rank(
        whole.query.vectors[:7], kept, query_ids=whole.query.persons[:7], gallery_ids=found.gallery.persons,
        query_cameras=whole.query.cameras[:7], gallery_cameras=found.gallery.cameras,
    )  # fmt: skip
    assert found.ranking.map == pytest.approx(want.map, abs=1e-6)


def test_nothing_readable_is_an_error(copied: DataSet, model: MGRAN) -> None:
    for record in copied.gallery:
        record.path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 16 pictures could be read; .*replace the file") as caught:
        evaluate(model, copied.query, copied.gallery, MaskFiles(copied.root))
    assert "\n" not in str(caught.value)


def test_empty_masks_and_missing_keypoints_are_counted(copied: DataSet, model: MGRAN) -> None:
    masks = MaskFiles(copied.root)
    Image.new("L", (16, 32), 0).save(masks.mask_path(copied.query[0].path))
    masks.mask_path(copied.gallery[0].path).unlink()
    (copied.root / "keypoints.json").write_text("{}")
    found = evaluate(model, copied.query, copied.gallery, MaskFiles(copied.root))
    assert found.counts["empty masks"] == 2
    assert found.counts["no keypoints"] == 24
    assert found.query.visible[0].tolist() == [True, False, False, False], "the whole crop is still compared"
    assert bool(found.query.vectors.isfinite().all())
    assert float(found.query.vectors[0].norm()) == pytest.approx(1.0)


# --- without mask files ---------------------------------------------------------------------------------------


class Halves:
    """An estimator that takes the left half of every crop for the person, and sees nobody in the first crop."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        people, height, width = crops.shape[:3]
        mask = torch.zeros(people, height, width)
        mask[:, :, : width // 2] = 1.0
        if self.seen == 0:
            mask[0] = 0.0
        self.seen += people
        return Estimate(mask, torch.zeros(people, 17, 3), torch.ones(people))


def test_a_model_with_an_estimator_needs_no_mask_files(tiny: DataSet, model: MGRAN, tmp_path: Path) -> None:
    estimator = Halves()
    estimating = MGRAN(size=SIZE, trunk="resnet18", mra=estimator)
    estimating.ma.load_state_dict(model.ma.state_dict())
    found = evaluate(estimating, tiny.query, tiny.gallery, None, batch_size=7)
    assert estimator.seen == 24
    assert found.counts["empty masks"] == 1
    assert found.query.visible[0].tolist() == [True, False, False, False]
    # The estimator sees the picture at a person's usual size, not at the trunk's few pixels.
    sample = CropDataset(tiny.gallery, masks=None, size=(256, 128), layout="none")[2]
    assert isinstance(sample, Sample)
    mask = torch.zeros(1, 256, 128)
    mask[:, :, :64] = 1.0
    with torch.no_grad():
        want = model(sample.crop[None], masks=mask)
    assert (found.gallery.vectors[2] - want[0]).abs().max() < 1e-5


def test_a_model_without_an_estimator_takes_the_one_of_the_package(tiny: DataSet, model: MGRAN) -> None:
    estimating = MGRAN(size=SIZE, trunk="resnet18", mra=RegionNet.from_pretrained())
    estimating.ma.load_state_dict(model.ma.state_dict())
    found, want = (evaluate(one, tiny.query, tiny.gallery, None) for one in (model, estimating))
    assert (found.gallery.vectors == want.gallery.vectors).all()
    assert found.query.visible.any()


def test_whole_crops_need_no_masks(tiny: DataSet) -> None:
    torch.manual_seed(2)
    found = evaluate(MGRAN(layout="none", size=SIZE, trunk="resnet18"), tiny.query, tiny.gallery, None)
    assert found.query.vectors.shape == (8, 512)
    assert found.query.visible.all()


def test_ranking_follows_the_reference(tiny: DataSet, model: MGRAN) -> None:
    found = evaluate(model, tiny.query, tiny.gallery, MaskFiles(tiny.root))
    query, gallery = found.query, found.gallery
    distances = (query.vectors.double()[:, None] - gallery.vectors.double()).norm(dim=2)
    want = reference_rank(
        distances.tolist(), query.persons.tolist(), gallery.persons.tolist(), query.cameras.tolist(),
        gallery.cameras.tolist(),
    )  # fmt: skip
    assert found.ranking.first.tolist() == want.first
    assert found.ranking.ap == pytest.approx(want.ap)
    assert found.ranking.inp == pytest.approx(want.inp)
