"""Whole runs with the losses, optimizers, schedules and samplers that are not the defaults."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mgran_fast.data import DataSet, MaskFiles
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.run import STATE, TrainResult, build, train

Settings = Callable[..., TrainConfig]

CHOICES: tuple[dict[str, Any], ...] = (
    {"identity_loss": "oim", "metric_loss": "none", "sampler": "camera"},
    {"metric_loss": "soft_triplet", "optimizer": "sgd", "learning_rate": 0.01, "sampler": "balanced"},
    {"metric_loss": "circle", "optimizer": "adam", "schedule": "steps", "milestones": (0.5,), "clip": 1.0},
    {"identity_weight": 0.0, "head_rate": 10.0, "accumulate": 2},
)


def run(dataset: DataSet, config: TrainConfig, output: Path, **options: Any) -> TrainResult:
    return train(dataset, MaskFiles(dataset.root), config, output, **options)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: ", ".join(map(str, choice)))
def test_a_run_learns(choice: dict[str, Any], tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    config = settings(epochs=1, **choice)
    result = run(tiny, config, tmp_path / "run")
    (line,) = result.history
    want = config.identity_weight * line["identity loss"] + config.metric_weight * line["metric loss"]
    assert line["loss"] == pytest.approx(want, rel=1e-5)
    assert all(math.isfinite(value) for value in line.values())
    assert (line["metric loss"] == 0) == (config.metric_loss == "none")
    before, after = build(config, 6).ma.state_dict(), result.model.ma.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert "trunk.conv1.weight" in moved
    # A table stands in for the classifiers, and nothing trains them.
    assert ("classifiers.weight" in moved) == (config.identity_loss == "softmax")


def test_a_resumed_run_knows_whom_oim_has_seen(tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    config = settings(
        epochs=3, batches=1, identity_loss="oim", metric_loss="circle", optimizer="sgd", learning_rate=0.01,
        sampler="balanced", schedule="steps", milestones=(1.0,),
    )  # fmt: skip

    def stop(line: dict[str, float]) -> None:
        # The state of the epoch before is written by then.
        if line["epoch"] == 2:
            raise KeyboardInterrupt

    whole = run(tiny, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tiny, config, tmp_path / "run", on_epoch=stop)
    state = torch.load(tmp_path / "run" / STATE, weights_only=True)["state_dict"]
    assert bool(state["loss.identity.table"].any())
    resumed = run(tiny, config, tmp_path / "run", resume=True)
    left, right = whole.model.ma.state_dict(), resumed.model.ma.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)
    losses = [[line["loss"] for line in result.history] for result in (whole, resumed)]
    assert losses[0] == losses[1]
