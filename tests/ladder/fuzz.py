"""Rung "fuzz": ``python tests/ladder/fuzz.py``: the ops' boundary under AddressSanitizer.

tests/ops/test_fuzz.py, the tests of what computes windows, and those of what ranks run with an extension that is built
with AddressSanitizer and UndefinedBehaviorSanitizer.
Then bugs are injected: the sanitizer must end the process on each.
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
from extension import runtimes
from mutations import Mutation, for_rung
from nursery import Nursery
from package import IMPORTS, package, run_tests

# Of whole trunks the smallest inputs: a sanitizer makes them thirty times slower.
_WINDOWS = tuple(
    f"tests/ops/test_network.py::test_windows_equal_whole_images_to_the_bit[resnet18-1-size3-dtype{dtype}]"
    for dtype in range(3)
)
TESTS = (
    "tests/ops/test_fuzz.py",
    "tests/ops/test_conv.py",
    *_WINDOWS,
)
# Of each bug's file, those that find it.
BUGS = {
    "crops": ("tests/ops/test_fuzz.py::test_crops",),
    "align": ("tests/ops/test_fuzz.py::test_align",),
    "cells": ("tests/ops/test_conv.py",),
    "reach": _WINDOWS,
    "plan": _WINDOWS,
}
# What ranks, from Python: random problems, odd sizes, places that lead nowhere. No bug is injected there.
RANKING = (
    "tests/metrics/test_random_problems.py::test_rank_equals_the_reference[native-0]",
    "tests/metrics/test_rerank.py",
    "tests/metrics/test_shots.py::test_a_larger_problem_equals_the_reference",
    "tests/metrics/test_shots.py::test_the_expectation_equals_going_through_all_draws",
    "tests/search/test_nearest.py",
)


def environment() -> dict[str, str]:
    """What a Python wants that loads an extension with sanitizers."""
    return {
        "LD_PRELOAD": " ".join(str(path) for path in runtimes()),
        # Python frees nothing at its end, and torch's own allocations are its business.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }


def run(nursery: Nursery, mutation: Mutation | None) -> tuple[bool, bool, str]:
    """Whether the tests pass, whether a sanitizer spoke, and the words."""
    with tempfile.TemporaryDirectory() as scratch:
        tests = BUGS[Path(mutation.file).stem] if mutation else (*TESTS, *RANKING)
        done = run_tests(nursery, package(Path(scratch) / "tree", mutation, "asan"), tests, {})
    text = done.stdout + done.stderr
    words = re.search(r"(ERROR: AddressSanitizer: [^\n(]*|\S+ runtime error: [^\n]*)", text)
    if words:
        place = re.search(r"#\d+ \S+ in ([^\n]*?csrc/\S+)", text)
        return False, True, words[1].strip() + (f" in {place[1]}" if place else "")
    last = (done.stdout.strip().splitlines() or [done.stderr[-500:]])[-1]
    return done.returncode == 0, False, last


def main() -> int:
    start = time.monotonic()
    mutations = list(for_rung("fuzz"))
    with Nursery(IMPORTS, environment()) as nursery, ThreadPoolExecutor(build.JOBS) as pool:
        (good, _, words), *found = pool.map(partial(run, nursery), [None, *mutations])
    print(f"the sources as they are: {words}", flush=True)
    good = good and bool(mutations)
    for mutation, (_, spoke, words) in zip(mutations, found, strict=True):
        # A wrong answer is another rung's business: here the sanitizer must speak.
        print(f"{'caught' if spoke else 'MISSED'} {mutation.name}: {words}", flush=True)
        good = good and spoke
    print(f"rung fuzz: {'passed' if good else 'FAILED'} in {time.monotonic() - start:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
