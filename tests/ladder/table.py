"""Writes docs/kernels.md, the table of all GPU kernels: what the compiler made of them, and what memory allows.

    python tests/ladder/table.py [--check]

From limits.json (rung f), bytes.json (the simulator's counts, rung g) and the formulas of minimum.py; nothing is
compiled or run. ``--check`` writes nothing and fails where the document is out of date.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import compile as gate
import cubin
import minimum
import occupancy
from cubin import ROOT, GateError
from minimum import STATED, WORKS, Counts

DOCUMENT = ROOT / "docs" / "kernels.md"
BYTES = Path(__file__).with_name("bytes.json")

# The architectures of the first table, and the devices of the second.
SHOWN = (80, 89, 90, 100, 120)
FLOORS = (80, 90, 100)


# --- The document -----------------------------------------------------------------------------------------------------

HEAD = """# GPU kernels

**Computed, not measured.** What was timed on a GPU stands in [results.md](results.md#on-a-gpu). Written by

    python tests/ladder/table.py

from `tests/ladder/limits.json`, which `tests/ladder/compile.py` takes from the machine code, and from
`tests/ladder/bytes.json`, which `tests/ladder/simulate.py` counts while it runs the kernels' PTX on the CPU. Do not
edit this page.
"""

COMPILED = """
## What the compiler made

By {compilers}, for sm_{archs}.

Registers are those of a thread, shared memory that of a block in bytes, and an occupancy is the share of a
multiprocessor's warps that can be resident, by the published rules (`tests/ladder/occupancy.py`, compared with CUDA's
`cuda_occupancy.h`). Accesses of 16 bytes are instructions of the machine code for H100: loads of global memory,
asynchronous copies among them, and stores. Spills and stack are 0 for every kernel and architecture, and no atomic
waits for its result: rung f fails otherwise. The kernels of Python files are Triton, all others CUDA C++;
`pointwise.py` and `batchnorm.py` are compiled with several tiles, and each of their figures is the worst of them.

"""

FLOOR = """
## What memory allows

An op has to read its inputs once and to write its outputs once; nothing faster is possible from and to the GPU's
memory. The size: N = 64 people of P = 256 x 128 pixels, R = 3 regions; masks as large as the crops, M bytes a pixel;
boxes that cover F = 64 x 285 x 100 pixels of a frame of 1920 x 1080, none twice; features of B = 256 rows, C = 2048
channels and K = 16 x 8 cells; S bytes an element. Of the features, pooling reads only cells inside of a row's region:
the figure is for regions that touch every cell, the most there is to read. Batch norm is one of such features with a
residual. Bandwidths are those of the data sheets: {bandwidths}.

A floor is no prediction, and what another kernel has just left in a cache is not bound by it.

"""

SIMULATED = """
## What the kernels move

Counted by the simulator (`python tests/ladder/simulate.py`) on smaller cases, and scaled to the size above: a case has
2 people, the bytes are proportional to people, and those of pooling and batch norm to channels too. *Least* is what the
kernel's task needs, 0 for a pass that only helps another one. *Touched* counts each sector of 32 bytes once a launch:
what passes the GPU's memory when the L2 cache keeps what was read. *Moved* counts it once a warp's request: what passes
from L2 when the L1 cache never hits. *Efficiency* is the share of the moved sectors that the threads ask for; it is low
where the threads of a warp read the same bytes, as they do with tables and with the pixels between two taps. Times are
those of the touched bytes at the bandwidths above. In pooling's case the rows' regions touch 44 % of the cells.

