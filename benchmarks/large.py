"""Ranking and re-ranking at the size of MSMT17, 11,659 queries in a gallery of 82,161: time, and the peak of memory.

    python benchmarks/large.py --record benchmarks/results/large.json

Each way is a process of its own, which tells how long it took, and how much memory it took beyond its input and with
it: its own, not pages of files, looked at every few milliseconds. Embeddings lie about a centre for each of 3,060
people, by 15 cameras. It takes minutes and, for a file of distances, 4 GB of disk. Linux alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mgran_fast import rank
from mgran_fast.bench import record
from mgran_fast.metrics import euclidean, rerank

QUERIES, GALLERY, PEOPLE, CAMERAS = 11659, 82161, 3060, 15
WAYS = ("ranking embeddings", "ranking distances in a file", "re-ranking embeddings", "ranking what was re-ranked")
_ROWS = 1024  # that are made at once: making the input must not be the peak


def problem(width: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Queries, gallery, and their labels."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(PEOPLE, width, generator=generator)
    labels, sides = {}, []
    for side, count in (("query", QUERIES), ("gallery", GALLERY)):
        people = torch.randint(0, PEOPLE, (count,), generator=generator)
        labels[f"{side}_ids"] = people
        labels[f"{side}_cameras"] = torch.randint(0, CAMERAS, (count,), generator=generator)
        rows = torch.empty(count, width)
        for part, own in zip(rows.split(_ROWS), people.split(_ROWS), strict=True):
            part.normal_(generator=generator).mul_(1.5).add_(centres[own])
        sides.append(rows)
    return sides[0], sides[1], labels


def megabytes() -> float:
    """What this process holds of its own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon"))) / 1024


def measured(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What ``call`` gives, and its seconds, its MB beyond what was there before, and the peak."""
    before, done = megabytes(), threading.Event()
    seen = [before]

    def look() -> None:
        while not done.wait(0.004):
            seen.append(megabytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    start = time.perf_counter()
    try:
        result = call()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return result, {"seconds": seconds, "MB beyond": max(seen) - before, "MB peak": max(seen)}


def work(way: str, width: int, threads: int) -> dict[str, dict[str, float]]:
    """What one process does; re-ranking goes on to rank what it made."""
    torch.set_num_threads(threads)
    query, gallery, labels = problem(width)
    few = {name: value[:64] for name, value in labels.items()}
    rank(query[:64], gallery[:64], **{**few, "query_ids": few["gallery_ids"]})  # code is loaded
    if way == WAYS[0]:
        return {way: measured(lambda: rank(query, gallery, **labels))[1]}
    if way == WAYS[1]:
        with tempfile.TemporaryDirectory() as folder:
            file = np.lib.format.open_memmap(
                Path(folder) / "distances.npy", "w+", np.float32, (QUERIES, GALLERY)
            )  # fmt: skip
            for start in range(0, QUERIES, _ROWS):
                file[start : start + _ROWS] = euclidean(query[start : start + _ROWS], gallery).numpy()
            del query, gallery, file
            distances = np.load(Path(folder) / "distances.npy", mmap_mode="r")
            return {way: measured(lambda: rank(distances=distances, **labels))[1]}
    rerank(query[:64], gallery[:64])
    distances, first = measured(lambda: rerank(query, gallery))
    return {way: first, WAYS[3]: measured(lambda: rank(distances=distances, **labels))[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=2048, help="numbers of an embedding (default 2048)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="by default all")
    parser.add_argument("--record", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--way", choices=WAYS[:3], help="this one alone, in this process")
    given = parser.parse_args()
    if given.way:
        sys.stdout.write(json.dumps(work(given.way, given.width, given.threads)))
        return
    rows = []
    for way in WAYS[:3]:
        options = ["--way", way, "--width", str(given.width), "--threads", str(given.threads)]
        answer = subprocess.run([sys.executable, __file__, *options], check=True, capture_output=True, text=True)
        for name, figures in json.loads(answer.stdout).items():
            seconds, beyond, peak = (figures[key] for key in ("seconds", "MB beyond", "MB peak"))
            at = {"queries": QUERIES, "gallery": GALLERY, "width": given.width}
            once = {"milliseconds": {"ours": {"median": 1e3 * seconds}}, "MB beyond": beyond, "MB peak": peak}
            rows.append({"name": name, "at": at, "threads": given.threads, **once})
            sys.stdout.write(
                f"{name}, {given.width} wide, {given.threads} thread(s): {seconds:.1f} s,"
                f" {beyond:.0f} MB beyond the input, peak {peak:.0f} MB\n"
            )
            sys.stdout.flush()
    if given.record:
        record.save(given.record, record.record(rows))


if __name__ == "__main__":
    main()
