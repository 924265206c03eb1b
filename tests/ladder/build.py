"""Builds the kernels for the ladder: the CUDA sources on the emulator, the CPU sources, plain and sanitized.

To run .cu files on the CPU from Python (they must include "launch.h", see csrc/cuda/launch.h):

    import abi, build, cases                      # with tests/ladder on sys.path
    library = build.library()                     # shared library of every such csrc/cuda/*.cu, on the emulator
    library = build.library(["inputs"])           # or of some
    for case in cases.cases("inputs", "cuda"):
        got = abi.call(ctypes.CDLL(str(library)), case, "cuda")
        print(case.name, case.check(got) or "right")

By hand, one file:

    g++ -std=c++17 -O2 -fno-strict-aliasing -ffp-contract=off -fPIC -shared -pthread -Icsrc/cuda -Itests/emulator \
        -isystem CUDA_INCLUDE -x c++ csrc/cuda/inputs.cu tests/emulator/{emulator,block,fiber}.cpp -o inputs.so -ldl

Everything goes to build/ladder/, each object under the hash of its source, the headers that it includes, and its
command: what has not changed is not compiled again.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "ladder"
EMULATOR = ROOT / "tests" / "emulator"
JOBS = 2
CUDA_OPS = ("crops", "regions", "inputs", "align")
COMPILER = os.environ.get("CXX", "g++")

COMMON = ("-std=c++17", "-fPIC", "-pthread", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra")
# Kernels read bytes as vectors of bytes; nvcc knows no strict aliasing.
CUDA_FLAGS = ("-fno-strict-aliasing", "-Wno-unknown-pragmas")
_UNDEFINED = "address,undefined,float-cast-overflow"
FLAGS: dict[str, tuple[str, ...]] = {
    "plain": ("-O2",),
    "asan": ("-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={_UNDEFINED}", "-fno-sanitize-recover=all"),
    "tsan": ("-O1", "-g", "-fsanitize=thread"),
    # As on a machine that is no x86.
    "elsewhere": ("-O2", "-Werror", "-DMGRAN_NO_X86"),
}
# How the emulator itself, which is compiled without sanitizers, hears of them.
TOLD: dict[str, tuple[str, ...]] = {
    "plain": (),
    "asan": ("-DMGRAN_EMULATOR_ASAN",),
    "tsan": ("-DMGRAN_EMULATOR_TSAN",),
}


# What mgran_emulator_hook takes (tests/emulator/emulator.h): the kernel's name, grid [3], block [3], bytes of dynamic
# shared memory, the number of arguments, where they are and their sizes; returns a cudaError_t.
HOOK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.POINTER(ctypes.c_size_t),
)


class BuildError(RuntimeError):
    """The compiler's words."""


@dataclass(frozen=True)
class Source:
    """One object file to be: a file below ``root`` and its flags."""

    root: Path
    file: str
    flags: tuple[str, ...]
    includes: tuple[Path, ...] = ()


@functools.cache
def cuda_include() -> Path | None:
    """The folder of the CUDA headers: MGRAN_CUDA_INCLUDE, else where nvcc looks, else None."""
    named = os.environ.get("MGRAN_CUDA_INCLUDE")
    if named:
        return Path(named)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    words = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True, check=False)
    for folder in re.findall(r'-I"?([^"\s]+)', words.stderr):
        if (Path(folder) / "cuda_fp16.h").exists():
            return Path(folder).resolve()
    return None


def cuda_sources(root: Path = ROOT) -> list[str]:
    """The names of the ops whose CUDA source can be emulated: those that include launch.h."""
    found = sorted((root / "csrc" / "cuda").glob("[a-z]*.cu"))
    return [path.stem for path in found if '"launch.h"' in path.read_text()]


def cpu_sources(root: Path = ROOT) -> list[str]:
    return sorted(path.stem for path in (root / "csrc" / "cpu").glob("[a-z]*.cpp"))


def library(ops: Sequence[str] | None = None, root: Path = ROOT) -> Path:
    """A shared library of the emulator and these ops' CUDA sources, ``mgran_emulator_hook`` included."""
    sources = [*_cuda(root, ops, "plain"), *_emulator("plain")]
    return _link(sources, ("-shared", "-pthread"), ("-ldl",), "libmgran_emulated.so")


def cuda_driver(variant: str, root: Path = ROOT) -> Path:
    """The driver with the CUDA sources, emulated; variant is plain, asan or tsan."""
    sources = [*_cuda(root, None, variant), *_emulator(variant), _driver(variant)]
    return _link(sources, ("-rdynamic", "-pthread", *_sanitizer(variant)), ("-ldl",), f"cuda_{variant}")


