"""The ablation: which runs there are, that each is trained once, and the table of what they gave."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.data import DataSet, MaskFiles, Masks
from mgran_fast.data.synthetic import write as draw
from mgran_fast.errors import CheckpointError, DataError
from mgran_fast.metrics.evaluation import evaluate
from mgran_fast.reproduce import ablation, runs
from mgran_fast.reproduce.ablation import CONFIG, VARIATIONS, Line
from mgran_fast.reproduce.runs import Training
from mgran_fast.train import logs
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.run import train

NAMES = ("none", "region")


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """4 training people and 3 others, with masks."""
    return draw(tmp_path_factory.mktemp("people") / "data", people=(4, 3), cameras=2, views=2, size=(32, 16))


@pytest.fixture(scope="session")
def base(tiny: dict[str, Any]) -> TrainConfig:
    return TrainConfig.from_yaml(CONFIG, **tiny)


@pytest.fixture(scope="module")
def output(people: DataSet, base: TrainConfig, here: Training, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variations with two seeds, one of them trained by ``mgran-fast train`` beforehand."""
    folder = tmp_path_factory.mktemp("ablation") / "out"
    plan = ablation.plan(base, folder, 2, NAMES)
    by_hand = plan["none"][1]
    trained = train(people, None, by_hand.config, by_hand.folder, machines=here.machines)
    ranking = evaluate(trained.model, people.query, people.gallery, None).ranking
    logs.amend(by_hand.folder, {"rank1": ranking.at(1), "map": ranking.map})
    opened: list[int] = []

    def masks() -> Masks:
        opened.append(1)
        return MaskFiles(people.root)

    lines: list[str] = []
    ablation.ablate(people, masks, plan, here, lines.append)
    assert lines == ["1 of 4 runs are there already", "none-0: 1 of 3", "region-0: 2 of 3", "region-1: 3 of 3"]
    assert opened == [1]
    return folder


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever trains in this test fails."""
    monkeypatch.setattr(runs, "run", lambda *arguments, **options: pytest.fail("trained again"))


def no_masks() -> Masks:
    raise AssertionError("nobody wants masks")


def test_the_runs_of_the_study(base: TrainConfig, tmp_path: Path) -> None:
    plan = ablation.plan(base, tmp_path, 3)
    assert list(plan) == ["none", "box", "part", "region", "crop", "single"]
    for name, some in plan.items():
        assert [run.folder.name for run in some] == [f"{name}-{seed}" for seed in range(3)]
        for seed, run in enumerate(some):
            assert runs.changes(TrainConfig(**{**vars(base), **VARIATIONS[name], "seed": seed}), run.config) == {}
    assert (plan["crop"][0].config.layout, plan["crop"][0].config.shape) == ("region", "crop")
    assert list(ablation.plan(base, tmp_path, 1, ["single", "box", "box"])) == ["box", "single"]
    with pytest.raises(DataError, match="no variation is called 'boxes'; there are none, box, part"):
        ablation.plan(base, tmp_path, 1, ["boxes"])


def test_the_small_settings_leave_what_is_varied_alone() -> None:
    named = TrainConfig.read(CONFIG)
    assert not set(named) & set(ablation.OWN)
    assert named["size"] == (64, 32)


def test_finished_runs_are_taken_as_they_are(
    output: Path, people: DataSet, base: TrainConfig, here: Training, untrained: None
) -> None:
    lines: list[str] = []
    ablation.ablate(people, no_masks, ablation.plan(base, output, 2, NAMES), here, lines.append)
    assert lines == ["4 of 4 runs are there already"]


def test_the_table(output: Path, base: TrainConfig, people: DataSet) -> None:
    plan = ablation.plan(base, output, 3, NAMES)
    lines = ablation.table(plan)
    assert [(line.variation, line.seeds, line.missing) for line in lines] == [
        ("none", [0, 1], 1),
        ("region", [0, 1], 1),
    ]
    for line in lines:
        last = [logs.read(output / f"{line.variation}-{seed}" / "history.csv")[-1] for seed in (0, 1)]
        assert line.rank1 == [one["rank1"] for one in last]
        assert line.map == [one["map"] for one in last]
        assert line.minutes == [one["seconds"] / 60 for one in last]
    told = ablation.write(lines, output, base, command="a command", data=ablation.check(plan))
    assert json.loads((output / "ablation.json").read_text()) == told
    assert told["command"] == "a command"
    region = told["variations"]["region"]
    assert (region["layout"], region["shape"], region["seeds"]) == ("region", "full", [0, 1])
    assert region["map"]["mean"] == pytest.approx(sum(lines[1].map) / 2)
    assert region["map"]["deviation"] == pytest.approx(abs(lines[1].map[0] - lines[1].map[1]) / 2**0.5)
    text = (output / "ablation.md").read_text().splitlines()
    assert text[0] == "| variation | layout | shape | Rank-1, % | mAP, % | seeds | minutes |"
    assert len(text) == 4
    mean, deviation = statistics.fmean(lines[0].map), statistics.stdev(lines[0].map)
    assert f"| {100 * mean:.1f} ± {100 * deviation:.1f} | 2 of 3 |" in text[2]


def test_deviations() -> None:
    # Of 1, 2, 4: mean 7/3, squares (16 + 1 + 25) / 9 over two degrees of freedom.
    assert ablation.spread([0.01, 0.02, 0.04], 100, 3) == "2.333 ± 1.528"
    assert ablation.spread([0.5], 100) == "50.0"
    assert ablation.spread([]) == "–"
    line = Line("box", [0], [0.25], [], [3.0], 0)
    assert ablation.cells(line) == ("box", "box", "full", "25.0", "–", "1", "3.0")


def test_an_unfinished_run_goes_on(
    output: Path, people: DataSet, base: TrainConfig, here: Training, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(output, tmp_path / "out"))
    plan = ablation.plan(base, copied, 2, ["none"])
    before = logs.read(copied / "none-0" / "history.csv")
    lines = [{name: value for name, value in row.items() if name not in ("rank1", "map")} for row in before]
    logs.write(copied / "none-0" / "history.csv", lines)
    assert [line.seeds for line in ablation.table(plan)] == [[1]]
    (copied / "none-0" / "model.safetensors").unlink()
    ablation.ablate(people, no_masks, plan, here)
    assert [line.seeds for line in ablation.table(plan)] == [[0, 1]]
    after = logs.read(copied / "none-0" / "history.csv")[-1]
    assert (after["rank1"], after["map"]) == (before[-1]["rank1"], before[-1]["map"])
    assert (copied / "none-0" / "model.safetensors").read_bytes() == (
        output / "none-0" / "model.safetensors"
    ).read_bytes()


def test_other_settings_and_other_data_are_refused(
    output: Path, people: DataSet, dataset: DataSet, base: TrainConfig, here: Training, untrained: None, tmp_path: Path
) -> None:
    other = TrainConfig(**{**vars(base), "margin": 0.5})
    for refused in (
        lambda: ablation.check(ablation.plan(other, output, 2, NAMES)),
        lambda: ablation.ablate(people, no_masks, ablation.plan(other, output, 2, NAMES), here),
    ):
        with pytest.raises(CheckpointError, match=r"none-0: .* the run has margin=0.3 and you ask for 0.5"):
            refused()
    plan = ablation.plan(base, output, 2, NAMES)
    with pytest.raises(CheckpointError, match=r"none-0: .* other training pictures or people"):
        ablation.ablate(dataset, no_masks, plan, here)
    copied = Path(shutil.copytree(output, tmp_path / "out"))
    settings = copied / "region-0" / "settings.yaml"
    settings.write_text(settings.read_text().replace("data: ", "data: 00"))
    with pytest.raises(CheckpointError, match=r"region-0: trained on other pictures or people than .*none-0"):
        ablation.check(ablation.plan(base, copied, 2, NAMES))
    # What the result does not depend on may be otherwise.
    free = TrainConfig(**{**vars(base), "workers": 2, "evaluate_every": 1})
    assert ablation.check(ablation.plan(free, output, 2, NAMES)) == plan["none"][0].data()


def test_nothing_there_is_no_error_of_a_table(base: TrainConfig, tmp_path: Path) -> None:
    plan = ablation.plan(base, tmp_path / "nowhere", 2, NAMES)
    assert ablation.check(plan) == ""
    assert [(line.seeds, line.missing) for line in ablation.table(plan)] == [([], 2), ([], 2)]
