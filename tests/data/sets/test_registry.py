"""What all readers have in common: names, miniatures, numbers, and what a folder is taken for."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.data import read_market, read_picture, sets
from mgran_fast.data.records import MARKET, SINGLE_GALLERY_SHOT
from mgran_fast.data.sets import SETS, Counts, Tally, detect, miniature, open_set, pictures_by_part, read_set
from mgran_fast.errors import DataError

Draw = Callable[..., Any]
FORMS = [(info.name, variant) for info in SETS.values() for variant in info.variants]
PUBLISHED = [name for name, info in SETS.items() if info.published]


def root_of(name: str, folder: Path) -> Path:
    return folder / "people.csv" if name == "table" else folder


def test_the_published_sets() -> None:
    assert set(PUBLISHED) == {
        "market1501", "market1501-500k", "dukemtmc-reid", "occluded-duke", "occluded-reid", "cuhk03", "cuhk03-classic",
        "cuhk03-np", "msmt17", "msmt17-trainval",
    }  # fmt: skip
    assert set(SETS) - set(PUBLISHED) == {"market", "people", "table"}
    assert all(name == info.name for name, info in SETS.items())
    for info in SETS.values():
        assert info.layout.endswith("\n")
        assert info.where
        assert info.published.keys() <= set(info.variants)
        # Nothing sends people to hosts that may be gone, or be somebody else's by now.
        assert "://" not in info.layout + info.where + info.warning
    assert "withdrawn" in SETS["dukemtmc-reid"].warning
    assert "withdrawn" in SETS["occluded-duke"].warning
    assert [name for name, info in SETS.items() if info.protocol == SINGLE_GALLERY_SHOT] == ["cuhk03-classic"]


@pytest.mark.parametrize(("name", "variant"), FORMS, ids=lambda value: str(value))
def test_every_miniature_is_read(name: str, variant: str, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    drawn = miniature(name, folder, variant=variant or None, size=(16, 8))
    reading = read_set(name, root_of(name, folder), variant=variant or None, counts=drawn)
    found = reading.dataset
    assert drawn.parts.keys() <= reading.counts.parts.keys()
    assert not drawn.differences(reading.counts)
    assert found.variant == variant
    assert variant in found.name or variant == ""
    assert found.protocol == SETS[name].protocol
    records = (*found.train, *found.query, *found.gallery)
    assert len(records) < 60
    for part in (found.train, found.query, found.gallery):
        assert list(part) == sorted(part)
    assert {record.person for record in found.query} <= {record.person for record in found.gallery}
    assert not {record.person for record in found.train} & {record.person for record in found.query}
    assert bool(found.train) == (name != "occluded-reid")
    for record in records[::7]:
        assert record.path.is_relative_to(found.root)
        assert read_picture(record.path).shape == (16, 8, 3)
    listed = [path for pictures in pictures_by_part(found).values() for path in pictures]
    assert len(listed) == len(set(listed)) == len({record.path for record in (*records, *found.multi_query)})


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_are_insisted_on(name: str, draw: Draw) -> None:
    made = draw(name)
    line = made.refused(
        "not the published numbers of ", "gallery: ", " instead of ", "--counts any", counts="published"
    )
    assert str(made.root) in line
    taken = made.read(counts="any")
    assert any(note.startswith("not the published numbers: gallery") for note in taken.notes)
    assert not any("numbers" in note for note in made.read().notes)


def test_one_picture_less_is_told(draw: Draw) -> None:
    made = draw("market1501")
    sorted((made.root / "query").glob("*.jpg"))[0].unlink()
    assert made.refused("not the drawn numbers of Market-1501: query: 5 pictures instead of 6;")


def test_counts() -> None:
    one = Counts({"train": Tally(12_936, 751, 6), "query": Tally(3), "val": Tally(1)})
    assert one.differences(Counts({"train": Tally(12_930, 751, 5), "query": Tally(3, 1, 1)})) == [
        "train: 12,930 pictures instead of 12,936, 5 cameras instead of 6"
    ]
    assert one.to_json()["query"] == {"pictures": 3}
    assert Counts.from_json(one.to_json(), "mine") == Counts(one.parts, "mine")
    for wrong in ({}, [], {"train": 3}, {"train": {"pictures": "3"}}, {"train": {"pages": 3}}, {"t": {"people": True}}):
        with pytest.raises(ValueError, match="must"):
            Counts.from_json(wrong, "mine")


def test_counts_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    file.write_text(json.dumps({"counts": {"query": {"pictures": 3}}, "name": "x"}))
    assert Counts.from_file(file).parts == {"query": Tally(3)}
    file.write_text(json.dumps({"query": {"pictures": 3}}))
    assert Counts.from_file(file).parts == {"query": Tally(3)}
    file.write_text("{")
    with pytest.raises(DataError, match=r"counts\.json: no counts"):
        Counts.from_file(file)
    with pytest.raises(DataError, match="cannot be read as counts"):
        Counts.from_file(tmp_path / "none.json")


def test_names_and_arguments(draw: Draw, tmp_path: Path) -> None:
    made = draw("cuhk03-np")
    with pytest.raises(DataError, match="no data set is called 'veri'; there are auto, market1501"):
        open_set("veri", made.root)
    with pytest.raises(DataError, match="CUHK03-NP has no variant 'drawn'; there is detected, labeled"):
        open_set("cuhk03-np", made.root, variant="drawn")
    with pytest.raises(DataError, match="Market-1501 has no variant 'v1'; there is none"):
        open_set("market1501", made.root, variant="v1")
    with pytest.raises(DataError, match="CUHK03-NP has one split; leave the split 3 out"):
        open_set("cuhk03-np", made.root, split=3)
    with pytest.raises(DataError, match="CUHK03, classic protocol has the splits 1 to 20, not 0"):
        open_set("cuhk03-classic", made.root, split=0)
    with pytest.raises(DataError, match='counts must be "published", "any" or a Counts object'):
        open_set("cuhk03-np", made.root, counts="some")
    with pytest.raises(ValueError, match="need must name parts among train, query, gallery, not 'test'"):
        open_set("cuhk03-np", made.root, need=("test",))
    with pytest.raises(DataError, match="not an empty folder"):
        miniature("market1501", made.root)
    with pytest.raises(DataError, match="not an empty folder"):
        miniature("market1501", next(made.root.rglob("*.png")))
    assert open_set("CUHK03-NP", made.root, variant="Labeled", counts="any").variant == "labeled"


def test_a_set_for_evaluation_alone(draw: Draw) -> None:
    made = draw("occluded-reid")
    made.refused("Occluded-ReID has no train part; it is for evaluation alone", need=("train", "query", "gallery"))
    assert made.read(need=("query", "gallery")).train == ()


@pytest.mark.parametrize("name", sorted(SETS))
def test_what_a_folder_is(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    miniature(name, folder, size=(16, 8))
    # Sets in the Market-1501 layout look all the same, and are taken as they are.
    expected = {"cuhk03-classic": "cuhk03", "msmt17-trainval": "msmt17"}.get(name, name)
    if name in ("market1501", "market1501-500k", "dukemtmc-reid", "occluded-duke"):
        expected = "market"
    assert detect(root_of(name, folder)) == expected
    if SETS[expected].published:
        assert detect(tmp_path) == expected, "wrapped in a folder"


def test_auto_is_the_plain_reader_for_the_market_layout(draw: Draw, tmp_path: Path) -> None:
    made = draw("market1501")
    assert open_set("auto", made.root) == read_market(made.root)
    assert detect(tmp_path / "nowhere") == "market"
    with pytest.raises(DataError, match="no such folder; give the folder that holds bounding_box_train"):
        open_set("auto", tmp_path / "nowhere")
    assert open_set("auto", made.root, need=("query",)).protocol == MARKET
    # One's own numbers hold for any set.
    with pytest.raises(DataError, match="not the published numbers of market1501: train: 12 pictures instead of 13"):
        open_set("market", made.root, counts=Counts({"train": Tally(13)}))


def test_a_miniature_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        miniature("market1501", tmp_path / folder, size=(16, 8), seed=seed)
    name = "query/0001_c1s1_001900_00.jpg"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


def test_no_package_is_imported_before_it_is_needed() -> None:
    folder = Path(sets.__file__).parent
    for file in folder.glob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & {"h5py", "scipy", "pyarrow"}, file
