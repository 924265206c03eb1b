"""Rung f: every GPU kernel is compiled for every architecture, and what came out is held against committed limits.

    python tests/ladder/compile.py [--update] [--only TEXT]

Rules for every kernel, CUDA and Triton: no stack, no spilled registers, no atomic whose result is used, a block that
fits the multiprocessor. Then limits.json, which only shrinks: registers, shared memory and atomics may not rise above
the committed figures, 16-byte loads and stores may not fall below them. ``--update`` commits better figures and adds
new kernels; worse ones want an edit by hand. The figures belong to one version of nvcc and of Triton: under another,
they are only told, and the rules alone decide. At last, injected bugs must be caught. No GPU needed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cubin
import mutations
import occupancy
from cubin import ROOT, GateError

LIMITS = Path(__file__).with_name("limits.json")
ARCHS = tuple(device.arch for device in occupancy.DEVICES)
# One is enough to see an injected bug.
MUTATION_ARCHS = (90,)

# What limits.json holds of each kernel and architecture.
MOST, LEAST = ("registers", "shared", "red"), ("loads128", "stores128")
FACTS = ("threads",)  # neither better nor worse, but the table of kernels depends on it
KEPT = (*MOST, *LEAST, *FACTS)

Entry = dict[str, int]
# Kernel ("inputs.cu find_empty") -> architecture ("80") -> figures.
Kernels = dict[str, dict[str, Entry]]


# --- Measuring --------------------------------------------------------------------------------------------------------


def cuda_sources(tree: Path = ROOT) -> list[Path]:
    """The .cu files of a tree, relative to it."""
    return sorted(path.relative_to(tree) for path in (tree / "csrc" / "cuda").glob("*.cu"))


def measure_cuda(sources: list[Path], archs: tuple[int, ...], tree: Path = ROOT, processes: int = 2) -> Kernels:
    """Compiles with that many processes at a time."""
    jobs = [(source, arch) for source in sources for arch in archs]
    with ThreadPoolExecutor(processes) as pool:
        results = list(pool.map(lambda job: cubin.compile_file(job[0], job[1], tree), jobs))
    kernels: Kernels = {}
    for (source, arch), figures in zip(jobs, results, strict=True):
        for figure in figures:
            entry = {key: value for key, value in asdict(figure).items() if isinstance(value, int)}
            kernels.setdefault(f"{source.name} {figure.kernel}", {})[str(arch)] = entry
    return kernels


# Files of kernels/ that hold kernels.
TRITON = ("pooling", "batchnorm", "pointwise", "stem")
# Run aside, since TRITON_INTERPRET decides at import and the gate puts a mock in the place of the driver.
_TRITON = """
import json, sys
sys.path[:0] = [sys.argv[1]]
import triton_gate
with open(sys.argv[2], "w") as file:
    entries, faults = triton_gate.everything()
    json.dump({"entries": entries, "faults": faults}, file)
"""


def triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        raise GateError("Triton is not installed") from None


def measure_triton() -> tuple[Kernels, list[str]]:
    """What triton_gate.py says of the Triton kernels for all its architectures, and what it finds wrong."""
    here = Path(__file__).parent
    digest = hashlib.sha256(repr((triton_version(), sys.version)).encode())
    # What the gate's answer depends on.
    definitions = (
        *(here / f"triton_{name}.py" for name in ("gate", "dry", "batchnorm", "products")),
        here / "cubin.py",
        here / "occupancy.py",
        Path(__file__),
        *(ROOT / "mgran_fast" / "reference" / f"{name}.py" for name in TRITON),
    )
    for path in (*definitions, *sorted((ROOT / "kernels").glob("*.*"))):
        digest.update(path.read_bytes())
    kept = cubin.CACHE.parent / f"triton-{digest.hexdigest()[:16]}.json"
    if not kept.exists():
        environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kernels.json"
            cubin.run([sys.executable, "-c", _TRITON, here, file], env=environment)
            cubin.write_whole(kept, file.read_text())
    answer = json.loads(kept.read_text())
    return merge_triton(answer["entries"]), answer["faults"]


def merge_triton(rows: list[dict[str, Any]]) -> Kernels:
    """The gate's rows by kernel and architecture. Where one kernel was compiled more than once, the worst figures."""
    kernels: Kernels = {}
    for row in rows:
        what = ", ".join(str(row[key]) for key in ("mode", "dtype") if row.get(key))
        name = f"{row.get('file', 'pooling.py')} {row['kernel']}" + (f"<{what}>" if what else "")
        entry = {
            "registers": row["registers"],
            "stack": row["stack"],
            "local": row["spill_accesses"],
            "shared": row["shared_bytes"],
            "loads128": row["ld128"] + row.get("async128", 0),
            "stores128": row["st128"],
            "red": row["red"],
            "atom": row["atom"],
            "threads": row["threads"],
        }
        archs = kernels.setdefault(name, {})
        before = archs.get(str(row["arch"]), entry)
        archs[str(row["arch"])] = {
            key: min(before[key], value) if key in LEAST else max(before[key], value) for key, value in entry.items()
        }
    return kernels


