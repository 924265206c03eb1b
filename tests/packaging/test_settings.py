"""What pyproject.toml tells the wheels' builders: which wheels there are, and that nothing is built two ways."""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
BUILDER = PROJECT["tool"]["cibuildwheel"]
#: cibuildwheel's identifiers, of more than is wanted; the last part is the platform and architecture.
PYTHONS = ("cp38", "cp39", "cp310", "cp311", "cp312", "cp313", "cp313t", "cp314", "cp314t", "pp310", "pp311", "gp311")
PLACES = {
    "linux": [f"{libc}linux_{arch}" for libc in ("many", "musl") for arch in ("x86_64", "aarch64", "i686", "ppc64le")],
    "macos": ["macosx_arm64", "macosx_x86_64", "macosx_universal2"],
    "windows": ["win_amd64", "win32", "win_arm64"],
}
ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "aarch64", "arm64": "arm64", "AMD64": "amd64"}
WANTED = {"manylinux_x86_64", "manylinux_aarch64", "macosx_arm64", "win_amd64"}


def supported() -> set[str]:
    """The interpreters that the package's metadata promises."""
    kinds = [kind.rsplit(" ", 1)[-1] for kind in PROJECT["project"]["classifiers"]]
    return {f"cp{kind.replace('.', '')}" for kind in kinds if kind.startswith("3.")}


def test_which_wheels_are_built() -> None:
    """Of each interpreter that is supported one for each platform that torch has wheels for, and no other."""
    built = set()
    for system, places in PLACES.items():
        ends = tuple(f"_{ARCHITECTURES[arch]}" for arch in BUILDER[system]["archs"])
        for name in (f"{python}-{place}" for python in PYTHONS for place in places if place.endswith(ends)):
            chosen, left_out = (any(fnmatch(name, one) for one in BUILDER[key].split()) for key in ("build", "skip"))
            if chosen and not left_out:
                built.add(name)
    assert built == {f"{python}-{place}" for python in supported() for place in WANTED}
    assert len(built) == 16


def test_how_wheels_are_built() -> None:
    assert BUILDER["environment"] == {"MGRAN_CUDA": "OFF"}
    linux = BUILDER["linux"]
    assert {value for key, value in linux.items() if key.endswith("-image")} == {"manylinux_2_28"}
    assert "--exclude libgomp.so.1" in linux["repair-wheel-command"]
    assert "MGRAN_CUDA_ARCHITECTURES" in linux["environment-pass"]
    (tests,) = BUILDER["test-sources"]
    assert BUILDER["test-command"].endswith(tests)
    assert any((ROOT / tests).glob("test_*.py"))


def test_cuda_wheels_have_a_name_of_their_own() -> None:
    (override,) = PROJECT["tool"]["scikit-build"]["overrides"]
    assert override == {"if": {"env": {"MGRAN_CUDA": "^ON$"}}, "wheel": {"build-tag": "1cuda"}}


def test_builds_with_and_without_isolation_are_the_same() -> None:
    """The group that the editable install builds with has what [build-system] wants, in the same versions."""
    assert {*PROJECT["build-system"]["requires"]} <= {*PROJECT["dependency-groups"]["build"]}
    scikit = PROJECT["tool"]["scikit-build"]
    tools = {f"{name}{scikit[name]['version']}" for name in ("cmake", "ninja")}
    assert tools | {*PROJECT["build-system"]["requires"]} == {*PROJECT["dependency-groups"]["build"]}