"""


def document(compilers: dict[str, str], kernels: gate.Kernels, counts: Counts) -> str:
    """The whole page."""
    archs = sorted({int(arch) for figures in kernels.values() for arch in figures})
    text = HEAD
    text += COMPILED.format(
        compilers=" and ".join(f"{name} {version}" for name, version in compilers.items()),
        archs=", ".join(map(str, archs)),
    )
    text += compiled_table(kernels)
    text += FLOOR.format(bandwidths=", ".join(f"{occupancy.BY_ARCH[a].name} {_rate(a)}" for a in FLOORS))
    text += floor_table()
    if counts:
        text += SIMULATED + simulated_table(counts)
    return text


def compiled_table(kernels: gate.Kernels) -> str:
    """One row a kernel."""
    names = [occupancy.BY_ARCH[arch].name for arch in SHOWN]
    rows = []
    for kernel in sorted(kernels):
        figures = [kernels[kernel].get(str(arch)) for arch in SHOWN]
        here = [entry for entry in figures if entry is not None]
        if not here:
            continue
        held = [
            occupancy.resident(occupancy.BY_ARCH[arch], entry["threads"], entry["registers"], entry["shared"])
            if entry
            else None
            for arch, entry in zip(SHOWN, figures, strict=True)
        ]
        wide = kernels[kernel].get("90", here[0])
        rows.append(
            [
                f"`{kernel}`",
                _alike(str(entry["threads"]) for entry in here),
                " / ".join(str(entry["registers"]) if entry else "-" for entry in figures),
                _alike(f"{entry['shared']:,}" for entry in here),
                " / ".join(f"{100 * h.occupancy:.0f}" if h else "-" for h in held),
                f"{wide['loads128']} / {wide['stores128']}",
            ]
        )
    heads = ["kernel", "threads", "registers", "shared", "occupancy, %", "16-byte loads / stores"]
    lines = _table(heads, rows)
    return f"Registers and occupancies for {' / '.join(names)}.\n\n{lines}"


def _alike(words: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(words))
    return distinct[0] if len(distinct) == 1 else " / ".join(distinct)


def floor_table() -> str:
    """One row an op at the stated size."""
    rows = []
    for work in WORKS.values():
        total = work.bytes(STATED)
        rows.append([work.op, work.formula, _megabytes(total), *(_microseconds(total, arch) for arch in FLOORS)])
    names = [f"{occupancy.BY_ARCH[arch].name}, µs" for arch in FLOORS]
    return _table(["op", "least bytes", "MB", *names], rows)


def simulated_table(counts: Counts) -> str:
    """One row a kernel and case of bytes.json, at the stated size."""
    rows = []
    for kernel in sorted(counts):
        for case, count in sorted(counts[kernel].items()):
            scale = minimum.scale_of(kernel, case)
            touched = scale * count["touched"]
            rows.append(
                [
                    f"`{kernel}`",
                    minimum.variant(case),
                    *(_megabytes(scale * count[key]) for key in ("minimum", "touched", "moved")),
                    f"{100 * count['efficiency']:.0f}",
                    *(_microseconds(touched, arch) for arch in FLOORS),
                ]
            )
    names = [f"{occupancy.BY_ARCH[arch].name}, µs" for arch in FLOORS]
    return _table(["kernel", "case", "least, MB", "touched", "moved", "efficiency, %", *names], rows)


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.2f}"


def _microseconds(count: float, arch: int) -> str:
    return f"{1e6 * count / occupancy.BY_ARCH[arch].bandwidth:.1f}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _rate(arch: int) -> str:
    return f"{occupancy.BY_ARCH[arch].bandwidth / 1e12:.2f} TB/s"


# --- Files ------------------------------------------------------------------------------------------------------------


def generate() -> str:
    """The page that belongs to the committed figures."""
    compilers, kernels = gate.read_limits()
    if not kernels:
        raise GateError("limits.json is empty: python tests/ladder/compile.py --update fills it")
    counts = json.loads(BYTES.read_text()) if BYTES.exists() else {}
    found = minimum.disagreements(counts)
    if found:
        raise GateError("\n".join(found))
    return document(compilers, kernels, counts)


def check() -> list[str]:
    """The lines in which docs/kernels.md differs from what it should be; none: it is up to date."""
    there = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    lines = difflib.unified_diff(there.splitlines(), generate().splitlines(), "docs/kernels.md", "figures", lineterm="")
    return list(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes docs/kernels.md from limits.json and bytes.json.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the document is out of date")
    arguments = parser.parse_args()
    try:
        if not arguments.check:
            cubin.write_whole(DOCUMENT, generate())
        differences = check()
    except GateError as error:
        differences = [str(error)]
    for line in differences:
        gate.say(line)
    gate.say("table: docs/kernels.md is out of date" if differences else "table: docs/kernels.md is up to date")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
