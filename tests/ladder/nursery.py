"""Runs pytest many times, each in a process of its own that is forked from one which has imported torch already.

An injected bug is found by a second or two of tests; to start Python and to import torch takes longer than that, and
under a sanitizer ten times as long.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import build

#: The status of a run that ended before pytest could: none of pytest's own, which end at 5.
BROKEN = 70
# Takes one order a line, and answers with the status of the run.
_SERVE = """
import gc, importlib, json, os, sys, traceback

def run(order):
    sys.stdin.close()
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(order[name], os.O_WRONLY), number)
    sys.stdout = open(1, "w", closefd=False)
    os.environ.update(order["environment"])
    if order["folder"]:
        # An editable install is found by a finder of its own, which comes before the path: it must go.
        sys.meta_path = [f for f in sys.meta_path if "ditable" not in type(f).__name__ + type(f).__module__]
        sys.path.insert(0, order["folder"])
        import mgran_fast
        assert mgran_fast.__file__.startswith(order["folder"]), mgran_fast.__file__
    import pytest
    return int(pytest.main(order["options"]))

for name in json.loads(sys.argv.pop(1)):
    importlib.import_module(name)
gc.freeze()
answers = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        status = int(sys.argv[1])
        try:
            status = run(json.loads(line))
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
"""


class Nursery:
    """Processes to fork from, as many as run at a time; a context that ends them.

    Args:
        imports: what they import beforehand: nothing that a bug is injected into, nor what pytest rewrites.
        environment: what they, and all runs, have in it besides this process's.
    """

    def __init__(self, imports: Sequence[str], environment: Mapping[str, str]) -> None:
        settings = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **environment}
        command = [sys.executable, "-c", _SERVE, json.dumps(list(imports)), str(BROKEN)]
        self._free: queue.Queue[subprocess.Popen[str]] = queue.Queue()
        self._all = [
            subprocess.Popen(
                command, cwd=build.ROOT, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(build.JOBS)
        ]
        for process in self._all:
            self._free.put(process)

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._all:
            process.communicate()

    def run(
        self, options: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """pytest with these options, on the package in ``folder``, else on the checkout's; waits until it ends.

        Raises:
            RuntimeError: the process to fork from is gone; its words went to this one's standard error.
        """
        process = self._free.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with tempfile.TemporaryDirectory() as scratch:
                out, err = Path(scratch, "out"), Path(scratch, "err")
                out.touch()
                err.touch()
                order = {
                    "options": list(options),
                    "environment": dict(environment or {}),
                    "folder": str(folder or ""),
                    "out": str(out),
                    "err": str(err),
                }
                process.stdin.write(json.dumps(order) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                if not answer:
                    raise RuntimeError(f"the process that runs are forked from ended with status {process.wait()}")
                texts = out.read_text(errors="replace"), err.read_text(errors="replace")
                return subprocess.CompletedProcess(list(options), int(answer), *texts)
        finally:
            self._free.put(process)