# --- Judging ----------------------------------------------------------------------------------------------------------


# Kernel, architecture, what is the matter.
Finding = tuple[str, str, str]


def broken_rules(kernels: Kernels) -> list[Finding]:
    """What no kernel may do, whatever the limits say."""
    found = []
    for name, archs in kernels.items():
        for arch, entry in archs.items():
            problems = []
            if entry["stack"]:
                problems.append(f"{entry['stack']} bytes of stack")
            if entry["local"]:
                problems.append(f"{entry['local']} accesses to local memory (spilled registers)")
            if entry["atom"]:
                problems.append(f"{entry['atom']} atomics with a result (ATOM, not RED)")
            if not entry["threads"]:
                problems.append("does not say its threads: __launch_bounds__ is missing")
            else:
                device = occupancy.BY_ARCH[int(arch)]
                held = occupancy.resident(device, entry["threads"], entry["registers"], entry["shared"])
                if held.blocks < 1:
                    problems.append(f"a block does not fit on a multiprocessor ({held.limit})")
            found += [(name, arch, problem) for problem in problems]
    return found


def compare(kernels: Kernels, limits: Kernels) -> tuple[list[Finding], list[Finding], list[Finding]]:
    """What is worse than committed, what is better, and which facts are others, where both know a kernel."""
    worse, better, other = [], [], []
    for name, archs in kernels.items():
        for arch, entry in archs.items():
            limit = limits.get(name, {}).get(arch, entry)
            for key in KEPT:
                if entry[key] == limit[key]:
                    continue
                finding = (name, arch, f"{key} {entry[key]}, committed {limit[key]}")
                if key in FACTS:
                    other.append(finding)
                elif (entry[key] > limit[key]) == (key in MOST):
                    worse.append(finding)
                else:
                    better.append(finding)
    return worse, better, other


def grouped(findings: list[Finding]) -> list[str]:
    """One line for all the architectures of which the same is to be said."""
    archs: dict[tuple[str, str], list[str]] = {}
    for name, arch, text in findings:
        archs.setdefault((name, text), []).append(arch)
    return [f"{name} sm_{'/'.join(sorted(at, key=int))}: {text}" for (name, text), at in archs.items()]


def unlisted(kernels: Kernels, limits: Kernels) -> tuple[list[Finding], list[Finding]]:
    """(kernels and architectures that limits.json does not know, those that are gone)."""
    new = [(n, a, "new") for n, archs in kernels.items() for a in archs if a not in limits.get(n, {})]
    gone = [(n, a, "gone") for n, archs in limits.items() for a in archs if a not in kernels.get(n, {})]
    return new, gone


def updated(kernels: Kernels, limits: Kernels) -> Kernels:
    """The limits after --update: never weaker than before for a kernel that stays."""
    result: Kernels = {}
    for name, archs in kernels.items():
        for arch, entry in archs.items():
            limit = limits.get(name, {}).get(arch, entry)
            kept = {key: min(entry[key], limit[key]) for key in MOST}
            kept |= {key: max(entry[key], limit[key]) for key in LEAST}
            kept |= {key: entry[key] for key in FACTS}
            result.setdefault(name, {})[arch] = kept
    return result


def check_occupancy(kernels: Kernels) -> list[str]:
    """Our rules of occupancy against CUDA's header, on the figures of these kernels."""
    if occupancy.header_folder() is None:
        return []
    questions = [
        (occupancy.BY_ARCH[int(arch)], entry["threads"], entry["registers"], entry["shared"])
        for archs in kernels.values()
        for arch, entry in archs.items()
        if entry["threads"]
    ]
    answers = occupancy.header_blocks(questions)
    return [
        f"{device.name}: {threads} threads, {registers} registers, {shared} bytes: cuda_occupancy.h says "
        f"{answer} blocks, occupancy.py {occupancy.resident(device, threads, registers, shared).blocks}"
        for (device, threads, registers, shared), answer in zip(questions, answers, strict=True)
        if occupancy.resident(device, threads, registers, shared).blocks != answer
    ]


# --- The committed file -----------------------------------------------------------------------------------------------


def read_limits(path: Path = LIMITS) -> tuple[dict[str, str], Kernels]:
    """(compilers, kernels) of limits.json; both empty where there is none yet."""
    if not path.exists():
        return {}, {}
    content = json.loads(path.read_text())
    return content["compilers"], content["kernels"]


def write_limits(compilers: dict[str, str], kernels: Kernels, path: Path = LIMITS) -> None:
    """One line a kernel and architecture, so that a diff reads well."""
    blocks = []
    for name in sorted(kernels):
        lines = [f"      {json.dumps(a)}: {json.dumps(kernels[name][a])}" for a in sorted(kernels[name], key=int)]
        blocks.append(f"    {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n    }")
    text = ",\n".join(blocks)
    cubin.write_whole(path, f'{{\n  "compilers": {json.dumps(compilers)},\n  "kernels": {{\n{text}\n  }}\n}}\n')


