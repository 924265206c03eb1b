"""Rung e: runs the Triton kernels' tests under Triton's interpreter, then shows that they catch injected bugs.

    python tests/ladder/interpret.py              tests, then bugs
    python tests/ladder/interpret.py tests        the tests alone; further words go to pytest
    python tests/ladder/interpret.py bugs WORD    the bugs alone, those whose name holds WORD

Triton decides when it is imported whether it interprets, so each run is a process of its own. The interpreter checks
indices, masks and arithmetic; not races, alignments or anything of the compiler's. Not a run on a GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mutations

ROOT = Path(__file__).resolve().parents[2]
JOBS = 2
# pytest's exit status: some test failed. A crash is a negative one; everything else is a broken setup.
TESTS_FAILED = 1
# What tests a file of kernels/; a bug elsewhere runs all tests.
TESTS = {
    "pooling": "test_pooling.py",
    "batchnorm": "test_batchnorm.py",
    "pointwise": "test_products.py",
    "stem": "test_products.py",
}


def run_tests(options: list[str], kernels: Path | None = None, tests: str = "") -> subprocess.CompletedProcess[str]:
    """pytest on tests/kernels or one file there, with the installed kernels or another folder of them."""
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    env.pop("MGRAN_KERNELS", None)
    if kernels is not None:
        env["MGRAN_KERNELS"] = str(kernels)
    command = [
        sys.executable,
        "-m",
        "pytest",
        f"tests/kernels/{tests}",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not gpu",
    ]
    command += options
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def first_failure(output: str) -> str:
    """The first test that failed, with its words."""
    found = re.search(r"^(?:FAILED|ERROR) (\S+?::)?(.*)$", output, re.M)
    return found[2].strip() if found else "crashed"


def check_tests(options: list[str]) -> bool:
    done = run_tests(options)
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()
    # A skipped test proves nothing here.
    passed = done.returncode == 0 and " passed" in summary and "skipped" not in summary
    print(summary if passed else done.stdout + done.stderr, flush=True)
    return passed


def check_mutations(only: str | None) -> bool:
    caught = True
    found = list(mutations.for_rung("interpret", only))
    if not found:
        print(f"no mutation of this rung holds {only!r}" if only else "no mutation of this rung")
        return False

    def run(mutation: mutations.Mutation) -> subprocess.CompletedProcess[str]:
        with tempfile.TemporaryDirectory() as folder:
            tree = mutations.mutated_tree(mutation, Path(folder) / "tree")
            return run_tests(["-x", "--tb=line"], tree / "kernels", TESTS.get(Path(mutation.file).stem, ""))

    with ThreadPoolExecutor(JOBS) as pool:
        runs = list(pool.map(run, found))
    for mutation, done in zip(found, runs, strict=True):
        if done.returncode == TESTS_FAILED or done.returncode < 0:
            print(f"caught {mutation.name}: {first_failure(done.stdout)}", flush=True)
        else:
            caught = False
            what = "MISSED" if done.returncode == 0 else f"BROKEN RUN ({done.returncode})"
            print(f"{what} {mutation.name}\n{'' if done.returncode == 0 else done.stdout + done.stderr}", flush=True)
    return caught


def main(words: list[str]) -> int:
    part, rest = (words[0], words[1:]) if words else ("all", [])
    if part not in ("all", "tests", "bugs"):
        print(f"usage: interpret.py [tests | bugs] ..., not {part!r}")
        return 2
    passed = part == "bugs" or check_tests(rest)
    if part != "tests":
        passed = passed and check_mutations(rest[0] if rest else None)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
