"""Every race of the suite runs, on little; contestants answer alike, and who does not is told."""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mgran_fast import MGRAN
from mgran_fast.bench import peers
from mgran_fast.bench.case import FULL, OURS, QUICK, Case, DifferentAnswerError, Prepared, Setting, Sizes, close
from mgran_fast.bench.run import run, run_all
from mgran_fast.bench.suite import GROUPS, cases, growth, ma

TINY = Sizes(
    people=2, crops=3, one_by_one=1, batches=(1, 9), alone=1, boxes=(1, 3), frame=(300, 400), queries=20, gallery=200,
    reranked=(10, 60), galleries=(100, 300), asked=4, width=32, detector=64,
)  # fmt: skip
SMALL = cases(TINY, quick=True)
NAMES = [f"{case.group}: {case.title}" for case in SMALL]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    torch.manual_seed(0)
    model = MGRAN(size=(64, 32), trunk="resnet18").eval()
    return Setting(model, tmp_path_factory.mktemp("suite"), TINY)


@pytest.mark.parametrize("case", SMALL, ids=NAMES)
def test_race(case: Case, setting: Setting) -> None:
    """What the contestants say is compared: see the next test."""
    before = torch.get_num_threads()
    row, timings = run(dataclasses.replace(case, rounds=(0, 1, 1)), setting, 0)
    assert torch.get_num_threads() == before
    there = [name for name in case.contestants if not case.why_not(name, "cpu")]
    assert OURS in there
    assert set(row["milliseconds"]) == set(timings) == set(there)
    assert set(row["ratios"]) == set(there) - {OURS}
    assert set(row.get("left out", {})) == set(case.contestants) - set(there)
    assert row["group"] == case.group
    assert row["at"] == case.at
    assert row["threads"] == (case.threads or before)
    assert row["per second"] > 0


def test_who_computes_something_else_is_told(setting: Setting) -> None:
    def wrong(setting: Setting, names: Sequence[str]) -> Prepared:
        return Prepared({OURS: lambda: torch.zeros(3), "eager": lambda: torch.full((3,), 0.5)}, close(0.4), 1)

    # Whether the round that is compared counts or not.
    for rounds in (None, (0, 1, 1)):
        case = Case("ops", "sum", (OURS, "eager"), wrong, {"people": 3}, rounds=rounds)
        with pytest.raises(DifferentAnswerError, match="sum, 3 people: eager computes something else than ours"):
            run(case, setting, 0)