def same_compiler(kernels: Kernels, committed: dict[str, str], present: dict[str, str]) -> Kernels:
    """The kernels whose figures were committed from the compiler that is here."""
    kind = {name: "nvcc" if name.split()[0].endswith(".cu") else "triton" for name in kernels}
    return {name: archs for name, archs in kernels.items() if committed.get(kind[name]) == present[kind[name]]}


# --- The rung ---------------------------------------------------------------------------------------------------------


def check_mutations(limits: Kernels, only: str | None) -> list[str]:
    """Prints what each injected bug is caught by; the names of those that are not."""
    missed = []
    for mutation in mutations.for_rung("compile", only):
        file = Path(mutation.file)
        if file.parts[0] != "csrc":
            raise GateError(f"mutation {mutation.name}: this rung compiles mutated trees of csrc/ only")
        sources = [source for source in cuda_sources() if file in cubin.included(source)]
        if not sources:
            raise GateError(f"mutation {mutation.name}: no .cu file includes {file}")
        with tempfile.TemporaryDirectory() as folder:
            tree = mutations.mutated_tree(mutation, Path(folder) / "tree")
            kernels = measure_cuda(sources, MUTATION_ARCHS, tree)
        problems = grouped(broken_rules(kernels) + compare(kernels, limits)[0])
        if problems:
            say(f"caught {mutation.name}: {problems[0]}")
        else:
            missed.append(mutation.name)
    return missed


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def rung(update: bool, only: str | None) -> int:
    """Measures, judges, writes limits.json where asked, injects the bugs; the exit status."""
    if update and only is not None:
        raise GateError("--update takes all kernels: leave --only out")
    compilers = {"nvcc": cubin.nvcc_version(), "triton": triton_version()}
    sources = [source for source in cuda_sources() if only is None or only in str(source)]
    with ThreadPoolExecutor(1) as aside:
        # Triton's kernels are compiled by a process of their own, beside nvcc's.
        asked = only is None or any(only in f"{name}.py" for name in TRITON)
        triton = aside.submit(measure_triton) if asked else None
        kernels = measure_cuda(sources, ARCHS, processes=1 if triton else 2)
        more, faults = triton.result() if triton else ({}, [])
    kernels |= more
    files = {name.split()[0] for name in kernels}
    if not files:
        raise GateError(f"no kernel has {only!r} in its file's name")
    committed, limits = read_limits()
    limits = {name: archs for name, archs in limits.items() if only is None or name.split()[0] in files}
    versions = ", ".join(f"{name} {version}" for name, version in compilers.items())
    say(f"{len(kernels)} kernels of {', '.join(sorted(files))} for sm_{'/'.join(map(str, ARCHS))} by {versions}")
    comparable = same_compiler(kernels, committed, compilers)
    if limits and len(comparable) < len(kernels):
        versions = ", ".join(f"{name} {version}" for name, version in committed.items())
        say(f"limits.json was made by {versions}: of another compiler's kernels, the rules alone decide")
    worse, better, other = compare(comparable, limits)
    new, gone = unlisted(kernels, limits)
    problems = grouped(broken_rules(kernels) + worse) + faults + check_occupancy(kernels)
    if update:
        # Another compiler's figures are replaced as a whole: they cannot be compared.
        limits = updated(kernels, {name: archs for name, archs in limits.items() if name in comparable})
        write_limits(compilers, limits)
        say(f"limits.json: {len(new)} new, {len(gone)} gone, {len(better)} better, {len(other)} others")
    else:
        for text in grouped(better):
            say(f"better: {text}; --update commits it")
        problems += [f"{text}; --update commits it" for text in grouped(other + new + gone)]
    for problem in problems:
        say(f"FAILED {problem}")
    # Where the committed figures cannot be compared, the bug is held against the kernel without it.
    valid = limits if update else {name: limits[name] for name in comparable if name in limits}
    missed = check_mutations(kernels | valid, only)
    for name in missed:
        say(f"FAILED mutation {name} was not caught")
    return 1 if problems or missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Rung f: compiles every GPU kernel and holds it against limits.json.")
    parser.add_argument("--update", action="store_true", help="commit better figures and new kernels to limits.json")
    parser.add_argument("--only", metavar="TEXT", help="only files whose name holds this text")
    arguments = parser.parse_args()
    start = time.monotonic()
    try:
        code = rung(arguments.update, arguments.only)
    except (GateError, ValueError) as error:
        say(f"FAILED {error}")
        code = 1
    say(f"compile: {'failed' if code else 'passed'} in {time.monotonic() - start:.0f} s")
    return code


if __name__ == "__main__":
    sys.exit(main())
