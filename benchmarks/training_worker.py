"""One contestant of test_training.py, in a process of its own: python training_worker.py KIND THREADS MEMORY.

For each line "step" of its input it takes a training step and answers with the loss; for "peak" with the most memory
that the process ever had, and for "base" with what it had before the first step, in kB.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from mgran_fast.bench.suite import training
from mgran_fast.train.memory import keep

PEOPLE, SIZE = 8, (256, 128)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four pictures of each of two people: crops, region maps, labels. Real ones with MGRAN_DATA, else synthetic."""
    root = os.environ.get("MGRAN_DATA")
    if root:
        from mgran_fast.data import CropDataset, read_market
        from mgran_fast.data.masks import MaskFiles

        folder = Path(root) / "cuhk03"
        records = read_market(folder).train
        first = [i for i, record in enumerate(records) if record.person != records[i - 1].person]
        some = [records[first[person] + k] for person in (0, 1) for k in range(4)]
        samples = [CropDataset(some, masks=MaskFiles(folder), size=SIZE)[i] for i in range(PEOPLE)]
        labels = torch.arange(PEOPLE) // 4
        return torch.stack([s.crop for s in samples]), torch.stack([s.region_map for s in samples]), labels
    return training.batch(PEOPLE, SIZE)


def memory(name: str) -> str:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(row.split()[1] for row in status.splitlines() if row.startswith(name))


def main(kind: str, threads: int, memory_kind: str) -> None:
    if memory_kind == "kept memory" and not keep():
        sys.exit("this C library has no mallopt")
    torch.set_num_threads(threads)
    step = training.step_of(kind, batch(), size=SIZE)
    base = memory("VmRSS")
    for line in sys.stdin:
        asked = line.strip()
        answer = repr(step()) if asked == "step" else memory("VmHWM") if asked == "peak" else base
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
