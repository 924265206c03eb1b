"""The bytes that an op cannot do without, as formulas, and what the simulator's cases say about them.

An op reads every input once and writes every output once, whatever its kernels do. bytes.json holds what rung g
counted on small cases: ``disagreements`` compares the formulas with it, ``scale_of`` brings it to the stated size.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from cubin import GateError

ELEMENT = {"uint8": 1, "float16": 2, "bfloat16": 2, "float32": 4}
# Of batch norm with a residual: tensors of x's size that are read and written. Left out are numbers of a channel, and
# partial sums.
NORM_TENSORS = (("statistics", 1, 0), ("apply", 2, 1), ("sums of the gradient", 3, 0), ("gradient", 3, 2))
# And the kernels that read them.
NORM_KERNELS = dict(zip(("moments", "apply", "reduce", "grad"), (name for name, _, _ in NORM_TENSORS), strict=True))
KEYPOINTS = 17 * 3 * 4  # bytes of a person's keypoints
BOX = 4 * 4  # bytes of a box


@dataclass(frozen=True)
class Size:
    """One size to compute bytes for.

    Attributes:
        people: or crops.
        pixels: of a crop, and of its mask and map.
        regions: R.
        boxes: pixels of the frame that the boxes cover together.
        rows, channels, cells: of the features.
    """

    people: int
    pixels: int
    regions: int
    boxes: int
    rows: int
    channels: int
    cells: int


# 64 people of 256 x 128 and three regions; boxes of 285 x 100 that do not overlap; ResNet-50 without its last stride.
STATED = Size(people=64, pixels=256 * 128, regions=3, boxes=64 * 285 * 100, rows=256, channels=2048, cells=16 * 8)


@dataclass(frozen=True)
class Work:
    """What an op cannot do without: every input read once, every output written once.

    Attributes:
        op: its name, with what the bytes depend on.
        formula: for people.
        read, written: the same for the machine.
        tolerance: how far the simulator's count of a case may be from it.
    """

    op: str
    formula: str
    read: Callable[[Size], int]
    written: Callable[[Size], int]
    tolerance: float = 0.02

    def bytes(self, size: Size) -> int:
        return self.read(size) + self.written(size)


def _works() -> dict[str, Work]:
    # The frame's sectors of 32 bytes are a little more than its bytes under the boxes.
    works = [
        Work(
            "crops",
            "3 F + 16 N read, 3 N P written",
            lambda s: 3 * s.boxes + BOX * s.people,
            lambda s: 3 * s.people * s.pixels,
            tolerance=0.1,
        )
    ]
    for mask in ("float32", "uint8"):
        works.append(
            Work(
                f"regions, mask {mask}",
                "N P M + 204 N read, N P written",
                lambda s, m=ELEMENT[mask]: s.people * (s.pixels * m + KEYPOINTS),
                lambda s: s.people * s.pixels,
            )
        )
    for dtype in ("float32", "bfloat16"):
        works.append(
            Work(
                f"inputs, {dtype}",
                "4 N P read, 3 N P S (1 + R) written",
                lambda s: 4 * s.people * s.pixels,
                lambda s, e=ELEMENT[dtype]: _inputs(s, e),
            )
        )
    for mask in ("float32", "uint8"):
        for dtype in ("float32", "bfloat16"):
            works.append(
                Work(
                    f"align, mask {mask}, {dtype}",
                    "N P (3 + M) + 204 N read, 3 N P S (1 + R) written",
                    lambda s, m=ELEMENT[mask]: s.people * (s.pixels * (3 + m) + KEYPOINTS),
                    lambda s, e=ELEMENT[dtype]: _inputs(s, e),
                )
            )
    for dtype in ("float32", "bfloat16"):
        works += [
            Work(
                f"pooling forward, {dtype}",
                "B C K S + N P + 8 B read, B C S written",
                lambda s, e=ELEMENT[dtype]: _features(s, e) + _map(s),
                lambda s, e=ELEMENT[dtype]: s.rows * s.channels * e,
            ),
            Work(
                f"pooling backward, mean, {dtype}",
                "B C S + N P + 8 B read, B C K S written",
                lambda s, e=ELEMENT[dtype]: s.rows * s.channels * e + _map(s),
                lambda s, e=ELEMENT[dtype]: _features(s, e),
            ),
            Work(
                f"pooling backward, max and gem, {dtype}",
                "B C K S + 2 B C S + N P + 8 B read, B C K S written",
                lambda s, e=ELEMENT[dtype]: _features(s, e) + 2 * s.rows * s.channels * e + _map(s),
                lambda s, e=ELEMENT[dtype]: _features(s, e),
            ),
        ]
        for kernel, read, written in NORM_TENSORS:
            works.append(
                Work(
                    f"batch norm {kernel}, {dtype}",
                    " + ".join(
                        f"{n} B C K S {verb}".removeprefix("1 ")
                        for n, verb in ((read, "read"), (written, "written"))
                        if n
                    ),
                    lambda s, e=ELEMENT[dtype], n=read: n * _features(s, e),
                    lambda s, e=ELEMENT[dtype], n=written: n * _features(s, e),
                )
            )
    return {work.op: work for work in works}


def _inputs(size: Size, element: int) -> int:
    return 3 * size.people * size.pixels * element * (1 + size.regions)


def _features(size: Size, element: int) -> int:
    return size.rows * size.channels * size.cells * element


def _map(size: Size) -> int:
    return size.people * size.pixels + 8 * size.rows


WORKS = _works()

# --- The simulator's cases --------------------------------------------------------------------------------------------

# Kernel -> case -> counts, as simulate.py writes them.
Counts = dict[str, dict[str, dict[str, float]]]

_PEOPLE = re.compile(r"(\d+) people of (\d+) x (\d+)")
_NORM = re.compile(r"\[(\d+), (\d+), (\d+), (\d+)\] in \d+ groups?")
_FEATURES = re.compile(r"\[(\d+), (\d+), (\d+), (\d+)\], maps of (\d+) x (\d+)")
# What the boxes of the simulator's crops cover; its features have four rows a person.
SIMULATED_BOXES = 115 * 292 + 128 * 256
ROWS_A_PERSON = 4


def size_of(case: str) -> Size:
    """The size that a case's name tells. Raises GateError for a name that tells none."""
    if found := _PEOPLE.search(case):
        people, height, width = map(int, found.groups())
        return replace(STATED, people=people, pixels=height * width, boxes=SIMULATED_BOXES)
    if found := _FEATURES.search(case):
        rows, channels, h, w, height, width = map(int, found.groups())
        people = rows // ROWS_A_PERSON
        return replace(STATED, people=people, pixels=height * width, rows=rows, channels=channels, cells=h * w)
    if found := _NORM.search(case):
        rows, channels, h, w = map(int, found.groups())
        return replace(STATED, rows=rows, channels=channels, cells=h * w)
    raise GateError(f"bytes.json: the case {case!r} does not tell its size")


