"""Compiles CUDA sources for a list of architectures and reads what the compiler made of each kernel.

    figures = compile_file(Path("csrc/cuda/regions.cu"), arch=90)

Needs nvcc, and cuobjdump with nvdisasm (Triton's wheel has both); no GPU. Results are kept in build/ladder/cubin,
named by a hash of everything that they depend on.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "ladder" / "cubin"
# The options that decide about the code; the same as the package's own build.
FLAGS = ("-std=c++17", "-O3", "--fmad=false")
# cuobjdump counts the shared memory that the system keeps for itself from sm_90 on; before, it does not.
SYSTEM_SHARED = 1024
ARCH_WITH_SYSTEM_SHARED = 90


class GateError(RuntimeError):
    """A tool is missing or failed, or its answer cannot be read; the message is for people."""


@dataclass(frozen=True)
class Figures:
    """What the compiler made of one kernel for one architecture.

    Attributes:
        kernel: readable name, e.g. ``binarize<float32>``.
        arch: 80 for sm_80.
        registers: of a thread.
        stack: bytes of a thread: spilled registers, and arrays that are indexed at run time.
        shared: bytes of static shared memory of a block, without what the system takes.
        local: instructions that read or write local memory (LDL, STL): spills, in nearly all cases.
        loads128, stores128: instructions that move 16 or more bytes of global memory a thread.
        red, atom: global atomics without and with a result.
        threads: the most threads of a block that the kernel was compiled for, 0 when it does not say.
        instructions: all of them but NOP, which only fills up.
    """

    kernel: str
    arch: int
    registers: int
    stack: int
    shared: int
    local: int
    loads128: int
    stores128: int
    red: int
    atom: int
    threads: int
    instructions: int


def find_tool(name: str) -> Path:
    """cuobjdump or nvcc: from the variable of its upper-case name, the PATH, or Triton's wheel."""
    named = os.environ.get(name.upper())
    found = shutil.which(named or name)
    if found is None and named is None:
        triton = importlib.util.find_spec("triton")
        for folder in triton.submodule_search_locations or [] if triton else []:
            found = found or shutil.which(name, path=str(Path(folder) / "backends" / "nvidia" / "bin"))
    if found is None:
        raise GateError(f"no {named or name}: put it on the PATH or name it in {name.upper()}")
    return Path(found)


