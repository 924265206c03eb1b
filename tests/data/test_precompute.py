"""Building a region cache: what is kept, computed again, and survives a kill."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mgran_fast import ops
from mgran_fast.data import RegionCache, precompute, store
from mgran_fast.data.precompute import Built, build
from mgran_fast.data.provenance import provenance
from mgran_fast.errors import DataError, MGRANError
from mgran_fast.mra import Estimate

SIZE = (32, 16)


class Looker(nn.Module):
    """A deterministic estimator: the mask is the picture's blue, the keypoints follow its first pixel.

    The first pixel's red and green number the picture; each call appends the numbers to ``log``, takes ``delay``
    seconds, and never ends once there were ``most`` calls.
    """

    def __init__(self, weight: float = 1.0, log: Path | None = None, delay: float = 0.0, most: int = 10**9) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.log, self.delay, self.most = log, delay, most

    def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        if self.log is not None:
            with self.log.open("a") as file:
                file.writelines(f"{int(crop[0, 0, 0]) + 256 * int(crop[0, 0, 1])}\n" for crop in crops)
        self.most -= 1
        time.sleep(self.delay if self.most >= 0 else 600)
        n, height, width = crops.shape[:3]
        number = crops[:, 0, 0, 0].float()
        grid = torch.linspace(0.1, 0.9, 17)
        x = (grid * width)[None] + number[:, None] / 64
        y = (grid * height)[None].expand(n, -1)
        score = ((number[:, None] + torch.arange(17.0)) % 10) / 10
        return Estimate(crops[..., 2] / 255 * self.weight, torch.stack((x, y, score), 2), (number % 5) / 4)


def picture(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    pixels[: size[0] // 2, :, 2] = pixels[: size[0] // 2, :1, 2]
    pixels[0, 0, :2] = number % 256, number // 256
    return Image.fromarray(pixels)


def folder(root: Path, count: int) -> list[Path]:
    """Pictures 0 to count - 1, by name in this order."""
    root.mkdir(parents=True, exist_ok=True)
    paths = [root / f"{number:04d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    return paths


def run(root: Path, estimator: Any = None, *, paths: list[Path] | None = None, **options: Any) -> Built:
    """Build root/regions/pictures.sqlite from the pictures below root."""
    estimator = Looker() if estimator is None else estimator
    settings = {key: options.pop(key) for key in ("size", "layout", "threshold", "options") if key in options}
    made = provenance(estimator, **{"size": SIZE, **settings})
    paths = sorted(root.glob("*.[pj]*g")) if paths is None else paths
    return build(paths, estimator, made, root / "regions" / "pictures.sqlite", root=root, **options)


def contents(file: Path) -> dict[str, tuple[Any, ...]]:
    """All records but for the pictures' times."""
    connection = sqlite3.connect(file)
    rows = connection.execute(
        "SELECT name, bytes, digest, presence, flags, keypoints, region_map, checksum, error FROM records"
    ).fetchall()
    connection.close()
    return {row[0]: row[1:] for row in rows}


def anew(root: Path, **options: Any) -> dict[str, tuple[Any, ...]]:
    """What a cache of the same pictures, built in one go elsewhere, holds."""
    fresh = root / "fresh"
    fresh.mkdir()
    for path in root.glob("*.png"):
        shutil.copy(path, fresh)
    run(fresh, **options)
    return contents(fresh / "regions" / "pictures.sqlite")


def listing(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "regions").iterdir())


def numbers(log: Path) -> list[int]:
    return [int(line) for line in log.read_text().split()] if log.exists() else []


