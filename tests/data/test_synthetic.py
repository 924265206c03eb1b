from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgran_fast.data import synthetic
from mgran_fast.data.pedestrian import Pose, camera_of, compose, person_of, sample_pose, skeleton_of
from mgran_fast.data.pedestrian.canvas import Layer, plain
from mgran_fast.data.pedestrian.dice import Dice
from mgran_fast.data.pedestrian.pose import Arm, Leg
from mgran_fast.data.synthetic import View, render, write
from mgran_fast.errors import DataError
from mgran_fast.layouts import KEYPOINT_FLIP, KEYPOINTS

SMALL = (64, 32)
GOLDEN_AREA = 2803.81
GOLDEN_MEAN = [130.57, 127.5, 109.99]
GOLDEN_POINTS = [[30.809, 16.522], [39.688, 29.033], [20.732, 116.091]]
JOINT = {name: index for index, name in enumerate(KEYPOINTS)}


def views(count: int, size: tuple[int, int] = (128, 64)) -> list[View]:
    return [render(1 + i // 3, 1 + i % 3, i, size=size) for i in range(count)]


def pose(yaw: float) -> Pose:
    return Pose(yaw, 0.1, 0.05, 0.02, Arm(0.3, 0.15, 0.4), Arm(-0.3, 0.1, 0.3), Leg(-0.3, 0.2), Leg(0.35, 0.1))


def test_view_has_the_promised_types():
    view = render(3, 2, 1, size=(96, 40), seed=5)
    assert view.crop.shape == (96, 40, 3)
    assert view.crop.dtype == np.uint8
    assert view.mask.shape == (96, 40)
    assert view.mask.dtype == np.float32
    assert view.keypoints.shape == (17, 3)
    assert view.keypoints.dtype == np.float32
    assert (view.person, view.camera) == (3, 2)
    assert 0 <= view.mask.min() <= view.mask.max() <= 1


def test_same_arguments_same_bytes_and_others_differ():
    first = render(7, 1, 2, size=SMALL, seed=4)
    # Caches must not carry anything from one call to the next.
    person_of.cache_clear()
    camera_of.cache_clear()
    render(8, 1, 2, size=SMALL, seed=4)
    again = render(7, 1, 2, size=SMALL, seed=4)
    for name in ("crop", "mask", "keypoints"):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    for other in ((8, 1, 2, 4), (7, 2, 2, 4), (7, 1, 3, 4), (7, 1, 2, 5)):
        assert (render(*other[:3], size=SMALL, seed=other[3]).crop != first.crop).mean() > 0.2


def test_the_drawing_is_that_of_this_version():
    # Fails when the drawing changes: then count synthetic.VERSION up and put the new figures here.
    view = render(1, 2, 3, size=(128, 64), seed=0)
    assert synthetic.VERSION == 1
    assert view.mask.sum() == pytest.approx(GOLDEN_AREA, abs=0.5)
    np.testing.assert_allclose(view.crop.mean(axis=(0, 1)), GOLDEN_MEAN, atol=0.2)
    np.testing.assert_allclose(view.keypoints[[0, 5, 16], :2], GOLDEN_POINTS, atol=0.01)


def test_the_same_view_at_another_size_is_the_same_scene():
    large, small = render(4, 2, 1, size=(128, 64)), render(4, 2, 1, size=SMALL)
    np.testing.assert_allclose(large.keypoints[:, :2] / 2, small.keypoints[:, :2], atol=0.01)
    reduced = large.mask.reshape(64, 2, 32, 2).mean(axis=(1, 3))
    assert np.abs(reduced - small.mask).mean() < 0.02


@pytest.mark.parametrize("occluder", ["", "pole", "bin", "car", "person"])
def test_mask_is_exact(occluder: str):
    for view in range(3):
        known = {"size": (128, 64), "seed": 1, "occluder": occluder}
        scene = compose(5, 2, view, **known)
        empty = compose(5, 2, view, with_person=False, **known)
        outside = scene.mask == 0
        assert 0.2 < outside.mean() < 0.95
        assert (scene.crop[outside] == empty.crop[outside]).all()
        # Where the person covers all, hardly a pixel looks like the place behind.
        inside = scene.mask > 0.99
        assert (scene.crop[inside] != empty.crop[inside]).any(axis=1).mean() > 0.9
        assert not empty.mask.any()


def test_mask_has_a_soft_edge_and_a_full_middle():
    mask = np.stack([view.mask for view in views(12)])
    soft = ((mask > 0.02) & (mask < 0.98)).mean()
    assert 0.01 < soft < 0.25
    assert (mask == 0).mean() > 0.3
    assert (mask > 0.99).mean() > 0.08


def test_visible_keypoints_lie_on_the_mask():
    seen = 0
    for view in views(60):
        for x, y, score in view.keypoints:
            if score >= 0.7:
                seen += 1
                assert view.mask[int(y), int(x)] > 0.15
    assert seen > 500


def test_scores_tell_visible_hidden_and_outside():
    counts = np.zeros(3, int)
    for view in views(90, SMALL):
        x, y, score = view.keypoints.T
        inside = (x >= 0) & (y >= 0) & (x < 32) & (y < 64)
        assert (score[~inside] == 0).all()
        visible = score >= 0.7
        hidden = (score >= 0.05) & (score <= 0.3)
        assert (inside == (visible | hidden)).all()
        assert score.max() <= 1
        counts += [visible.sum(), hidden.sum(), (~inside).sum()]
    assert (counts > 20).all()
    assert counts[0] > counts[1] > counts[2]


@pytest.mark.parametrize("occluder", ["pole", "bin", "car", "person"])
def test_occluder_takes_pixels_and_scores_but_moves_nothing(occluder: str):
    changed = 0
    for view in range(8):
        free = compose(9, 1, view, size=(128, 64), seed=2, occluder="")
        scene = compose(9, 1, view, size=(128, 64), seed=2, occluder=occluder)
        np.testing.assert_array_equal(free.keypoints[:, :2], scene.keypoints[:, :2])
        assert (scene.mask <= free.mask + 1e-6).all()
        assert scene.mask.sum() >= 0.35 * free.mask.sum()
        lost = (free.keypoints[:, 2] >= 0.7) & (scene.keypoints[:, 2] < 0.7)
        assert (scene.keypoints[lost, 2] <= 0.3).all()
        for x, y, _ in scene.keypoints[lost]:
            assert scene.mask[int(y), int(x)] < free.mask[int(y), int(x)]
        changed += int(lost.any())
    assert changed >= 1


def test_facing_decides_where_left_and_right_are():
    def points(yaw: float) -> np.ndarray:
        return compose(2, 1, 0, size=(128, 64), seed=0, pose=pose(yaw), occluder="").keypoints

    left, right = JOINT["left_shoulder"], JOINT["right_shoulder"]
    front, back = points(0.0), points(math.pi)
    assert front[left, 0] > front[right, 0] + 5
    assert back[left, 0] < back[right, 0] - 5
    # The face is seen from the front alone.
    assert (front[:3, 2] >= 0.7).all()
    assert (back[:3, 2] <= 0.3).all()
    # Walking to the right shows the right side: the nose is ahead, the left ear hidden.
    side = points(math.pi / 2)
    assert side[JOINT["nose"], 0] > side[JOINT["right_ear"], 0]
    assert side[JOINT["right_ear"], 2] >= 0.7
    assert side[JOINT["left_ear"], 2] <= 0.3
    assert side[JOINT["left_elbow"], 2] <= 0.3


def test_mirrored_pose_swaps_left_and_right():
    person = person_of(1, 0)
    for number in range(5):
        drawn = sample_pose(Dice(9, number))
        plain_side = skeleton_of(person, drawn, 0.2).keypoints()
        mirror = skeleton_of(person, drawn.mirrored(), 0.2).keypoints()[list(KEYPOINT_FLIP)]
        np.testing.assert_allclose(mirror * [-1, 1, 1], plain_side, atol=1e-12)


def test_limbs_keep_their_length():
    person = person_of(3, 0)
    lengths = []
    for number in range(5):
        points = skeleton_of(person, sample_pose(Dice(9, number)), 0.1).keypoints()
        lengths.append([np.linalg.norm(points[a] - points[b]) for a, b in ((5, 7), (8, 10), (11, 13), (12, 14))])
    np.testing.assert_allclose(np.array(lengths), np.array(lengths)[:1].repeat(5, axis=0), rtol=0.01)


@pytest.mark.parametrize("size", [(33, 17), (1, 1), (7, 3), (40, 90), (90, 11), (127, 63)])
def test_every_size_works(size: tuple[int, int]):
    for view in range(4):
        drawn = render(2, 3, view, size=size)
        assert drawn.crop.shape == (*size, 3)
        assert np.isfinite(drawn.mask).all()
        assert np.isfinite(drawn.keypoints).all()
        if min(size) > 8:
            assert drawn.mask.max() > 0.5


def test_cameras_and_people_differ():
    colours = [np.mean([render(p, c, 0, size=SMALL).crop.mean(axis=(0, 1)) for p in range(6)], 0) for c in (1, 2, 3)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(colours[a] - colours[b]).max() > 8
    people = [person_of(number, 0) for number in range(1000)]
    assert len({(p.upper, p.lower, p.shoes, p.hair) for p in people}) == 1000
    dark = sum(max(p.lower.first) < 0.3 for p in people)
    assert 250 < dark < 700
    for name, least in (("carry", 4), ("hair_style", 7), ("lower_kind", 3), ("sleeve", 3)):
        assert len({getattr(p, name) for p in people}) == least


def test_mean_colour_of_the_crop_does_not_find_people():
    shots = [[render(p, c, 0, size=(32, 16)) for p in range(1, 41)] for c in (1, 2)]
    query, gallery = (np.array([view.crop.mean(axis=(0, 1)) for view in side]) for side in shots)
    nearest = ((query[:, None] - gallery[None]) ** 2).sum(-1).argmin(1)
    assert (nearest == np.arange(40)).mean() < 0.4


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="person must be 0 or more, not -1"):
        render(-1, 0, 0)
    with pytest.raises(TypeError, match="view must be a whole number"):
        render(0, 0, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"size\[1\] must be 1 or more"):
        render(0, 0, 0, size=(8, 0))
    with pytest.raises(TypeError, match="size must be two whole numbers"):
        render(0, 0, 0, size=64)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="occluder must be"):
        compose(0, 0, 0, size=SMALL, seed=0, occluder="tree")


def test_a_shape_covers_its_area():
    layer = Layer(40, 40)
    paint = plain((1.0, 0.5, 0.0))
    layer.capsule((20.0, 20.0), (20.0, 20.0), 8.0, 8.0, paint, 1)
    assert layer.alpha.sum() == pytest.approx(math.pi * 64, rel=0.01)
    layer = Layer(40, 40)
    layer.box(10.25, 5.5, 30.75, 25.0, 0.0, paint, 3)
    assert layer.alpha.sum() == pytest.approx(20.5 * 19.5, rel=0.01)
    assert layer.top[15, 20] == 3
    assert layer.top[0, 0] == 0
    layer = Layer(40, 40)
    layer.profile((20.0, 5.0), (20.0, 35.0), ((0, 4.0), (1, 12.0)), paint, 2)
    assert layer.alpha.sum() == pytest.approx(30 * 16, rel=0.02)
    # Nothing outside of the picture is an error, and nothing of it is drawn.
    layer.ellipse((-50.0, 900.0), 5.0, 5.0, (0.0, 0.0, 0.0), 4)
    assert (layer.top != 4).all()


def test_write_layout_and_content(tmp_path: Path):
    root = tmp_path / "deep" / "set"
    data = write(root, people=(3, 2), cameras=2, views=3, size=(48, 24), seed=6)
    assert (len(data.train), len(data.query), len(data.gallery)) == (18, 4, 8)
    assert data.name == "synthetic"
    assert data.root == root
    assert data.people() == [1, 2, 3]
    assert {r.person for r in data.query} == {r.person for r in data.gallery} == {4, 5}
    assert {(r.person, r.camera) for r in data.query} == {(p, c) for p in (4, 5) for c in (1, 2)}
    assert sorted(path.name for path in root.iterdir()) == [
        "bounding_box_test",
        "bounding_box_train",
        "keypoints.json",
        "masks",
        "query",
        "synthetic.json",
    ]
    keypoints = json.loads((root / "keypoints.json").read_text())
    records = [*data.train, *data.query, *data.gallery]
    assert len(keypoints) == len(records) == len(set(records))
    for record in records:
        found = re.fullmatch(r"(\d{4})_c(\d+)_(\d\d)\.jpg", record.path.name)
        assert found
        assert (int(found[1]), int(found[2])) == (record.person, record.camera)
        view = render(record.person, record.camera, int(found[3]), size=(48, 24), seed=6)
        folder = record.path.parent.name
        with Image.open(record.path) as picture:
            assert picture.format == "JPEG"
            error = np.abs(np.asarray(picture, np.float32) - view.crop).mean()
        assert error < 12
        with Image.open(root / "masks" / folder / f"{record.path.stem}.png") as picture:
            assert picture.mode == "L"
            assert np.abs(np.asarray(picture) / 255 - view.mask).max() <= 0.5 / 255 + 1e-6
        entry = keypoints[f"{folder}/{record.path.name}"]
        assert entry["presence"] == 1.0
        np.testing.assert_allclose(entry["keypoints"], view.keypoints, atol=0.001)
    for part in (data.train, data.query, data.gallery):
        assert list(part) == sorted(part)


def test_write_takes_up_the_same_set(tmp_path: Path):
    known = {"people": (1, 1), "cameras": 2, "views": 2, "size": (16, 8)}
    first = write(tmp_path / "set", **known)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*") if path.is_file()}
    assert write(tmp_path / "set", **known) == first
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(DataError, match="other arguments"):
        write(tmp_path / "set", **{**known, "seed": 1})
    first.query[0].path.unlink()
    with pytest.raises(DataError, match="lacks 0002_c1_00"):
        write(tmp_path / "set", **known)


def test_write_refuses_a_foreign_folder_and_leaves_it_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=r"something else \(thesis\.txt\)"):
        write(tmp_path, people=(1, 1), size=(16, 8))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(DataError, match="is a file"):
        write(tmp_path / "thesis.txt", people=(1, 1), size=(16, 8))


