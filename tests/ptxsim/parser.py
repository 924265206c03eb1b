"""PTX text -> entries with decoded operands: what nvcc 13 and Triton 3.9 write, and nothing else."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import PurePath

from .values import TYPES, PtxError


@dataclass(frozen=True)
class Register:
    slot: int
    type: str
    name: str


@dataclass(frozen=True)
class Immediate:
    """``bits``: an integer, or the bits of a float of ``kind`` f32 or f64."""

    kind: str
    bits: int


@dataclass(frozen=True)
class Special:
    name: str


@dataclass(frozen=True)
class Symbol:
    """A variable's address in its space (shared, local or param)."""

    space: str
    name: str
    offset: int


@dataclass(frozen=True)
class Address:
    base: Register | Symbol | Immediate
    offset: int


@dataclass(frozen=True)
class Vector:
    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Negated:
    register: Register


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Sink:
    """The destination `_`: the result is not wanted."""


@dataclass(frozen=True)
class Pair:
    """Two destinations written `d|p`."""

    first: Operand
    second: Operand


Operand = Register | Immediate | Special | Symbol | Address | Vector | Negated | Label | Sink | Pair


@dataclass(frozen=True)
class Instruction:
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | Negated | None
    line: str  # file:line of the source
    text: str

    def error(self, words: str) -> PtxError:
        return PtxError(f"{words}: '{self.text}' (source line {self.line})")


@dataclass(frozen=True)
class Parameter:
    name: str
    offset: int
    bytes: int


@dataclass
class Entry:
    """A kernel."""

    name: str
    parameters: list[Parameter] = field(default_factory=list)
    parameter_bytes: int = 0
    registers: list[str] = field(default_factory=list)  # each one's type
    shared_bytes: int = 0  # static
    local_bytes: int = 0
    most_threads: int | None = None
    required_threads: int | None = None
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    read_slots: set[int] | None = None  # registers that some instruction reads, once somebody asked


_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?\.align\s+\d+\s+)?([\w$]+)(?:\[(\d+)\])?\s*$"
)
_VARIABLE = re.compile(r"\.(shared|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?\s*$")
_LOCATION = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+\d+(?:\s*,.*inlined_at\s+(\d+)\s+(\d+))?")
_SPECIALS = re.compile(r"%(?:tid|ntid|ctaid|nctaid)\.[xyz]|%laneid|%warpid")


def parse(text: str) -> dict[str, Entry]:
    """The entries of a PTX module by name."""
    files = {int(n): PurePath(name).name for n, name in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M)}
    text = re.sub(r"^\s*\.section\b[^{]*\{[^}]*\}", "", text, flags=re.M)
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    starts = list(_ENTRY.finditer(text))
    head = text[: starts[0].start()] if starts else text
    dynamic = _module_directives(re.sub(r"\.(visible|weak)\s*$", "", head.rstrip()))
    entries = {}
    for i, match in enumerate(starts):
        end = starts[i + 1].start() if i + 1 < len(starts) else len(text)
        parser = _EntryParser(match[1], text[match.end() : end], files, dynamic)
        entries[match[1]] = parser.entry
    return entries


class _Scopes:
    """Names of the blocks that are open, the innermost last."""

    def __init__(self) -> None:
        self.levels: list[dict[str, Register | Symbol]] = [{}]

    def find(self, name: str) -> Register | Symbol | None:
        return next((level[name] for level in reversed(self.levels) if name in level), None)

    def add(self, name: str, what: Register | Symbol) -> None:
        if name in self.levels[-1]:
            raise PtxError(f"'{name}' is declared twice")
        self.levels[-1][name] = what


def _module_directives(head: str) -> set[str]:
    """Names of the dynamic shared memory. Global variables are passed over: whoever uses one finds no such operand."""
    dynamic = set()
    for raw in re.split(r"[;\n]", head):
        line = raw.strip()
        match = re.match(r"\.extern\s+\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[\]$", line)
        if match:
            if int(match[1]) > 16:
                raise PtxError(f"dynamic shared memory is aligned to 16 bytes only: '{line}'")
            dynamic.add(match[2])
        elif line and not re.match(r"(\.visible\s+)?\.(version|target|address_size|file|global|const)\b", line):
            raise PtxError(f"not simulated: '{line}'")
    return dynamic


