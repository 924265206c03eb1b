"""Rung "torch": ``python tests/ladder/torch_ops.py``: can the tests of the ops as torch sees them fail?

The tests themselves (float64 references, gradcheck, opcheck, torch.compile(fullgraph), torch.export, autocast: all
of tests/ops) run by ``make test``. This runs a part of them on copies of the package with one injected bug each
(torch_mutations.py), and wants every bug caught.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import build
from mutations import Mutation, for_rung
from nursery import Nursery
from package import IMPORTS, package, run_tests

# Of each bug's op: enough to find it, and no more. What runs in processes of its own never sees the bug.
REGISTRATION = (
    "tests/ops/test_registration.py",
    "--deselect",
    "tests/ops/test_registration.py::test_an_older_instruction_set_can_be_asked_for",
)
TESTS = {
    "pooling": ("tests/ops/test_pooling.py", *REGISTRATION),
    "batchnorm": ("tests/ops/test_batchnorm.py", *REGISTRATION),
    "crops": ("tests/ops/test_crops.py", *REGISTRATION),
    "regions": ("tests/ops/test_regions.py",),
    "inputs": ("tests/ops/test_inputs.py", *REGISTRATION),
    "checks": REGISTRATION,
}
TESTS_FAILED = 1


def catch(nursery: Nursery, mutation: Mutation) -> tuple[bool, str]:
    """Whether the tests fail on the bug, by kernel or by reference, and the words of the first that does."""
    chosen = TESTS[Path(mutation.file).stem]
    with tempfile.TemporaryDirectory() as scratch:
        folder = package(Path(scratch) / "tree", mutation)
        choices = ("auto", "reference")
        for choice in reversed(choices) if "reference" in Path(mutation.file).parts else choices:
            done = run_tests(nursery, folder, chosen, {"MGRAN_BACKEND": choice})
            if done.returncode == 0:
                continue
            failed = re.search(r"^FAILED (.+?)( - .*)?$", done.stdout, re.MULTILINE)
            if done.returncode != TESTS_FAILED or failed is None:
                return False, f"the tests did not run:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            return True, failed[0].removeprefix("FAILED ")
    return False, "every test passes"


def main() -> int:
    start = time.monotonic()
    mutations = list(for_rung("torch"))
    good = bool(mutations)
    with Nursery(IMPORTS, {}) as nursery, ThreadPoolExecutor(build.JOBS) as pool:
        for mutation, (caught, words) in zip(mutations, pool.map(partial(catch, nursery), mutations), strict=True):
            print(f"{'caught' if caught else 'MISSED'} {mutation.name}: {words}", flush=True)
            good = good and caught
    print(f"rung torch: {'passed' if good else 'FAILED'} in {time.monotonic() - start:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
