"""mgran-fast bench: every stage is timed, and the plain way beside it does the same thing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mgran_fast import MGRAN
from mgran_fast.bench import Case, cases, race, ratio, suite
from mgran_fast.cli import app

STAGES = [
    "read JPEG",
    "cut out of a frame",
    "MRA: masks and keypoints",
    "region maps",
    "regions and aligned inputs",
    "MA engine, float32",
    "MA engine, bfloat16",
    "MA engine, int8",
    "JPEG to embeddings, bfloat16",
    "ranking",
]


@pytest.fixture(scope="module")
def model() -> MGRAN:
    torch.manual_seed(0)
    return MGRAN(size=(64, 32), trunk="resnet18").eval()


@pytest.fixture(scope="module")
def answers(model: MGRAN) -> Iterator[dict[str, tuple[int, dict[str, Any]]]]:
    """What each contestant gives, by stage: pictures are gone when the next stage comes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "RANKED", (16, 64))
        found = cases(model, 3, ("float32", "bfloat16", "int8"))
        yield {one.name: (one.people, {name: run() for name, run in one.contestants.items()}) for one in found}


def test_stages(answers: dict[str, tuple[int, dict[str, Any]]]) -> None:
    assert list(answers) == STAGES
    assert all("ours" in given for _, given in answers.values())
    assert {people for people, _ in answers.values()} == {3, 16}


def test_plain_ways_answer_alike(answers: dict[str, tuple[int, dict[str, Any]]]) -> None:
    def given(stage: str) -> tuple[Any, Any]:
        ours, plain = answers[stage][1].values()
        return ours, plain

    for stage, most in (("read JPEG", 1.0), ("cut out of a frame", 1.0)):
        ours, plain = given(stage)
        assert ours.shape == plain.shape == (3, 64, 32, 3)
        assert float((ours.float() - plain.float()).abs().mean()) < most
    assert torch.equal(*given("region maps"))
    for ours, plain in zip(*given("regions and aligned inputs"), strict=True):
        assert torch.allclose(ours.float(), plain.float())
    for precision, least in (("float32", 1 - 1e-5), ("bfloat16", 0.99), ("int8", 0.8)):
        ours, plain = given(f"MA engine, {precision}")
        assert float(torch.cosine_similarity(ours, plain.float()).min()) > least
    ours, plain = given("ranking")
    assert ours.ap.tolist() == pytest.approx(plain, abs=1e-6)


def test_a_race_takes_turns() -> None:
    seen: list[str] = []
    timings = race({"ours": lambda: seen.append("a"), "other": lambda: seen.append("b")}, seconds=0, least=4)
    assert len(timings["ours"].rounds) == len(timings["other"].rounds) == 4
    # Two rounds to warm up, and every round begins with another one.
    assert "".join(seen[4:]) == "abbaabba"
    assert ratio(timings["ours"], timings["ours"]) == 1


def test_command(model: MGRAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "RANKED", (16, 64))
    model.save(tmp_path / "model.safetensors")
    arguments = ["bench", "--checkpoint", str(tmp_path / "model.safetensors"), "--people", "2", "--seconds", "0.1"]
    result = CliRunner().invoke(app, [*arguments, "--precision", "float32", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [row["stage"] for row in found["stages"]] == [
        name.replace("bfloat16", "float32") for name in STAGES[:6] + STAGES[8:]
    ]
    for row in found["stages"]:
        assert row["a second"] > 0
        assert row["rounds"] >= 3
        assert set(row["times"]) == set(row["milliseconds"]) - {"ours"}
    assert found["people"] == 2
    assert "torch" in found["machine"]


def test_an_unknown_precision(model: MGRAN) -> None:
    with pytest.raises(ValueError, match="int4"):
        [one.name for one in cases(model, 1, ("int4",))]
    assert isinstance(next(cases(model, 1)), Case)
