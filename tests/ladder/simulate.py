"""Rung g: the PTX of every GPU kernel runs on the simulator of tests/ptxsim, on no GPU.

    python tests/ladder/simulate.py [--only NAME] [--json FILE] [--update]

Values: every CUDA kernel (nvcc's PTX, launched by the real host code) and every Triton kernel, for sm_80 and sm_90, the
engine's for sm_80 alone, against the reference; with them accesses out of bounds, misaligned accesses, races on shared
memory and divergent barriers. Traffic: the bytes that each kernel moves, the engine's left out, against what its task
needs; more than the committed figure in bytes.json fails. Then the injected bugs, which must be caught.

``--update`` writes lower figures, new kernels and cases into bytes.json and drops vanished ones; it never raises a
figure: that is an edit by hand. ``--json`` writes what was counted. ``--only`` takes the tasks, and the bugs, whose
name holds a text. The status is 1 when anything fails or a bug goes uncaught.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mutations import Mutation, for_rung, mutated_tree

if TYPE_CHECKING:
    from simulate_cases import Figures, Outcome

LIMITS = Path(__file__).with_name("bytes.json")
ARCHITECTURES = (80, 90)
OPS = ("align", "regions", "crops", "inputs")  # the longest first
JOBS = 2

Counts = dict[str, dict[str, dict[str, float]]]  # by kernel, by case


@dataclass(frozen=True)
class Verdict:
    """Of one task; pickled, since the tasks run in processes of their own."""

    name: str
    passed: bool
    words: list[str]
    counts: Counts


def counts_of(figures: list[Figures]) -> Counts:
    counts: Counts = {}
    for one in figures:
        counts.setdefault(one.kernel, {})[one.case] = {
            "moved": one.moved,
            "minimum": one.minimum,
            "efficiency": one.efficiency,
            "requested": one.requested,
            "touched": one.touched,
            "warp_instructions": one.warp_instructions,
        }
    return counts


def excess(counts: Counts, limits: Counts) -> list[str]:
    """Kernels that move more than the committed figure."""
    return [
        f"{kernel}: {case}: moves {got['moved']:,} bytes, the limit is {limits[kernel][case]['moved']:,}"
        for kernel, cases in counts.items()
        for case, got in cases.items()
        if case in limits.get(kernel, {}) and not got["moved"] <= limits[kernel][case]["moved"]
    ]


def judge(name: str, outcome: Outcome, words: str = "") -> Verdict:
    faults = list(outcome.faults)
    if outcome.count == 0:
        faults.append("no case ran")
    faults += [f"kernel {kernel} was never launched" for kernel in sorted(outcome.known - outcome.ran)]
    lines = [f"FAILED {fault}" for fault in faults]
    lines = lines or [words or f"{outcome.count} cases right"]
    return Verdict(name, not faults, lines, counts_of(outcome.figures))


def values(op: str, arch: int) -> Verdict:
    name = f"values {op} sm_{arch}"
    if op == "pooling":
        import simulate_triton

        return judge(name, simulate_triton.values(arch))
    if op == "batchnorm":
        import simulate_batchnorm

        return judge(name, simulate_batchnorm.values(arch))
    if op == "products":
        import simulate_products

        return judge(name, simulate_products.values())
    import simulate_cases

    first = ARCHITECTURES[0]
    if arch != first and all(simulate_cases.same_ptx(source, arch, first) for source in simulate_cases.sources(op)):
        return Verdict(name, True, [f"the same PTX as for sm_{first}"], {})
    return judge(name, simulate_cases.cuda_values(op, arch))


def traffic(op: str, arch: int) -> Verdict:
    name = f"traffic {op} sm_{arch}"
    if op == "pooling":
        import simulate_triton

        return judge(name, simulate_triton.traffic(arch), "counted")
    if op == "batchnorm":
        import simulate_batchnorm

        return judge(name, simulate_batchnorm.traffic(arch), "counted")
    import simulate_cases

    return judge(name, simulate_cases.cuda_traffic(op, arch), "counted")


def catch(mutation: Mutation, limits: Counts) -> Verdict:
    """Whether the rung fails on a bug: by the values, else by the bytes moved."""
    with tempfile.TemporaryDirectory() as folder:
        # What the compilers or the simulator cannot read proves nothing: such errors are no catch.
        try:
            words = _caught(mutation, mutated_tree(mutation, Path(folder) / "tree"), limits)
        except Exception as error:
            return Verdict(mutation.name, False, [f"MISSED {mutation.name}: {type(error).__name__}: {error}"], {})
    line = f"caught {mutation.name}: {words}" if words else f"MISSED {mutation.name}: everything passes"
    return Verdict(mutation.name, bool(words), [line], {})


def _caught(mutation: Mutation, tree: Path, limits: Counts) -> str:
    arch = ARCHITECTURES[0]
    if mutation.file.startswith("kernels/batchnorm"):
        import simulate_batchnorm

        return _first(simulate_batchnorm.values(arch, tree, only_first=True), limits)
    if mutation.file.startswith(("kernels/pointwise", "kernels/stem")):
        import simulate_products

        return _first(simulate_products.values(tree, Path(mutation.file).stem), limits)
    if mutation.file.startswith("kernels/"):
        import simulate_triton

        for run in (simulate_triton.values, simulate_triton.traffic):
            words = _first(run(arch, tree), limits)
            if words:
                return words
        return ""
    import simulate_cases

    for op in simulate_cases.affected(mutation.file, tree):
        programs = simulate_cases.kernels(op, arch, tree)
        for check in (simulate_cases.cuda_values, simulate_cases.cuda_traffic):
            words = _first(check(op, arch, tree, programs), limits)
            if words:
                return words
    return ""


def _first(outcome: Outcome, limits: Counts) -> str:
    return next(iter(outcome.faults + excess(counts_of(outcome.figures), limits)), "")


def merge(verdicts: list[Verdict]) -> Counts:
    """Of several architectures the one that moves more."""
    counts: Counts = {}
    for verdict in verdicts:
        for kernel, cases in verdict.counts.items():
            for case, got in cases.items():
                known = counts.setdefault(kernel, {}).get(case)
                if known is None or got["moved"] > known["moved"]:
                    counts[kernel][case] = got
    return counts


def check_limits(counts: Counts, limits: Counts, whole: bool) -> tuple[list[str], list[str]]:
    """What fails, and what --update could tighten."""
    faults = excess(counts, limits)
    keys = {(kernel, case) for kernel, cases in counts.items() for case in cases}
    committed = {(kernel, case) for kernel, cases in limits.items() for case in cases}
    faults += [f"{kernel}: {case}: not in {LIMITS.name}" for kernel, case in sorted(keys - committed)]
    if whole:
        faults += [f"{kernel}: {case}: in {LIMITS.name}, but gone" for kernel, case in sorted(committed - keys)]
    lower = [
        f"{kernel}: {case}: moves {counts[kernel][case]['moved']:,} bytes, the limit is "
        f"{limits[kernel][case]['moved']:,}"
        for kernel, case in sorted(keys & committed)
        if counts[kernel][case]["moved"] < limits[kernel][case]["moved"]
    ]
    return faults, lower


def updated(counts: Counts, limits: Counts, whole: bool) -> Counts:
    result: Counts = {} if whole else {kernel: dict(cases) for kernel, cases in limits.items()}
    for kernel, cases in counts.items():
        for case, got in cases.items():
            known = limits.get(kernel, {}).get(case)
            keep = known is not None and known["moved"] < got["moved"]
            result.setdefault(kernel, {})[case] = known if keep and known is not None else got
    return result


def write(path: Path, counts: Counts) -> None:
    """A case a line, so that a change is a line."""
    kernels = []
    for kernel in sorted(counts):
        cases = ",\n".join(
            f"    {json.dumps(case)}: {json.dumps(counts[kernel][case])}" for case in sorted(counts[kernel])
        )
        kernels.append(f"  {json.dumps(kernel)}: {{\n{cases}\n  }}")
    path.write_text("{\n" + ",\n".join(kernels) + "\n}\n")


def tasks() -> list[tuple[str, Callable[[str, int], Verdict], str, int]]:
    """(name, function, op, architecture), the longest first."""
    found: list[tuple[str, Callable[[str, int], Verdict], str, int]] = []
    first, last = ARCHITECTURES[0], ARCHITECTURES[-1]
    for op in OPS:
        found += [(f"traffic {op} sm_{last}", traffic, op, last), (f"values {op} sm_{first}", values, op, first)]
    found += [(f"traffic pooling sm_{arch}", traffic, "pooling", arch) for arch in ARCHITECTURES]
    found += [(f"values pooling sm_{arch}", values, "pooling", arch) for arch in ARCHITECTURES]
    found.append((f"traffic batchnorm sm_{first}", traffic, "batchnorm", first))
    found += [(f"values batchnorm sm_{arch}", values, "batchnorm", arch) for arch in ARCHITECTURES]
    found.append((f"values products sm_{first}", values, "products", first))
    found += [(f"values {op} sm_{arch}", values, op, arch) for op in OPS for arch in ARCHITECTURES[1:]]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="tasks and bugs whose name holds this")
    parser.add_argument("--json", type=Path, help="write the counts here")
    parser.add_argument("--update", action="store_true", help=f"tighten {LIMITS.name}")
    words = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.pop("TRITON_INTERPRET", None)
    start, only = time.monotonic(), words.only
    limits: Counts = json.loads(LIMITS.read_text()) if LIMITS.exists() else {}
    chosen = [task for task in tasks() if only is None or only in task[0]]
    bugs = list(for_rung("simulate", only))
    with ProcessPoolExecutor(JOBS, mp_context=multiprocessing.get_context("spawn")) as pool:
        running: list[Future[Verdict]] = [pool.submit(function, op, arch) for _, function, op, arch in chosen]
        bug_hunts = [pool.submit(catch, bug, limits) for bug in bugs]
        verdicts = [_told(task[0], future) for task, future in zip(chosen, running, strict=True)]
        caught = [_told(bug.name, future) for bug, future in zip(bugs, bug_hunts, strict=True)]
    passed = bool(chosen or bugs) and all(verdict.passed for verdict in verdicts + caught)
    counts, whole = merge(verdicts), only is None
    if words.json:
        write(words.json, counts)
    if words.update and all(verdict.passed for verdict in verdicts):
        limits = updated(counts, limits, whole)
        write(LIMITS, limits)
    faults, lower = check_limits(counts, limits, whole)
    for line in faults:
        print(f"FAILED {line}")
    for line in lower:
        print(f"lower than committed (--update tightens it): {line}")
    passed = passed and not faults
    print(f"rung simulate: {'passed' if passed else 'FAILED'} in {time.monotonic() - start:.0f} s")
    return 0 if passed else 1


def _told(name: str, future: Future[Verdict]) -> Verdict:
    """Waits for a task and prints its words; what stops it, such as a source that does not compile, is a failure."""
    error = future.exception()
    if error is not None:
        verdict = Verdict(name, False, [f"FAILED {type(error).__name__}: {error}"], {})
    else:
        verdict = future.result()
    for line in verdict.words:
        print(line if line.startswith(("caught", "MISSED")) else f"{verdict.name}: {line}", flush=True)
    return verdict


if __name__ == "__main__":
    sys.exit(main())
