"""A row from its data set to its result: trained once, gone on with, measured by its rule, refused in one line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.data import DataSet, MaskFiles
from mgran_fast.data.synthetic import write
from mgran_fast.errors import CheckpointError, DataError, MGRANError
from mgran_fast.reproduce import runs
from mgran_fast.reproduce.rows import ROWS
from mgran_fast.reproduce.run import Result, Source, reproduce, result
from mgran_fast.reproduce.runs import Run, Training
from mgran_fast.train import logs
from mgran_fast.weights import files

SINGLE, MULTIPLE, CUHK03 = ROWS["market1501-single"], ROWS["market1501-multiple"], ROWS["cuhk03-detected-part"]


@dataclasses.dataclass
class Done:
    """A finished row: where, with what, and what it told."""

    output: Path
    result: Result
    lines: list[str]


@pytest.fixture(scope="module")
def single(market: Path, tiny: dict[str, Any], here: Training, tmp_path_factory: pytest.TempPathFactory) -> Done:
    output, lines = tmp_path_factory.mktemp("single") / "out", []
    found = reproduce(
        SINGLE, Source(market, "any"), output, SINGLE.settings(**tiny), here, command="a command", say=lines.append
    )
    assert found is not None
    return Done(output, found, lines)


@pytest.fixture
def copied(single: Done, tmp_path: Path) -> Path:
    """A copy of the finished row's folder."""
    return Path(shutil.copytree(single.output, tmp_path / "out"))


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever trains in this test fails."""
    monkeypatch.setattr(runs, "run", lambda *arguments, **options: pytest.fail("trained again"))


def test_a_row(single: Done, tiny: dict[str, Any]) -> None:
    found = json.loads((single.output / "market1501-single.json").read_text())
    assert found == json.loads(json.dumps(single.result.to_json()))
    assert found["published"] == {"rank1": 0.8891, "map": 0.7803}
    history = logs.read(single.output / "market1501" / "history.csv")[-1]
    for name in ("rank1", "map"):
        # The history has six digits.
        assert found["measured"][name] == pytest.approx(history[name], abs=1e-6)
        assert 0 <= found["measured"][name] <= 1
        assert found["difference"][name] == pytest.approx(found["measured"][name] - found["published"][name])
    assert (found["splits"], found["splits_published"], found["queries"]) == ([], 0, "single")
    assert (found["command"], found["weights"], found["protocol"]) == ("a command", None, "market")
    assert set(found["changed"]) == set(tiny) - {"workers", "evaluate_every"}
    assert found["changed"]["epochs"] == [120, 1]
    assert found["versions"]["packages"]["torch"]
    assert any("not the published numbers" in note for note in found["notes"])
    assert single.lines[0] == "Market-1501: 12 training pictures of 3 people"
    read = result(SINGLE, single.output)
    assert read is not None
    assert (read.figures, read.changed) == (single.result.figures, found["changed"])
    assert result(MULTIPLE, single.output) is None


def test_a_finished_row_is_told_again(
    copied: Path, single: Done, market: Path, tiny: dict[str, Any], here: Training, untrained: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(runs, "evaluate", lambda *arguments, **options: pytest.fail("measured again"))
    found = reproduce(SINGLE, Source(market, "any"), copied, SINGLE.settings(**tiny), here)
    assert found is not None
    assert found.figures == pytest.approx(single.result.figures, abs=1e-6)


def test_multiple_queries_take_the_training_of_single_ones(
    copied: Path, single: Done, market: Path, tiny: dict[str, Any], here: Training, untrained: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = (copied / "market1501" / "model.safetensors").read_bytes()
    asked: list[dict[str, Any]] = []
    evaluate = runs.evaluate

    def spy(*arguments: Any, **options: Any) -> Any:
        asked.append(options)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(runs, "evaluate", spy)
    found = reproduce(MULTIPLE, Source(market, "any"), copied, MULTIPLE.settings(**tiny), here)
    assert found is not None
    assert (copied / "market1501" / "model.safetensors").read_bytes() == before
    line = logs.read(copied / "market1501" / "history.csv")[-1]
    assert line["rank1"] == pytest.approx(single.result.figures["rank1"], abs=1e-6), "both are kept"
    assert line["multiple rank1"] == pytest.approx(found.figures["rank1"], abs=1e-6)
    assert found.row.published["map"] == 0.8130
    assert [len(options["multi_query"]) for options in asked] == [12]
    assert found.details["rule"].startswith("Market-1501 multiple query: the mean vector of all pictures")


def test_a_row_that_was_broken_off_goes_on(
    copied: Path, single: Done, market: Path, tiny: dict[str, Any], here: Training
) -> None:
    folder = copied / "market1501"
    model = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    lines = logs.read(folder / "history.csv")
    del lines[-1]["rank1"], lines[-1]["map"]
    logs.write(folder / "history.csv", lines)
    found = reproduce(SINGLE, Source(market, "any"), copied, SINGLE.settings(**tiny), here)
    assert found is not None
    assert (folder / "model.safetensors").read_bytes() == model, "the state was gone on from"
    assert found.figures == single.result.figures


def test_other_settings_are_refused(copied: Path, market: Path, tiny: dict[str, Any], here: Training) -> None:
    other = SINGLE.settings(**{**tiny, "seed": 7})
    with pytest.raises(CheckpointError, match="the run has seed=0 and you ask for 7; use the same settings"):
        reproduce(SINGLE, Source(market, "any"), copied, other, here)
    # What the result does not depend on may be otherwise.
    free = SINGLE.settings(**{**tiny, "evaluate_every": 3})
    assert reproduce(SINGLE, Source(market, "any"), copied, free, here) is not None


def test_other_weights_are_refused(
    copied: Path, single: Done, dataset: DataSet, tiny: dict[str, Any], here: Training, tmp_path: Path
) -> None:
    weights = tmp_path / "trunk.pth"
    weights.write_bytes(b"some")
    run = Run(copied / "market1501", SINGLE.settings(**tiny))
    asked = dataclasses.replace(here, weights=weights)
    with pytest.raises(CheckpointError, match=r"the run in it began from scratch; leave --weights .*trunk.pth out"):
        run.ready(dataset, asked)
    run._note_weights(weights)
    run.ready(dataset, asked)
    assert run.weights() == {"file": "trunk.pth", "sha256": files.sha256(weights)}
    with pytest.raises(CheckpointError, match=r"began with other weights \(trunk.pth\); give trunk.pth with --weights"):
        run.ready(dataset, here)
    weights.write_bytes(b"others")
    with pytest.raises(CheckpointError, match=r"began with other weights \(trunk.pth\); give the same with --weights"):
        run.ready(dataset, asked)
    (run.folder / runs.WEIGHTS).write_text("{")
    with pytest.raises(DataError, match=r"weights.json: does not tell what the run began with"):
        run.ready(dataset, here)


def test_splits(cuhk03: Path, tiny: dict[str, Any], here: Training, tmp_path: Path) -> None:
    config, lines = CUHK03.settings(**tiny), []
    first = reproduce(CUHK03, Source(cuhk03, "any"), tmp_path, config, here, splits=[2], say=lines.append)
    assert first is not None
    assert first.splits == (2,)
    assert set(first.figures) == {"rank1", "rank5"}
    both = reproduce(CUHK03, Source(cuhk03, "any"), tmp_path, config, here, splits=[2, 1, 2], say=lines.append)
    assert both is not None
    assert f"{tmp_path / 'cuhk03-detected-part' / 'split-02'}: measured already" in lines
    assert both.splits == (1, 2)
    each = [logs.read(tmp_path / "cuhk03-detected-part" / f"split-0{k}" / "history.csv")[-1] for k in (1, 2)]
    assert all("map" not in one for one in each), "the rule has none"
    for name, value in both.figures.items():
        assert value == pytest.approx((each[0][name] + each[1][name]) / 2, abs=1e-6)
    found = json.loads((tmp_path / "cuhk03-detected-part.json").read_text())
    assert (found["splits"], found["splits_published"], len(found["each"])) == ([1, 2], 20, 2)
    assert (found["variant"], found["protocol"]) == ("detected", "single-gallery-shot")
    assert found["rule"].startswith("single gallery shot, single query: ")


@pytest.mark.parametrize(
    ("row", "splits", "told"),
    [
        (SINGLE, [1], "--splits: market1501-single has one split; leave it out"),
        (CUHK03, [0, 1], "--splits: cuhk03-detected-part has the splits 1 to 20, not 0"),
        (CUHK03, [], "--splits: cuhk03-detected-part has the splits 1 to 20"),
    ],
)
def test_wrong_splits(row: Any, splits: list[int], told: str, here: Training, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        reproduce(row, Source(tmp_path), tmp_path, row.settings(), here, splits=splits)
    assert str(caught.value) == told


def test_refused_before_anything_is_written(market: Path, tiny: dict[str, Any], here: Training, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(DataError, match="not the published numbers of Market-1501"):
        reproduce(SINGLE, Source(market), output, SINGLE.settings(**tiny), here)
    with pytest.raises(DataError, match="3 training people, but --people 16"):
        reproduce(SINGLE, Source(market, "any"), output, SINGLE.settings(), here)
    with pytest.raises(DataError, match="no regions/ nor masks/ beside the pictures: mgran-fast masks"):
        reproduce(SINGLE, Source(market, "any"), output, SINGLE.settings(**{**tiny, "layout": "region"}), here)
    without = shutil.copytree(market, tmp_path / "copied", ignore=shutil.ignore_patterns("gt_bbox"))
    with pytest.raises(DataError, match="no gt_bbox with the pictures of multiple queries"):
        reproduce(MULTIPLE, Source(without, "any"), output, MULTIPLE.settings(**tiny), here)
    assert not output.exists()


def test_masks_are_made_once_for_all_rows_of_a_set(market: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    masks = MaskFiles(write(tmp_path / "drawn", people=(2, 2), cameras=2, views=2, size=(16, 8)).root)
    asked: list[Path] = []

    def make(dataset: DataSet, folder: Path) -> MaskFiles:
        asked.append(folder)
        return masks

    source = Source(market, "any", make_masks=make)
    dataset = source.open(SINGLE, None, lambda text: runs.nullcontext())
    assert source.open_masks(dataset, "region", tmp_path / "regions") is masks
    assert source.open_masks(dataset, "none", tmp_path / "regions") is None
    assert asked == [tmp_path / "regions"]
    given = Source(market, masks=masks.root)
    assert isinstance(given.open_masks(dataset, "region", tmp_path), MaskFiles)


def test_a_broken_result_is_told(copied: Path) -> None:
    (copied / "market1501-single.json").write_text('{"each": []}')
    with pytest.raises(MGRANError, match=r"market1501-single.json: no result of the row market1501-single; delete it"):
        result(SINGLE, copied)
