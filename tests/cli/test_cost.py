"""mgran-fast cost: a table for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mgran_fast.cli import common
from mgran_fast.engine.cost import GPUS, costs

Cli = Callable[..., Any]
SMALL = ("--trunk", "resnet18", "--size", "64x32", "--people", "2")


def test_json(cli: Cli) -> None:
    outcome = cli("cost", *SMALL, "--shape", "single", "--last-stride", "2", "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json
    passes = found.pop("passes")
    assert found == {
        "measured": False,
        "people": 2,
        "size": [64, 32],
        "trunk": "resnet18",
        "last_stride": 2,
        "shape": "single",
    }
    wanted = costs(2, (64, 32), "resnet18", last_stride=2, shape="single")
    assert passes == {
        name: {
            "precision": str(cost.dtype).removeprefix("torch."),
            "launches": cost.launches,
            "bytes": cost.bytes,
            "operations": cost.operations,
            "floor_seconds": {gpu.name: gpu.floor(cost) for gpu in GPUS},
        }
        for name, cost in wanted.items()
    }
    assert [one["precision"] for one in passes.values()] == ["float32", "bfloat16", "bfloat16"]


def test_table(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.console, "_width", 120)  # wide enough for a line a row
    outcome = cli("cost", *SMALL, "--precision", "float16")
    assert (outcome.code, outcome.out) == (0, "")
    assert "resnet18, 2 people, 64x32, shape full: COMPUTED, not measured" in outcome.err
    rows = {line.split("│")[1].strip(): line.split("│")[2:] for line in outcome.err.splitlines() if "│" in line}
    wanted = costs(2, (64, 32), "resnet18")
    assert rows.keys() == wanted.keys()
    assert [cell.strip() for cell in rows["engine"][:2]] == ["float16", str(wanted["engine"].launches)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "int8"), "--precision must be one of bfloat16, float16, float32, not 'int8'"),
        (("--shape", "crop"), "--shape must be one of full, single, not 'crop': its frames of several sizes are not"),
        (("--shape", "round"), "--shape must be one of full, single, not 'round'"),
        (("--trunk", "vgg"), "--trunk must be one of resnet18, resnet34, resnet50, resnet101, resnet152, not 'vgg'"),
        (("--size", "256"), "--size 256: write height x width in pixels, for example 256x128"),
    ],
)
def test_wrong_options_are_one_line(cli: Cli, options: tuple[str, ...], words: str) -> None:
    outcome = cli("cost", *options)
    assert (outcome.code, outcome.out) == (1, "")
    assert len(outcome.err.splitlines()) == 1
    assert words in outcome.err
