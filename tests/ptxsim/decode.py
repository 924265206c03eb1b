"""Instructions -> functions on a batch of lanes. Whatever is not understood to the last modifier is an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .memory import WINDOWS
from .parser import Address, Entry, Immediate, Instruction, Negated, Operand, Register, Sink, Special, Symbol, Vector
from .values import TYPES, UNSIGNED, Array, PtxError, PtxType

if TYPE_CHECKING:
    from .machine import Batch

Lanes = Array | None  # None: every lane of the batch
Read = Callable[["Batch", Lanes], Array]  # length 1 for a constant, else one value a lane
Write = Callable[["Batch", Lanes, Array], None]
Execute = Callable[["Batch", Lanes], None]


@dataclass
class Step:
    """A decoded instruction. ``control`` sets the pcs itself: (batch, active lanes, the group's lanes, pc)."""

    instruction: Instruction
    execute: Execute
    guard: Read | None = None
    control: Callable[[Batch, Array, Array, int], None] | None = None
    release: Callable[[Batch, Array], None] | None = None
    shared_width: int = 0  # of an access that may be to shared memory


class Decoding:
    """An instruction's modifiers and operands, taken one after the other."""

    def __init__(self, instruction: Instruction, entry: Entry) -> None:
        self.instruction, self.entry = instruction, entry
        self.modifiers = list(instruction.modifiers)
        self.operands = instruction.operands

    def error(self, words: str = "not simulated") -> PtxError:
        return self.instruction.error(words)

    def flag(self, name: str) -> bool:
        if name in self.modifiers:
            self.modifiers.remove(name)
            return True
        return False

    def ignore(self, *names: str) -> None:
        for name in names:
            self.flag(name)

    def choice(self, *names: str, default: str | None = None) -> str:
        """The one of the names that stands among the modifiers."""
        for name in names:
            if self.flag(name):
                return name
        if default is None:
            raise self.error()
        return default

    def type(self, allowed: frozenset[str] | set[str]) -> PtxType:
        """The last modifier that is left."""
        if not self.modifiers or self.modifiers[-1] not in allowed:
            raise self.error()
        return TYPES[self.modifiers.pop()]

    def done(self, *operands: int) -> None:
        """Nothing may be left, and the number of operands must be right."""
        if self.modifiers or len(self.operands) not in operands:
            raise self.error()

    def read(self, at: int, kind: PtxType | str, wider: bool = False) -> Read:
        return self.reader(self.operands[at], TYPES[kind] if isinstance(kind, str) else kind, wider)

    def write(self, at: int, kind: PtxType | str) -> Write:
        return self.writer(self.operands[at], TYPES[kind] if isinstance(kind, str) else kind)

    def reader(self, operand: Operand, kind: PtxType, wider: bool = False) -> Read:
        """``wider``: a register with more bits gives its low ones."""
        if isinstance(operand, Negated) and kind.kind == "p":
            inner = self.reader(operand.register, kind)
            return lambda batch, lanes: ~inner(batch, lanes)
        if isinstance(operand, Register):
            return self._register(operand, kind, wider)
        if isinstance(operand, Special) and kind.bits == 32 and not kind.is_float:
            name, dtype = operand.name, kind.dtype
            return lambda batch, lanes: _pick(batch.special[name], lanes).view(dtype)
        constant = self._constant(operand, kind)
        return lambda batch, lanes: constant

    def _register(self, register: Register, kind: PtxType, wider: bool) -> Read:
        slot, have, dtype = register.slot, TYPES[register.type], kind.dtype
        if (have.kind == "p") != (kind.kind == "p") or have.bits < kind.bits:
            raise self.error(f"operand {register.name} is of type .{have.name}")
        if have.bits == kind.bits:
            if kind.kind == "p":
                return lambda batch, lanes: _pick(batch.registers[slot], lanes)
            return lambda batch, lanes: _pick(batch.registers[slot], lanes).view(dtype)
        if not wider:
            raise self.error(f"operand {register.name} is of type .{have.name}")
        narrow = UNSIGNED[kind.bits]
        return lambda batch, lanes: _pick(batch.registers[slot], lanes).astype(narrow).view(dtype)

    def _constant(self, operand: Operand, kind: PtxType) -> Array:
        if isinstance(operand, Symbol) and kind.bits in (32, 64) and not kind.is_float:
            return np.full(1, operand.offset, kind.dtype)
        if isinstance(operand, Immediate):
            if kind.kind == "p":
                return np.full(1, operand.bits != 0)
            if operand.kind == "int" and not kind.is_float:
                return np.full(1, operand.bits & (2**kind.bits - 1), UNSIGNED[kind.bits]).view(kind.dtype)
            if kind.kind in "fb" and operand.kind == f"f{kind.bits}":
                return np.full(1, operand.bits, UNSIGNED[kind.bits]).view(kind.dtype)
        raise self.error(f"operand for .{kind.name}")

    def writer(self, operand: Operand, kind: PtxType) -> Write:
        """Into a register of the type's width. Values come in the type's numpy type."""
        if isinstance(operand, Sink):
            return lambda batch, lanes, values: None
        if not isinstance(operand, Register):
            raise self.error("the destination is no register")
        slot, have = operand.slot, TYPES[operand.type]
        if have.bits != kind.bits:
            raise self.error(f"destination {operand.name} is of type .{have.name}")
        if kind.kind == "p":
            return lambda batch, lanes, values: _put(batch.registers[slot], lanes, values)
        unsigned = UNSIGNED[kind.bits]
        return lambda batch, lanes, values: _put(batch.registers[slot], lanes, values.view(unsigned))

    def extending_writer(self, operand: Operand, kind: PtxType) -> Write:
        """As ``writer``, but the register may be wider: sign-extended for signed types, zero-extended for others."""
        if isinstance(operand, Register) and TYPES[operand.type].bits > kind.bits and kind.kind != "p":
            slot, wide = operand.slot, UNSIGNED[TYPES[operand.type].bits]
            return lambda batch, lanes, values: _put(batch.registers[slot], lanes, values.astype(wide))
        return self.writer(operand, kind)

    def items(self, at: int, count: int) -> tuple[Operand, ...]:
        """The ``count`` registers of an operand, in braces where there are several."""
        operand = self.operands[at]
        found = operand.items if isinstance(operand, Vector) else (operand,)
        if len(found) != count:
            raise self.error()
        return found

    def address(self, at: int, space: str) -> Callable[[Batch, Lanes], Array]:
        """uint64 for global and generic addresses, else an int64 offset in the space; one value a lane."""
        operand = self.operands[at]
        if not isinstance(operand, Address):
            raise self.error("no address")
        base, offset = operand.base, operand.offset
        if isinstance(base, Symbol):
            if base.space != space:
                raise self.error(f"'{base.name}' is in {base.space} memory")
            return lambda batch, lanes: np.full(_many(batch, lanes), base.offset + offset, np.int64)
        if isinstance(base, Immediate):
            raise self.error()
        wide = base.type in ("b64", "u64", "s64")
        if not wide and (space == "global" or space == "generic" or TYPES[base.type].bits != 32):
            raise self.error(f"address register {base.name} is of type .{base.type}")
        slot = base.slot
        if space in ("global", "generic"):
            step = np.uint64(offset & (2**64 - 1))
            return lambda batch, lanes: _pick(batch.registers[slot], lanes) + step
        signed = np.int64 if wide else np.int32
        return lambda batch, lanes: _pick(batch.registers[slot], lanes).view(signed).astype(np.int64) + offset


def _pick(values: Array, lanes: Lanes) -> Array:
    return values if lanes is None else values[lanes]


def _put(register: Array, lanes: Lanes, values: Array) -> None:
    register[slice(None) if lanes is None else lanes] = values


def _many(batch: Batch, lanes: Lanes) -> int:
    return batch.count if lanes is None else len(lanes)


Decoder = Callable[[Decoding], "Execute | Step"]
DECODERS: dict[str, Decoder] = {}


def instruction(*opcodes: str) -> Callable[[Decoder], Decoder]:
    def register(decoder: Decoder) -> Decoder:
        for opcode in opcodes:
            DECODERS[opcode] = decoder
        return decoder

    return register


def decode(one: Instruction, entry: Entry) -> Step:
    # Imported here: these modules register their decoders by importing this one.
    from . import access, arithmetic, control, conversion, copies, matrix, warp  # noqa: F401

    decoder = DECODERS.get(one.opcode)
    if decoder is None:
        raise one.error("not simulated")
    decoding = Decoding(one, entry)
    made = decoder(decoding)
    step = made if isinstance(made, Step) else Step(one, made)
    if one.guard is not None:
        step.guard = decoding.reader(one.guard, TYPES["pred"])
    return step


def window(space: str) -> np.uint64:
    return np.uint64(WINDOWS[space])
