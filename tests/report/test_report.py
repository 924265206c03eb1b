"""The report is one whole page: it says everything, loads nothing, and hides heads when asked."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mgran_fast import layouts
from mgran_fast.errors import DataError
from mgran_fast.report import (
    CameraRow,
    CropView,
    Match,
    Query,
    RankedList,
    Report,
    Scores,
    charts,
    page,
    pages,
    pictures,
    write,
)

SIZE = (64, 32)
#: A page's text -> its elements and words, as conftest.py has them.
Read = Callable[[str], Any]


def noise(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def bands(regions: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A region map of horizontal bands 1..R with a background column at either side."""
    rows = np.arange(size[0]) * regions // size[0] + 1
    region_map = np.repeat(rows[:, None], size[1], axis=1).astype(np.uint8)
    region_map[:, [0, -1]] = 0
    return region_map


def keypoints(score: float = 0.9) -> np.ndarray:
    points = np.full((17, 3), score, np.float32)
    points[:, 0] = np.linspace(8, 24, 17)
    points[:, 1] = np.linspace(4, 60, 17)
    return points


def view(layout: str = "region", **changes: object) -> CropView:
    regions = layouts.get(layout).regions
    region_map = bands(regions) if regions else np.ones(SIZE, np.uint8)
    mask = np.ones((16, 8), np.float32)
    return replace(CropView("a/0001.jpg", noise(1), mask, keypoints(), region_map, layout, None), **changes)


def ranked(*right: bool, first: int | None = None) -> RankedList:
    matches = [
        Match(noise(10 + i), 7 if r else 8, 2, 0.25 * i, r, bands(3) if i % 2 else None) for i, r in enumerate(right)
    ]
    return RankedList(Query(noise(9), 7, 1, bands(3)), matches, first)


def report(**changes: object) -> Report:
    curve = [0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9, 0.95]
    full = Report(
        title="A run",
        dataset="yard",
        protocol="single query",
        scores=(
            Scores("before training", {1: 0.105, 5: 0.2, 10: 0.3}, 0.08, [0.105] * 10),
            Scores("after training", {1: 0.5, 5: 0.9, 10: 0.95}, 0.432, curve),
        ),
        history=[{"epoch": e, "loss": 3.0 / e, "rank1": 0.1 * e, "map": 0.05 * e, "seconds": 7.5} for e in (1, 2, 3)],
        crops=(view(), view(title="b/0002.jpg", mask=None, keypoints=None, region_map=np.zeros(SIZE, np.uint8))),
        rankings=(ranked(False, True, False, first=2), ranked(False, first=40), ranked(False)),
        counts={"empty_masks": 1234, "crops without keypoints": 56},
        problems=("c/<script>alert(1)</script>&.jpg cannot be read",),
        command='mgran-fast train --data "yard & more"',
        environment={"torch": "2.9.0"},
        seconds={"training": 3725.0, "evaluation": 5.25},
        unmatched=("query/0731.jpg",),
    )
    return replace(full, **changes)


def decoded(uri: str) -> np.ndarray:
    data = base64.b64decode(uri.partition("base64,")[2], validate=True)
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def test_a_protocol_without_map_shows_none(read: Read) -> None:
    html = page.render(
        report(scores=[Scores(name, {1: 0.5, 5: 0.9}, None, [0.5, 0.9]) for name in ("a", "b")], history=[])
    )
    text = read(html).text
    assert "Rank-5" in text
    assert "mAP" not in text
    assert "nan" not in text


def test_the_page_has_every_section_and_every_figure(tmp_path: Path, read: Read) -> None:
    path = write(tmp_path / "new" / "report.html", report())
    html = read(path.read_text("utf-8"))
    sections = [a["id"] for a in html.all("section")]
    assert sections == ["accuracy", "training", "crops", "rankings", "data", "run"]
    assert [a["href"] for a in html.all("a")] == [f"#{section}" for section in sections]
    text = html.text.replace("\u00a0", " ")
    for words in (
        *("A run", "yard", "single query", "50.0 %", "43.2 %", "10.5 % before training"),
        *("Rank-1", "Rank-5", "Rank-10", "mAP", "empty masks 1,234", "crops without keypoints 56"),
        *("first right match at rank 2", "first right match at rank 40, not shown", "no right match"),
        *("1 h 02 min", "5.2 s", "torch 2.9.0", "query/0731.jpg", 'mgran-fast train --data "yard & more"'),
        *("empty mask: the whole crop stands for the person", "no mask", "no keypoints"),
    ):
        assert words in text, words
    assert "In 0 of 3 lists the first match is right" in text
    charts = html.all("svg", role="img")
    assert len(charts) == 3
    ids = {a["id"] for _, a in html.elements if "id" in a}
    assert all(set(chart["aria-labelledby"].split()) <= ids for chart in charts)
    assert "after training goes from 50.0 % to 95.0 %" in text


