"""The whole package with a bug in it, or with a sanitizer: a tree of its own, and pytest run on that."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from extension import extension
from mutations import FOLDERS, ROOT, Mutation, mutated_tree
from nursery import Nursery

# Not captured: a sanitizer's last words would go down with the process.
#: What runs of it can have imported before they begin.
IMPORTS = ("torch", "torch._dynamo", "torch._inductor.compile_fx", "torchvision", "pytest")
_OPTIONS = ("-x", "-q", "--tb=short", "-s", "-p", "no:cacheprovider", "-p", "no:xdist")


def package(folder: Path, mutation: Mutation | None, variant: str = "plain") -> Path:
    """Makes ``folder`` a place to import mgran_fast from; variant is plain or asan (build.FLAGS)."""
    if mutation is not None:
        mutated_tree(mutation, folder)
    else:
        for name in FOLDERS:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(folder / "kernels", folder / "mgran_fast" / "kernels")
    shutil.copy(extension(variant, folder), folder / "mgran_fast" / "_C.so")
    return folder


def run_tests(
    nursery: Nursery, folder: Path, tests: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """pytest of these tests on the package in ``folder``, until the first failure."""
    return nursery.run([*_OPTIONS, *tests], environment, folder)
