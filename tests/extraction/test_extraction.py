"""mgran-fast extract: what the model gives, as Parquet; once each, whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

import mgran_fast
from mgran_fast import DataError, FeatureExtractor, MGRANError
from mgran_fast.errors import CheckpointError
from mgran_fast.extraction import columns, extract, load_gallery, local, plan
from mgran_fast.extraction.plan import locked
from mgran_fast.extraction.run import shares
from mgran_fast.weights import files


def picture(path: Path, grey: int = 0) -> None:
    """Write a small picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 64), (grey, 255 - grey, 90)).save(path)


# --- what is written --------------------------------------------------------------------------------------------


def test_rows_are_what_the_extractor_gives(world: Any) -> None:
    table = parquet.read_table(world.output)
    features = FeatureExtractor(world.checkpoint).extract(world.pictures)
    assert table.column("path").to_pylist() == list(features.names)
    vectors = np.stack(table.column("embedding").to_pylist())
    assert np.allclose(vectors, features.vectors.numpy(), atol=1e-6)
    assert np.stack(table.column("visible").to_pylist()).tolist() == features.visible.tolist()
    assert table.schema.equals(columns(features.vectors.shape[1], features.visible.shape[1]))
    first = table.slice(0, 1).to_pylist()[0]
    name = features.names[0]
    assert (name.split("/")[0], first["person"], first["camera"]) == ("north", name[6:10], name[12])
    assert first["time"] is None
    assert first["no_person"] is False
    assert set(table.column("model").to_pylist()) == {files.sha256(world.checkpoint)}


