"""SIGTERM and Ctrl+C end a run at its next step, with a state to go on from."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A run that was asked to end and did, in one line; ``code`` is what a command ends with."""

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.code = 128 + signum


class StopRun(BaseException):
    """Leaves the training loop. No KeyboardInterrupt, on which Lightning ends the process without a word."""


class Skipped(BaseException):
    """Leaves what can be done later, such as a measurement."""


class Signals:
    """Takes SIGTERM and SIGINT while a run trains: the first is kept for the next step, a second Ctrl+C counts at once.

    Attributes:
        received: the signal that came, or None.
    """

    kinds = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._skippable = False

    def __enter__(self) -> Signals:
        self.take()
        return self

    def __exit__(self, *error: object) -> None:
        for kind, handler in self._before.items():
            # None stands for a handler that was not installed from Python, and cannot be put back.
            if handler is not None:
                signal.signal(kind, handler)
        self._before = {}

    def take(self) -> None:
        """Install the handlers; again where somebody else took the signals."""
        # Python takes signals in its main thread alone.
        if threading.current_thread() is not threading.main_thread():
            return
        for kind in self.kinds:
            before = signal.signal(kind, self._handle)
            self._before.setdefault(kind, before)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum
        if self._skippable:
            self._skippable = False
            raise Skipped

    @contextmanager
    def skippable(self) -> Iterator[None]:
        """What runs inside is left by :class:`Skipped` when a signal comes, or has come before."""
        if self.received is not None:
            raise Skipped
        self._skippable = True
        try:
            yield
        finally:
            self._skippable = False


def told(signum: int) -> str:
    """ "SIGTERM", "Ctrl+C"."""
    return "Ctrl+C" if signum == signal.SIGINT else signal.Signals(signum).name


def keep_reading(worker: int) -> None:
    """For a process that reads pictures: only its parent ends it.

    Ctrl+C and the SIGTERM of a cluster go to all processes of a run; without its readers it could not finish a step.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
