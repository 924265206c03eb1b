"""The one format in which figures are kept: where they were measured, with what, and every race.

A file of JSON::

    {"format": 2,
     "machine": {"processor": ..., "cores": ..., "torch": ..., "mgran_fast": ..., "commit": ..., ...},
     "versions": {"openvino": ..., ...},                      # of those who took part
     "ceilings": {"GFLOP/s, float32": ..., "GB/s, copy": ...},
     "results": [
       {"name": ..., "group": ..., "at": {"people": 8, "precision": "bfloat16"}, "threads": 2, "rounds": 7,
        "milliseconds": {"ours": {"median": ..., "10 %": ..., "90 %": ...}, ...},
        "ratios": {"eager": 1.9, ...},                        # median over the rounds of theirs / ours
        "wanted": {"eager|OpenVINO": {"bar": 1.15, "reached": 1.6}},
        "left out": {"FAISS, exact": "faiss not installed: ..."},
        "per second": ..., "operations": ..., "bytes": ...},
       {"name": ..., "values": {"Rank-1, %": 87.5, ...}, "command": ...}]}       # figures that are no times

Only ``format``, ``machine``, ``results`` and the results' ``name`` are always there.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import mgran_fast
from mgran_fast.bench import paired
from mgran_fast.errors import DataError
from mgran_fast.ops import backend

FORMAT = 2
#: What races are run with, where it is installed.
PACKAGES = (
    "torchvision", "triton", "numpy", "onnxruntime", "openvino", "nncf", "opencv-python-headless", "opencv-python",
    "faiss-cpu", "torchreid",
)  # fmt: skip
Row = dict[str, Any]


def machine() -> dict[str, Any]:
    """What a record says of where it was made."""
    module = backend.extension()
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mgran_fast": mgran_fast.__version__,
        "commit": _commit(),
        "compiler": None if module is None else module.compiler,
        "instructions": None if module is None else module.isa(),
    }
    if torch.cuda.is_available():
        found["device"] = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    return found


def versions() -> dict[str, str]:
    """Of the packages that races are run with."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def row(name: str, threads: int, timings: Mapping[str, paired.Timing], *, count: int | None = None) -> Row:
    """The figures of one race."""
    ours = timings["ours"]
    return {
        "name": name,
        "threads": threads,
        "rounds": len(ours.rounds),
        "milliseconds": {
            key: {
                "median": 1e3 * timing.median,
                "10 %": 1e3 * timing.quantile(0.1),
                "90 %": 1e3 * timing.quantile(0.9),
            }
            for key, timing in timings.items()
        },
        "ratios": {key: paired.ratio(timing, ours) for key, timing in timings.items() if key != "ours"},
        "per second": None if count is None else count / ours.median,
    }


def record(rows: list[Row], ceilings: Mapping[str, float] | None = None) -> dict[str, Any]:
    """What a file holds."""
    made: dict[str, Any] = {"format": FORMAT, "machine": machine(), "versions": versions()}
    if ceilings:
        made["ceilings"] = dict(ceilings)
    return {**made, "results": rows}


def save(path: Path, made: Mapping[str, Any]) -> None:
    """Write it, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def load(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        DataError: the file is not there, is no JSON, or is no record; which, and what to do.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; mgran-fast bench writes a record") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        said = found.get("format") if isinstance(found, dict) else None
        raise DataError(f"{path} is no record of format {FORMAT} (format: {said}); run the benchmarks again")
    results = found.get("results")
    if not isinstance(results, list) or not isinstance(found.get("machine"), dict):
        raise DataError(f"{path} lacks its machine or its results")
    for one in results:
        if not isinstance(one, dict) or "name" not in one or not ({"milliseconds", "values"} & set(one)):
            raise DataError(f"{path}: a result without name or figures: {str(one)[:80]}")
    return found


def only(results: list[Row], name: str, **about: Any) -> Row:
    """The one result whose name begins so, with these circumstances (threads, group, or of ``at``).

    Raises:
        DataError: there is none, or more than one.
    """
    found = [
        one
        for one in results
        if one["name"].startswith(name)
        and all(one.get(key, one.get("at", {}).get(key)) == value for key, value in about.items())
    ]
    if len(found) != 1:
        words = ", ".join([name, *(f"{key} {value}" for key, value in about.items())])
        raise DataError(f"{words}: {len(found)} results, not 1")
    return found[0]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str | None:
    """Of the checkout that the package lies in; None in an installed wheel. "+" after it: with changes."""
    home = Path(mgran_fast.__file__).resolve().parent
    if not (home.parent / ".git").exists():
        return None
    try:
        words = ["git", "-C", str(home), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