# --- what is computed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_records_are_what_the_estimator_says(tmp_path: Path, workers: int) -> None:
    paths = folder(tmp_path, 11)
    seen: list[tuple[int, int]] = []
    built = run(tmp_path, batch_size=4, workers=workers, progress=lambda done, total: seen.append((done, total)))
    assert (built.pictures, built.computed, built.kept, built.removed) == (11, 11, 0, 0)
    assert seen == [(4, 11), (8, 11), (11, 11)]
    assert listing(tmp_path) == ["pictures.sqlite"]
    cache = RegionCache(tmp_path / "regions")
    crops = torch.stack([torch.from_numpy(np.array(Image.open(path))) for path in paths])
    want = Looker()(crops)
    maps = ops.regions(
        want.mask.detach(), torch.stack([torch.from_numpy(cache.entry(p).keypoints) for p in paths]), SIZE
    )
    for i, path in enumerate(paths):
        entry = cache.entry(path)
        assert np.array_equal(entry.region_map, maps[i].numpy())
        # 32 pixels: steps of 4 * 32 / 32767 for places, of 1 / 255 for scores.
        assert np.abs(entry.keypoints[:, :2] - want.keypoints[i, :, :2].numpy()).max() <= 0.5 * 128 / 32767 + 1e-6
        assert np.abs(entry.keypoints[:, 2] - want.keypoints[i, :, 2].numpy()).max() <= 0.5 / 255 + 1e-6
        assert entry.presence == float(want.presence[i])
    # Numbers 0 and 1 modulo 5 have a presence below 0.5.
    assert built.without_person == 5
    assert cache.counts()["crops without a person"] == 5


def test_pictures_of_other_sizes_are_resized(tmp_path: Path) -> None:
    picture(3, (50, 31)).save(tmp_path / "a.png")
    run(tmp_path, size=(24, 12))
    cache = RegionCache(tmp_path / "regions")
    assert cache.entry(tmp_path / "a.png").region_map.shape == (24, 12)
    assert cache.provenance["."].size == (24, 12)
    source = cache.find(tmp_path / "a.png", (50, 31))
    assert source.mask.shape == (24, 12)
    want = cache.entry(tmp_path / "a.png").keypoints * np.array([31 / 12, 50 / 24, 1], np.float32)
    assert np.array_equal(source.keypoints, want)


def test_empty_masks_and_nobody(tmp_path: Path) -> None:
    folder(tmp_path, 5)
    built = run(tmp_path, Looker(weight=0.0))
    assert (built.empty_masks, built.without_person) == (5, 5)
    cache = RegionCache(tmp_path / "regions")
    assert cache.counts() == {
        "pictures": 5, "crops without a person": 5, "empty masks": 5, "unreadable pictures": 0,
    }  # fmt: skip
    assert cache.regions(tmp_path / "0004.png", SIZE).empty_mask


def test_an_answer_that_is_no_number_spoils_its_own_picture_only(tmp_path: Path) -> None:
    folder(tmp_path, 6)

    class Broken(Looker):
        def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
            found = super().forward(crops)
            found.mask[crops[:, 0, 0, 0] == 2] = torch.nan
            found.keypoints[crops[:, 0, 0, 0] == 3, 4, 0] = torch.inf
            found.presence[crops[:, 0, 0, 0] == 4] = torch.nan
            return found

    built = run(tmp_path, Broken())
    assert [line.split(": ")[0] for line in built.problems] == [str(tmp_path / f"000{i}.png") for i in (2, 3, 4)]
    assert all("not finite" in line for line in built.problems)
    with pytest.raises(DataError, match=r"0003\.png: the estimator's answer is not finite"):
        RegionCache(tmp_path / "regions").entry(tmp_path / "0003.png")


# --- what is kept -----------------------------------------------------------------------------------------------


def test_nothing_new_computes_nothing(tmp_path: Path) -> None:
    folder(tmp_path, 9)
    log = tmp_path / "log"
    run(tmp_path, Looker(log=log))
    before = (tmp_path / "regions" / "pictures.sqlite").stat()
    built = run(tmp_path, Looker(log=log))
    after = (tmp_path / "regions" / "pictures.sqlite").stat()
    assert (built.computed, built.kept) == (0, 9)
    assert sorted(numbers(log)) == list(range(9))
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert listing(tmp_path) == ["pictures.sqlite"]


