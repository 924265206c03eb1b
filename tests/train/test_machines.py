"""Training on several processes: what one computes of the whole batch, whatever goes wrong on the way."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mgran_fast.data import DataSet, MaskFiles, read_market
from mgran_fast.errors import DataError
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.data import TrainingData
from mgran_fast.train.lightning import CHECKPOINT, STATE
from mgran_fast.train.machines import Machines, is_first
from mgran_fast.train.run import check, train

Settings = Callable[..., TrainConfig]
SCRIPT = Path(__file__).with_name("machines_process.py")
#: What does not make much of rounding: AdamW divides a gradient by its size, and the triplets of people this small have
#: distances of 0, where a root has no slope. The circle loss looks across ranks as triplets do.
PLAIN: dict[str, Any] = {
    "optimizer": "sgd", "learning_rate": 0.01, "metric_loss": "circle", "circle_scale": 16.0, "people": 4,
    "pictures": 2, "epochs": 2,
}  # fmt: skip
#: Of 4 to 6 steps in float32, relative to the largest weight of a tensor. One step gives 2e-6, and each makes it about
#: two times as much: 4 of them 5e-5, 8 of them 1e-3.
TOLERANCE = 5e-4


@pytest.fixture(scope="module", autouse=True)
def few_channels(narrow: None, fast_files: None) -> None:
    """The processes do the same."""


def launch(
    data: Path, output: Path, config: TrainConfig, devices: int, **more: Any
) -> subprocess.CompletedProcess[str]:
    given = {**dataclasses.asdict(config), "devices": devices, **more}
    command = [sys.executable, str(SCRIPT), str(data), str(output), json.dumps(given)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)


def alone(data: Path, output: Path, config: TrainConfig) -> None:
    dataset = read_market(data)
    train(dataset, MaskFiles(dataset.root), config, output, resume=True)


def furthest(a: Path, b: Path) -> float:
    """The largest difference of a weight, relative to the largest weight of its tensor."""
    left, right = load_file(a / CHECKPOINT), load_file(b / CHECKPOINT)
    assert left.keys() == right.keys()
    return max(
        float((left[name] - right[name]).abs().max() / right[name].abs().max().clamp(min=1e-6))
        for name in left
        if left[name].is_floating_point()
    )


def test_two_processes_train_as_one_does_and_go_on_as_one(tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    """A signal that one of them gets ends both with a state, from which one process goes on."""
    config = settings(**PLAIN, batches=3, ema=0.5, accumulate=2)
    alone(tiny.root, tmp_path / "one", config)
    done = launch(tiny.root, tmp_path / "two", config, 2, stop=5)
    assert done.returncode == 128 + 15, done.stderr
    assert done.stderr == "ended by SIGTERM after step 3; the run goes on with --resume\n"
    assert torch.load(tmp_path / "two" / STATE, weights_only=True)["global_step"] == 3
    alone(tiny.root, tmp_path / "two", config)
    assert furthest(tmp_path / "two", tmp_path / "one") < TOLERANCE


def test_four_processes_of_which_some_have_no_pictures(tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    """Two of six people cannot be read: of each batch of four at most two shares of a process are empty."""
    data = Path(shutil.copytree(tiny.root, tmp_path / "data"))
    for record in read_market(data).train:
        if record.person > 4:
            record.path.write_bytes(b"")
    config = settings(**PLAIN, batches=2)
    alone(data, tmp_path / "one", config)
    done = launch(data, tmp_path / "four", config, 4)
    assert done.returncode == 0, done.stderr
    assert furthest(tmp_path / "four", tmp_path / "one") < TOLERANCE


def test_a_process_that_is_killed_is_told_in_one_line(tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    config = settings(**PLAIN, batches=2)
    done = launch(tiny.root, tmp_path / "run", config, 2, kill=4)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "process 0 of 2 has lost another one" in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].endswith("the run goes on with --resume")
    assert "Traceback" not in done.stderr
    assert torch.load(tmp_path / "run" / STATE, weights_only=True)["epoch"] == 0


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_of_a_batch_are_the_batch(world: int, tiny: DataSet, settings: Settings) -> None:
    data = TrainingData(tiny, MaskFiles(tiny.root), settings(people=6, batches=3))
    whole = list(data.batches)
    data.batches.set_epoch(0)
    shares = []
    for rank in range(world):
        data.batches.batches.share(rank, world)
        shares.append(list(data.batches))
    assert [[item for share in parts for item in share] for parts in zip(*shares, strict=True)] == whole
    data.batches.batches.skip(2)
    assert list(data.batches) == [shares[-1][2]]


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"devices": 0}, "devices must be 1 or more, or auto, not 0"),
        ({"devices": "all"}, "devices must be 1 or more, or auto, not 'all'"),
        ({"nodes": 0}, "nodes must be at least 1, not 0"),
        ({"strategy": "dp"}, "strategy must be one of auto, ddp, fsdp, not 'dp'"),
        ({"accelerator": "tpu"}, "accelerator must be one of auto, cpu, gpu, not 'tpu'"),
    ],
)
def test_wrong_settings(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Machines(**change)


def test_what_cannot_run_here_is_told_before_anything_starts(tiny: DataSet, settings: Settings, tmp_path: Path) -> None:
    for machines, changes, words in (
        (Machines(accelerator="gpu"), {}, "accelerator gpu: torch sees no CUDA device here; take cpu, or auto"),
        (Machines(strategy="fsdp"), {}, "strategy fsdp shares weights out among GPUs, and there is none: take ddp"),
        (Machines(devices=2), {}, "2 processes cannot share 3 people a batch evenly: ask for a multiple"),
        (None, {"precision": "f16"}, "precision f16 is for GPUs: take bf16 or float32 on a CPU"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            check(tiny, settings(**changes), tmp_path / "run", machines=machines)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_gpus_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Machines().device, Machines().processes(), Machines(devices=2, nodes=3).processes()) == ("cpu", 1, 6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert (Machines().device, Machines().shape()) == ("cuda", (1, 4))
    assert Machines(accelerator="cpu").shape() == (1, 1)
    with pytest.raises(DataError, match="devices 5: this machine has 4 GPUs; ask for fewer, or accelerator cpu"):
        Machines(devices=5).processes()
    assert Machines(devices=5, accelerator="cpu").processes() == 5


def test_launchers_say_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_first()
    torchrun = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "5"}
    slurm = {"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "mgran"}
    with monkeypatch.context() as patch:
        for name, value in torchrun.items():
            patch.setenv(name, value)
        assert Machines().shape() == (2, 4)
        assert Machines(devices=4, nodes=2).shape() == (2, 4)
        assert not is_first()
        with pytest.raises(DataError, match="the launcher started 4 processes on each of 2; ask for the same"):
            Machines(devices=2).shape()
    with monkeypatch.context() as patch:
        for name, value in slurm.items():
            patch.setenv(name, value)
        assert Machines().shape() == (3, 2)
        assert is_first()
        with pytest.raises(DataError, match=r"srun: .*ntasks-per-node"):
            Machines().plugins()
        patch.setenv("SLURM_NTASKS_PER_NODE", "2")
        assert [type(plugin).__name__ for plugin in Machines().plugins()] == ["SLURMEnvironment"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not is_first()