def scale_of(kernel: str, case: str) -> float:
    """How many times the bytes of a case the stated size moves: all of them are proportional to the people, those of
    features to the channels as well."""
    size = size_of(case)
    if size.pixels != STATED.pixels or size.cells != STATED.cells:
        raise GateError(f"bytes.json: {case!r}: bytes are proportional to people and channels, not to other sizes")
    if _NORM.search(case):
        # Of partial sums as well: the case has as many for each row.
        return STATED.rows / size.rows * STATED.channels / size.channels
    if not _FEATURES.search(case):
        return STATED.people / size.people
    channels = 1 if " share" in kernel else STATED.channels / size.channels
    return STATED.rows / size.rows * channels


def variant(case: str) -> str:
    """The case's name without its size: ``float masks, float32``."""
    return _PEOPLE.sub("", _NORM.sub("", _FEATURES.sub("", case))).strip(" ,") or "-"


def work_of(kernel: str) -> str:
    """The op whose bytes a kernel must move, by the name that WORKS has for it; empty for a helping kernel."""
    _, _, name = kernel.partition(" ")
    name, _, rest = name.rstrip(">").partition("<")
    arguments = rest.split(", ")
    if name == "resize_tile":
        return "crops"
    if name == "label":
        return f"regions, mask {arguments[0]}"
    if name == "emit_inputs":
        return f"inputs, {arguments[0]}"
    if name == "align_tile":
        return f"align, mask {arguments[1]}, {arguments[0]}"
    if name in NORM_KERNELS:
        return f"batch norm {NORM_KERNELS[name]}, {arguments[-1]}"
    if name == "spread" and arguments[0] == "mean":
        return f"pooling backward, mean, {arguments[1]}"
    return ""


def disagreements(counts: Counts) -> list[str]:
    """Where the formulas and the simulator's cases do not agree on what an op must move."""
    found = []
    for kernel, cases in counts.items():
        work = WORKS.get(work_of(kernel))
        for case, count in cases.items():
            if work is None:
                continue
            least = count["minimum"]
            if kernel.startswith("pooling.py"):
                # The map is read by another kernel, which makes the weights.
                least += counts["pooling.py share"][case]["minimum"]
            expected = work.bytes(size_of(case))
            if not abs(least - expected) <= work.tolerance * expected:
                found.append(f"{kernel}, {case}: the formula says {expected:,} bytes, bytes.json {least:,.0f}")
    return found
