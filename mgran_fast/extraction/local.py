"""Parts shared out to processes on one machine. One that is killed is replaced, and its part made again."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection, get_all_start_methods, get_context
from pathlib import Path
from typing import Any, TypeAlias

import torch

from mgran_fast.errors import MGRANError
from mgran_fast.extraction.embedder import Embedder, Report

_log = logging.getLogger(__name__)

# So often a part is tried before it, and not chance, is what kills processes.
ATTEMPTS = 3

Answer: TypeAlias = "Report | MGRANError | ValueError"


def run(output: Path, numbers: Sequence[int], processes: int, threads: int, done: Callable[[Report], None]) -> None:
    """Make the parts of these numbers.

    Raises:
        MGRANError: of a process, or one was killed several times over the same part. Parts that are written stay.
    """
    if processes == 1 or len(numbers) == 1:
        before = torch.get_num_threads()
        try:
            embedder = Embedder(output, threads)
            for number in numbers:
                done(embedder(number))
        finally:
            torch.set_num_threads(before)
        return
    waiting, attempts = list(reversed(numbers)), dict.fromkeys(numbers, 0)
    workers = [_Worker(output, place, threads) for place in range(min(processes, len(numbers)))]
    try:
        for worker in workers:
            worker.give(waiting.pop())
        while busy := [worker for worker in workers if worker.number is not None]:
            ready = connection.wait([end for worker in busy for end in worker.ends])
            for worker in (one for one in busy if any(end in ready for end in one.ends)):
                at, answer = worker.number, worker.answer()
                if isinstance(answer, (MGRANError, ValueError)):
                    raise answer
                if isinstance(answer, Report):
                    done(answer)
                    worker.give(waiting.pop() if waiting else None)
                    continue
                assert at is not None
                attempts[at] += 1
                if answer >= 0 or attempts[at] >= ATTEMPTS:
                    raise MGRANError(_died(answer, attempts[at]))
                _log.warning("a process was killed (signal %d): its part is made again", -answer)
                worker.stop()
                worker.start()
                worker.give(at)
    finally:
        for worker in workers:
            worker.stop()


class _Worker:
    """A process that makes parts, and the part that it is at."""

    def __init__(self, output: Path, place: int, threads: int) -> None:
        self._arguments = (output, place, threads)
        self.start()

    def start(self) -> None:
        """Begin a process, in place of one that died."""
        context = _context()
        self._here, there = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(there, *self._arguments), daemon=True
        )  # fmt: skip
        self._process.start()
        there.close()
        self.number: int | None = None

    @property
    def ends(self) -> tuple[Any, ...]:
        """What becomes ready when there is an answer, or the process has ended."""
        return self._here, self._process.sentinel

    def give(self, number: int | None) -> None:
        """The next part to make; None for none."""
        self.number = number
        # Of a process that died meanwhile the answer tells.
        with suppress(OSError):
            self._here.send(number)

    def answer(self) -> Answer | int:
        """What it says of its part; the exit code where it died."""
        try:
            if self._here.poll():
                found: Answer = self._here.recv()
                return found
        except (EOFError, OSError):
            pass
        self._process.join()
        code = self._process.exitcode
        return 1 if code is None else code

    def stop(self) -> None:
        """End the process, whatever it is at."""
        self._process.terminate()
        self._process.join()
        self._here.close()


def _context() -> Any:
    """How processes begin: as children of one that has imported all and has no threads, where the system knows that."""
    # Apple's libraries are not safe after a fork.
    if "forkserver" not in get_all_start_methods() or sys.platform == "darwin":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload([Embedder.__module__])
    return context


def _serve(end: Any, output: Path, place: int, threads: int) -> None:
    """The life of a worker: numbers come, reports go."""
    # An interruption at the terminal comes to all; the one that asked ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    embedder = None
    while True:
        try:
            number = end.recv()
        except (EOFError, OSError):
            return
        if number is None:
            return
        try:
            if embedder is None:
                if gpus := torch.cuda.device_count():
                    torch.cuda.set_device(place % gpus)
                embedder = Embedder(output, threads)
            answer: Answer = embedder(number)
        except (MGRANError, ValueError) as error:
            answer = error
        try:
            end.send(answer)
        except OSError:  # whoever asked is gone
            return


def _died(code: int, attempts: int) -> str:
    again = "run the command again: it goes on where it stopped"
    if code >= 0:
        return f"a process failed (exit code {code}), it said why on standard error; {again}"
    return (
        f"a process was killed (signal {-code}) {attempts} times at the same part, for want of memory as a rule; take"
        f" fewer --processes or a smaller --batch-size for a new --output, or {again}"
    )