def test_the_page_loads_nothing(tmp_path: Path, read: Read) -> None:
    text = write(tmp_path / "report.html", report()).read_text("utf-8")
    html = read(text)
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert html.all("script") == html.all("link") == []
    sources = [a["src"] for _, a in html.elements if "src" in a]
    assert len(sources) == 2 * (3 + 4) + 3 + 5
    assert all(source.startswith("data:image/") for source in sources)
    assert all(a["href"].startswith("#") for _, a in html.elements if "href" in a)
    assert all(image["alt"] for image in html.all("img"))
    assert decoded(sources[0]).shape == (*SIZE, 3)


def test_text_is_escaped_and_any_file_name_can_be_told(tmp_path: Path, read: Read) -> None:
    odd = ("c/<script>alert(1)</script>.jpg", "bell\x07\x00.jpg", "latin\udce9.jpg", '"><img src=x onerror=y>')
    crop = view(title='"><script>alert(2)</script>')
    path = write(tmp_path / "report.html", report(problems=odd, crops=[crop], title="</title><script>"))
    text = path.read_bytes().decode("utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.jpg" in text
    html = read(text)
    assert "c/<script>alert(1)</script>.jpg" in html.text
    assert "bell\ufffd\ufffd.jpg" in html.text
    assert r"latin\udce9.jpg" in html.text
    assert all("onerror" not in a for _, a in html.elements)


def test_frames_tell_right_from_wrong_by_more_than_colour(read: Read) -> None:
    html = read(page.render(report(rankings=[ranked(True, False, True, False, False, first=1)])))
    items = [a["class"] for a in html.all("li") if a.get("class") in ("right", "wrong")]
    assert items == ["right", "wrong", "right", "wrong", "wrong"]
    marks = [a["href"] for a in html.all("use")][2:]  # the first two are the legend
    assert marks == ["#tick", "#cross", "#tick", "#cross", "#cross"]
    alts = [a["alt"] for a in html.all("img") if a["alt"].startswith("Rank ")]
    assert alts[:2] == ["Rank 1, right: person 7, camera 2", "Rank 2, wrong: person 8, camera 2"]
    assert "In 1 of 1 list the first match is right" in html.text


def test_a_missed_match_stands_under_its_own_rank(read: Read) -> None:
    missed = ranked(False, False, True, first=1234)
    matches = [*missed.matches[:2], replace(missed.matches[2], rank=1234)]
    html = read(page.render(report(mistakes=[replace(missed, matches=matches)])))
    assert "Worst mistakes" in html.text
    assert "first right match at rank 1,234 " in html.text
    assert [a["alt"] for a in html.all("img") if a["alt"].startswith("Rank 1,234")] == [
        "Rank 1,234, right: person 7, camera 2"
    ]
    assert "Worst mistakes" not in page.render(report())


def test_how_sure_figures_are_the_curve_and_the_cameras(read: Read) -> None:
    sure = {"rank1": (0.4, 0.61), "map": (0.3, 0.5)}
    scores = Scores("now", {1: 0.5}, 0.4, [0.5], sure, [(0.0, 0.1), (0.001, 0.25), (0.1, 0.5), (1.0, 1.0)])
    cameras = [CameraRow("door", "gate", 1200, 0.25, 0.125)]
    told = report(scores=[scores], cameras=cameras)
    html = read(page.render(told))
    assert "40.0\u201361.0" in html.text
    assert "30.0\u201350.0" in html.text
    assert "95 % of samples" in html.text
    assert "door gate 1,200 25.0\u00a0% 12.5\u00a0%".replace("\u00a0", " ") in html.text.replace("\u00a0", " ")
    curve = page.charts_of(told)["roc"]
    rows = [(x, y) for x, (y,) in curve.rows]
    assert rows == [("0.1\u00a0%", "25.0\u00a0%"), ("10\u00a0%", "50.0\u00a0%"), ("100\u00a0%", "100.0\u00a0%")]
    plain = page.render(report())
    assert "roc" not in page.charts_of(report())
    assert "95 % of samples" not in plain
    assert "By camera" not in plain


@pytest.mark.parametrize(("layout", "inputs"), [("region", 4), ("part", 7), ("box", 4), ("none", 1)])
def test_every_layout(layout: str, inputs: int, read: Read) -> None:
    crop = view(layout)
    html = read(page.render(report(crops=[crop], rankings=(), layout=layout)))
    names = [a["alt"] for a in html.all("img") if a["alt"].startswith("Input ")]
    assert names == [f"Input {name} of a/0001.jpg" for name in ("whole person", *layouts.get(layout).groups)]
    assert len(names) == inputs
    assert "not visible" not in html.text
    drawn = [a["alt"] for a in html.all("img") if a["alt"].startswith("Regions ")]
    assert len(drawn) == (0 if layout == "none" else 1)


def test_regions_that_are_not_visible_are_marked() -> None:
    region_map = bands(3)
    region_map[region_map == 1] = 0
    assert page.render(report(crops=[view(region_map=region_map)])).count("not visible") == 1
    for flags in ((True, False, False), (True, True, False, False)):
        assert page.render(report(crops=[view(visibility=flags)])).count("not visible") == 2


def test_an_empty_report_says_so(read: Read) -> None:
    html = read(page.render(Report("Nothing", "none", "none")))
    for words in ("Nothing was evaluated", "Nothing was trained", "no crops", "no ranked lists", "None were noticed"):
        assert words in html.text
    assert html.all("svg", role="img") == html.all("img") == html.all("table") == []
    html = read(page.render(report(rankings=[RankedList(Query(noise(9), 7, 1), (), None)])))
    assert "nothing to rank" in html.text


def test_figures_that_are_missing_or_not_numbers_are_dashes() -> None:
    nan = float("nan")
    history = [{"loss": nan}, {"loss": nan, "rank1": 0.5}, {"loss": 2.0, "waiting": 0.0625}]
    scores = [Scores("only", {1: nan, 5: 0.5}, 0.5, ())]
    text = page.render(report(history=history, scores=scores, seconds={"a": nan, "b": 0.0}))
    assert "6.2\u00a0%" in text, "waiting is a share"
    assert "NaN" not in text
    assert "nan%" not in text
    assert ">nan" not in text
    charts = page.charts_of(report(history=history, scores=scores))
    assert sorted(charts) == ["accuracy", "loss"]
    assert charts["loss"].lines[0].values == {3.0: 2.0}  # without "epoch", rows count
    assert charts["accuracy"].rows == [("2", ["50.0\u00a0%"])]


@pytest.mark.parametrize("values", [[1.0], [3.0, 3.0], [0.0, 0.0], [1e-7, 2e6], [-2.0, 5.0, 1.5], [4e9, 4e9 + 1]])
def test_charts_stay_inside_their_frame(values: list[float]) -> None:
    chart = page.charts_of(Report("t", "d", "p", history=[{"loss": v} for v in values]))["loss"]
    left, right, top, bottom = charts.PLOT
    assert all(left <= x <= right and top <= y <= bottom for x, y in chart.lines[0].dots)
    assert len({y for _, y in chart.lines[0].dots}) == len(set(values))
    assert 2 <= len(chart.y_ticks) <= 9
    assert all(left <= x <= right for x, _ in chart.x_ticks)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_flat_curve_is_drawn(share: float) -> None:
    chart = page.charts_of(report(scores=[Scores("perfect", {1: share}, share, [share] * 3)]))["cmc"]
    left, right, top, bottom = charts.PLOT
    assert all(left <= x <= right and top <= y <= bottom for x, y in chart.lines[0].dots)
    assert len(chart.y_ticks) > 1
    assert all(label.endswith("%") and float(label[:-2]) <= 100 for _, label in chart.y_ticks)


def test_long_lists_of_problems_are_counted_not_told(read: Read) -> None:
    html = read(page.render(report(problems=[f"picture {i}" for i in range(pages.MOST_LINES + 1050)])))
    assert f"picture {pages.MOST_LINES - 1} " in html.text
    assert f"picture {pages.MOST_LINES} " not in html.text
    assert "and 1,050 more" in html.text


def test_writing_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write(path, report(title="first", crops=(), rankings=()))
    write(path, report(title="second", crops=(), rankings=()))
    assert "second" in path.read_text("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pages.os, "replace", full)
    with pytest.raises(DataError, match=r"report\.html cannot be written \(No space left on device\)"):
        write(path, report(title="third", crops=(), rankings=()))
    assert "second" in path.read_text("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(DataError, match="is a folder"):
        write(tmp_path, report(crops=(), rankings=()))


def test_wrong_arrays_are_named() -> None:
    small = np.zeros((4, 4), np.uint8)
    for crop, words in (
        (
            view(crop=noise(1).astype(np.float32)),
            r"crops\[0\]\.crop .*uint8 \[any, any, 3\], not float32 \[64, 32, 3\]",
        ),
        (view(region_map=small), r"crops\[0\]\.region_map .*uint8 \[64, 32\], not uint8 \[4, 4\]"),
        (view(region_map=np.full(SIZE, 4, np.uint8)), "holds region 4; layout 'region' ends at 3"),
        (view(mask=np.zeros((0, 3), np.float32)), r"crops\[0\]\.mask"),
        (view(keypoints=[[0.0] * 3] * 17), r"crops\[0\]\.keypoints .* not list"),
        (view(visibility=[True]), "must have 3 or 4 flags, not 1"),
        (replace(view(), layout="legs"), "layout must be one of"),
    ):
        with pytest.raises(ValueError, match=words):
            page.render(report(crops=[crop]))
    bad = ranked(True, first=0)
    with pytest.raises(ValueError, match=r"rankings\[1\]\.first_right counts from 1"):
        page.render(report(rankings=[ranked(True, first=1), bad]))
    bad = replace(bad, matches=[replace(bad.matches[0], region_map=small)])
    with pytest.raises(ValueError, match=r"rankings\[0\]\.matches\[0\]\.region_map"):
        page.render(report(rankings=[bad]))


def test_blur_changes_head_pixels_and_no_others() -> None:
    crop, region_map = noise(3), np.zeros(SIZE, np.uint8)
    region_map[4:14, 10:20] = 1
    region_map[14:60, 6:26] = 2
    box = pictures.head_box(SIZE, region_map)
    assert box == (3, 15, 9, 21)
    hidden = pictures.pixelate(crop, box)
    outside = np.ones(SIZE, bool)
    outside[3:15, 9:21] = False
    np.testing.assert_array_equal(hidden[outside], crop[outside])
    blocks = {tuple(colour) for colour in hidden[3:15, 9:21].reshape(-1, 3)}
    assert len(blocks) <= 25
    np.testing.assert_allclose(
        hidden[3:6, 9:12], crop[3:6, 9:12].mean(axis=(0, 1), keepdims=True).repeat(3, 0).repeat(3, 1), atol=0.51
    )
    np.testing.assert_array_equal(crop, noise(3))  # the crop itself is left alone


def test_the_head_is_found_by_region_keypoints_or_guess() -> None:
    points = keypoints(score=0.1)
    points[:5] = [(16, 8, 0.9), (18, 6, 0.9), (14, 6, 0.9), (20, 7, 0.9), (12, 7, 0.2)]
    top, bottom, left, right = pictures.head_box(SIZE, None, points)
    assert top <= 2
    assert 12 <= bottom <= 20
    assert 5 <= left <= 12
    assert 22 <= right <= 27
    third = (0, 22, 0, 32)
    assert pictures.head_box(SIZE) == third
    assert pictures.head_box(SIZE, np.ones(SIZE, np.uint8), layout="none") == third  # its region 1 is no head
    assert pictures.head_box(SIZE, np.full(SIZE, 2, np.uint8), keypoints(score=0.1)) == third
    points[:, :2] = -500
    assert pictures.head_box(SIZE, None, points) == third
    points[:, :2] = np.nan
    assert pictures.head_box(SIZE, None, points) == third


def test_blur_reaches_every_picture_of_the_page(read: Read) -> None:
    # A head of stripes a pixel wide on a flat body: where stripes survive, neighbouring rows differ a lot.
    crop = np.full((128, 64, 3), 120, np.uint8)
    crop[:40:2], crop[1:40:2] = 0, 255
    region_map = bands(3, (128, 64))
    region_map[:40] = 1
    shown = CropView("x", crop, np.ones((8, 4), np.float32), None, region_map, "region", None)
    match = Match(crop, 1, 1, 0.0, True, region_map)
    lists = [RankedList(Query(crop, 1, 2), [match, replace(match, region_map=None)], 1)]

    def stripes(blur: bool) -> list[float]:
        html = read(page.render(report(crops=[shown], rankings=lists), blur_faces=blur))
        heads = [decoded(a["src"])[:, 24:40].astype(float).mean(axis=(1, 2)) for a in html.all("img")]
        heads = [head[: len(head) * 36 // 128] for head in heads]
        return [float(np.abs(np.diff(head)).mean()) for head in heads]

    sharp, hidden = stripes(blur=False), stripes(blur=True)
    assert len(hidden) == 3 + 4 + 3
    striped = [i for i, value in enumerate(sharp) if value > 40]
    assert {0, 1, 3, 4, 7, 8, 9} <= set(striped)
    assert all(hidden[i] < 12 for i in striped)


def test_inputs_show_the_crop_where_the_region_is() -> None:
    crop, region_map = noise(4), bands(3)
    inputs = pictures.network_inputs(crop, region_map)
    assert len(inputs) == 4
    for region, picture in enumerate(inputs):
        inside = region_map == region if region else region_map > 0
        np.testing.assert_array_equal(picture[inside], crop[inside])
        elsewhere = picture[~inside]
        assert set(np.unique(elsewhere)) <= {168, 184}
    empty = pictures.network_inputs(crop, np.zeros(SIZE, np.uint8))
    np.testing.assert_array_equal(empty[0], crop)
    assert all(set(np.unique(picture)) == {168, 184} for picture in empty[1:])


def test_overlays_draw_regions_masks_and_keypoints() -> None:
    crop = np.full((*SIZE, 3), 100, np.uint8)
    regions = pictures.region_overlay(crop, bands(3))
    assert regions.shape == (512, 256, 3)
    hues = [regions[y, 128].astype(int) for y in (80, 256, 430)]
    for region, hue in enumerate(hues, 1):
        distances = [np.abs(hue - pictures.region_colour(r)).sum() for r in (1, 2, 3)]
        assert int(np.argmin(distances)) == region - 1
    mask = np.zeros((32, 16), np.float32)
    mask[:, 8:] = 1
    plain = pictures.found_overlay(crop, mask, None)
    assert (plain[256, 200] == 100).all()
    assert (plain[256, 50] == 40).all()
    points = np.zeros((17, 3), np.float32)
    points[5] = (24, 16, 0.9)  # left shoulder
    points[6] = (24, 40, 0.1)  # right shoulder, unsure: hollow
    points[0] = (np.nan, 5, 1)
    found = pictures.found_overlay(crop, mask, points)
    np.testing.assert_allclose(found[128, 192], pictures.LEFT, atol=12)
    assert found[320, 192].max() < 30
    np.testing.assert_array_equal(found[:100], plain[:100])  # a joint that is no number is not drawn


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (257, 3), (1000, 700)])
def test_any_size_of_crop(size: tuple[int, int], read: Read) -> None:
    crop, region_map = noise(5, size), np.ones(size, np.uint8)
    points = np.full((17, 3), 1e9, np.float32)
    shown = CropView("x", crop, np.full((2, 3), np.nan, np.float32), points, region_map, "region", None)
    html = read(page.render(report(crops=[shown], rankings=()), blur_faces=True))
    assert all(max(decoded(a["src"]).shape) <= pictures.OVERLAY_SIDE for a in html.all("img"))


def test_a_full_page_is_small(tmp_path: Path) -> None:
    # Enlarged noise: about as hard to compress as real crops twice over.
    soft = [Image.fromarray(noise(i, (48, 24))).resize((128, 256), Image.Resampling.BICUBIC) for i in range(4)]
    crops = [np.asarray(image) for image in soft]
    region_map = bands(3, (256, 128))
    views = [replace(view(), crop=crops[i % 4], region_map=region_map) for i in range(12)]
    matches = [Match(crops[i % 4], i, 1, 0.5, i == 3, region_map) for i in range(10)]
    lists = [RankedList(Query(crops[0], 3, 2), matches, 4)] * 20
    path = write(tmp_path / "report.html", report(crops=views, rankings=lists))
    assert path.stat().st_size < 4e6


def test_the_untrained_network_is_no_epoch():
    history = [{"epoch": 0.0, "rank1": 0.1}, {"epoch": 1.0, "loss": 2.0, "rank1": 0.4}, {"epoch": 2.0, "loss": 1.0}]
    assert ">2 epochs.<" in page.render(Report("t", "d", "p", history=history))
