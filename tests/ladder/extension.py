"""Builds mgran_fast._C for the ladder, with the CPU kernels alone: of an edited tree, or with a sanitizer.

It is not CMake's build: these flags are the ladder's, and objects that did not change are not compiled again.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pybind11

import build


def extension(variant: str = "plain", root: Path = build.ROOT) -> Path:
    """The extension of the sources below ``root``; variant is plain or asan (build.FLAGS)."""
    optimized = ("-O3",) if variant == "plain" else build.FLAGS[variant]
    # The very objects of build.cpu_driver.
    flags = (*build.COMMON, *optimized, "-fopenmp")
    names = '-DMGRAN_VERSION="0"', '-DMGRAN_COMPILER="ladder"'
    includes = "-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")
    sources = [build.Source(root, f"csrc/cpu/{name}.cpp", flags) for name in build.cpu_sources(root)]
    # Checks of the bindings themselves need no sanitizer, which would make them the slowest file to compile.
    plain = (*build.COMMON, "-O1", "-fopenmp", "-fvisibility=hidden", *names, *includes)
    bindings = sorted(path.name for path in (root / "csrc").glob("bindings*.cpp"))
    sources += [build.Source(root, f"csrc/{name}", plain) for name in bindings]
    return build._link(sources, ("-shared", "-fopenmp", *build._sanitizer(variant)), (), "_C.so")


def runtimes() -> list[Path]:
    """The shared libraries that AddressSanitizer must be given before Python starts (LD_PRELOAD)."""
    found = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        words = subprocess.run([build.COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        found.append(Path(words.stdout.strip()).resolve())
    return found
