"""What the rung `simulate` runs: the CUDA sources and the Triton kernels on the PTX simulator of tests/ptxsim.

Values come from the ladder's cases (cases.py) and from the reference of pooling; traffic from crops of 256 x 128.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import abi
import build
import cubin
from abi import Buffer
from cases import CUDA_OPS, DTYPES, Case, cases, garbage
from cases_geometry import regions_arguments
from cases_inputs import ITEM, statistics
from mgran_fast import layouts
from mutations import ROOT

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ptxsim import nvcc
from ptxsim.machine import Program
from ptxsim.memory import Memory
from ptxsim.nvcc import Launched
from ptxsim.parser import parse
from ptxsim.statistics import SECTOR
from ptxsim.values import PtxError

PTX = ROOT / "build" / "ladder" / "ptx"
ALIGNMENT = 256  # of device allocations
PEOPLE, SIZE, REGIONS = 2, (256, 128), 3  # of the cases that traffic is counted on
FRAME = (540, 960)


@dataclass
class Figures:
    """What one launch of a kernel moves, in bytes.

    Attributes:
        requested: what the threads asked for, each for itself.
        moved: whole sectors of 32 bytes, each once a warp's request: what leaves the L1 cache if it never hits.
        touched: whole sectors, each once a launch: what leaves the GPU's memory if the L2 cache always hits.
        minimum: what the op must move, whatever the kernel; 0 for a pass that the op could do without.
    """

    kernel: str
    case: str
    requested: int
    moved: int
    touched: int
    minimum: int
    warp_instructions: int

    @property
    def efficiency(self) -> float:
        """Over 1 where threads of a warp ask for the same bytes."""
        return round(self.requested / self.moved, 3) if self.moved else 1.0


@dataclass
class Outcome:
    """Of a list of cases."""

    count: int = 0
    faults: list[str] = field(default_factory=list)
    ran: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    figures: list[Figures] = field(default_factory=list)


def sources(op: str) -> tuple[str, ...]:
    """The .cu files that an op's launches come from."""
    return (op, "regions") if op == "align" else (op,)


def kernels(op: str, arch: int, tree: Path = ROOT) -> dict[str, Program]:
    found: dict[str, Program] = {}
    for name in sources(op):
        found |= nvcc.programs(nvcc.compile_ptx(tree / "csrc" / "cuda" / f"{name}.cu", arch, PTX))
    return found


def library(op: str, tree: Path = ROOT) -> ctypes.CDLL:
    return ctypes.CDLL(str(build.library(sources(op), tree)))


def run_case(host: ctypes.CDLL, programs: dict[str, Program], case: Case) -> tuple[str, list[Launched]]:
    """What is wrong, empty when all is right, and the launches."""
    memory, places = Memory(), {}
    buffers = abi.buffers(case, "cuda")
    for path, buffer in buffers.items():
        places[path] = _place(buffer)
        memory.add(path, places[path], read_only=buffer.role == "in")
    image = ctypes.create_string_buffer(abi.pack(case, "cuda", {p: v.ctypes.data for p, v in places.items()}))
    launches: list[Launched] = []
    try:
        with nvcc.simulated(host, programs, memory) as launches:
            status = getattr(host, abi.function(case.op, "cuda"))(image, ctypes.c_void_p(None))
    except PtxError as error:
        return str(error), launches
    if status != case.status:
        return f"the status is {status}, not {case.status}", launches
    return case.check({path: place for path, place in places.items() if buffers[path].role == "out"}), launches