def test_an_interrupted_write_is_noticed_and_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "set"
    known = {"people": (2, 1), "cameras": 1, "views": 2, "size": (16, 8)}
    calls = []

    def interrupted(*args: object, **options: object) -> View:
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return render(*args, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "render", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(root, **known)
    assert not (root / "synthetic.json").exists()
    with pytest.raises(DataError, match="unfinished"):
        write(root, **{**known, "seed": 3})
    data = write(root, **known)
    assert all(record.path.exists() for record in (*data.train, *data.query, *data.gallery))
    assert (root / "synthetic.json").exists()
    assert not (root / "synthetic.partial.json").exists()


@pytest.mark.parametrize("moment", ["draft of the marker", "after the marker", "draft of a mask"])
def test_a_write_that_is_killed_at_a_bad_moment_is_finished(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    known = {"people": (1, 1), "cameras": 1, "views": 2, "size": (16, 8)}

    def killed(draft: Path, path: Path) -> None:
        if (path.suffix == ".png") == (moment == "draft of a mask"):
            if moment == "after the marker":
                draft.rename(path)
            # A process of another number finishes.
            else:
                draft.rename(draft.with_name(f"{path.name}.0.tmp"))
            raise KeyboardInterrupt
        draft.rename(path)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(root, **known)
    left = {"draft of the marker": ["synthetic.partial.json.0.tmp"], "after the marker": ["synthetic.partial.json"]}
    if moment in left:
        assert [path.name for path in root.iterdir()] == left[moment], "no folder before the marker"
    else:
        assert len(list(root.rglob("*.png.0.tmp"))) == 1
    data = write(root, **known)
    write(tmp_path / "whole", **known)
    assert all(record.path.exists() for record in (*data.train, *data.query, *data.gallery))
    files = [sorted(p.relative_to(r) for p in r.rglob("*") if p.is_file()) for r in (root, tmp_path / "whole")]
    assert files[0] == files[1], "nothing half written is left"


def test_workers_write_the_same_bytes(tmp_path: Path):
    known = {"people": (1, 1), "cameras": 2, "views": 2, "size": (16, 8)}
    write(tmp_path / "one", **known)
    write(tmp_path / "two", workers=1, **known)
    one, two = (sorted(path for path in (tmp_path / n).rglob("*") if path.is_file()) for n in ("one", "two"))
    assert [p.relative_to(tmp_path / "one") for p in one] == [p.relative_to(tmp_path / "two") for p in two]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, two, strict=True))


def test_write_refuses_bad_arguments(tmp_path: Path):
    for options, match in (
        ({"people": (0, 0)}, "at least one person"),
        ({"people": (-1, 2)}, r"people\[0\] must be 0 or more"),
        ({"views": 1}, "views must be 2 or more"),
        ({"cameras": 0}, "cameras must be 1 or more"),
        ({"workers": -1}, "workers must be 0 or more"),
    ):
        with pytest.raises(ValueError, match=match):
            write(tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()
