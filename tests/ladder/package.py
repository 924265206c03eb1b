"""The whole package with a bug in it, or with a sanitizer: a tree of its own, and pytest run on that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from extension import extension
from mutations import FOLDERS, ROOT, Mutation, mutated_tree

# An editable install is found by a finder of its own, which comes before the path: it must go.
_RUN = """
import sys
sys.meta_path = [f for f in sys.meta_path if "ditable" not in type(f).__name__ + type(f).__module__]
sys.path.insert(0, sys.argv.pop(1))
import mgran_fast, pytest
assert mgran_fast.__file__.startswith(sys.path[0]), mgran_fast.__file__
sys.exit(pytest.main(sys.argv[1:]))
"""
# Not captured: a sanitizer's last words would go down with the process.
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


def run_tests(folder: Path, tests: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """pytest of these tests on the package in ``folder``, until the first failure."""
    return subprocess.run(
        [sys.executable, "-c", _RUN, str(folder), *_OPTIONS, *tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
