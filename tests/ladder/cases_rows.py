"""Cases of rows on the CPU: gathered, inverted, and their totals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from abi import UNSUPPORTED, Buffer
from cases import DTYPES, Case, bits_of, garbage, seed_of
from mgran_fast.reference import rows as reference

# Relative to the sums' size: rounding to the type, and of sums in float32.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

# name, rows, length of the index, channels, dtype, offset in elements
_SHAPES = (
    ("no rows", 0, 0, 5, 0, 0),
    ("no index", 4, 0, 5, 0, 0),
    ("no channels", 4, 6, 0, 0, 0),
    ("one", 1, 1, 1, 0, 1),
    ("whole vectors", 9, 40, 64, 0, 0),
    ("strips and rest", 9, 40, 147, 0, 1),
    ("f16", 7, 33, 70, 1, 3),
    ("bf16", 7, 33, 130, 2, 1),
    ("many members", 2, 700, 35, 2, 0),
    ("several tasks", 900, 5000, 40, 0, 0),
    ("several tasks, f16", 3000, 2500, 33, 1, 1),
)


def gather_cases() -> Iterator[Case]:
    for name, rows, count, channels, code, offset in _SHAPES:
        generator = np.random.default_rng(seed_of(name))
        index = _index(generator, rows, count)
        x = torch.from_numpy(generator.normal(0, 1, (rows, channels))).to(DTYPES[code])
        yield _gather(name, x, index, code, offset, channels)
    # Rows that overlap, a pixel of 3 numbers apart.
    generator = np.random.default_rng(5)
    pixels = torch.from_numpy(generator.normal(0, 1, (60,))).to(torch.bfloat16)
    yield _gather("overlapping rows", pixels.as_strided((14, 21), (3, 1)), _index(generator, 14, 30), 2, 1, 3)
    numbers = {"rows": 3, "count": 2, "channels": 4, "pitch": 4, "dtype": 0}
    for value in (3, -2):
        index = Buffer(np.array([0, value], np.int32), "in", 4)
        out = garbage(2 * 4, np.float32, 1, "out")
        expected = {"out": out.data.copy().view(np.uint8)}
        given = {**numbers, "x": Buffer(np.zeros(12, np.float32)), "index": index, "out": out}
        yield Case(f"index {value}", "rows_gather", given, expected, status=UNSUPPORTED)
    yield Case("pitch -1", "rows_gather", {**numbers, "pitch": -1}, {}, status=UNSUPPORTED)
    yield from _odd("rows_gather", numbers)


def total_cases() -> Iterator[Case]:
    for name, rows, count, channels, code, offset in _SHAPES:
        for has_base in (False, True):
            label = f"{name}{', base' if has_base else ''}"
            generator = np.random.default_rng(seed_of(label))
            dtype = DTYPES[code]
            starts, members = reference.invert(_index(generator, rows, count), rows)
            values = torch.from_numpy(generator.normal(0, 1, (count, channels))).to(dtype)
            base = torch.from_numpy(generator.normal(0, 3, (rows, channels))).to(dtype) if has_base else None
            want = reference.total(values.double(), starts, members, None if base is None else base.double())
            item = dtype.itemsize
            arguments: dict[str, Any] = {
                "x": Buffer(bits_of(values), "in", offset * item),
                "starts": Buffer(starts.numpy(), "in", 4),
                "members": Buffer(members.numpy(), "in", 4),
                "out": garbage(rows * channels * item, np.uint8, seed_of(label), "out", offset * item),
                "rows": rows,
                "count": count,
                "channels": channels,
                "dtype": code,
            }
            if base is not None:
                arguments["base"] = Buffer(bits_of(base), "in", offset * item)
            # Sums of hundreds that cancel.
            floor = {"out": 2.0**-24 * 4 * count}
            tolerance = {"out": TOLERANCE[dtype]}
            yield Case(
                label, "rows_total", arguments, {"out": want.numpy()}, dtype=dtype, tolerance=tolerance, floor=floor
            )
    numbers = {"rows": 2, "count": 2, "channels": 4, "dtype": 0}
    for label, begins, held in (
        ("starts fall", (0, 2, 1), (0, 1)),
        ("starts begin late", (1, 1, 2), (0, 1)),
        ("more members than places", (0, 1, 3), (0, 1, 0)),
        ("a member too far", (0, 1, 2), (0, 2)),
        ("a member before the first", (0, 1, 2), (-1, 0)),
    ):
        out = garbage(2 * 4, np.float32, 1, "out")
        given = {
            **numbers,
            "x": Buffer(np.zeros(8, np.float32)),
            "starts": Buffer(np.array(begins, np.int32)),
            "members": Buffer(np.array(held, np.int32)),
            "out": out,
        }
        yield Case(label, "rows_total", given, {"out": out.data.copy().view(np.uint8)}, status=UNSUPPORTED)
    yield from _odd("rows_total", numbers)


def invert_cases() -> Iterator[Case]:
    for name, rows, count, *_ in _SHAPES:
        generator = np.random.default_rng(seed_of(name))
        index = _index(generator, rows, count)
        starts, members = reference.invert(index, rows)
        # What is beyond the last start is nobody's.
        used = int(starts[-1])
        arguments: dict[str, Any] = {
            "index": Buffer(index.numpy(), "in", 4),
            "starts": garbage(rows + 1, np.int32, 1, "out", 4),
            "members": garbage(used, np.int32, 2, "out", 4),
            "rows": rows,
            "count": count,
        }
        expected = {"starts": starts.numpy(), "members": members[:used].numpy()}
        yield Case(name, "rows_invert", arguments, {path: value.view(np.uint8) for path, value in expected.items()})
    for value in (3, -2):
        given = {"index": Buffer(np.array([0, value], np.int32)), "rows": 3, "count": 2}
        yield Case(f"index {value}", "rows_invert", given, {}, status=UNSUPPORTED)


def _gather(name: str, x: torch.Tensor, index: torch.Tensor, code: int, offset: int, pitch: int) -> Case:
    dtype = DTYPES[code]
    rows, channels = x.shape
    length = (rows - 1) * pitch + channels if rows else 0
    held = x.as_strided((length,), (1,)) if length else x.reshape(-1)
    arguments: dict[str, Any] = {
        "x": Buffer(bits_of(held), "in", offset * dtype.itemsize),
        "index": Buffer(index.numpy(), "in", 4),
        "out": garbage(len(index) * channels * dtype.itemsize, np.uint8, seed_of(name), "out", offset * dtype.itemsize),
        "rows": rows,
        "count": len(index),
        "channels": channels,
        "pitch": pitch,
        "dtype": code,
    }
    return Case(name, "rows_gather", arguments, {"out": bits_of(reference.gather(x, index))})


def _index(generator: np.random.Generator, rows: int, count: int) -> torch.Tensor:
    return torch.from_numpy(generator.integers(-1, rows, count).astype(np.int32))


def _odd(op: str, numbers: dict[str, int]) -> Iterator[Case]:
    """What the kernel refuses before it follows a pointer."""
    yield Case("dtype 3", op, {**numbers, "dtype": 3}, {}, status=UNSUPPORTED)
    yield Case("dtype -1", op, {**numbers, "dtype": -1}, {}, status=UNSUPPORTED)
