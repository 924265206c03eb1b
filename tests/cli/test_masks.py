"""mgran-fast masks, and the commands that read what it writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mgran_fast.cli import common
from mgran_fast.data import MaskFiles, RegionCache, read_market
from mgran_fast.errors import CheckpointError
from mgran_fast.mra import Estimate
from mgran_fast.mra.regionnet import RegionNet

Cli = Callable[..., Any]
PARTS = ("bounding_box_test", "bounding_box_train", "query")


class Simple(nn.Module):
    """Sees a person in the middle of every crop."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        n, height, width = crops.shape[:3]
        mask = torch.zeros(n, height, width)
        mask[:, 1:-1, width // 4 : -(width // 4)] = self.weight.clamp(0, 1)
        line = torch.linspace(0.1, 0.9, 17)
        keypoints = torch.stack((torch.full((17,), width / 2.0), line * height, torch.ones(17)), 1)
        return Estimate(mask, keypoints.expand(n, -1, -1), torch.ones(n))


@pytest.fixture
def estimator(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """``--mra NAME`` opens :class:`Simple`; the names that were asked for."""
    asked: list[str] = []
    monkeypatch.setattr("mgran_fast.cli.common.open_estimator", lambda name: asked.append(name) or Simple())
    return asked


def masks(cli: Cli, data: Path, *arguments: object) -> Any:
    return cli("masks", data, "--size", "32x16", "--workers", "0", *arguments)


def test_a_data_set(cli: Cli, copied: Path, estimator: list[str]) -> None:
    outcome = masks(cli, copied, "--json")
    assert outcome.code == 0, outcome.err
    assert estimator == ["regionnet"]
    found = outcome.json
    assert {Path(one["file"]).name for one in found["files"]} == {f"{part}.sqlite" for part in PARTS}
    data = read_market(copied)
    assert [one["pictures"] for one in found["files"]] == [len(data.train), len(data.query), len(data.gallery)]
    assert [one["computed"] for one in found["files"]] == [len(data.train), len(data.query), len(data.gallery)]
    assert (found["estimator"], len(found["sha256"]), found["problems"]) == ("Simple", 64, [])
    assert sorted(path.name for path in (copied / "regions").iterdir()) == [f"{part}.sqlite" for part in PARTS]
    cache = RegionCache(copied / "regions")
    assert cache.entry(data.query[0].path).region_map[:, 8].any()
    again = masks(cli, copied, "--json").json
    assert [one["computed"] for one in again["files"]] == [0, 0, 0]


def test_files_and_what_is_told(cli: Cli, copied: Path, tmp_path: Path) -> None:
    data, output = read_market(copied), tmp_path / "cache"
    table = json.loads((copied / "keypoints.json").read_text())
    name = f"query/{data.query[0].path.name}"
    table[name]["presence"] = 0.2
    (copied / "keypoints.json").write_text(json.dumps(table))
    MaskFiles(copied).mask_path(data.query[1].path).unlink()
    data.query[2].path.write_text("no picture")
    outcome = masks(cli, copied, "--mra", "files", "--output", output)
    assert outcome.code == 0, outcome.err
    assert outcome.out == ""
    assert "2 without a person: a presence below 0.5 or an empty mask (1 empty)" in outcome.err
    assert f"{data.query[2].path}: the picture cannot be read (not a picture file" in outcome.err
    assert not (copied / "regions").exists()
    assert RegionCache(output).counts() == {
        "pictures": 40, "crops without a person": 2, "empty masks": 1, "unreadable pictures": 1,
    }  # fmt: skip
    # Masks from elsewhere, and other settings.
    other = Path(shutil.copytree(copied / "masks", tmp_path / "other" / "masks")).parent
    outcome = masks(cli, copied, "--mra", "files", "--files", other, "--output", output, "--threshold", "0.25")
    assert "query.sqlite: was made with sha256 " in outcome.err
    assert "threshold 0.5, not 0.25: all computed anew" in outcome.err


def test_a_plain_folder(cli: Cli, tmp_path: Path, estimator: list[str]) -> None:
    for name in ("a.jpg", "inner/a.jpg", "inner/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((30, 15, 3), 90, np.uint8)).save(tmp_path / name)
    found = masks(cli, tmp_path, "--mra", "mine.safetensors", "--json").json
    assert estimator == ["mine.safetensors"]
    assert [(one["file"], one["pictures"]) for one in found["files"]] == [
        (str(tmp_path / "regions" / "pictures.sqlite"), 3)
    ]
    assert RegionCache(tmp_path / "regions").entry(tmp_path / "inner" / "b.png").region_map.any()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--layout", "box"), "layout 'box' cannot be cached"),
        (("--layout", "legs"), "layout must be one of"),
        (("--threshold", "2"), "threshold must be between 0 and 1, not 2.0"),
        (("--size", "0x16"), "--size 0x16: write height x width"),
        (("--files", "."), "--files: only --mra files reads them"),
    ],
)
def test_bad_options(cli: Cli, tiny: Any, estimator: list[str], arguments: tuple[str, ...], words: str) -> None:
    outcome = cli("masks", tiny.root, *arguments)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("mgran-fast: ")
    assert words in outcome.err.splitlines()[-1]
    assert not (tiny.root / "regions").exists()


def test_wrong_folders(cli: Cli, copied: Path, tmp_path: Path, estimator: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    for folder, words in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path / "empty", "no pictures"),
        (copied / "query", "this is one part of a data set; give the folder above it"),
    ):
        outcome = masks(cli, folder)
        assert outcome.code == 1
        assert words in outcome.err.splitlines()[-1]
    outcome = masks(cli, copied, "--mra", "files", "--files", tmp_path / "empty")
    assert outcome.code == 1
    assert "empty/masks: no such folder" in outcome.err


