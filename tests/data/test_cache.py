"""The region cache as its readers see it."""

from __future__ import annotations

import os
import pickle
import shutil
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.data import DataLoader

from mgran_fast import layouts, ops
from mgran_fast.data import (
    BadPicture,
    CropDataset,
    DataSet,
    MaskFiles,
    Record,
    RegionCache,
    Sample,
    collate,
    find_masks,
)
from mgran_fast.data.packing import pack_keypoints, pack_map, unpack_keypoints, unpack_map
from mgran_fast.data.precompute import build
from mgran_fast.data.provenance import identity, provenance
from mgran_fast.data.synthetic import write
from mgran_fast.errors import DataError
from mgran_fast.layouts import Layout

SIZE = (32, 16)


def cached(data: DataSet, folder: Path | None = None, **settings: object) -> Path:
    """A cache of the data set's mask files; its folder."""
    files, folder = MaskFiles(data.root), folder or data.root / "regions"
    made = provenance(files, **{"size": SIZE, **settings})  # type: ignore[arg-type]
    for part, records in (
        ("bounding_box_train", data.train),
        ("query", data.query),
        ("bounding_box_test", data.gallery),
    ):
        paths = [record.path for record in records]
        build(paths, files, made, folder / f"{part}.sqlite", root=data.root, folder=part)
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Six people in two cameras, with a region cache. Tests that write take a copy."""
    data = write(tmp_path_factory.mktemp("cache") / "data", people=(3, 3), cameras=2, views=2, size=(40, 20))
    cached(data)
    return data


@pytest.fixture
def data(made: DataSet, tmp_path: Path) -> DataSet:
    """A copy to break; times of change are kept."""
    root = Path(shutil.copytree(made.root, tmp_path / "copy"))

    def moved(records: object) -> tuple[Record, ...]:
        return tuple(
            Record(root / record.path.relative_to(made.root), record.person, record.camera)
            for record in records  # type: ignore[attr-defined]
        )

    return DataSet(made.name, root, moved(made.train), moved(made.query), moved(made.gallery))


# --- packing ----------------------------------------------------------------------------------------------------


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 15)))
def test_maps_come_back(region_map: np.ndarray) -> None:
    back = unpack_map(pack_map(region_map), region_map.shape)
    assert back.dtype == np.uint8
    assert back.flags.writeable
    assert np.array_equal(back, region_map)


@pytest.mark.parametrize("size", [(1, 1), (1, 65535), (1, 65536), (256, 512), (300, 701), (131070, 1), (131071, 1)])
def test_long_runs_come_back(size: tuple[int, int]) -> None:
    region_map = np.zeros(size, np.uint8)
    assert np.array_equal(unpack_map(pack_map(region_map), size), region_map)
    region_map[-1, -1] = 3
    assert np.array_equal(unpack_map(pack_map(region_map), size), region_map)
    region_map[:] = 3
    assert np.array_equal(unpack_map(pack_map(region_map), size), region_map)


def test_damaged_maps_are_refused() -> None:
    packed = pack_map(np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="reshape"):
        unpack_map(packed, (4, 5))


def test_keypoints_come_back_within_half_a_step() -> None:
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(-500, 500, (17, 3)).astype(np.float32)
    keypoints[:, 2] = rng.uniform(0, 1, 17)
    keypoints[:4, 2] = 0, 1, 0.3, 0.5
    back = unpack_keypoints(pack_keypoints(keypoints, (256, 128)), (256, 128))
    assert np.abs(back[:, :2] - keypoints[:, :2]).max() <= 1 / 64
    assert np.abs(back[:, 2] - keypoints[:, 2]).max() <= 0.5 / 255 + 1e-6
    # What reaches the usual thresholds still does.
    assert (back[:4, 2] >= [0, 1, 0.3, 0.5]).all()
    again = pack_keypoints(back, (256, 128))
    assert np.array_equal(unpack_keypoints(again, (256, 128)), back)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, 5000.0, -5000.0])
def test_keypoints_out_of_reach_are_of_no_use(bad: float) -> None:
    keypoints = np.full((17, 3), 10, np.float32)
    keypoints[:, 2] = 0.9
    keypoints[3, 1], keypoints[5, 0] = bad, bad
    back = unpack_keypoints(pack_keypoints(keypoints, (64, 32)), (64, 32))
    assert np.isfinite(back).all()
    assert back[[3, 5], 2].tolist() == [0, 0]
    assert np.abs(np.delete(back, [3, 5], 0)[:, :2] - 10).max() <= 64 * 2 / 32767 + 1e-6
    mask = torch.ones((1, 64, 32))
    # And the ops think of them as before.
    want = ops.regions(mask, torch.from_numpy(keypoints)[None], (64, 32))
    assert torch.equal(ops.regions(mask, torch.from_numpy(back)[None], (64, 32)), want)


def test_files_are_taken_over(tmp_path: Path) -> None:
    data = write(tmp_path / "data", people=(2, 0), cameras=2, views=2, size=(32, 16))
    files = MaskFiles(data.root)
    records = [*data.train]
    files.mask_path(records[3].path).unlink()
    made = provenance(files, size=(32, 16))
    file = data.root / "regions" / "bounding_box_train.sqlite"
    paths = [record.path for record in records]
    built = build(paths, files, made, file, root=data.root, folder="bounding_box_train", workers=1)
    assert (built.pictures, built.problems) == (len(records), ())
    assert built.empty_masks == 1
    cache = RegionCache(file)
    for record in records:
        entry, source = cache.entry(record.path), files.find(record.path, (32, 16))
        assert source is not None
        keypoints = torch.from_numpy(entry.keypoints)[None]
        want = ops.regions(torch.from_numpy(source.mask)[None], keypoints, (32, 16))[0].numpy()
        assert np.array_equal(entry.region_map, want)
        assert entry.presence == source.presence
    # Other masks are another estimator.
    files.mask_path(records[2].path).unlink()
    assert provenance(files, size=(32, 16)).sha256 != made.sha256


# --- reading ----------------------------------------------------------------------------------------------------


def test_maps_are_those_of_the_files(made: DataSet) -> None:
    cache, files = RegionCache(made.root / "regions"), MaskFiles(made.root)
    for record in (*made.train, *made.query, *made.gallery):
        source = files.find(record.path, (40, 20))
        assert source is not None
        found = cache.regions(record.path, SIZE)
        keypoints = torch.from_numpy(cache.entry(record.path).keypoints)[None]
        assert torch.equal(found.region_map, ops.regions(torch.from_numpy(source.mask)[None], keypoints, SIZE)[0])
        assert (found.empty_mask, found.no_keypoints, found.no_person) == (False, False, False)


@pytest.mark.parametrize("layout", ["region", "part", "box"])
@pytest.mark.parametrize("stored", ["region", "part"])
def test_other_layouts_are_exact(made: DataSet, tmp_path: Path, layout: str, stored: str) -> None:
    cache, files = RegionCache(cached(made, tmp_path, layout=stored), root=made.root), MaskFiles(made.root)
    for record in made.query:
        source = files.find(record.path, (40, 20))
        assert source is not None
        keypoints = torch.from_numpy(cache.entry(record.path).keypoints)[None]
        for threshold in (0.3, 0.8):
            found = cache.regions(record.path, SIZE, layout, keypoint_threshold=threshold).region_map
            mask = torch.from_numpy(source.mask)[None]
            want = ops.regions(mask, keypoints, SIZE, layout, keypoint_threshold=threshold)[0]
            assert torch.equal(found, want)


def test_a_layout_of_the_same_name_with_another_table_is_made_anew(
    made: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, path = RegionCache(made.root / "regions"), made.query[0].path
    asked: list[object] = []
    monkeypatch.setattr(ops, "regions", lambda *given, **named: asked.append(named) or torch.ones((1, *SIZE)))
    cache.regions(path, SIZE)
    assert not asked
    table = layouts.get("region")
    changed = Layout("region", table.groups, table.flip, table.limbs, torso=1, bands=table.bands)
    monkeypatch.setitem(layouts._LAYOUTS, "region", changed)
    cache.regions(path, SIZE)
    assert len(asked) == 1


def test_other_sizes_come_from_the_foreground(made: DataSet) -> None:
    cache = RegionCache(made.root / "regions")
    for record in made.query[:3]:
        entry = cache.entry(record.path)
        found = cache.regions(record.path, (64, 24)).region_map
        scale = np.array([24 / 16, 2, 1], np.float32)
        want = ops.regions(
            torch.from_numpy((entry.region_map > 0).astype(np.float32))[None],
            torch.from_numpy(entry.keypoints * scale)[None],
            (64, 24),
        )[0]
        assert torch.equal(found, want)
        assert {0, 2, 3} <= set(found.unique().tolist())


def test_crops_read_the_cache(made: DataSet) -> None:
    cache, files = RegionCache(made.root / "regions"), MaskFiles(made.root)
    cropped = CropDataset(made.query, masks=cache, size=SIZE)
    plain = CropDataset(made.query, masks=files, size=SIZE)
    for i in range(len(made.query)):
        one, other = cropped[i], plain[i]
        assert isinstance(one, Sample)
        assert isinstance(other, Sample)
        assert torch.equal(one.crop, other.crop)
        # Keypoints are rounded in the cache: a pixel between two limbs may change sides, none leaves the person.
        assert torch.equal(one.region_map > 0, other.region_map > 0)
        assert (one.region_map != other.region_map).float().mean() <= 0.01
        assert (one.empty_mask, one.no_keypoints, one.no_person) == (False, False, False)
    with pytest.raises(DataError, match=r"at 0\.5, wanted is 0\.4; run: mgran-fast masks .* --threshold 0\.4"):
        CropDataset(made.query, masks=cache, size=SIZE, threshold=0.4)
    # A layout that looks at no mask does not mind.
    CropDataset(made.query, masks=cache, size=SIZE, threshold=0.4, layout="none")


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_open_the_cache_themselves(made: DataSet, context: str, workers: int) -> None:
    cache = RegionCache(made.root / "regions")
    cropped = CropDataset([*made.train, *made.query], masks=cache, size=SIZE)
    want = collate([cropped[i] for i in range(len(cropped))])
    loader = DataLoader(cropped, 5, num_workers=workers, collate_fn=collate, multiprocessing_context=context)
    batches = list(loader)
    assert torch.equal(torch.cat([batch.region_maps for batch in batches]), want.region_maps)
    assert not any(batch.bad for batch in batches)
    # The connection of this process is none the worse for it.
    assert torch.equal(cropped[0].region_map, want.region_maps[0])  # type: ignore[union-attr]


def test_threads_and_pickles(made: DataSet) -> None:
    cache = RegionCache(made.root / "regions")
    want = [cache.entry(record.path).region_map for record in made.train]
    found: dict[int, list[np.ndarray]] = {}

    def read(place: int) -> None:
        found[place] = [cache.entry(record.path).region_map for record in made.train]

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = pickle.loads(pickle.dumps(cache))
    found[4] = [again.entry(record.path).region_map for record in made.train]
    cache.close()
    found[5] = [cache.entry(record.path).region_map for record in made.train]
    assert len(found) == 6
    assert all(np.array_equal(a, b) for maps in found.values() for a, b in zip(maps, want, strict=True))


def test_reading_leaves_nothing_behind(data: DataSet) -> None:
    before = sorted((path.name, path.read_bytes()) for path in (data.root / "regions").iterdir())
    cache = RegionCache(data.root / "regions")
    cache.check(data.train, "training")
    cache.entry(data.train[0].path)
    assert sorted((path.name, path.read_bytes()) for path in (data.root / "regions").iterdir()) == before
    # A folder that may not be written is as good.
    (data.root / "regions").chmod(0o555)
    RegionCache(data.root / "regions").entry(data.train[0].path)
    (data.root / "regions").chmod(0o755)


def test_places(made: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made.query[0].path
    want = RegionCache(made.root / "regions").entry(path).region_map
    # One part alone, a cache elsewhere, a relative path, a data set below another folder.
    elsewhere = Path(shutil.copytree(made.root / "regions", tmp_path / "cache"))
    moved = Path(shutil.copytree(made.root, tmp_path / "other" / "place"))
    monkeypatch.chdir(made.root)
    for cache, picture in (
        (RegionCache(made.root / "regions" / "query.sqlite"), path),
        (RegionCache(elsewhere), path),
        (RegionCache("regions"), Path("query", path.name)),
        (RegionCache(moved / "regions"), moved / "query" / path.name),
    ):
        assert np.array_equal(cache.entry(picture).region_map, want)
    with pytest.raises(DataError, match="not in the region cache"):
        RegionCache(made.root / "regions" / "query.sqlite").entry(made.train[0].path)


def test_a_plain_folder_keeps_names_apart(tmp_path: Path) -> None:
    data = write(tmp_path / "data", people=(2, 0), cameras=1, views=2, size=SIZE)
    folder, files = tmp_path / "data", MaskFiles(data.root)
    root = tmp_path / "plain"
    for i, record in enumerate(data.train):
        (root / "masks" / f"{i}").mkdir(parents=True)
        (root / f"{i}").mkdir()
        shutil.copy(record.path, root / f"{i}" / "same.jpg")
        shutil.copy(files.mask_path(record.path), root / "masks" / f"{i}" / "same.png")
    paths = sorted(root.glob("*/same.jpg"))
    plain = MaskFiles(root)
    build(paths, plain, provenance(plain, size=SIZE), root / "regions" / "pictures.sqlite", root=root)
    cache = find_masks(root)
    assert isinstance(cache, RegionCache)
    for i in range(len(data.train)):
        mask = plain.find(root / f"{i}" / "same.jpg", SIZE)
        assert mask is not None
        assert np.array_equal(cache.entry(root / f"{i}" / "same.jpg").region_map > 0, mask.mask >= 128)
    assert isinstance(find_masks(folder), MaskFiles)


def test_find_masks(made: DataSet, tmp_path: Path) -> None:
    # The cache goes before the mask files, but for who names their folder.
    assert isinstance(find_masks(made.root), RegionCache)
    assert isinstance(find_masks(made.root, made.root), MaskFiles)
    for place in (made.root / "regions", made.root / "regions" / "query.sqlite"):
        assert isinstance(find_masks(tmp_path, place), RegionCache)
    shutil.copytree(made.root / "regions", tmp_path / "other" / "regions")
    assert isinstance(find_masks(made.root, tmp_path / "other"), RegionCache)
    assert find_masks(tmp_path) is None
    for nowhere in (tmp_path, tmp_path / "gone", made.root / "keypoints.json"):
        with pytest.raises(DataError, match=r"masks: no such folder, and .* is no region cache"):
            find_masks(made.root, nowhere)
    with pytest.raises(DataError, match="no region cache here"):
        RegionCache(tmp_path)
    with pytest.raises(DataError, match="no such region cache"):
        RegionCache(tmp_path / "regions.sqlite")


# --- what is stale or damaged -----------------------------------------------------------------------------------


def test_changed_pictures_are_noticed(data: DataSet) -> None:
    cache = RegionCache(data.root / "regions")
    first, second, third, fourth = (record.path for record in data.train[:4])
    first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match="has changed since its regions were computed; run: mgran-fast masks"):
        cache.entry(first)
    # Of the same size as before.
    content = bytearray(second.read_bytes())
    content[-20] ^= 1
    second.write_bytes(content)
    os.utime(second, ns=(1, 1))
    with pytest.raises(DataError, match="has changed"):
        cache.entry(second)
    # Only touched: the content decides.
    os.utime(third, ns=(1, 1))
    cache.entry(third)
    cache.entry(third)
    fourth.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        cache.entry(fourth)
    bad = CropDataset(data.train, masks=cache, size=SIZE)[1]
    assert isinstance(bad, BadPicture)
    assert "has changed" in bad.message


def test_missing_pictures_are_told_at_once(data: DataSet) -> None:
    cache = RegionCache(data.root / "regions")
    cache.check(data.train, "training")
    cache.check([], "training")
    new = data.root / "query" / "0099_c1_00.jpg"
    shutil.copy(data.query[0].path, new)
    with pytest.raises(DataError, match=r"0099_c1_00\.jpg: not in the region cache .*, one of 1 such among 7 query"):
        cache.check([*data.query, Record(new, 99, 1)], "query")
    with pytest.raises(DataError, match="not in the region cache"):
        cache.entry(new)


def test_another_estimator_is_noticed(made: DataSet) -> None:
    cache = RegionCache(made.root / "regions")
    cache.check_estimator(identity(MaskFiles(made.root))[1])
    with pytest.raises(DataError, match="made by files with weights"):
        cache.check_estimator("0" * 64)
    assert {one.estimator for one in cache.provenance.values()} == {"files"}
    assert sorted(cache.provenance) == ["bounding_box_test", "bounding_box_train", "query"]


def test_a_cache_that_is_made_anew_while_it_is_in_use(data: DataSet) -> None:
    """As by the workers of a later DataLoader, which open the files again."""
    cache, path = RegionCache(data.root / "regions"), data.query[0].path
    want = cache.regions(path, SIZE).region_map
    cached(data, layout="part")
    assert torch.equal(cache.regions(path, SIZE).region_map, want), "the file of before is still open"
    later = pickle.loads(pickle.dumps(cache))
    with pytest.raises(DataError, match=r"query\.sqlite: the region cache was made anew, with other settings"):
        later.regions(path, SIZE)
    # More of the same is no other cache.
    cached(data)
    assert torch.equal(later.regions(path, SIZE).region_map, want)


def test_damaged_files_are_told(data: DataSet) -> None:
    file = data.root / "regions" / "bounding_box_train.sqlite"
    whole = file.read_bytes()
    for content in (b"", b"no database" * 999, whole[:5000], whole[:100], b"\0" * len(whole)):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"bounding_box_train\.sqlite"):
            RegionCache(file)


def test_damaged_files_are_not_built_upon(data: DataSet) -> None:
    file = data.root / "regions" / "bounding_box_train.sqlite"
    whole = file.read_bytes()
    for broken in (b"not a database, whatever its name says" * 99, whole[: len(whole) // 2]):
        file.write_bytes(broken)
        with pytest.raises(DataError, match="damaged"):
            cached(data)
        assert file.read_bytes() == broken
        file.with_suffix(".partial").write_bytes(broken)
        with pytest.raises(DataError, match="damaged"):
            cached(data)
        file.with_suffix(".partial").unlink()


def test_a_flipped_bit_never_gives_another_map(data: DataSet) -> None:
    file = data.root / "regions" / "bounding_box_train.sqlite"
    whole = file.read_bytes()
    want = {record.path: RegionCache(file).entry(record.path) for record in data.train}
    rng, told = np.random.default_rng(3), 0
    for place in rng.choice(len(whole), 300, replace=False):
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        # A new file: the old one may still be mapped.
        file.unlink()
        file.write_bytes(content)
        try:
            cache = RegionCache(file)
            for path, entry in want.items():
                found = cache.entry(path)
                assert np.array_equal(found.region_map, entry.region_map)
                assert np.array_equal(found.keypoints, entry.keypoints)
                assert found.presence == entry.presence
        except DataError:
            told += 1
    assert told >= 3


@pytest.mark.parametrize(
    "change",
    [
        "keypoints = zeroblob(85)",
        "keypoints = x'00'",
        "keypoints = NULL",
        "presence = presence / 2",
        "flags = 1",
        "region_map = x'0300'",
        "region_map = 'text'",
        "region_map = (SELECT region_map FROM records WHERE name > '0002')",
        "checksum = checksum + 1",
    ],
)
def test_damaged_records_are_told(data: DataSet, change: str) -> None:
    file = data.root / "regions" / "bounding_box_train.sqlite"
    name = data.train[0].path.name
    connection = sqlite3.connect(file)
    connection.execute(f"UPDATE records SET {change} WHERE name = ?", (name,))
    connection.commit()
    connection.close()
    cache = RegionCache(file)
    with pytest.raises(DataError, match=rf"bounding_box_train\.sqlite: the region cache is damaged \({name}"):
        cache.entry(data.train[0].path)
    cache.entry(data.train[1].path)


def test_files_of_others_are_refused(data: DataSet, tmp_path: Path) -> None:
    file = tmp_path / "a.sqlite"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE records (name TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(DataError, match="not a region cache"):
        RegionCache(file)
    mine = data.root / "regions" / "query.sqlite"
    connection = sqlite3.connect(mine)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(DataError, match="format 99, this release reads 1; delete it"):
        RegionCache(data.root / "regions")


@pytest.mark.real_data
def test_real_data_stays_small(real_data: Path, tmp_path: Path) -> None:
    """Real outlines: at most 1 KB a crop all in all."""
    from mgran_fast.data import read_market

    data, files = read_market(real_data), MaskFiles(real_data)
    paths = [record.path for record in data.gallery]
    file = tmp_path / "bounding_box_test.sqlite"
    build(paths, files, provenance(files), file, root=real_data, folder="bounding_box_test")
    assert file.stat().st_size / len(paths) <= 1024