def test_a_model_with_regions_and_an_engine(world: Any, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for path in sorted((world.pictures / "north").iterdir())[:6]:
        shutil.copy(path, small)
    output = extract(small, tmp_path / "out", world.regions, batch_size=4).output
    table = parquet.read_table(output)
    want = FeatureExtractor(world.regions).extract(small)
    assert np.allclose(np.stack(table.column("embedding").to_pylist()), want.vectors.numpy(), atol=1e-5)
    assert np.array_equal(np.stack(table.column("visible").to_pylist()), want.visible.numpy())
    about = json.loads(parquet.read_schema(next(output.glob("*.parquet"))).metadata[b"mgran_fast extraction"])
    assert about["parts"] == ["global", "head", "upper body", "lower body"]
    assert about["root"] == str(small)
    # An engine, in a precision of its own.
    model = mgran_fast.MGRAN.from_file(world.regions).eval()
    mgran_fast.optimize(model, torch.bfloat16).save(tmp_path / "engine.safetensors")
    coarse = load_gallery(extract(small, tmp_path / "engine", tmp_path / "engine.safetensors").output)
    cosine = torch.cosine_similarity(coarse.embeddings, want.vectors)
    assert 0.99 < float(cosine.min()) < 1 - 1e-7


def test_a_table_tells_who_and_when(world: Any, tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "crops" / f"{i}.png", 80 * i)
    rows = ["crops/1.png,anna,door,2026-11-27T08:00:00+01:00", "crops/0.png,,,", "crops/2.png,bert,gate,"]
    (tmp_path / "table.csv").write_text("path,person,camera,time\n" + "\n".join(rows), encoding="utf-8")
    output = extract(tmp_path / "table.csv", tmp_path / "out", world.checkpoint).output
    found = parquet.read_table(output).to_pylist()
    assert [row["path"] for row in found] == ["crops/1.png", "crops/0.png", "crops/2.png"]
    assert [row["person"] for row in found] == ["anna", None, "bert"]
    assert found[0]["time"].isoformat() == "2026-11-27T07:00:00+00:00"
    gallery = load_gallery(output)
    assert gallery.cameras == ["door", None, "gate"]
    assert gallery.root == str(tmp_path)


def test_several_processes_write_the_same_bytes(world: Any, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = extract(
        world.pictures, tmp_path / "out", world.checkpoint, processes=2, threads=1,
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert world.parts(found.output) == world.parts(world.output)
    assert len(world.parts(found.output)) == 4
    assert (found.pictures, found.made, found.kept, found.problems) == (108, 108, 0, ())
    assert [total for _, total in steps] == [108] * 4
    assert steps[-1][0] == 108


# --- again ------------------------------------------------------------------------------------------------------


def test_what_is_there_is_kept_and_what_came_is_added(world: Any, tmp_path: Path) -> None:
    shutil.copytree(world.pictures, tmp_path / "pictures")
    output = Path(shutil.copytree(world.output, tmp_path / "out"))
    settings = output / "_plan" / "settings.json"
    settings.write_text(settings.read_text().replace(str(world.pictures), str(tmp_path / "pictures")))
    (output / "part-000002.parquet").unlink()
    before = world.parts(output)
    (tmp_path / "pictures" / "south").rename(tmp_path / "gone")
    for i in range(40):
        picture(tmp_path / "pictures" / "east" / f"{i:02}.png", i)
    found = extract(tmp_path / "pictures", output, world.checkpoint)
    # The part that was missing is made of what is still there of it.
    south = len(list((tmp_path / "gone").iterdir()))
    assert (found.pictures, found.added, found.gone) == (148, 40, south)
    assert found.made + len(found.problems) == 40 + 32
    now = world.parts(output)
    assert before.items() <= now.items()
    assert len(now) == 4 + 2
    names = parquet.read_table(output).column("path").to_pylist()
    assert len(set(names)) == len(names) == found.pictures - len(found.problems)
    assert names[-1] == "east/39.png"
    # And nothing more to do.
    again = extract(tmp_path / "pictures", output, world.checkpoint)
    assert (again.made, again.kept, again.added) == (0, 148, 0)
    assert world.parts(output) == now


def test_pictures_that_cannot_be_read(world: Any, tmp_path: Path) -> None:
    for i in range(70):
        picture(tmp_path / "pictures" / f"{i:02}.png", i)
    # One alone, and a whole part.
    for i in (5, *range(32, 64)):
        (tmp_path / "pictures" / f"{i:02}.png").write_bytes(b"no picture")
    found = extract(tmp_path / "pictures", tmp_path / "out", world.checkpoint, batch_size=3)
    assert (found.pictures, found.made, len(found.problems)) == (70, 37, 33)
    assert "05.png" in found.problems[0]
    assert len(load_gallery(found.output)) == 37
    picture(tmp_path / "pictures" / "05.png", 5)
    again = extract(tmp_path / "pictures", tmp_path / "out", world.checkpoint, batch_size=3)
    assert (again.made, again.kept, len(again.problems)) == (0, 70, 33)
    mended = extract(tmp_path / "pictures", tmp_path / "out", world.checkpoint, batch_size=3, retry=True)
    assert (mended.made, mended.kept, len(mended.problems)) == (32, 6, 32)
    assert "05.png" in load_gallery(found.output).names


def test_rows_of_pictures_that_are_gone_stay(world: Any, tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "pictures" / f"{i}.png", i)
    (tmp_path / "pictures" / "1.png").write_bytes(b"no picture")
    extract(tmp_path / "pictures", tmp_path / "out", world.checkpoint)
    (tmp_path / "pictures" / "0.png").unlink()
    found = extract(tmp_path / "pictures", tmp_path / "out", world.checkpoint, retry=True)
    assert (found.gone, found.made) == (1, 0)
    assert load_gallery(found.output).names == ("0.png", "2.png")


def test_a_wrong_first_try_spoils_nothing(world: Any, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for processes in (1, 2):
        with pytest.raises(ValueError, match="float61"):
            extract(world.pictures, output, world.checkpoint, precision="float61", processes=processes)
    assert extract(world.pictures, output, world.checkpoint).made == 108
    shutil.rmtree(output / "_plan")
    (output / "_plan").mkdir()
    with pytest.raises(DataError, match="holds parts of a plan that is gone"):
        extract(world.pictures, output, world.checkpoint)


def test_a_checkpoint_that_was_moved(world: Any, tmp_path: Path) -> None:
    output = Path(shutil.copytree(world.output, tmp_path / "out"))
    (output / "part-000001.parquet").unlink()
    moved = Path(shutil.copy(world.checkpoint, tmp_path / "moved.safetensors"))
    settings = output / "_plan" / "settings.json"
    settings.write_text(settings.read_text().replace(str(world.checkpoint), "/nowhere/model.safetensors"))
    assert extract(world.pictures, output, moved).made == 32
    assert world.parts(output) == world.parts(world.output)


# --- killed -----------------------------------------------------------------------------------------------------


def test_a_killed_process_is_replaced(world: Any, tmp_path: Path) -> None:
    killed: list[int] = []

    def step(done: int, total: int) -> None:
        if not killed:
            victim = active_children()[0]
            killed.append(victim.pid or 0)
            os.kill(killed[0], signal.SIGKILL)

    found = extract(world.pictures, tmp_path / "out", world.checkpoint, processes=2, threads=1, progress=step)
    assert killed
    assert world.parts(found.output) == world.parts(world.output)
    assert found.made == 108
    assert not active_children()


def test_a_part_that_kills_every_process(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_serve", _die)
    with pytest.raises(MGRANError, match=r"killed \(signal 9\) 3 times at the same part.*fewer --processes"):
        extract(world.pictures, tmp_path / "out", world.checkpoint, processes=2)
    assert not active_children()


def _die(end: Any, output: Path, place: int, threads: int) -> None:
    end.recv()
    os.kill(os.getpid(), signal.SIGKILL)


# --- refused ----------------------------------------------------------------------------------------------------


def test_a_name_that_is_no_text(world: Any, tmp_path: Path) -> None:
    try:
        picture(Path(os.fsdecode(bytes(tmp_path / "pictures") + b"/\xff.png")))
    except OSError:
        pytest.skip("this file system wants UTF-8")
    with pytest.raises(DataError, match=r"udcff.png': the name is not valid UTF-8; rename the file"):
        extract(tmp_path / "pictures", tmp_path / "out", world.checkpoint)


def test_threads_of_the_caller_stay(world: Any, tmp_path: Path) -> None:
    picture(tmp_path / "pictures" / "a.png")
    before = torch.get_num_threads()
    extract(tmp_path / "pictures", tmp_path / "out", world.checkpoint, threads=before + 1)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("cores", "gpus", "asked", "given"),
    [
        (2, 0, (None, None), (1, 2)),
        (16, 0, (None, None), (8, 2)),
        (16, 0, (None, 4), (4, 4)),
        (16, 0, (3, None), (3, 5)),
        (16, 2, (None, None), (8, 2)),
        (4, 8, (None, None), (8, 1)),
        (1, 0, (2, None), (2, 1)),
    ],
)
def test_shares_of_the_machine(
    cores: int, gpus: int, asked: tuple[int | None, int | None], given: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert shares(*asked) == given


def test_errors_of_a_process_are_told(world: Any, tmp_path: Path) -> None:
    copied = tmp_path / "model.safetensors"
    copied.write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        extract(world.pictures, tmp_path / "out", copied, processes=2)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        extract(world.pictures, tmp_path / "out", copied)


def test_what_is_refused(world: Any, tmp_path: Path) -> None:
    output = Path(shutil.copytree(world.output, tmp_path / "out"))
    with pytest.raises(DataError, match=r"begun otherwise: precision None, now bfloat16; batch_size 32, now 8"):
        extract(world.pictures, output, world.checkpoint, precision="bfloat16", batch_size=8)
    with pytest.raises(DataError, match=r"begun otherwise: sha256 .*, now .*; give the same"):
        extract(world.pictures, output, world.regions)
    with locked(output), pytest.raises(DataError, match="another process is writing to it"):
        extract(world.pictures, output, world.checkpoint)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="holds other things"):
        extract(world.pictures, tmp_path / "other", world.checkpoint)
    with pytest.raises(DataError, match="a file; name a folder"):
        extract(world.pictures, tmp_path / "other" / "letter.txt", world.checkpoint)
    with pytest.raises(ValueError, match="processes must be at least 1, not 0"):
        extract(world.pictures, output, world.checkpoint, processes=0)
    with pytest.raises(ValueError, match="int8 takes crops to calibrate on"):
        extract(world.pictures, tmp_path / "int8", world.checkpoint, precision="int8")
    (output / "part-000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-000001.parquet: cannot be read .*; remove it"):
        load_gallery(output)
    (output / "_plan" / "settings.json").write_text("{")
    with pytest.raises(DataError, match=r"_plan: damaged"):
        extract(world.pictures, output, world.checkpoint)


def test_a_full_disk(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: Any) -> None:
        raise OSError(28, "No space left on device")

    extract(world.pictures, tmp_path / "out", world.checkpoint)
    (tmp_path / "out" / "part-000003.parquet").unlink()
    monkeypatch.setattr("mgran_fast.weights.files.write", full)
    with pytest.raises(DataError, match=r"part-000003.parquet: cannot be written, the disk is full"):
        extract(world.pictures, tmp_path / "out", world.checkpoint)


def test_without_pyarrow(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.feather", None)
    with pytest.raises(MGRANError, match=r"pip install 'mgran_fast\[search\]'"):
        extract(world.pictures, tmp_path / "out", world.checkpoint)


@pytest.mark.parametrize(
    ("pictures", "size"), [(1, 32), (2048, 32), (2049, 64), (10_000, 160), (65_536, 1024), (10**7, 1024)]
)
def test_sizes_of_parts(pictures: int, size: int) -> None:
    assert plan.part_size(pictures) == size
