"""``mgran_fast.doctor()``: what is installed, which backend each op uses here, and why; what to do."""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata
from typing import Any

import torch

from mgran_fast.ops import backend

_BOTH = ("cpu", "cuda")
#: Ops, the devices that have an implementation of their own, and what the backend knows it by: what an engine calls
#: runs on one kind alone.
OPS = {
    **dict.fromkeys(("crops", "regions", "inputs", "align", "pooling", "batchnorm"), _BOTH),
    **dict.fromkeys(("conv", "network", "ranking", "shots", "rerank", "search"), ("cpu",)),
    **dict.fromkeys(("pointwise", "stem"), ("cuda",)),
}
_KNOWN_AS = {"rerank": "rerank_nearest", "search": "search_first"}
PACKAGES = ("torch", "torchvision", "triton", "numpy")
#: What an extra brings, and what it is for.
EXTRAS = {
    "train": (("pytorch-lightning", "pytorch-metric-learning", "pycocotools", "pyyaml"), "training"),
    "datasets": (("h5py", "scipy", "pyarrow"), "CUHK03's .mat files, tables as Parquet"),
    "search": (("pyarrow",), "galleries on disk, extract"),
    "faiss": (("faiss-cpu",), "approximate search in millions"),
    "video": (("av",), "videos"),
    "ray": (("ray", "pyarrow"), "extract on a cluster"),
    "export": (("onnx", "onnxruntime", "onnxscript"), "ONNX files"),
    "hub": (("huggingface_hub",), "models from and to the Hugging Face hub"),
    "supervision": (("supervision",), "detections of supervision"),
}


def doctor() -> dict[str, Any]:
    """Look at this installation.

    Returns:
        Plain values: ``python``, ``platform``, ``packages`` (name -> version or None), ``extras`` (name -> ``for``,
        ``missing`` packages), ``extension`` (compiler, OpenMP, the CPU's instruction set, CUDA version and
        architectures, or why it does not import), ``cuda`` (that torch was built with, or None), ``devices``,
        ``backend`` (MGRAN_BACKEND), ``ops`` (op -> device -> "native: what it is written in", or "reference: why"),
        ``advice`` (one line each, empty when all is well).
    """
    module = backend.extension()
    devices = [f"cpu ({torch.get_num_threads()} threads)"]
    devices += [_gpu(i) for i in range(torch.cuda.device_count())]
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    if module is None:
        extension: dict[str, Any] = {"problem": backend.why_not_native("regions", "cpu")}
    else:
        extension = {
            "version": module.version,
            "compiler": module.compiler,
            "openmp": module.openmp,
            "instructions": module.isa(),
            "cuda": module.cuda,
            "architectures": module.cuda_architectures,
        }
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "extras": {
            name: {"for": what, "missing": [one for one in packages if _version(one) is None]}
            for name, (packages, what) in EXTRAS.items()
        },
        "extension": extension,
        "cuda": torch.version.cuda,
        "devices": devices,
        "backend": backend.requested(),
        "ops": {
            op: found for op, of in OPS.items() if (found := {kind: _choice(op, kind) for kind in kinds if kind in of})
        },
        "advice": _advice(module),
    }


def why_not_native(op: str, device: str) -> str:
    """Why the kernels of an op of :data:`OPS` cannot run on a device ("cpu", "cuda"); empty when they can."""
    return backend.why_not_native(_KNOWN_AS.get(op, op), device)


def _choice(op: str, device: str) -> str:
    if backend.requested() == "reference":
        return "reference: MGRAN_BACKEND=reference"
    if reason := why_not_native(op, device):
        return f"reference: {reason}"
    if device == "cuda":
        return "native: Triton" if op in backend.TRITON else "native: CUDA"
    module = backend.extension()
    assert module is not None, "a kernel of the extension runs without it"
    return f"native: C++, {module.isa()}"


def _advice(module: Any) -> list[str]:
    """What to do, most urgent first."""
    found = []
    gpu = torch.cuda.is_available()
    if module is None:
        found.append("build the extension: pip install . in the checkout, with a C++17 compiler on the PATH")
    elif gpu and module.cuda is None:
        found.append("there is a GPU, but the extension lacks CUDA: reinstall with nvcc on the PATH")
    elif gpu:
        found += [line for i in range(torch.cuda.device_count()) if (line := _unserved(module.cuda_architectures, i))]
    if gpu and _version("triton") is None:
        found.append("there is a GPU, but no Triton: pip install triton, in the version that torch asks for")
    if not gpu and _has_nvidia_driver():
        found.append(
            "there is an NVIDIA driver, but torch sees no GPU: "
            + ("install a CUDA build of torch" if torch.version.cuda is None else "see what nvidia-smi says")
        )
    if backend.requested() == "reference":
        found.append("MGRAN_BACKEND=reference keeps all kernels out: unset it, unless this is a test")
    if module is not None and not module.openmp:
        found.append("the extension has no OpenMP and runs on one thread: build it with a compiler that has it")
    return found


def _unserved(architectures: str | None, index: int) -> str:
    """Why the extension's kernels do not run on a GPU; empty where they do.

    Code runs on its own generation from its number on, and what comes with PTX (a number without -real) on all newer
    ones.
    """
    major, minor = torch.cuda.get_device_capability(index)
    mine = 10 * major + minor
    for number, real in re.findall(r"(\d+)[af]?(-real)?", architectures or ""):
        if int(number) <= mine and (not real or int(number) // 10 == major):
            return ""
    return (
        f"cuda:{index} has compute capability {major}.{minor}, and the extension was built for {architectures}: build"
        f" it again with MGRAN_CUDA_ARCHITECTURES={mine}"
    )


def _gpu(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"cuda:{index} ({torch.cuda.get_device_name(index)}, compute capability {major}.{minor})"


def _has_nvidia_driver() -> bool:
    # Where the kernel's module says which version it is; Linux alone.
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8"):
            return True
    except OSError:
        return False


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
