"""kill -9 at random moments, and --resume: ``python tests/train/kill.py [--kills 20] [--devices 1] [--seed 0]``.

A tiny run is killed again and again, at moments drawn over the time from its first batch to its end, with a state after
every step, and resumed until it ends. Its model must have the bytes of that of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mgran_fast.data.synthetic import write

SCRIPT = Path(__file__).with_name("machines_process.py")
SETTINGS: dict[str, Any] = {
    "size": [32, 16], "trunk": "resnet18", "epochs": 3, "people": 4, "pictures": 2, "batches": 6, "workers": 1,
    "evaluate_every": 2, "precision": "float32", "ema": 0.9, "accumulate": 2, "identity_loss": "oim",
    "checkpoint_minutes": 1e-9,
}  # fmt: skip


class Runs:
    """Runs on one data set, below one folder."""

    def __init__(self, folder: Path, devices: int) -> None:
        self.folder, self.devices, self.begun = folder, devices, folder / "begun"
        write(folder / "data", people=(6, 4), cameras=2, views=2, size=(32, 16))

    def start(self, name: str) -> subprocess.Popen[str]:
        """Start or resume a run, in a process group of its own."""
        self.begun.unlink(missing_ok=True)
        given = json.dumps({**SETTINGS, "devices": self.devices, "begun": str(self.begun)})
        command = [sys.executable, str(SCRIPT), str(self.folder / "data"), str(self.folder / name), given]
        return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)

    def wait(self, process: subprocess.Popen[str]) -> None:
        """Until the first batch of the run, or its end."""
        while not self.begun.exists() and process.poll() is None:
            time.sleep(0.005)

    def model(self, name: str) -> Path:
        """Where a run leaves its model."""
        return self.folder / name / "model.safetensors"

    def finish(self, name: str) -> bytes:
        """Run to the end; the bytes of the model."""
        process = self.start(name)
        said = process.communicate(timeout=300)[1]
        assert process.returncode == 0, said
        return self.model(name).read_bytes()


def killed(process: subprocess.Popen[str], after: float) -> bool:
    """Kill a run with all its processes after so many seconds; False if it had ended by itself, without an error."""
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    assert process.returncode == 0, process.communicate()[1]
    return False


def check(folder: Path, kills: int, devices: int, seed: int) -> list[str]:
    """A line for each kill: when, and the step of the state then. Raises AssertionError for other bytes."""
    import torch

    runs, random_numbers, lines = Runs(folder, devices), random.Random(seed), []
    process = runs.start("whole")
    runs.wait(process)
    start = time.monotonic()
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    takes = time.monotonic() - start
    want = runs.model("whole").read_bytes()
    number, done = 0, 0
    while done < kills:
        name = f"run{number}"
        process = runs.start(name)
        runs.wait(process)
        if killed(process, random_numbers.uniform(0.0, 0.5) * takes):
            done += 1
            state = folder / name / "checkpoints" / "last.ckpt"
            # A state is whole at any moment.
            step = torch.load(state, weights_only=True)["global_step"] if state.is_file() else 0
            lines.append(f"killed {name}, its state is of step {step}")
        else:
            assert runs.model(name).read_bytes() == want, f"{name} ended in other bytes"
            lines.append(f"{name} ended in the same bytes")
            number += 1
    assert runs.finish(f"run{number}") == want, f"run{number} ended in other bytes"
    lines.append(f"run{number} ended in the same bytes")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for line in check(Path(folder), given.kills, given.devices, given.seed):
            sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
