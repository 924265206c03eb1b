"""A run of several processes: ``machines_process.py DATA OUTPUT SETTINGS``, the last one JSON.

Its keys are those of TrainConfig, and: devices; stop, the batch in which the last process gets a SIGTERM; kill, in
which it is killed; begun, a file that is made when the first batch comes; wide, for all channels of a ResNet-18. The
first process starts the others, by this same command line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision
from narrow import narrow

from mgran_fast import ranks
from mgran_fast.data import Batch, MaskFiles, read_market
from mgran_fast.errors import MGRANError
from mgran_fast.train.config import TrainConfig
from mgran_fast.train.machines import Machines
from mgran_fast.train.module import TrainingModule
from mgran_fast.train.run import train
from mgran_fast.train.signals import Interrupted


def main() -> None:
    data, output, given = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    machines = Machines(devices=given.pop("devices"), accelerator="cpu")
    signals = {given.pop("stop", 0): signal.SIGTERM, given.pop("kill", 0): signal.SIGKILL}
    begun = given.pop("begun", None)
    if not given.pop("wide", False):
        torchvision.models.resnet18 = narrow
    torch.set_num_threads(1)
    step, seen = TrainingModule.training_step, [0]

    def spied(self: TrainingModule, batch: Batch, index: int) -> Any:
        seen[0] += 1
        if begun is not None:
            Path(begun).touch()
        if seen[0] in signals and ranks.rank() == ranks.world() - 1:
            os.kill(os.getpid(), signals[seen[0]])
        return step(self, batch, index)

    TrainingModule.training_step = spied  # type: ignore[method-assign]
    config = TrainConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
    dataset = read_market(data)
    try:
        train(dataset, MaskFiles(dataset.root), config, output, machines=machines, resume=True)
    except Interrupted as stopped:
        sys.stderr.write(f"{stopped}\n")
        sys.exit(stopped.code)
    except MGRANError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
