"""Keeping freed memory: a process that does takes no new pages for the same work."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Blocks of 16 and 24 MB at once, as a step's are, all freed in the end.
CODE = """
import resource, sys, torch
from mgran_fast.train import memory
if sys.argv[1] == "keep":
    assert memory.keep() and memory.keep()
def work():
    held = [torch.ones(size << 20) for size in (4, 6, 4, 6)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
# How the heap is cut settles in the first rounds (five at most were seen; where it begins is random).
for _ in range(16):
    first = work()
for _ in range(4):
    last = work()
print(last - first)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a matter of glibc")
def test_freed_memory_is_used_again() -> None:
    faults = {}
    for word in ("keep", "plain"):
        answer = subprocess.run([sys.executable, "-c", CODE, word], capture_output=True, text=True, timeout=120)
        if "AssertionError" in answer.stderr:
            pytest.skip("another C library")
        assert answer.returncode == 0, answer.stderr
        faults[word] = int(answer.stdout)
    # Four times 80 MB are 81,920 pages of 4 kB, or 160 huge ones.
    assert faults["keep"] < 40
    assert faults["keep"] <= faults["plain"]
