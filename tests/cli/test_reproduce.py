"""mgran-fast reproduce and mgran-fast ablate: lists, runs, tables, and refusals in one line."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torchvision
import typer

from mgran_fast.cli.endings import told
from mgran_fast.data import DataSet
from mgran_fast.data.sets import miniature
from mgran_fast.errors import MGRANError
from mgran_fast.reproduce.rows import ROWS
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.signals import Interrupted

Cli = Callable[..., Any]
NARROW = Path(__file__).parents[1] / "train" / "narrow.py"
#: Settings of a run of a second.
TINY = (
    "size=[32, 16]", "trunk=resnet18", "epochs=1", "people=2", "pictures=2", "batches=1", "workers=0",
    "evaluate_every=0", "precision=float32",
)  # fmt: skip
SET = [word for text in TINY for word in ("--set", text)]
COSINE = ["--set", "schedule=cosine", "--set", "milestones=[]"]


@pytest.fixture(scope="module", autouse=True)
def narrow() -> Iterator[None]:
    """Until the module ends a ResNet-18 has few channels, and no curves are drawn."""
    spec = importlib.util.spec_from_file_location("narrow", NARROW)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.models, "resnet18", module.narrow)
        patch.setattr("mgran_fast.train.curves.draw", lambda rows, path: None)
        yield


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("market") / "data"
    miniature("market1501", folder, size=(32, 16))
    return folder


def test_without_a_row_all_are_listed(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("reproduce", "--output", tmp_path)
    assert outcome.code == 0
    for row in ROWS.values():
        (line,) = [one for one in outcome.err.splitlines() if f" {row.name} " in one]
        assert row.title in line
        assert f" {' '.join(filter(None, (row.dataset, row.variant)))} " in line
        assert f"Rank-1 {100 * row.published['rank1']:.2f}, " in line
    rows = cli("reproduce", "--output", tmp_path, "--json").json["rows"]
    assert [one["row"] for one in rows] == list(ROWS)
    assert {one["measured"] for one in rows} == {None}
    assert rows[0]["published"] == {"rank1": 0.8891, "map": 0.7803}
    assert TrainConfig.from_yaml(Path(rows[0]["config"])).epochs == 120


def test_a_row_from_pictures_to_the_table(cli: Cli, market: Path, tmp_path: Path) -> None:
    asked = ["--data", market, "--counts", "any", "--output", tmp_path, "--json", *SET, *COSINE]
    first = cli("reproduce", "market1501-single", *asked)
    assert first.code == 0, first.err
    assert "RegionNet makes" in first.err
    assert (tmp_path / "regions" / "market1501" / "gt_bbox.sqlite").is_file(), "for the other row as well"
    measured = first.json["measured"]
    assert f"{100 * measured['map']:.2f} %" in first.err
    assert "78.03 %" in first.err
    assert f"{100 * (measured['map'] - 0.7803):+.2f}" in first.err
    assert "with other settings: size, trunk, epochs" in first.err
    assert json.loads((tmp_path / "market1501-single.json").read_text()) == first.json

    second = cli("reproduce", "market1501-multiple", *asked)
    assert second.code == 0, second.err
    assert "epoch 1/1" in first.err
    assert "epoch 1/1" not in second.err, "both rows are of one training"
    assert second.json["published"] == {"rank1": 0.9007, "map": 0.813}
    line = next(
        line for line in cli("reproduce", "--output", tmp_path).err.splitlines() if " market1501-single " in line
    )
    assert f"mAP {100 * measured['map']:.2f} (with other settings: " in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("market1502",), "no row is called 'market1502'; the nearest is 'market1501-single'"),
        (("dukemtmc-reid",), "dukemtmc-reid: give the folder of its data set, dukemtmc-reid, with --data"),
        (("cuhk03-labeled", "--data", "x", "--splits", "one"), "--splits one: write numbers, for example 1,2,3"),
        (("cuhk03-labeled", "--data", "x", "--splits", "21"), "cuhk03-labeled has the splits 1 to 20, not 21"),
        (("dukemtmc-reid", "--data", "nowhere"), "nowhere: no such folder"),
        (("dukemtmc-reid", "--set", "epochs=0"), "epochs must be at least 1, not 0"),
        (("dukemtmc-reid", "--set", "epochs=9", "--set", "epochs=8"), "--set epochs=8: epochs is given twice"),
        (("dukemtmc-reid", "--data", "x", "--devices", "0"), "--devices must be 1 or more, or auto, not 0"),
        (("dukemtmc-reid", "--data", "x", "--counts", "nowhere.json"), "nowhere.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_refusals_of_rows(words: tuple[str, ...], told: str, cli: Cli, tmp_path: Path) -> None:
    outcome = cli("reproduce", *words, "--output", tmp_path / "out")
    assert outcome.code == 1
    assert told in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_ablation(cli: Cli, tiny: DataSet, tmp_path: Path) -> None:
    asked = ["--output", tmp_path, "--seeds", "2", "--only", "none,region", *SET]
    first = cli("ablate", "--data", tiny.root, *asked, "--json")
    assert first.code == 0, first.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ablation.json", "ablation.md", "none-0", "none-1", "region-0", "region-1",
    ]  # fmt: skip
    assert first.err.count("epoch 1/1") == 4
    found = first.json["variations"]
    assert found["region"]["seeds"] == [0, 1]
    assert 0 < found["region"]["map"]["mean"] <= 1
    assert f"{100 * found['none']['map']['mean']:.1f} ± {100 * found['none']['map']['deviation']:.1f}" in first.err

    again = cli("ablate", "--data", tiny.root, *asked, "--json")
    assert "4 of 4 runs are there already" in again.err
    assert again.json["variations"] == found
    table = cli("ablate", "--table-only", *asked, "--set", "label_smoothing=0.1", "--json")
    assert table.json["variations"] == found
    refused = cli("ablate", "--table-only", *asked, "--set", "label_smoothing=0.2")
    assert refused.code == 1
    assert "none-0: cannot resume, the run has label_smoothing=0.1 and you ask for 0.2" in refused.err
    assert len(refused.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "give the folder of the data set with --data, or --table-only"),
        (("--table-only",), "no finished run of none, box, part, region, crop, single; leave --table-only out"),
        (("--only", "all", "--table-only"), "no variation is called 'all'; there are none, box, part"),
        (("--set", "shape=crop"), "--set shape: the ablation varies it; leave it out"),
        (("--config", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_refusals_of_the_ablation(words: tuple[str, ...], told: str, cli: Cli, tmp_path: Path) -> None:
    outcome = cli("ablate", "--output", tmp_path / "out", *words)
    assert outcome.code == 1
    assert told in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_is_broken_off_tells_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as left, told():
        raise Interrupted("ended by SIGTERM after step 3; the run goes on with --resume", 15)
    assert left.value.exit_code == 143
    assert "after step 3; the run goes on when the command is run again\n" in capsys.readouterr().err
    with pytest.raises(MGRANError, match="make room and go on when the command is run again"), told():
        raise MGRANError("the disk is full; make room and go on with --resume")
    with pytest.raises(MGRANError, match="the loss is nan"), told():
        raise FloatingPointError("the loss is nan")
