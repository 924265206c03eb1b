"""The ladder's rungs on the CPU: ``python tests/ladder/emulate.py plain|sanitize|cpu [--only NAME]``.

plain     the CUDA sources on the emulator, in three orders of threads and blocks, buffers with guards or at the edge
          of a page; and their launches at sizes that only a GPU could run;
sanitize  the same under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer;
cpu       the CPU kernels, plain, and under the same sanitizers, for every instruction set of the machine; and as
          they are compiled where there is no x86.

Each rung then injects its bugs (mutations.py) and must fail on every one. ``--only`` takes the ops, and the
mutations, whose name holds a text. The status is 1 when anything fails or a bug goes uncaught.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import build
import launches
from cases import CPU_OPS, CUDA_OPS, Case, cases
from driver import Run, Verdict, judge
from mutations import ROOT, Mutation, for_rung, mutated_tree


@dataclass(frozen=True)
class Variant:
    """A build and the ways to run it; its name is the one that mutations call it by."""

    name: str
    device: str
    sanitizer: str
    runs: tuple[Run, ...]
    heavy: bool


def _isas() -> tuple[int, ...]:
    """The instruction sets of this machine, as dispatch.h numbers them."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return (0,)
    have = [True, {"avx2", "fma"} <= flags, {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags]
    return tuple(isa for isa in range(3) if have[isa])


def _cpu_runs(places: Sequence[tuple[str, int]]) -> tuple[Run, ...]:
    return tuple(Run("cpu", place, 0, threads, isa) for isa in _isas() for place, threads in places)


RUNGS: dict[str, tuple[Variant, ...]] = {
    "plain": (
        Variant("plain", "cuda", "plain", (Run(order=0), Run(place="end", order=1), Run(place="start", order=5)), True),
    ),
    "sanitize": (
        Variant("asan", "cuda", "asan", (Run(order=0),), False),
        Variant("tsan", "cuda", "tsan", (Run(order=5),), False),
    ),
    "cpu": (
        Variant("cpu", "cpu", "plain", _cpu_runs((("end", 1), ("start", 3), ("heap", 2))), True),
        Variant("cpu-elsewhere", "cpu", "elsewhere", (Run("cpu", "end", 0, 2, 0),), False),
        Variant("cpu-asan", "cpu", "asan", _cpu_runs((("heap", 2),)), True),
        Variant("cpu-tsan", "cpu", "tsan", _cpu_runs((("heap", 3),)), False),
    ),
}


def ops_of(variant: Variant, root: Path) -> list[str]:
    """The ops whose sources are there."""
    if variant.device == "cuda":
        there = build.cuda_sources(root)
        return [op for op in CUDA_OPS if op in there]
    there = build.cpu_sources(root)
    return [op for op in CPU_OPS if op.split("_")[0] in there]


def cases_of(variant: Variant, ops: Sequence[str]) -> list[Case]:
    return [case for op in ops for case in cases(op, variant.device, variant.heavy)]


def program_of(variant: Variant, root: Path) -> Path:
    return (build.cuda_driver if variant.device == "cuda" else build.cpu_driver)(variant.sanitizer, root)


def check(variant: Variant, only: str | None) -> bool:
    """Runs a variant on the sources as they are."""
    ops = ops_of(variant, ROOT)
    chosen = [op for op in ops if only is None or only in op] or ops
    start = time.monotonic()
    try:
        program = program_of(variant, ROOT)
    except build.BuildError as error:
        print(f"FAILED {variant.name}: does not build: {error}")
        return False
    built = time.monotonic() - start
    tests = cases_of(variant, chosen)
    passed = bool(tests)
    for run, verdict in zip(variant.runs, _together(lambda run: judge(program, tests, run), variant.runs), strict=True):
        words = "right" if verdict.passed else f"FAILED after {verdict.right}: {verdict.words}"
        print(f"{variant.name}: {run.label}: {len(tests)} cases of {', '.join(chosen)}: {words}")
        passed = passed and verdict.passed
    print(f"{variant.name}: built in {built:.1f} s, all in {time.monotonic() - start:.1f} s", flush=True)
    return passed


def check_launches(only: str | None) -> bool:
    """Looks at the launches of huge sizes, then at what the injected bugs make of them."""
    count, faults = launches.check(build.library())
    print(f"launches: {count} launches of {len(launches.SIZES)} sizes: {faults[0] if faults else 'right'}", flush=True)
    passed = count > 0 and not faults
    for mutation in for_rung("launches", only) if passed else ():
        with tempfile.TemporaryDirectory() as folder:
            _, faults = launches.check(build.library(root=mutated_tree(mutation, Path(folder) / "tree")))
        print(f"{'caught' if faults else 'MISSED'} {mutation.name} by launches: {faults[0] if faults else 'passes'}")
        passed = passed and bool(faults)
    return passed


def catch(variant: Variant, mutation: Mutation) -> tuple[bool, str]:
    """Whether the variant fails on the bug, and its words."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = mutated_tree(mutation, Path(folder) / "tree")
            ops = affected(variant, mutation, root)
            program = program_of(variant, root)
    except build.BuildError as error:
        return False, f"does not build, which proves nothing: {str(error)[-500:]}"
    except ValueError as error:
        return False, str(error)
    verdict = Verdict()
    for run in variant.runs:
        # Whether ThreadSanitizer sees the race is the question, not whether it spoils a value as well.
        verdict = judge(program, cases_of(variant, ops), run, compare=variant.sanitizer != "tsan")
        if not verdict.passed:
            return True, f"{verdict.words} [{run.label}]"
    return False, f"passes {verdict.right} cases"


def affected(variant: Variant, mutation: Mutation, root: Path) -> list[str]:
    """The ops whose source is, or includes, the file of a mutation, and align, which calls the others; all for none."""
    folder, ending = ("cuda", "cu") if variant.device == "cuda" else ("cpu", "cpp")
    changed = (root / mutation.file).resolve()
    names = ops_of(variant, root)
    found = []
    for op in names:
        source = root / "csrc" / folder / f"{op.split('_')[0]}.{ending}"
        if changed in build.closure(source, (build.EMULATOR,)):
            found.append(op)
    if {"regions", "inputs"} & set(found) and "align" not in found:
        found += [op for op in names if op == "align"]
    return found or names


def check_mutations(variant: Variant, only: str | None) -> bool:
    found = [mutation for mutation in for_rung(variant.name, only) if mutation.isa in _isas()]
    passed = True
    for mutation, (caught, words) in zip(found, _together(lambda m: catch(variant, m), found), strict=True):
        print(f"{'caught' if caught else 'MISSED'} {mutation.name} by {variant.name}: {words}", flush=True)
        passed = passed and caught
    return passed


def _together(function: Callable, items: Sequence) -> list:  # type: ignore[type-arg]
    with ThreadPoolExecutor(build.JOBS) as pool:
        return list(pool.map(function, items))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rung", choices=sorted(RUNGS))
    parser.add_argument("--only", help="ops and mutations whose name holds this")
    words = parser.parse_args()
    start = time.monotonic()
    passed = [check(variant, words.only) for variant in RUNGS[words.rung]]
    if all(passed):
        passed += [check_mutations(variant, words.only) for variant in RUNGS[words.rung]]
        if words.rung == "plain":
            passed.append(check_launches(words.only))
    print(f"rung {words.rung}: {'passed' if all(passed) else 'FAILED'} in {time.monotonic() - start:.0f} s")
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
