"""``mgran_fast.doctor()``: what is installed, which backend each op uses here, and why."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Any

import torch

from mgran_fast.ops import backend

#: Ops, and the devices that have an implementation of their own: what an engine calls runs on one kind alone.
OPS = {
    **dict.fromkeys(("crops", "regions", "inputs", "align", "pooling"), ("cpu", "cuda")),
    **dict.fromkeys(("conv", "network", "ranking", "shots"), ("cpu",)),
    **dict.fromkeys(("pointwise", "stem"), ("cuda",)),
}
PACKAGES = ("torch", "torchvision", "triton", "numpy", "pytorch-lightning", "pytorch-metric-learning")


def doctor() -> dict[str, Any]:
    """Look at this installation.

    Returns:
        Plain values: ``python``, ``platform``, ``packages`` (name -> version or None), ``extension`` (compiler,
        OpenMP, the CPU's instruction set, CUDA version and architectures, or why it does not import), ``devices``,
        ``ops`` (op -> device -> "native", or "reference: why"), ``advice`` (one line each, empty when all is well).
    """
    module = backend.extension()
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    advice = []
    if module is None:
        extension: dict[str, Any] = {"problem": backend.why_not_native("regions", "cpu")}
        advice.append("build the extension: pip install . in the checkout, with a C++17 compiler on the PATH")
    else:
        extension = {
            "version": module.version,
            "compiler": module.compiler,
            "openmp": module.openmp,
            "instructions": module.isa(),
            "cuda": module.cuda,
            "architectures": module.cuda_architectures,
        }
        if torch.cuda.is_available() and module.cuda is None:
            advice.append("there is a GPU, but the extension lacks CUDA: reinstall with nvcc on the PATH")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "extension": extension,
        "devices": devices,
        "backend": backend.requested(),
        "ops": {
            op: found for op, of in OPS.items() if (found := {kind: _choice(op, kind) for kind in kinds if kind in of})
        },
        "advice": advice,
    }


def _choice(op: str, device: str) -> str:
    if backend.requested() == "reference":
        return "reference: MGRAN_BACKEND=reference"
    reason = backend.why_not_native(op, device)
    return f"reference: {reason}" if reason else "native"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