def run(command: Iterable[str | Path], env: dict[str, str] | None = None, stdin: str | None = None) -> str:
    """What a command prints; GateError with its words when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, env=env, input=stdin, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise GateError(f"{Path(words[0]).name} failed ({done.returncode}): {' '.join(words[1:])}\n{said}")
    return done.stdout


@functools.cache
def nvcc_version() -> str:
    """``13.0.88``."""
    return _version(run([find_tool("nvcc"), "--version"]))


def _version(text: str) -> str:
    found = re.search(r"\bV(\d+(?:\.\d+)+)", text)
    if not found:
        raise GateError(f"no version in {text!r}")
    return found[1]


def dump(option: str, cubin: Path) -> str:
    """What ``cuobjdump OPTION CUBIN`` prints."""
    tool = find_tool("cuobjdump")
    # cuobjdump looks for nvdisasm on the PATH; wheels install the two side by side.
    env = {**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    return run([tool, option, cubin], env=env)


# --- Readers of cuobjdump's texts -----------------------------------------------------------------------------------

_USAGE = re.compile(r"^\s*Function (\S+):\s*\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", re.M)
# An instruction: its address, perhaps a predicate, then the name with its modifiers.
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.M)
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.M)
_FUNCTION = re.compile(r"^\s*Function : (\S+)\s*$", re.M)
_INFO = re.compile(r"^\.nv\.info\.(\S+)\s*$", re.M)
_THREADS = re.compile(r"EIATTR_(?:MAX_THREADS|REQNTID)\s+Format:\s*\S+\s+Value:\s*((?:0x[0-9a-f]+\s+){2}0x[0-9a-f]+)")


def parse_usage(text: str, arch: int) -> dict[str, dict[str, int]]:
    """``cuobjdump -res-usage`` -> registers, stack and shared of each kernel, by its mangled name."""
    result = {}
    for name, registers, stack, shared, local in _USAGE.findall(text):
        taken = int(shared)
        if arch >= ARCH_WITH_SYSTEM_SHARED and taken:
            taken -= SYSTEM_SHARED
        if taken < 0:
            raise GateError(f"{name}: {shared} bytes of shared memory, less than the system takes")
        result[name] = {"registers": int(registers), "stack": int(stack) + int(local), "shared": taken}
    return result


def parse_sass(text: str) -> dict[str, Counter[str]]:
    """``cuobjdump -sass`` -> how often each instruction (with modifiers) occurs, by the kernel's mangled name."""
    parts = _FUNCTION.split(text)
    return {name: Counter(_INSTRUCTION.findall(body)) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def parse_threads(text: str) -> dict[str, int]:
    """``cuobjdump -elf`` -> threads of a block by ``__launch_bounds__``, by the mangled name; absent without."""
    parts = _INFO.split(text)
    result = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if found := _THREADS.search(body):
            x, y, z = (int(word, 16) for word in found[1].split())
            result[name] = x * y * z
    return result


def count_accesses(instructions: Counter[str]) -> dict[str, int]:
    """The instructions that matter here, by the names of :class:`Figures`."""
    kinds = Counter[str]()
    for name, times in instructions.items():
        head, *modifiers = name.split(".")
        wide = "128" in modifiers or "256" in modifiers
        if head in ("LDL", "STL"):
            kinds["local"] += times
        elif head in ("LDG", "LD") and wide:
            kinds["loads128"] += times
        elif head in ("STG", "ST") and wide:
            kinds["stores128"] += times
        elif head in ("RED", "REDG"):
            kinds["red"] += times
        elif head in ("ATOM", "ATOMG"):
            kinds["atom"] += times
    return {kind: kinds[kind] for kind in ("local", "loads128", "stores128", "red", "atom")}


_TYPES = {
    "unsigned char": "uint8",
    "signed char": "int8",
    "char": "char",
    "unsigned short": "uint16",
    "short": "int16",
    "unsigned int": "uint32",
    "int": "int32",
    "unsigned long": "uint64",
    "long": "int64",
    "float": "float32",
    "double": "float64",
    "__half": "float16",
    "__nv_bfloat16": "bfloat16",
}


def label(demangled: str) -> str:
    """``void mgran::cuda::f<unsigned char, (int)3, true>(A)`` -> ``f<uint8, 3, true>``."""
    name = demangled.replace("(anonymous namespace)", "anonymous")
    # The parameters start at the first parenthesis outside of < >.
    depth = 0
    for i, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            name = name[:i]
            break
    head, _, rest = name.partition("<")
    head = head.split()[-1].rpartition("::")[2]
    if not rest:
        return head
    arguments = []
    for argument in rest.rpartition(">")[0].split(","):
        plain = re.sub(r"\([\w:]+\)", "", argument).strip()
        arguments.append(_TYPES.get(plain, plain.rpartition("::")[2]))
    return f"{head}<{', '.join(arguments)}>"


def demangle(names: Iterable[str]) -> dict[str, str]:
    """Mangled name -> readable label, by c++filt."""
    mangled = list(names)
    lines = run([find_tool("c++filt")], stdin="\n".join(mangled) + "\n").splitlines() if mangled else []
    labels = dict(zip(mangled, map(label, lines), strict=True))
    twice = sorted(name for name, times in Counter(labels.values()).items() if times > 1)
    if twice:
        raise GateError(f"two kernels have one name: {', '.join(twice)}")
    return labels


def read_figures(usage: str, sass: str, elf: str, arch: int) -> list[Figures]:
    """The three texts of one cubin -> its kernels, by name."""
    resources, instructions, threads = parse_usage(usage, arch), parse_sass(sass), parse_threads(elf)
    if not resources or resources.keys() != instructions.keys():
        raise GateError(f"cuobjdump names the kernels {sorted(resources)} and {sorted(instructions)}")
    labels = demangle(resources)
    figures = [
        Figures(
            kernel=labels[name],
            arch=arch,
            **resources[name],
            **count_accesses(instructions[name]),
            threads=threads.get(name, 0),
            instructions=sum(instructions[name].values()) - instructions[name]["NOP"],
        )
        for name in resources
    ]
    return sorted(figures, key=lambda f: f.kernel)


# --- Compiling --------------------------------------------------------------------------------------------------------


def compile_file(source: Path, arch: int, tree: Path = ROOT) -> list[Figures]:
    """The kernels of ``tree``/``source`` for sm_``arch``.

    Args:
        source: path from the root of the tree.
        tree: the repository, or a copy of its csrc/ with a bug in.
    """
    key = _hash(tree, source, arch)
    kept = CACHE / f"{source.stem}-{arch}-{key}.json"
    if kept.exists():
        return [Figures(**entry) for entry in json.loads(kept.read_text())]
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / f"{source.stem}.cubin"
        include = f"-I{tree / 'csrc'}"
        run([find_tool("nvcc"), *FLAGS, f"-arch=sm_{arch}", "-cubin", include, "-o", cubin, tree / source])
        figures = read_figures(dump("-res-usage", cubin), dump("-sass", cubin), dump("-elf", cubin), arch)
    if _hash(tree, source, arch) != key:
        raise GateError(f"{source} or one of its headers changed while it was compiled: run again")
    write_whole(kept, json.dumps([asdict(entry) for entry in figures]))
    return figures


def included(source: Path, tree: Path = ROOT) -> list[Path]:
    """A source and all headers of csrc/ that it includes, directly or not; from the root of the tree."""
    found = [source]
    for file in found:  # grows while it runs
        for name in _INCLUDE.findall((tree / file).read_text()):
            for folder in ((tree / file).parent, tree / "csrc"):
                header = Path(os.path.relpath(folder / name, tree))
                if (tree / header).is_file() and header not in found:
                    found.append(header)
    return found


def _hash(tree: Path, source: Path, arch: int) -> str:
    """Of everything that the figures depend on: the source, its headers, the options, the tools, this file."""
    digest = hashlib.sha256()
    for path in sorted(included(source, tree)):
        digest.update(f"{path}\n".encode())
        digest.update((tree / path).read_bytes())
    digest.update(repr((FLAGS, arch, nvcc_version(), str(find_tool("cuobjdump")))).encode())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


def write_whole(path: Path, text: str) -> None:
    """Writes a file that another process may read at any time: whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
        file.write(text)
    Path(file.name).chmod(0o644)  # temporary files are their owner's alone
    os.replace(file.name, path)
