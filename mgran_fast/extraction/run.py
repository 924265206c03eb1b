"""From pictures to Parquet: the plan, the parts that are missing, the account."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from mgran_fast.data import find_masks
from mgran_fast.errors import DataError
from mgran_fast.extraction import cluster, local, parts
from mgran_fast.extraction.embedder import Report
from mgran_fast.extraction.plan import FOLDER, Plan, Settings, locked, pyarrow, whole
from mgran_fast.progress import Step
from mgran_fast.search.pictures import find_pictures
from mgran_fast.weights import files


@dataclass(frozen=True)
class Extracted:
    """What a run did.

    Attributes:
        output: the folder.
        pictures: how many the folder stands for.
        made: how many of them were embedded by this run, and could be read.
        kept: how many were there before.
        added: how many came to those of an earlier run.
        gone: how many of an earlier run are no longer where they were; their rows stay.
        no_person: how many of those made now show nobody: an empty mask, or a presence below 0.5.
        problems: one line for each picture that could not be read, by this run or one before.
        seconds: the time that embedding took.
    """

    output: Path
    pictures: int
    made: int
    kept: int
    added: int
    gone: int
    no_person: int
    problems: tuple[str, ...]
    seconds: float


def extract(
    pictures: str | os.PathLike[str],
    output: str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    *,
    precision: str | None = None,
    mra: str = "regionnet",
    masks: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    processes: int | None = None,
    threads: int | None = None,
    ray: str | None = None,
    retry: bool = False,
    progress: Step | None = None,
) -> Extracted:
    """Embed the pictures of a folder or a table, and write them to a folder of Parquet files.

    Run it again after a kill, a crash or a full disk: it goes on where it stopped, and what comes out is the same to
    the byte. Run it again when there are more pictures: those are added. The columns are those of
    :func:`mgran_fast.extraction.columns`.

    Args:
        pictures: a folder, all below it, or a table; see :mod:`mgran_fast.search.pictures`.
        output: the folder to write to; whatever reads Parquet reads it as one table.
        checkpoint: the file of a model, or of an engine.
        precision: float32 (the default) or bfloat16, of the engine that is made of a model; float16 on a GPU.
        mra: who finds the people, see :func:`mgran_fast.mra.named.open_estimator`.
        masks: a region cache or a folder of mask files; None for ``regions`` or ``masks`` in the folder of pictures,
            and where neither is, for the estimator.
        batch_size: pictures at once.
        processes: that read and embed; by default one for each two cores, and at least one for each GPU. They share
            the GPUs. They import the script that calls this, which wants ``if __name__ == "__main__":`` for it.
        threads: of each process; by default what there is for each.
        ray: the address of a Ray cluster, see :func:`mgran_fast.extraction.cluster.run`; None for this machine alone.
        retry: try pictures that could not be read once more.
        progress: called with (pictures done, pictures in all).

    Raises:
        DataError: there is no picture, the output was begun with other settings, another process is writing to it, or
            it cannot be written.
        CheckpointError: the checkpoint cannot be read.
        MGRANError: pyarrow, or Ray, is not installed, or processes were killed again and again.
        ValueError: a number is out of its range.
    """
    pyarrow()
    for name, value in (("batch_size", batch_size), ("processes", processes), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    root, found = find_pictures(Path(pictures), timed=False)
    output, file = Path(output), Path(checkpoint)
    digest = files.sha256(file)
    settings = Settings(
        root=whole(root),
        checkpoint=whole(file),
        sha256=digest,
        model=files.told(file, digest),
        precision=precision,
        mra=mra if mra in ("regionnet", "regionnet+flip", "torchvision") else whole(mra),
        masks=None if (held := _masks(root, masks)) is None else whole(held),
        batch_size=batch_size,
    )
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: a file; name a folder")
    if output.is_dir() and any(output.iterdir()) and not (output / FOLDER).is_dir():
        raise DataError(f"{output}: holds other things; name an empty folder or a new one")
    with locked(output):
        plan = Plan.opened(output)
        if plan is None and any(output.glob("*.parquet")):
            raise DataError(f"{output}: holds parts of a plan that is gone; name another --output")
        plan = (plan or Plan.begun(output, settings)).moved(settings)
        files.sweep(output)
        before, here = set(plan.names), {one.name for one in found}
        more = [one for one in found if one.name not in before]
        if more:
            plan = plan.extended(more)
        gone = before - here
        for number in parts.problems(plan) if retry else ():
            # The rows of pictures that are gone could not be made again.
            if gone.isdisjoint(parts.names(plan.file(number))):
                plan.file(number).unlink()
        try:
            reports, seconds = _make(plan, ray, processes, threads, progress)
        except BaseException:
            # Settings that cannot be, for example: nothing depends on the plan yet.
            if ray is None and len(plan.missing()) == len(plan):
                plan.forget()
            raise
        # What processes that were killed had begun to write.
        files.sweep(output)
        problems = [line for lines in parts.problems(plan).values() for line in lines]
    at_work = sum(one.pictures for one in reports)
    return Extracted(
        output=output,
        pictures=plan.pictures,
        made=sum(one.read for one in reports),
        kept=plan.pictures - at_work,
        added=len(more) if before else 0,
        gone=len(gone),
        no_person=sum(one.no_person for one in reports),
        problems=tuple(problems),
        seconds=seconds,
    )


def _make(
    plan: Plan, ray: str | None, processes: int | None, threads: int | None, progress: Step | None
) -> tuple[list[Report], float]:
    """Make what is missing: the reports, and the time it took."""
    missing = plan.missing()
    reports: list[Report] = []
    done = plan.pictures - sum(map(plan.size, missing))

    def add(report: Report) -> None:
        nonlocal done
        done += report.pictures
        reports.append(report)
        if progress is not None:
            progress(done, plan.pictures)

    start = time.perf_counter()
    if missing and ray is not None:
        cluster.run(plan.output, missing, ray, processes, threads or 1, add)
    elif missing:
        count, each = shares(processes, threads)
        local.run(plan.output, missing, count, each, add)
    return reports, time.perf_counter() - start


def shares(processes: int | None, threads: int | None) -> tuple[int, int]:
    """How many processes, and threads for each, of what is asked for and what the machine has."""
    cores = torch.get_num_threads()
    if processes is None:
        # They share the GPUs: there reading is what takes the time.
        processes = max(1, torch.cuda.device_count(), cores // (threads or 2))
    return processes, threads or max(1, cores // processes)


def _masks(root: Path, given: str | os.PathLike[str] | None) -> str | os.PathLike[str] | None:
    """Where the masks are, if there are any: what the plan keeps."""
    if given is not None:
        find_masks(root, given)
        return given
    return None if find_masks(root, None) is None else root
