"""Extraction on a Ray cluster of two machines: the bytes of one process, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mgran_fast import DataError, MGRANError
from mgran_fast.extraction import extract

# Ray's own: it warns of settings of its own, and leaves sockets and streams to the end of the process.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("ResourceWarning", "FutureWarning", "DeprecationWarning")
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of two machines, with a core each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
        cluster = Cluster()
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False)
        cluster.wait_for_nodes()
        yield str(cluster.address)
        cluster.shutdown()


def workers() -> set[int]:
    """The processes that run our actors."""
    found = set()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        # Processes come and go.
        with suppress(OSError):
            if b"ray::MapWorker" in file.read_bytes():
                found.add(int(file.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_two_machines_and_a_killed_worker(world: Any, tmp_path: Path, address: str) -> None:
    others, killed, steps = workers(), [], []

    def step(done: int, total: int) -> None:
        steps.append((done, total))
        if not killed:
            # The second may still be starting.
            end = time.monotonic() + 60
            while len(mine := workers() - others) < 2 and time.monotonic() < end:
                time.sleep(0.05)
            assert len(mine) == 2, "two machines work"
            killed.append(min(mine))
            os.kill(killed[0], signal.SIGKILL)

    found = extract(world.pictures, tmp_path / "out", world.checkpoint, ray=address, progress=step)
    assert killed
    assert steps[-1] == (108, 108)
    assert (found.pictures, found.made, found.kept) == (108, 108, 0)
    assert world.parts(found.output) == world.parts(world.output)
    # Nothing is left to do, and an error comes back as what it was.
    assert extract(world.pictures, tmp_path / "out", world.checkpoint, ray=address).made == 0
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no model")
    with pytest.raises(MGRANError, match="--threads 5: the largest machine of the cluster has 1 cores"):
        extract(world.pictures, tmp_path / "more", world.checkpoint, ray=address, threads=5)
    with pytest.raises(MGRANError, match=r"broken.safetensors: not a safetensors file"):
        extract(world.pictures, tmp_path / "other", broken, ray=address, processes=1)


def test_no_cluster(world: Any, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(MGRANError, match=r"--ray 127.0.0.1:1: no cluster there .* ray start --head"):
        extract(world.pictures, tmp_path / "out", world.checkpoint, ray="127.0.0.1:1")


def test_without_ray(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MGRANError, match=r"pip install 'mgran_fast\[ray\]'"):
        extract(world.pictures, tmp_path / "out", world.checkpoint, ray="auto")


def test_a_machine_that_does_not_see_the_output(tmp_path: Path) -> None:
    from mgran_fast.extraction.embedder import Embedder

    with pytest.raises(DataError, match="on a file system that all machines share"):
        Embedder(tmp_path / "elsewhere")
