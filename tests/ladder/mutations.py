"""Injected bugs: proof that each rung of the ladder can fail.

The shipped sources have no switches for bugs. A bug is an edit of their text: a rung builds the edited tree and
must fail on it. Each rung's own list stands in a module ``<rung>_mutations.py`` beside this one, which holds a
tuple ``<RUNG>_MUTATIONS``; ``MUTATIONS`` is all of them together.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What a mutated tree holds.
FOLDERS = ("csrc", "kernels", "mgran_fast")
# Modules that hold mutations. Who adds a rung adds a module.
SOURCES = ("torch", "cuda", "cpu", "fuzz", "simulate", "compile", "triton", "batchnorm")


@dataclass(frozen=True)
class Mutation:
    """One bug: ``old``, which occurs exactly once in ``file``, replaced by ``new``.

    Attributes:
        name: what the rungs print, unique.
        file: path from the root of the repository, in one of FOLDERS.
        rungs: what must fail on it: plain, launches, asan, tsan, cpu, cpu-asan, cpu-tsan (variants of emulate.py),
            torch, fuzz, interpret, triton (triton_gate.py), compile, simulate.
        isa: of a CPU kernel: the instruction set (as csrc/cpu/dispatch.h numbers them) that runs the line at all.
    """

    name: str
    file: str
    old: str
    new: str
    rungs: tuple[str, ...]
    isa: int = 0


def mutated_tree(mutation: Mutation, folder: Path) -> Path:
    """Copies FOLDERS into ``folder`` (made anew) with the bug in, and returns ``folder``.

    Raises:
        ValueError: the text to replace does not occur exactly once: the source has changed, so must the mutation.
    """
    text = (ROOT / mutation.file).read_text()
    found = text.count(mutation.old)
    if found != 1:
        raise ValueError(f"mutation {mutation.name}: its text occurs {found} times in {mutation.file}, not once")
    if mutation.old == mutation.new:
        raise ValueError(f"mutation {mutation.name} changes nothing")
    if folder.exists():
        shutil.rmtree(folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / mutation.file).write_text(text.replace(mutation.old, mutation.new))
    return folder


def for_rung(rung: str, only: str | None = None) -> Iterator[Mutation]:
    """The mutations that ``rung`` must catch; ``only``: those whose name or file holds this text."""
    for mutation in collect():
        if rung in mutation.rungs and (only is None or only in mutation.name or only in mutation.file):
            yield mutation


def collect() -> tuple[Mutation, ...]:
    """Every mutation of every module that is there."""
    result: list[Mutation] = []
    for source in SOURCES:
        module = f"{source}_mutations"
        if importlib.util.find_spec(module) is not None:
            result += getattr(importlib.import_module(module), f"{source.upper()}_MUTATIONS")
    names = [mutation.name for mutation in result]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two mutations have one name: {', '.join(twice)}")
    return tuple(result)


def __getattr__(name: str) -> Any:
    # Lazily, since the modules that hold the mutations import this one.
    if name == "MUTATIONS":
        return collect()
    raise AttributeError(name)