def test_training_and_evaluation_read_the_cache(
    cli: Cli, copied: Path, tmp_path: Path, quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert masks(cli, copied, "--mra", "files").code == 0
    kept = Path(shutil.move(copied / "masks", tmp_path / "masks"))
    (copied / "keypoints.json").unlink()
    outcome = cli("train", "--data", copied, "--output", tmp_path / "run", "--json", *quick)
    assert outcome.code == 0, outcome.err
    trained = outcome.json
    assert trained["counts"]["empty masks"] == 0
    assert trained["counts"]["training pictures without a mask"] == 0
    checkpoint = tmp_path / "run" / "model.safetensors"
    arguments = ("evaluate", "--data", copied, "--checkpoint", checkpoint, "--workers", "0", "--json")
    page = tmp_path / "page.html"
    found = cli(*arguments, "--workers", "2", "--report", page)
    assert found.code == 0, found.err
    assert found.json["counts"]["empty masks"] == 0
    assert found.json["map"] == pytest.approx(trained["trained"]["map"], abs=1e-9)
    assert page.stat().st_size > 10_000
    # Elsewhere, and by name.
    shutil.move(copied / "regions", tmp_path / "cache")
    assert "RegionNet makes the masks" in cli(*arguments).err
    assert cli(*arguments, "--masks", tmp_path / "cache").json["map"] == found.json["map"]
    assert kept.is_dir()
    # A picture that is another one now.
    data = read_market(copied)
    data.query[0].path.write_bytes(data.query[1].path.read_bytes())
    outcome = cli(*arguments, "--masks", tmp_path / "cache")
    assert outcome.code == 0
    assert outcome.json["counts"]["unreadable pictures"] == 1
    assert "has changed since its regions were computed" in outcome.err
    # And one that is not in the cache.
    shutil.copy(data.gallery[0].path, copied / "bounding_box_test" / "0099_c1_00.jpg")
    outcome = cli(*arguments, "--masks", tmp_path / "cache")
    assert outcome.code == 1
    assert "0099_c1_00.jpg: not in the region cache" in outcome.err.splitlines()[-1]


def test_the_names_of_estimators() -> None:
    plain, flipped = common.open_estimator(), common.open_estimator("regionnet+flip")
    assert isinstance(plain, RegionNet)
    assert isinstance(flipped, RegionNet)
    assert (plain.flip, flipped.flip) == (False, True)
    with pytest.raises(CheckpointError, match="no such file"):
        common.open_estimator("regionnet+other")
