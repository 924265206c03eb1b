"""Small kernels in hand-written PTX, for the tests of the simulator itself."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from .machine import Program, launch
from .memory import Memory
from .parser import parse
from .statistics import Statistics
from .values import TYPES, Array

HEAD = ".version 9.0\n.target sm_80\n.address_size 64\n"
# Every thread stores %r9 at its own place of the first array.
STORE = "    mul.wide.u32 %d10, %r0, 4;\n    add.s64 %d11, %d0, %d10;\n    st.global.b32 [%d11], %r9;"
_PREFIX = {"b16": "%h", "b32": "%r", "b64": "%d", "pred": "%p"}


def kernel(body: str, parameters: int = 4, head: str = "") -> str:
    """An entry with pointers p0, p1, .. as %d0, %d1, .., registers %h, %r, %d, %p and the thread's number in %r0."""
    names = ", ".join(f".param .u64 p{i}" for i in range(parameters))
    registers = "".join(f"\t.reg .{kind} {prefix}<64>;\n" for kind, prefix in _PREFIX.items())
    loads = "".join(f"\tld.param.u64 %d{i}, [p{i}];\n" for i in range(parameters))
    return f"{HEAD}{head}.entry k({names})\n{{\n{registers}{loads}\tmov.u32 %r0, %tid.x;\n{body}\n\tret;\n}}\n"


def run(
    text: str,
    arrays: Sequence[Array],
    threads: int = 32,
    blocks: int = 1,
    dynamic_shared: int = 0,
    read_only: bool = False,
) -> Statistics:
    """Launches the only entry of ``text`` with the arrays' addresses."""
    (entry,) = parse(text).values()
    memory = Memory()
    arguments = [struct.pack("<Q", memory.add(f"p{i}", array, read_only)) for i, array in enumerate(arrays)]
    return launch(Program(entry), (blocks, 1, 1), (threads, 1, 1), arguments, memory, dynamic_shared, banks=True)


def apply(instruction: str, source: str, target: str, operands: Sequence[Array]) -> Array:
    """Runs ``instruction d, a, b, ..`` on a thread for each element of the operands, all of type ``source``.

    d, a, b, c in the instruction stand for the registers; the result is of type ``target``.
    """
    count = len(operands[0])
    have, want = TYPES[source], TYPES[target]
    lines = []
    for i, letter in enumerate("abc"[: len(operands)]):
        lines += _move(letter, have.bits, i, "ld")
    lines.append("\t" + _named(instruction, have.bits, want.bits) + ";")
    lines += _move("d", want.bits, len(operands), "st")
    result = np.zeros(count, want.dtype)
    arrays = [*(np.ascontiguousarray(o).view(have.dtype) for o in operands), result]
    run(kernel("\n".join(lines), len(arrays)), arrays, threads=count)
    return result


_REGISTER = {"a": 40, "b": 41, "c": 42, "d": 43}


def _register(letter: str, bits: int) -> str:
    # Bytes travel in 16-bit registers.
    return f"{_PREFIX[f'b{max(16, bits)}']}{_REGISTER[letter]}"


def _named(instruction: str, source: int, target: int) -> str:
    opcode, _, operands = instruction.partition(" ")
    parts = [part.strip() for part in operands.split(",")]
    return f"{opcode} " + ", ".join(
        _register(part, target if part == "d" else source) if part in _REGISTER else part for part in parts
    )


def _move(letter: str, bits: int, parameter: int, opcode: str) -> list[str]:
    address, register = f"[%d{50 + parameter}]", _register(letter, bits)
    return [
        f"\tmul.wide.u32 %d{50 + parameter}, %r0, {bits // 8};",
        f"\tadd.s64 %d{50 + parameter}, %d{50 + parameter}, %d{parameter};",
        f"\t{opcode}.global.b{bits} " + (f"{register}, {address};" if opcode == "ld" else f"{address}, {register};"),
    ]