def cpu_driver(variant: str, root: Path = ROOT) -> Path:
    """The driver with the CPU kernels. ThreadSanitizer's takes our OpenMP: it knows nothing of libgomp's own locks."""
    sources = []
    for name in cpu_sources(root):
        file = f"csrc/cpu/{name}.cpp"
        # As shipped; an injected bug shows without the optimizer, which takes its time.
        flags = FLAGS[variant] if variant != "plain" else ("-O1",) if _differs(root, file) else ("-O3",)
        sources.append(Source(root, file, (*COMMON, *flags, "-fopenmp")))
    sources.append(_driver(variant))
    openmp: tuple[str, ...] = ("-fopenmp",)
    if variant == "tsan":
        sources.append(Source(ROOT, "tests/emulator/openmp.cpp", (*COMMON, *FLAGS[variant])))
        openmp = ()
    return _link(sources, ("-rdynamic", "-pthread", *openmp, *_sanitizer(variant)), ("-ldl",), f"cpu_{variant}")


def _differs(root: Path, file: str) -> bool:
    """Whether a file, or what it includes, is another one in ``root`` than in the repository."""
    found = closure(root / file, ())
    twins = [ROOT / path.relative_to(root.resolve()) for path in found]
    return any(
        not twin.exists() or twin.read_text() != path.read_text() for path, twin in zip(found, twins, strict=True)
    )


def _cuda(root: Path, ops: Sequence[str] | None, variant: str) -> list[Source]:
    include = cuda_include()
    if include is None:
        raise BuildError("no CUDA headers: put nvcc on the PATH or set MGRAN_CUDA_INCLUDE")
    flags = (*COMMON, *CUDA_FLAGS, *FLAGS[variant], f"-I{EMULATOR}", "-isystem", str(include), "-x", "c++")
    chosen = cuda_sources(root) if ops is None else list(ops)
    if "align" in chosen and "regions" not in chosen:
        chosen.append("regions")  # whose first steps it calls
    return [Source(root, f"csrc/cuda/{op}.cu", flags, (EMULATOR,)) for op in chosen]


def _emulator(variant: str) -> list[Source]:
    flags = (*COMMON, "-O2", "-g", *TOLD[variant], "-isystem", str(cuda_include()))
    return [Source(ROOT, f"tests/emulator/{name}.cpp", flags) for name in ("emulator", "block", "fiber")]


def _driver(variant: str) -> Source:
    return Source(ROOT, "tests/emulator/driver.cpp", (*COMMON, *FLAGS[variant]))


def _sanitizer(variant: str) -> tuple[str, ...]:
    return tuple(flag for flag in FLAGS[variant] if flag.startswith("-fsanitize"))


def _link(sources: Sequence[Source], flags: tuple[str, ...], libraries: tuple[str, ...], name: str) -> Path:
    with ThreadPoolExecutor(JOBS) as pool:
        objects = list(pool.map(_compile, sources))
    command = [COMPILER, *flags, *map(str, objects), *libraries]
    target = BUILD / "linked" / _digest([_version(), *command]) / name
    return _make(target, command, ROOT)


def _compile(source: Source) -> Path:
    command = [COMPILER, *source.flags, "-c", source.file]
    texts: list[str] = []
    for path in closure(source.root / source.file, source.includes):
        texts += [path.name, path.read_text()]
    target = BUILD / "objects" / (_digest([_version(), *command, *texts]) + ".o")
    return _make(target, command, source.root)


def _make(target: Path, command: Sequence[str], folder: Path) -> Path:
    """Runs ``command -o target`` in ``folder`` unless the target is there; safe beside others that make the same."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        result = subprocess.run([*command, "-o", str(made)], cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(f"{' '.join(command)}\n{result.stderr.strip()[-4000:]}")
        os.replace(made, target)
    return target


def closure(path: Path, folders: Sequence[Path]) -> list[Path]:
    """The file and every file that it includes by a quoted name, directly or not."""
    found: list[Path] = []
    todo = [path]
    while todo:
        current = todo.pop().resolve()
        if current in found:
            continue
        found.append(current)
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', current.read_text(), re.MULTILINE):
            places = [folder / name for folder in (current.parent, *folders)]
            todo += [place for place in places if place.exists()][:1]
    return found


@functools.cache
def _version() -> str:
    return subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=True).stdout


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]