class _EntryParser:
    def __init__(self, name: str, text: str, files: dict[int, str], dynamic: set[str]) -> None:
        self.entry, self.files, self.scopes = Entry(name), files, _Scopes()
        self.line = "?"
        head, brace, body = text.partition("{")
        if not brace:
            raise PtxError(f"entry '{name}' has no body")
        self._parameters(head)
        self._body(body, dynamic)

    def _parameters(self, head: str) -> None:
        inside, _, directives = head.partition(")")
        for part in filter(None, (p.strip() for p in inside.split(","))):
            match = _PARAMETER.match(part)
            if not match or match[2] not in TYPES:
                raise PtxError(f"not simulated: '{part}'")
            size = TYPES[match[2]].bytes
            align, size = int(match[1] or size), size * int(match[4] or 1)
            offset = -(-self.entry.parameter_bytes // align) * align
            self.entry.parameters.append(Parameter(match[3], offset, size))
            self.entry.parameter_bytes = offset + size
            self.scopes.add(match[3], Symbol("param", match[3], offset))
        for directive, values in re.findall(r"\.(\w+)\s*([\d, ]*)", directives):
            threads = 1
            for value in re.findall(r"\d+", values):
                threads *= int(value)
            if directive == "maxntid":
                self.entry.most_threads = threads
            elif directive == "reqntid":
                self.entry.required_threads = threads
            elif directive not in ("minnctapersm", "maxnreg"):
                raise PtxError(f"not simulated: .{directive} of entry '{self.entry.name}'")

    def _body(self, body: str, dynamic: set[str]) -> None:
        pending, late = "", []
        for raw in body.split("\n"):
            line = raw.strip()
            if re.match(r"\.loc\s", line):
                self._location(line)
                continue
            pending += " " + line
            while pending := pending.strip():
                label = re.match(r"([$\w]+):(?!:)", pending)
                if pending[0] == "{":
                    self.scopes.levels.append({})
                    pending = pending[1:]
                elif pending[0] == "}":
                    self.scopes.levels.pop()
                    if not self.scopes.levels:
                        break
                    pending = pending[1:]
                elif label:
                    if label[1] in self.entry.labels:
                        raise PtxError(f"label '{label[1]}' stands twice")
                    self.entry.labels[label[1]] = len(self.entry.instructions) + len(late)
                    pending = pending[label.end() :]
                elif ";" in pending:
                    statement, _, pending = pending.partition(";")
                    statement = " ".join(statement.split())
                    if not self._declaration(statement):
                        # Operands are resolved once the size of the static shared memory is known.
                        late.append((statement, self.line, list(self.scopes.levels)))
                else:
                    break
            if not self.scopes.levels:
                break
        after = -(-self.entry.shared_bytes // 16) * 16
        shared = {name: Symbol("shared", name, after) for name in dynamic}
        for statement, self.line, levels in late:
            self.scopes.levels = [dict(shared), *levels]
            self.entry.instructions.append(self._instruction(statement))

    def _location(self, line: str) -> None:
        match = _LOCATION.match(line)
        if not match:
            raise PtxError(f"not simulated: '{line}'")
        if match[2] != "0":  # Line 0 is the compiler's own code: it keeps the line before.
            self.line = f"{self.files.get(int(match[1]), '?')}:{match[2]}"
            if match[3]:
                self.line += f" inlined at {self.files.get(int(match[3]), '?')}:{match[4]}"

    def _declaration(self, statement: str) -> bool:
        if not statement.startswith("."):
            return False
        if statement.startswith(".reg"):
            match = re.match(r"\.reg\s+\.(\w+)\s+(.*)$", statement, re.S)
            if not match or match[1] not in TYPES:
                raise PtxError(f"not simulated: '{statement}'")
            for part in match[2].split(","):
                many = re.match(r"(%?[\w$]+)<(\d+)>$", part.strip())
                names = [f"{many[1]}{i}" for i in range(int(many[2]))] if many else [part.strip()]
                for name in names:
                    self.scopes.add(name, Register(len(self.entry.registers), match[1], name))
                    self.entry.registers.append(match[1])
            return True
        match = _VARIABLE.match(statement)
        if match:
            space, size = match[1], TYPES[match[3]].bytes * int(match[5] or 1)
            used = self.entry.shared_bytes if space == "shared" else self.entry.local_bytes
            align = int(match[2] or TYPES[match[3]].bytes)
            offset = -(-used // align) * align
            self.scopes.add(match[4], Symbol(space, match[4], offset))
            if space == "shared":
                self.entry.shared_bytes = offset + size
            else:
                self.entry.local_bytes = offset + size
            return True
        if statement.startswith(".pragma"):
            return True
        raise PtxError(f"not simulated: '{statement}'")

    def _instruction(self, statement: str) -> Instruction:
        text, guard = statement, None
        match = re.match(r"@(!?)(%?[\w$]+)\s+", statement)
        if match:
            register = self.scopes.find(match[2])
            if not isinstance(register, Register) or register.type != "pred":
                raise PtxError(f"the guard is no predicate: '{text}'")
            guard = Negated(register) if match[1] else register
            statement = statement[match.end() :]
        opcode, _, rest = statement.partition(" ")
        parts = opcode.split(".")
        try:
            operands = tuple(self.operand(o) for o in split(rest))
        except PtxError as error:
            raise PtxError(f"{error}: '{text}' (source line {self.line})") from None
        return Instruction(parts[0], tuple(parts[1:]), operands, guard, self.line, text)

    def operand(self, text: str) -> Operand:
        if text == "_":
            return Sink()
        if text[0] == "{":
            return Vector(tuple(self.operand(o) for o in split(text[1:-1])))
        if text[0] == "[":
            return self._address(text[1:-1].strip())
        if text[0] == "!":
            register = self.operand(text[1:].strip())
            if not isinstance(register, Register):
                raise PtxError(f"operand '{text}'")
            return Negated(register)
        if "|" in text:
            first, second = text.split("|")
            return Pair(self.operand(first.strip()), self.operand(second.strip()))
        found = self.scopes.find(text)
        if found is not None:
            return found
        if _SPECIALS.fullmatch(text):
            return Special(text)
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", text):
            return Immediate("f32", int(text[2:], 16))
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", text):
            return Immediate("f64", int(text[2:], 16))
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", text):
            return Immediate("int", _integer(text))
        if re.fullmatch(r"-?\d+\.\d*([eE][+-]?\d+)?", text):
            return Immediate("f64", struct.unpack("<Q", struct.pack("<d", float(text)))[0])
        if text in self.entry.labels:
            return Label(text)
        raise PtxError(f"unknown operand '{text}'")

    def _address(self, text: str) -> Address:
        match = re.fullmatch(r"(%?[\w$]+)\s*(?:\+\s*(-?\w+))?", text)
        if not match:
            raise PtxError(f"not simulated: address [{text}]")
        base = self.operand(match[1])
        if not isinstance(base, (Register, Symbol, Immediate)):
            raise PtxError(f"not simulated: address [{text}]")
        return Address(base, _integer(match[2]) if match[2] else 0)


def _integer(text: str) -> int:
    text = text.rstrip("U")
    # A leading zero is octal, as in C.
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text)
    octal = len(digits) > 1 and digits[0] == "0" and digits[1] not in "xX"
    return sign * int(digits, 8 if octal else 0)


def split(text: str) -> list[str]:
    """At the commas that are in no bracket."""
    parts, depth, part = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append(part.strip())
            part = ""
        else:
            part += character
    return [*parts, part.strip()] if part.strip() else parts