def test_a_peer_that_would_take_too_long_is_left_out(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """A curve goes on without it; ours goes to the end, and nobody is left out of other curves."""
    monkeypatch.setattr("mgran_fast.bench.run.LONGEST", 1.0)
    seconds = {OURS: 0.0, "eager": 0.002}

    def sleeping(size: int) -> Callable[[Setting, Sequence[str]], Prepared]:
        def make(setting: Setting, names: Sequence[str]) -> Prepared:
            ways = {name: functools.partial(time.sleep, size * each) for name, each in seconds.items()}
            return Prepared({name: ways[name] for name in names}, None, size)

        return make

    def left_out(name: str, size: int) -> dict[str, str]:
        case = Case("growth", name, (OURS, "eager"), sleeping(size), {"people": size}, rounds=(0, 1, 1), axis="people")
        row, timings = run(case, setting, 0)
        assert OURS in timings
        assert ("eager" in timings) == ("eager" not in row.get("left out", {}))
        found: dict[str, str] = row.get("left out", {})
        return found

    assert left_out("sleep", 1) == left_out("sleep", 4) == {}
    why = left_out("sleep", 10_000)["eager"]
    assert re.fullmatch(r"10000 people would take it about \d\d+ s, and 1 s is the most", why)
    assert left_out("another sleep", 40) == {}


@pytest.mark.parametrize(
    ("ours", "theirs", "right"),
    [(1.0, 1.1, True), (1.0, 1.3, False), (1.0, float("nan"), False), (float("nan"), 1.0, False),
     ([1.0, 2.0], [1.0, 2.0], True), ((torch.ones(2), torch.ones(1)), (torch.ones(2), torch.zeros(1)), False)],
)  # fmt: skip
def test_close(ours: Any, theirs: Any, right: bool) -> None:
    assert close(0.2)(ours, theirs) == right


def test_all_groups_and_every_op() -> None:
    found = cases(FULL)
    assert list(dict.fromkeys(case.group for case in found)) == list(GROUPS)
    titles = [f"{case.group}: {case.title}" for case in found]
    assert len(set(titles)) == len(titles)
    assert {"crops", "regions", "inputs", "align", "pooling"} <= {case.name for case in found if case.group == "ops"}
    assert all(case.contestants[0] == OURS for case in found)
    on_gpu = cases(FULL, device="cuda")
    assert {"float16", "bfloat16"} <= {case.at.get("precision") for case in on_gpu if case.group == "MA"}
    assert not {"int8"} & {case.at.get("precision") for case in on_gpu}


def test_growth_goes_as_far_as_promised() -> None:
    found = [case for case in cases(FULL) if case.group == "growth"]
    assert {case.name for case in found} == set(growth.AXES)
    assert all(case.axis == growth.AXES[case.name] and case.size > 0 for case in found)
    # What a smaller one took tells what a larger one will take.
    for name, threads in {(case.name, case.threads) for case in found}:
        sizes = [case.size for case in found if (case.name, case.threads) == (name, threads)]
        assert sizes == sorted(sizes)
    reach = {(case.name, case.threads): [] for case in found}
    for case in found:
        reach[case.name, case.threads].append(case.at[growth.AXES[case.name]])
    embedding, crops, search, ranked = growth.AXES
    assert (reach[embedding, None][0], reach[embedding, None][-1]) == (1, 256)
    assert reach[embedding, 1][-1] == FULL.alone
    assert (reach[crops, None][0], reach[crops, None][-1]) == (1, 200)
    for name in (search, ranked):
        assert (reach[name, None][0], reach[name, None][-1]) == (1_000, 1_000_000)


def test_the_quick_form_does_the_same_on_less() -> None:
    whole, quick = cases(FULL), cases(QUICK, quick=True)
    assert {(case.group, case.name) for case in quick} == {(case.group, case.name) for case in whole}
    assert not any("torch.compile" in name or "int8" in name for case in quick for name in case.contestants)


@pytest.mark.parametrize("computed", [True, False])
def test_no_peer_emulates_bfloat16(computed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgran_fast.bench.case.computes_bf16", lambda device: computed)
    found = cases(FULL)
    fastest = "bfloat16" if computed else "float32"
    assert {case.at.get("precision") for case in found if case.name == "embedding, more people"} == {fastest}
    (training,) = (case for case in found if case.group == "training")
    assert {f"eager, {fastest}", f"torch.compile, {fastest}"} <= set(training.contestants)
    half = [case for case in found if case.group == "MA" and case.at["precision"] == "bfloat16"]
    for case in half:
        for peer in ("eager", "torch.compile"):
            assert peer in case.contestants
            assert case.why_not(peer, "cpu") == ("" if computed else ma.EMULATED)
    assert len(half) == 2


def test_a_peer_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "missing", lambda *modules: list(modules))
    assert peers.why_not("FAISS, exact") == "faiss not installed: pip install 'mgran_fast[peers]'"
    assert peers.why_not("OpenVINO, int8").startswith("onnx, onnxscript, openvino, nncf not installed: pip install")
    assert peers.why_not("torchreid, Cython") == "torchreid not installed"
    assert peers.why_not("plain torch") == ""
    assert peers.why_not("OpenVINO", "cuda") == "runs on the CPU alone"


def test_a_race_whose_own_side_cannot_run_is_left_out(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "missing", lambda *modules: list(modules))
    said: list[Any] = []
    training = [case for case in SMALL if case.group == "training"]
    assert training[0].why_not(OURS, "cpu").startswith("pytorch_metric_learning not installed: pip install")
    assert run_all(training, setting, 0, said.append) == said == []


def test_dense_rerank_is_the_reference() -> None:
    from mgran_fast.reference import rerank

    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 3, generator=generator)
    between = torch.cdist(points, points)
    parts = between[:8, :8], between[:8, 8:], between[8:, 8:]
    found = peers.dense_rerank(*(part.numpy() for part in parts), k1=6, k2=3)
    assert torch.allclose(torch.from_numpy(found).double(), rerank.rerank(*parts, k1=6, k2=3), atol=1e-5)


def test_scratch_files_lie_in_the_settings_folder(setting: Setting) -> None:
    pictures = sorted(path.name for path in Path(setting.folder).glob("*.jpg"))
    assert pictures in ([], ["0.jpg"])