def _place(buffer: Buffer) -> np.ndarray:
    """A copy of a buffer as a device has it: its allocation starts at a multiple of 256."""
    first = np.ascontiguousarray(buffer.data).reshape(-1).view(np.uint8)
    memory = np.empty(first.size + 2 * ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT + buffer.offset % 16
    place = memory[start : start + first.size]
    place[:] = first
    return place


def cuda_values(op: str, arch: int, tree: Path = ROOT, programs: dict[str, Program] | None = None) -> Outcome:
    """The op's cases, but for the big ones."""
    host, programs = library(op, tree), programs or kernels(op, arch, tree)
    outcome = Outcome(known=own_kernels(op, arch))
    for case in cases(op, "cuda", heavy=False):
        words, launches = run_case(host, programs, case)
        outcome.count += 1
        outcome.ran |= {launched.kernel for launched in launches}
        if words:
            outcome.faults.append(f"{op} sm_{arch}: {case.name}: {words}")
    return outcome


def own_kernels(op: str, arch: int, tree: Path = ROOT) -> set[str]:
    """The kernels of the op's own .cu file."""
    return set(parse(nvcc.compile_ptx(tree / "csrc" / "cuda" / f"{op}.cu", arch, PTX)))


def same_ptx(op: str, arch: int, other: int) -> bool:
    """Whether nvcc writes the same instructions for both architectures: then one run proves both."""
    texts = [nvcc.compile_ptx(ROOT / "csrc" / "cuda" / f"{op}.cu", a, PTX) for a in (arch, other)]
    return texts[0].replace(f".target sm_{arch}", "") == texts[1].replace(f".target sm_{other}", "")


def cuda_traffic(op: str, arch: int, tree: Path = ROOT, programs: dict[str, Program] | None = None) -> Outcome:
    """Bytes moved at 256 x 128, aligned."""
    host, programs = library(op, tree), programs or kernels(op, arch, tree)
    own = own_kernels(op, arch, tree)
    labels = cubin.demangle(programs)
    outcome = Outcome()
    for case, main, minimum in traffic_cases(op):
        words, launches = run_case(host, programs, case)
        outcome.count += 1
        if words:
            outcome.faults.append(f"{op} sm_{arch}: {case.name}: {words}")
        for launched in launches:
            label = f"{op}.cu {labels[launched.kernel]}"
            is_main = labels[launched.kernel].startswith(main)
            # Passes that the op could do without move the same in every case.
            if launched.kernel not in own or (not is_main and label in {one.kernel for one in outcome.figures}):
                continue
            needs = minimum + (launched.touched[0] if op == "crops" else 0)
            outcome.figures.append(figures(label, case.name, launched, needs if is_main else 0))
    return outcome


def figures(label: str, case: str, launched: Launched, minimum: int) -> Figures:
    total = launched.statistics.total()
    return Figures(
        kernel=label,
        case=case,
        requested=total.bytes,
        moved=SECTOR * total.sectors,
        touched=sum(launched.touched),
        minimum=minimum,
        warp_instructions=launched.statistics.warp_instructions,
    )


def traffic_cases(op: str) -> Iterator[tuple[Case, str, int]]:
    """Cases without expected values, the kernel that does the op's work, and the bytes that the op must move."""
    pixels = PEOPLE * SIZE[0] * SIZE[1]
    words = f"{PEOPLE} people of {SIZE[0]} x {SIZE[1]}"
    if op == "crops":
        yield _crops_case(words), "resize_tile", 3 * pixels  # and the frame's sectors under the boxes
    elif op == "inputs":
        for code, dtype in enumerate(DTYPES):
            must = pixels * (3 + 1) + pixels * 3 * ITEM[dtype] * (1 + REGIONS)
            yield _inputs_case(f"{words}, {_name(dtype)}", code), "emit_inputs", must
    else:
        for mask in ("float", "u8"):
            read = pixels * (4 if mask == "float" else 1)
            if op == "regions":
                for layout in (layouts.REGION, layouts.BOX):
                    name = f"{words}, {mask} masks, layout {layout.name}"
                    yield _regions_case(name, mask, layout), "label", read + pixels
            else:
                for code, dtype in enumerate(DTYPES):
                    must = read + pixels * 3 + pixels * 3 * ITEM[dtype] * (1 + REGIONS)
                    yield _align_case(f"{words}, {mask} masks, {_name(dtype)}", mask, code), "align_tile", must


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _generator() -> np.random.Generator:
    return np.random.default_rng(1)


def _crops_case(name: str) -> Case:
    height, width = FRAME
    frame = _generator().integers(0, 256, (height, width, 3), np.uint8)
    boxes = np.asarray([(100.3, 80.2, 215.1, 371.7), (640.0, 20.0, 768.0, 276.0)], np.float32)
    arguments = {
        "frame": Buffer(frame),
        "boxes": Buffer(boxes),
        "out": garbage(PEOPLE * SIZE[0] * SIZE[1] * 3, np.uint8, 0, "out"),
        "count": PEOPLE,
        "row_stride": 3 * width,
        "frame_height": height,
        "frame_width": width,
        "height": SIZE[0],
        "width": SIZE[1],
    }
    return Case(name, "crops", arguments, {})


def _inputs_case(name: str, code: int) -> Case:
    generator, shape = _generator(), (PEOPLE, *SIZE)
    arguments = {
        "crops": Buffer(generator.integers(0, 256, (*shape, 3), np.uint8)),
        "map": Buffer(generator.integers(0, 1 + REGIONS, shape, np.uint8)),
        "workspace": garbage(PEOPLE, np.int32, 0, "scratch"),
        "people": PEOPLE,
        "pixels": SIZE[0] * SIZE[1],
        **_outputs(code),
    }
    return Case(name, "inputs", arguments, {})


def _outputs(code: int, prefix: str = "") -> dict[str, object]:
    size = PEOPLE * (1 + REGIONS) * SIZE[0] * SIZE[1] * 3 * ITEM[DTYPES[code]]
    return {
        f"{prefix}out": garbage(size, np.uint8, 0, "out"),
        f"{prefix}regions": REGIONS,
        f"{prefix}dtype": code,
        **statistics(prefix),
    }


def _regions_case(name: str, mask: str, layout: layouts.Layout) -> Case:
    arguments, _ = regions_arguments(name, PEOPLE, SIZE, SIZE, mask, "person", layout)
    arguments["map"] = garbage(PEOPLE * SIZE[0] * SIZE[1], np.uint8, 0, "out")
    return Case(name, "regions", arguments, {})


def _align_case(name: str, mask: str, code: int) -> Case:
    arguments, _ = regions_arguments(name, PEOPLE, SIZE, SIZE, mask, "person", layouts.REGION, prefix="regions.")
    crops = _generator().integers(0, 256, (PEOPLE, *SIZE, 3), np.uint8)
    sizes = {"inputs.crops": Buffer(crops), "inputs.people": PEOPLE, "inputs.pixels": SIZE[0] * SIZE[1]}
    return Case(name, "align", arguments | sizes | _outputs(code, "inputs."), {})


def affected(file: str, tree: Path) -> list[str]:
    """The ops whose CUDA source is, or includes, a file of the tree."""
    changed = (tree / file).resolve()
    return [
        op
        for op in CUDA_OPS
        if any(changed in build.closure(tree / "csrc" / "cuda" / f"{name}.cu", ()) for name in sources(op))
    ]
