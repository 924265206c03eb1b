"""mgran-fast datasets, and --dataset of the commands that read one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mgran_fast.cli import common
from mgran_fast.data import RegionCache
from mgran_fast.data.sets import SETS, miniature, open_set
from mgran_fast.mra import Estimate

Cli = Callable[..., Any]


class Middle(nn.Module):
    """Sees a person in the middle of every crop."""

    def forward(self, crops: torch.Tensor, *, keypoint_masks: bool = False) -> Estimate:
        mask = torch.zeros(crops.shape[:3])
        mask[:, 2:-2, 2:-2] = 1
        return Estimate(mask, torch.full((len(crops), 17, 3), 0.5), torch.ones(len(crops)))


def told(outcome: Any, *words: str) -> None:
    """One line of an error, and no result."""
    assert (outcome.code, outcome.out) == (1, "")
    assert "Traceback" not in outcome.err
    line = outcome.err.splitlines()[-1]
    assert line.startswith("mgran-fast: ")
    for word in words:
        assert word in line, line


# --- the list -----------------------------------------------------------------------------------------------------


def test_the_list(cli: Cli) -> None:
    outcome = cli("datasets")
    assert (outcome.code, outcome.out) == (0, "")
    for name, info in SETS.items():
        assert f"{name}: {info.title}\n" in outcome.err
        for line in info.layout.splitlines():
            assert line in outcome.err
    assert "train: 12,936 pictures, 751 people, 6 cameras" in outcome.err
    assert "withdrawn by its authors" in outcome.err
    assert "--split: 1 to 20" in outcome.err
    assert "--variant: detected or labeled" in outcome.err
    assert "scored by the rule: single-gallery-shot" in outcome.err
    assert "://" not in outcome.err


def test_the_list_as_json(cli: Cli) -> None:
    found = {one["name"]: one for one in cli("datasets", "--json").json["datasets"]}
    assert found.keys() == SETS.keys()
    assert found["dukemtmc-reid"]["published"]["all"]["gallery"] == {"pictures": 17_661, "people": 1_110, "cameras": 8}
    assert found["cuhk03-classic"]["splits"] == [1, 20]
    assert found["cuhk03-classic"]["packages"] == ["h5py"]
    assert found["msmt17"]["variants"] == ["v1", "v2"]
    assert "withdrawn" in found["dukemtmc-reid"]["warning"]


@pytest.mark.parametrize("command", ["", "check", "miniature", "extract"])
def test_help(command: str, cli: Cli) -> None:
    outcome = cli("datasets", *command.split(), "--help")
    assert outcome.code == 0
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", outcome.out).split())
    assert f"Example: mgran-fast datasets {command}".strip() in text
    assert "--json" in text


# --- check, miniature, extract ------------------------------------------------------------------------------------


def test_a_miniature_and_its_check(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "small"
    drawn = cli("datasets", "miniature", "market1501", folder, "--size", "16x8", "--json")
    assert drawn.code == 0, drawn.err
    (tmp_path / "counts.json").write_text(drawn.out)
    told(cli("datasets", "check", "market1501", folder), str(folder), "not the published numbers of Market-1501: train")
    outcome = cli("datasets", "check", "market1501", folder, "--counts", tmp_path / "counts.json", "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json
    assert found["counts"]["gallery"] == drawn.json["counts"]["gallery"] == {"pictures": 14, "people": 4, "cameras": 2}
    assert found["published"]["train"]["people"] == 751
    assert (found["name"], found["root"], found["protocol"]) == ("Market-1501", str(folder), "market")
    assert found["multi_query"] == 12
    assert found["parts"]["gt_bbox"] == 12
    # What check prints is a file of numbers too.
    (tmp_path / "counts.json").write_text(outcome.out)
    (folder / "query" / "0001_c1s1_001900_00.jpg").unlink()
    told(
        cli("datasets", "check", "market1501", folder, "--counts", tmp_path / "counts.json"),
        f"not the {tmp_path / 'counts.json'}'s numbers of Market-1501: query: 5 pictures instead of 6",
    )
    outcome = cli("datasets", "check", "market1501", folder, "--counts", "any")
    assert outcome.code == 0
    assert f"Market-1501 in {folder}; scored by the rule market" in outcome.err
    assert "  query: 5 pictures, 3 people, 2 cameras" in outcome.err
    assert "note: not the published numbers: query: 5 pictures instead of 3,368" in outcome.err


def test_miniature_tells_its_numbers(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("datasets", "miniature", "msmt17", tmp_path / "m", "--variant", "v2", "--size", "16x8", "--seed", "3")
    assert outcome.code == 0
    assert "a miniature of msmt17; read it with --dataset msmt17 --counts any" in outcome.err
    assert "  gallery: 6 pictures, 3 people, 2 cameras" in outcome.err
    assert (tmp_path / "m" / "mask_train_v2").is_dir()
    assert cli("datasets", "check", "auto", tmp_path / "m", "--counts", "any", "--json").json["variant"] == "v2"


def test_bad_arguments(cli: Cli, tmp_path: Path) -> None:
    told(cli("datasets", "check", "veri", tmp_path), "no data set is called 'veri'")
    told(cli("datasets", "check", "market1501", tmp_path / "nowhere"), "no such folder; give the folder that holds")
    told(cli("datasets", "check", "cuhk03", tmp_path, "--variant", "drawn"), "has no variant 'drawn'")
    told(cli("datasets", "check", "cuhk03", tmp_path, "--counts", tmp_path / "no"), "cannot be read as counts")
    told(cli("datasets", "miniature", "cuhk03", tmp_path, "--size", "0x8"), "--size 0x8: write height x width")
    (tmp_path / "file").touch()
    told(cli("datasets", "miniature", "cuhk03", tmp_path), "not an empty folder")
    told(cli("datasets", "extract", tmp_path, tmp_path / "out"), "no cuhk03_release/cuhk-03.mat here")
    told(cli("datasets", "extract", tmp_path, tmp_path / "file"), "a file, not a folder; choose another one")
    assert cli("datasets", "check").code == 2


def test_extract(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    counts = miniature("cuhk03", tmp_path / "raw", size=(16, 8))
    outcome = cli("datasets", "extract", tmp_path / "raw", tmp_path / "out", "--json")
    assert outcome.json == {"folder": str(tmp_path / "out"), "pictures": {"detected": 30, "labeled": 31}}
    assert open_set("cuhk03", tmp_path / "out", counts=counts).root == tmp_path / "out"
    assert (
        f"{tmp_path / 'out'}: 31 labeled pictures" in cli("datasets", "extract", tmp_path / "raw", tmp_path / "out").err
    )


# --- the commands that read a data set ----------------------------------------------------------------------------


def test_open_data(tmp_path: Path) -> None:
    counts = miniature("cuhk03-np", tmp_path / "np", size=(16, 8), variant="labeled")
    found = common.open_data(tmp_path / "np", "cuhk03-np", "labeled", None, "any")
    assert found.name == "CUHK03-NP labeled"
    (tmp_path / "counts.json").write_text(json.dumps(counts.to_json()))
    assert common.open_data(tmp_path / "np", "cuhk03-np", "labeled", counts=str(tmp_path / "counts.json")) == (
        open_set("cuhk03-np", tmp_path / "np", variant="labeled", counts=counts)
    )
    # What training wants by default is a training part.
    miniature("occluded-reid", tmp_path / "occluded", size=(16, 8))
    with pytest.raises(ValueError, match="has no train part; it is for evaluation alone"):
        common.open_data(tmp_path / "occluded", counts="any")
    assert common.open_data(tmp_path / "occluded", counts="any", need=None).query


@pytest.mark.parametrize("name", ["market1501", "msmt17", "cuhk03", "people", "table"])
def test_masks_and_evaluate(name: str, cli: Cli, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgran_fast.cli.common.open_estimator", lambda name: Middle())
    folder = tmp_path / "data"
    miniature(name, folder, size=(32, 16))
    data = folder / "people.csv" if name == "table" else folder
    options = ("--dataset", name, "--counts", "any")
    outcome = cli("masks", data, *options, "--size", "32x16", "--workers", "0", "--json")
    assert outcome.code == 0, outcome.err
    found = open_set(name, data, counts="any")
    everyone = {record.path for record in (*found.train, *found.query, *found.gallery, *found.multi_query)}
    assert sum(one["pictures"] for one in outcome.json["files"]) == len(everyone)
    RegionCache(found.root / "regions").check([*found.train, *found.query, *found.gallery], "")
    checkpoint = trained.folder / "model.safetensors"
    outcome = cli("evaluate", "--data", data, "--checkpoint", checkpoint, "--workers", "0", "--json", *options)
    assert outcome.code == 0, outcome.err
    assert outcome.json["counts"]["queries"] == len(found.query)
    assert outcome.json["counts"]["gallery"] == len(found.gallery)
    assert "RegionNet" not in outcome.err
    assert found.name in outcome.err


def test_masks_by_looking_at_the_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgran_fast.cli.common.open_estimator", lambda name: Middle())
    miniature("msmt17", tmp_path / "m", size=(16, 8))
    told(cli("masks", tmp_path / "m"), "not the published numbers of MSMT17 v1")
    outcome = cli("masks", tmp_path / "m", "--counts", "any", "--size", "16x8", "--workers", "0", "--json")
    assert outcome.code == 0, outcome.err
    assert [Path(one["file"]).name for one in outcome.json["files"]] == ["pictures.sqlite"]


def test_evaluate_refuses_other_numbers(cli: Cli, trained: Any, tmp_path: Path) -> None:
    miniature("dukemtmc-reid", tmp_path / "duke", size=(32, 16))
    checkpoint = trained.folder / "model.safetensors"
    arguments = ("evaluate", "--data", tmp_path / "duke", "--checkpoint", checkpoint, "--dataset", "dukemtmc-reid")
    told(cli(*arguments), "not the published numbers of DukeMTMC-reID: train: 12 pictures instead of 16,522")
