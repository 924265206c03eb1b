"""Parts shared out to the machines of a Ray cluster, by Ray Data."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgran_fast.errors import MGRANError
from mgran_fast.extraction.embedder import Embedder, Report
from mgran_fast.extraction.local import ATTEMPTS

_FIELDS = ("number", "pictures", "read", "no_person")


def run(
    output: Path,
    numbers: Sequence[int],
    address: str,
    processes: int | None,
    threads: int,
    done: Callable[[Report], None],
) -> None:
    """Make the parts of these numbers on a cluster; the folder must be under the same path on every machine.

    Ray makes the parts of a process or machine that died again, each :data:`ATTEMPTS` times at the most.

    Args:
        address: of the cluster, as ``ray.init`` takes it: "auto", "host:port", "ray://host:port", or "local" for
            one that is made here and ends with this call. Where this process is in a cluster already, that one.
        processes: over all machines; None for as many as there is room for.
        threads: of each process, and what it takes of a machine's cores; on machines with GPUs it takes one of those.

    Raises:
        MGRANError: Ray is not installed or has no such cluster, or what a process raised. Parts that are written stay.
    """
    ray = import_ray()
    own = not ray.is_initialized()
    if own:
        _reach(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise MGRANError(_nowhere(address, error)) from None
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        largest = max((int(one["Resources"].get("CPU", 0)) for one in ray.nodes() if one["Alive"]), default=0)
        if threads > largest:
            raise MGRANError(f"--threads {threads}: the largest machine of the cluster has {largest} cores")
        room = gpus or max(1, int(resources.get("CPU", 1)) // threads)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # One block for each part: the unit of work, and of what is done again.
        data = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        reports = data.map_batches(
            _Actor,
            fn_constructor_args=(os.fspath(output), threads),
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=min(processes or room, room, len(numbers))),
            num_cpus=threads,
            num_gpus=1 if gpus else None,
            max_task_retries=ATTEMPTS - 1,
        )
        for row in reports.iter_rows():
            done(Report(*(int(row[name]) for name in _FIELDS)))
    except ray.exceptions.RayError as error:
        raise MGRANError(_reason(error)) from error
    finally:
        if own:
            ray.shutdown()


def _reach(address: str) -> None:
    """Raises MGRANError where nobody answers at HOST:PORT: Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise MGRANError(_nowhere(address, error)) from None


def _nowhere(address: str, error: Exception) -> str:
    return f"--ray {address}: no cluster there ({error}); start one with ray start --head, or give --ray local"


class _Actor:
    """An embedder as Ray Data calls it."""

    def __init__(self, output: str, threads: int) -> None:
        self._embedder = Embedder(Path(output), threads)

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        reports = [self._embedder(int(number)) for number in batch["number"]]
        return {name: np.array([getattr(report, name) for report in reports]) for name in _FIELDS}


def import_ray() -> Any:
    """The module, with its data. Raises MGRANError where it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MGRANError("--ray takes Ray, which is not installed: pip install 'mgran_fast[ray]'") from error
    return ray


def _reason(error: BaseException) -> str:
    """What was wrong, where it was one of our errors; else all that Ray says."""
    seen: BaseException | None = error
    while seen is not None:
        cause = getattr(seen, "cause", None)
        if isinstance(cause, (MGRANError, ValueError)):
            return str(cause)
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    return f"the cluster failed: {error}; run the command again: it goes on where it stopped"
