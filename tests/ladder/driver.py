"""Runs the driver of tests/emulator on cases and judges what it wrote."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import abi
from cases import Case

MAGIC = b"MGRANCAS"
ROLES = {"in": 0, "out": 1, "scratch": 2}
# A deadlock inside of a kernel ends with a message; a loop without an end, with this.
LIMIT_SECONDS = 120
SANITIZERS = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:exitcode=88:strict_string_checks=1",
    "UBSAN_OPTIONS": "print_stacktrace=0:halt_on_error=1:exitcode=88",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=88:report_signal_unsafe=0",
}


@dataclass(frozen=True)
class Run:
    """One way to run the cases: where buffers lie, in which order CUDA threads go, or how many CPU threads."""

    device: str = "cuda"
    place: str = "heap"
    order: int = 0
    threads: int = 1
    isa: int = 2

    @property
    def label(self) -> str:
        if self.device == "cuda":
            return f"order {self.order}, buffers on {self.place}"
        return f"{('portable', 'AVX2', 'AVX-512')[self.isa]}, {self.threads} threads, buffers on {self.place}"


@dataclass
class Verdict:
    """How many cases were right, and the first that was not."""

    right: int = 0
    words: str = ""
    cases: Sequence[Case] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.words and self.right == len(self.cases)


def judge(program: Path, cases: Sequence[Case], run: Run, compare: bool = True) -> Verdict:
    """Runs the cases in one process. The first fault ends it. Without ``compare``, what comes out does not count."""
    verdict = Verdict(cases=cases)
    with tempfile.TemporaryDirectory() as folder:
        given, results = Path(folder) / "cases", Path(folder) / "results"
        write_cases(given, cases, run.device)
        command = [str(program), str(given), str(results), run.place, str(run.threads), str(run.isa)]
        environment = {**os.environ, **SANITIZERS, "MGRAN_EMULATOR_ORDER": str(run.order)}
        try:
            ended = subprocess.run(
                command, env=environment, capture_output=True, text=True, errors="replace", timeout=LIMIT_SECONDS
            )
            said, status = ended.stderr, ended.returncode
        except subprocess.TimeoutExpired:
            said, status = f"no end after {LIMIT_SECONDS} seconds", -1
        written = results.read_bytes() if results.exists() else b""
    position = 0
    for case in cases:
        needed = 4 + sum(buffer.data.nbytes for buffer in _outputs(case, run.device).values())
        if position + needed > len(written):
            verdict.words = f"{case.op}, {case.name}: {_gist(said, status)}".replace(f"driver: {case.name}: ", "")
            return verdict
        words = _check(case, run.device, written[position : position + needed]) if compare else ""
        if words:
            verdict.words = f"{case.op}, {case.name}: {words}"
            return verdict
        position += needed
        verdict.right += 1
    if status != 0:
        verdict.words = _gist(said, status)
    return verdict


def write_cases(path: Path, cases: Sequence[Case], device: str) -> None:
    """The format is described in tests/emulator/driver.cpp."""
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<I", len(cases)))
        for case in cases:
            image = abi.pack(case, device, {})
            buffers = abi.buffers(case, device)
            file.write(_text(case.name) + _text(abi.function(case.op, device)))
            file.write(struct.pack("<I", len(image)) + image + struct.pack("<I", len(buffers)))
            for label, buffer in buffers.items():
                at, _ = abi.field_offset(abi.STRUCTS[case.op], label)
                content = np.ascontiguousarray(buffer.data).tobytes()
                file.write(_text(label))
                file.write(struct.pack("<IIIQ", at, ROLES[buffer.role], buffer.offset % 16, len(content)))
                file.write(content)


def _check(case: Case, device: str, result: bytes) -> str:
    (status,) = struct.unpack_from("<i", result)
    if status != case.status:
        return f"status {status}, not {case.status}"
    got: dict[str, np.ndarray] = {}
    position = 4
    for path, buffer in _outputs(case, device).items():
        size = buffer.data.nbytes
        got[path] = np.frombuffer(result, np.uint8, size, position)
        position += size
    return case.check(got)


def _outputs(case: Case, device: str) -> dict[str, abi.Buffer]:
    return {path: buffer for path, buffer in abi.buffers(case, device).items() if buffer.role == "out"}


def _gist(said: str, status: int) -> str:
    """The line of a sanitizer's, the emulator's or the driver's report that says what happened, and where."""
    found = re.search(
        r"^(emulator: .*|driver: .*|.*runtime error: .*|.*ERROR: AddressSanitizer: .*)$", said, re.MULTILINE
    )
    race = re.search(r"^WARNING: ThreadSanitizer: (.*?)( \(pid.*)?$", said, re.MULTILINE)
    words = found.group(1) if found else f"ThreadSanitizer: {race.group(1)}" if race else said.strip()[-300:]
    words = re.sub(r"==\d+==", "", re.sub(r" on address 0x.*", "", words))
    place = re.search(r"(csrc/[\w/]+\.\w+:\d+)", said)
    where = f" ({place.group(1)})" if place and place.group(1) not in words else ""
    return f"{words or 'the process ended'}{where}" if words else f"the process ended with status {status}"


def _text(words: str) -> bytes:
    encoded = words.encode()
    return struct.pack("<I", len(encoded)) + encoded