def test_a_data_set_that_was_moved_is_noted(tmp_path: Path) -> None:
    """The cache lies elsewhere, and would look for the pictures where they were."""
    folder(tmp_path / "old" / "inner", 3)
    file, looker = tmp_path / "cache" / "pictures.sqlite", Looker()

    def run_in(root: Path) -> Built:
        made = provenance(looker, size=SIZE)
        return build(sorted(root.glob("*/*.png")), looker, made, file, root=root)

    run_in(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    assert run_in(tmp_path / "new").computed == 0
    cache = RegionCache(file)
    assert cache.root == tmp_path / "new"
    assert cache.entry(tmp_path / "new" / "inner" / "0001.png").region_map.shape == SIZE
    before = file.stat().st_ino
    run_in(tmp_path / "new")
    assert file.stat().st_ino == before


def test_changed_new_and_removed_pictures(tmp_path: Path) -> None:
    paths = folder(tmp_path, 9)
    log = tmp_path / "log"
    run(tmp_path, Looker())
    picture(100).save(paths[4])
    picture(101).save(tmp_path / "0005b.png")
    paths[7].unlink()
    built = run(tmp_path, Looker(log=log))
    assert sorted(numbers(log)) == [100, 101]
    assert (built.pictures, built.computed, built.kept, built.removed) == (9, 2, 7, 1)
    assert contents(tmp_path / "regions" / "pictures.sqlite") == anew(tmp_path)


def test_same_size_other_content_is_noticed(tmp_path: Path) -> None:
    # Uncompressed, so that two pictures have one size.
    for number in (1, 2):
        picture(number).save(tmp_path / f"{number}.tif")
    target = tmp_path / "x.png"
    shutil.copy(tmp_path / "1.tif", target)
    log = tmp_path / "log"
    run(tmp_path, Looker(log=log), paths=[target])
    shutil.copy(tmp_path / "2.tif", target)
    os.utime(target, ns=(10**18, 10**18))
    assert run(tmp_path, Looker(log=log), paths=[target]).computed == 1
    assert numbers(log) == [1, 2]


def test_touched_pictures_are_not_computed_again(tmp_path: Path) -> None:
    paths = folder(tmp_path, 4)
    log = tmp_path / "log"
    run(tmp_path, Looker(log=log))
    os.utime(paths[2], ns=(10**18, 10**18))
    built = run(tmp_path, Looker(log=log))
    assert built.computed == 0
    assert len(numbers(log)) == 4
    # The new time is known from now on: the file is left alone.
    before = (tmp_path / "regions" / "pictures.sqlite").stat().st_ino
    run(tmp_path, Looker(log=log))
    assert (tmp_path / "regions" / "pictures.sqlite").stat().st_ino == before


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.4},
        {"layout": "part"},
        {"size": (16, 8)},
        {"options": {"flip": True}},
        {"estimator": Looker(0.5)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_estimator_or_setting_computes_all_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    folder(tmp_path, 4)
    run(tmp_path)
    built = run(tmp_path, **change)
    assert (built.computed, built.kept) == (4, 0)
    name = {"estimator": "sha256"}.get(next(iter(change)), next(iter(change)))
    assert any(line.startswith(name) for line in built.changes), built.changes
    assert run(tmp_path, **change).computed == 0
    assert contents(tmp_path / "regions" / "pictures.sqlite") == anew(tmp_path, **change)


def test_the_old_cache_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    paths = folder(tmp_path, 6)
    run(tmp_path)
    file = tmp_path / "regions" / "pictures.sqlite"
    before = file.read_bytes()

    class Failing(Looker):
        def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
            if int(crops[0, 0, 0, 0]) >= 2:
                raise RuntimeError("out of memory")
            return super().forward(crops)

    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, Failing(0.5), batch_size=2)
    assert file.read_bytes() == before
    assert RegionCache(file).entry(paths[5]).region_map.shape == SIZE
    assert len(contents(file.with_suffix(".partial"))) == 2
    # Back to the estimator of before: the unfinished file gives way to the finished one's records.
    log = tmp_path / "log"
    assert run(tmp_path, Looker(log=log)).computed == 0
    assert numbers(log) == []
    assert listing(tmp_path) == ["pictures.sqlite"]


