"""The CPU kernels on aarch64: ``python tests/ladder/aarch64.py``: cross-compiled, and run by QEMU.

Needs aarch64-linux-gnu-g++ and qemu-aarch64 or qemu-aarch64-static (Debian: g++-aarch64-linux-gnu, qemu-user-static);
skipped, with those words, where they are missing.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

CROSS, LIBRARIES = "aarch64-linux-gnu-g++", "/usr/aarch64-linux-gnu"
THREADS = (1, 3)


def main() -> int:
    qemu = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if shutil.which(CROSS) is None or qemu is None:
        print(f"rung aarch64: skipped, it needs {CROSS} and qemu-aarch64")
        return 0
    # Both are read at import, or by the program that runs.
    os.environ["CXX"], os.environ["QEMU_LD_PREFIX"] = CROSS, LIBRARIES
    import build
    from cases import CPU_OPS, cases
    from driver import Run, judge

    program = build.cpu_driver("plain")
    tests = [case for op in CPU_OPS for case in cases(op, "cpu", True)]
    passed = bool(tests)
    with tempfile.TemporaryDirectory() as folder:
        # The driver is started by its name alone.
        wrapper = Path(folder) / "driver"
        wrapper.write_text(f'#!/bin/sh\nexec "{qemu}" "{program}" "$@"\n')
        wrapper.chmod(0o755)
        for threads in THREADS:
            verdict = judge(wrapper, tests, Run("cpu", "heap", 0, threads, 0))
            words = "right" if verdict.passed else f"FAILED after {verdict.right}: {verdict.words}"
            print(f"aarch64, {threads} thread(s): {len(tests)} cases: {words}", flush=True)
            passed = passed and verdict.passed
    print(f"rung aarch64: {'passed' if passed else 'FAILED'}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
