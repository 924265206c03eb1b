"""Rung e: runs the Triton kernels' tests under Triton's interpreter, then shows that they catch injected bugs.

    python tests/ladder/interpret.py              tests, then bugs
    python tests/ladder/interpret.py tests        the tests alone; further words go to pytest
    python tests/ladder/interpret.py bugs WORD    the bugs alone, those whose name holds WORD

Triton decides when it is imported whether it interprets, so each run is a process of its own. The interpreter checks
indices, masks and arithmetic; not races, alignments or anything of the compiler's. Not a run on a GPU.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build
import mutations
import package
from nursery import Nursery

# pytest's exit status: some test failed. A crash is a negative one; everything else is a broken setup.
TESTS_FAILED = 1
# What tests a file of kernels/; a bug elsewhere runs all tests.
TESTS = {
    "pooling": "test_pooling.py",
    "batchnorm": "test_batchnorm.py",
    "pointwise": "test_products.py",
    "stem": "test_products.py",
}

# What runs have imported before they begin: Triton asks for the variable then.
IMPORTS = (*package.IMPORTS, "triton.language")
ENVIRONMENT = {"TRITON_INTERPRET": "1", "MGRAN_KERNELS": ""}


def run_tests(
    nursery: Nursery, options: list[str], kernels: Path | None = None, tests: str = ""
) -> subprocess.CompletedProcess[str]:
    """pytest on tests/kernels or one file there, with the installed kernels or another folder of them."""
    command = [f"tests/kernels/{tests}", "-q", "-p", "no:cacheprovider", "-m", "not gpu", *options]
    return nursery.run(command, {"MGRAN_KERNELS": str(kernels)} if kernels else {})


def first_failure(output: str) -> str:
    """The first test that failed, with its words."""
    found = re.search(r"^(?:FAILED|ERROR) (\S+?::)?(.*)$", output, re.M)
    return found[2].strip() if found else "crashed"


def check_tests(done: subprocess.CompletedProcess[str]) -> bool:
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()
    # A skipped test proves nothing here.
    passed = done.returncode == 0 and " passed" in summary and "skipped" not in summary
    print(summary if passed else done.stdout + done.stderr, flush=True)
    return passed


def check_mutation(mutation: mutations.Mutation, done: subprocess.CompletedProcess[str]) -> bool:
    if done.returncode == TESTS_FAILED or done.returncode < 0:
        print(f"caught {mutation.name}: {first_failure(done.stdout)}", flush=True)
        return True
    what = "MISSED" if done.returncode == 0 else f"BROKEN RUN ({done.returncode})"
    print(f"{what} {mutation.name}\n{'' if done.returncode == 0 else done.stdout + done.stderr}", flush=True)
    return False


def main(words: list[str]) -> int:
    part, rest = (words[0], words[1:]) if words else ("all", [])
    if part not in ("all", "tests", "bugs"):
        print(f"usage: interpret.py [tests | bugs] ..., not {part!r}")
        return 2
    only = rest[0] if rest and part == "bugs" else None
    bugs = [] if part == "tests" else list(mutations.for_rung("interpret", only))
    if part != "tests" and not bugs:
        print(f"no mutation of this rung holds {only!r}" if only else "no mutation of this rung")
        return 1
    passed = True
    with Nursery(IMPORTS, ENVIRONMENT) as nursery, ThreadPoolExecutor(build.JOBS) as pool:

        def hunt(mutation: mutations.Mutation) -> subprocess.CompletedProcess[str]:
            with tempfile.TemporaryDirectory() as folder:
                tree = mutations.mutated_tree(mutation, Path(folder) / "tree")
                file = TESTS.get(Path(mutation.file).stem, "")
                return run_tests(nursery, ["-x", "--tb=line"], tree / "kernels", file)

        # Side by side, what takes longest first.
        clean = pool.submit(run_tests, nursery, rest if part == "tests" else []) if part != "bugs" else None
        hunts = [pool.submit(hunt, bug) for bug in bugs]
        if clean is not None:
            passed = check_tests(clean.result())
        for bug, found in zip(bugs, hunts, strict=True):
            passed = check_mutation(bug, found.result()) and passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