def test_bad_arguments(tmp_path: Path) -> None:
    paths = folder(tmp_path / "a", 1)
    for options in ({"batch_size": 0}, {"workers": -1}):
        with pytest.raises(ValueError, match="batch_size"):
            run(tmp_path / "a", paths=paths, **options)
    with pytest.raises(DataError, match="not below"):
        run(tmp_path / "b", paths=paths)
    assert not (tmp_path / "b").exists()

    class Short(Looker):
        def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
            return super().forward(crops[1:])

    with pytest.raises(ValueError, match="Short answered 0 masks for 1 crops"):
        run(tmp_path / "a", Short())


# --- kills, locks, full disks -----------------------------------------------------------------------------------


def child(target: Callable[..., object], *arguments: Any) -> multiprocessing.process.BaseProcess:
    """A process of its own; forked, for importing torch takes longer than the test."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def disturbed(root: Path, log: Path, delay: float) -> None:
    torch.set_num_threads(1)
    # Ten runs of this many batches are fewer than there are: each is killed before its end, however slow the killer.
    run(root, Looker(log=log, delay=delay, most=5), batch_size=4)


def test_ten_kills_at_random_moments_lose_and_repeat_nothing(tmp_path: Path) -> None:
    count, dice = 240, random.Random(7)
    folder(tmp_path / "whole", count)
    run(tmp_path / "whole", batch_size=4)
    root, log = tmp_path / "cut", tmp_path / "log"
    shutil.copytree(tmp_path / "whole", root, ignore=shutil.ignore_patterns("regions"))
    partial, file = root / "regions" / "pictures.partial", root / "regions" / "pictures.sqlite"
    stored: dict[str, tuple[Any, ...]] = {}
    for _ in range(10):
        log.unlink(missing_ok=True)
        process = child(disturbed, root, log, 0.004)
        # Counted from the first answer of the estimator, or the kill would only hit the start of the process.
        waited = time.monotonic()
        while not numbers(log) and process.is_alive() and time.monotonic() - waited < 60:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        again = Counter(numbers(log))
        # What was in the file is there, unchanged, and nobody looked at it again.
        assert not {int(name[:4]) for name in stored} & again.keys()
        assert max(again.values(), default=0) <= 1
        now = contents(partial if partial.exists() else file)
        assert stored.items() <= now.items()
        # A batch is stored as a whole or not at all.
        assert len(now) % 4 == 0
        stored = now
    assert 0 < len(stored) < count
    log.unlink(missing_ok=True)
    built = run(root, Looker(log=log), batch_size=4)
    assert built.pictures == count
    assert sorted(numbers(log)) == sorted(set(range(count)) - {int(name[:4]) for name in stored})
    assert contents(file) == contents(tmp_path / "whole" / "regions" / "pictures.sqlite")
    assert listing(root) == ["pictures.sqlite"]


def die(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(moment: str, root: Path) -> None:
    torch.set_num_threads(1)
    real = os.replace
    if moment == "before the name":
        os.replace = die  # type: ignore[assignment]
    elif moment == "after the name":
        os.replace = lambda *arguments: (real(*arguments), die())  # type: ignore[assignment]
    elif moment == "inside a transaction":
        plain = precompute._row
        calls: list[int] = []

        def row(*arguments: Any) -> Any:
            calls.append(1)
            # A text where a blob belongs is fine for SQLite; this one ends the process while rows are bound.
            return plain(*arguments) if len(calls) < 7 else _Deadly(plain(*arguments))

        precompute._row = row
    elif moment == "taking over":
        store.Store._finished = lambda self: die()  # type: ignore[assignment,method-assign,return-value]
    run(root, batch_size=4)


class _Deadly(tuple):  # type: ignore[type-arg]
    """A row that kills the process when SQLite binds it: rows before it of the same batch are in the journal."""

    def __iter__(self) -> Any:
        die()

    def __getitem__(self, index: Any) -> Any:
        die()


@pytest.mark.parametrize("moment", ["before the name", "after the name", "inside a transaction", "taking over"])
def test_kills_at_chosen_moments(tmp_path: Path, moment: str) -> None:
    paths = folder(tmp_path, 10)
    if moment == "taking over":
        run(tmp_path)
        picture(50).save(paths[3])
    process = child(killed_at, moment, tmp_path)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    log = tmp_path / "log"
    built = run(tmp_path, Looker(log=log), batch_size=4)
    expected = {"before the name": 0, "after the name": 0, "inside a transaction": 6, "taking over": 1}[moment]
    assert built.computed == len(numbers(log)) == expected
    assert contents(tmp_path / "regions" / "pictures.sqlite") == anew(tmp_path)
    assert set(listing(tmp_path)) <= {"pictures.sqlite", "pictures.partial-journal"}
    assert RegionCache(tmp_path / "regions").counts()["pictures"] == 10


def hold(root: Path, ready: Any, leave: Any) -> None:
    torch.set_num_threads(1)

    class Waiting(Looker):
        def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
            ready.set()
            leave.wait(60)
            return super().forward(crops)

    run(root, Waiting(), batch_size=4)


def test_a_second_builder_is_turned_away(tmp_path: Path) -> None:
    folder(tmp_path, 8)
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    process = child(hold, tmp_path, ready, leave)
    assert ready.wait(60)
    for _ in range(2):
        with pytest.raises(DataError, match="another process is writing this region cache"):
            run(tmp_path)
    leave.set()
    process.join(60)
    assert process.exitcode == 0
    # What the first one wrote is whole, and now the second may.
    assert RegionCache(tmp_path / "regions").counts()["pictures"] == 8
    assert run(tmp_path).computed == 8


# torch tells of it from a signal handler, wherever its loader is by then: opening a file, which nobody then closes.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_killed_reader_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path, 12)
    plain = precompute._Pictures.__getitem__

    def item(self: Any, index: int) -> Any:
        if index == 9:
            os._exit(9)
        return plain(self, index)

    monkeypatch.setattr(precompute._Pictures, "__getitem__", item)
    with pytest.raises(MGRANError, match="run the command again with fewer --workers"):
        run(tmp_path, batch_size=2, workers=1)
    monkeypatch.undo()
    built = run(tmp_path)
    assert (built.pictures, built.computed + built.kept) == (12, 12)


def limited(root: Path, bytes_: int, answer: Any) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))
    try:
        run(root, batch_size=4)
        answer.put("done")
    except MGRANError as error:
        answer.put(f"{type(error).__name__}: {error}")


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    folder(tmp_path, 200)
    run(tmp_path)
    size = (tmp_path / "regions" / "pictures.sqlite").stat().st_size
    shutil.rmtree(tmp_path / "regions")
    answer = multiprocessing.get_context("fork").SimpleQueue()
    # No file may grow beyond this: for SQLite a disk that is full.
    process = child(limited, tmp_path, size // 2, answer)
    process.join(60)
    assert process.exitcode == 0
    told = answer.get()
    assert told.startswith("DataError: ")
    assert "pictures.partial: cannot be written" in told
    assert "free some space" in told
    log = tmp_path / "log"
    built = run(tmp_path, Looker(log=log), batch_size=4)
    assert 0 < built.kept < 200
    assert built.computed == len(numbers(log)) == 200 - built.kept
    assert RegionCache(tmp_path / "regions").counts()["pictures"] == 200


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    paths = folder(tmp_path, 1)
    (tmp_path / "regions").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        run(tmp_path, paths=paths)
