"""Kill -9 an extraction and all its processes at random moments, again and again; what comes out must not show it.

python tests/extraction/kill.py --kills 20
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

CODE = """
import sys
from mgran_fast.extraction import extract
pictures, output, checkpoint, processes = sys.argv[1:]
found = extract(pictures, output, checkpoint, processes=int(processes), threads=1)
print(found.made, found.kept)
"""


def start(pictures: Path, output: Path, checkpoint: Path, processes: int) -> subprocess.Popen[str]:
    """An extraction in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(pictures), str(output), str(checkpoint), str(processes)],
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def campaign(pictures: Path, output: Path, checkpoint: Path, processes: int, kills: int, seed: int) -> list[int]:
    """Kill this many runs, each at a moment between its start and its end, and let the last one end.

    A moment is a number of parts that are there, and a share of a part's time after that. Returns the number of parts
    that were there after each kill.
    """
    moments = random.Random(seed)
    seen = []
    for _ in range(kills):
        before = len(list(output.glob("*.parquet")))
        process = start(pictures, output, checkpoint, processes)
        wanted = before + moments.choice((0, 0, 1))
        while process.poll() is None and len(list(output.glob("*.parquet"))) < max(wanted, 0):
            time.sleep(0.002)
        # Anywhere from the import on, or within the part at hand.
        time.sleep(moments.uniform(0, 4) if wanted == before else moments.uniform(0, 0.2))
        with suppress(ProcessLookupError, PermissionError):  # it has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        seen.append(len(list(output.glob("*.parquet"))))
    last = start(pictures, output, checkpoint, processes)
    told, _ = last.communicate(timeout=240)
    assert last.returncode == 0, "the last run failed"
    made, kept = map(int, told.split())
    sys.stdout.write(f"parts after each kill: {seen}; the last run made {made} pictures and kept {kept}\n")
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    import torch

    from mgran_fast import MGRAN
    from mgran_fast.data.synthetic import write
    from mgran_fast.extraction import extract

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        pictures = write(base / "data", people=(2, 40), cameras=3, views=6, size=(64, 32)).root / "bounding_box_test"
        torch.manual_seed(0)
        MGRAN(size=(64, 32), trunk="resnet18").save(base / "model.safetensors")
        whole = extract(pictures, base / "whole", base / "model.safetensors", threads=1).output
        campaign(
            pictures, base / "killed", base / "model.safetensors", options.processes, options.kills, options.seed
        )  # fmt: skip
        want = {path.name: path.read_bytes() for path in whole.glob("*.parquet")}
        got = {path.name: path.read_bytes() for path in (base / "killed").glob("*.parquet")}
        if got != want:
            sys.exit("DIFFERENT from the run that was not killed")
        sys.stdout.write(f"{options.kills} kills: the same {len(want)} files, to the byte\n")


if __name__ == "__main__":
    main()
