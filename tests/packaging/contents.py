"""What a wheel and a source distribution must hold and must not: lists of what is wrong, empty when all is well."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

#: Bytes of a file at most.
LIMIT = 10_000_000
#: What the extension may ask the system for. Not a driver, nor anything that a wheel would have to bring.
NEEDED = re.compile(r"(libstdc\+\+|libgcc_s|libgomp|libc|libm|libpthread|libdl|librt|ld-linux[-\w]*)\.so\.\d+")
#: Of a source distribution, besides the sources.
SDIST = ("CHANGELOG.md", "CMakeLists.txt", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml")
_DIST = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "sboms/mgran_fast.cdx.json")
_EXTENSION = re.compile(r"mgran_fast/_C\.[\w.-]+\.(so|pyd)")


def wheel(path: Path, sources: Iterable[str], *, cuda: bool, leaks: Collection[str]) -> list[str]:
    """What is wrong with a wheel.

    Args:
        sources: the checkout's files below mgran_fast/ and kernels/, with / and relative to it.
        cuda: it is to hold CUDA kernels.
        leaks: folders of the build, which must not stand in the binary.
    """
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    version = path.name.split("-")[1]
    info = f"mgran_fast-{version}.dist-info"
    wanted = {re.sub(r"^kernels/", "mgran_fast/kernels/", name) for name in sources}
    wanted |= {f"{info}/{name}" for name in _DIST}
    extensions = [name for name in files if _EXTENSION.fullmatch(name)]
    wrong = _compared(files.keys() - extensions, wanted)
    wrong += [] if len(extensions) == 1 else [f"one extension module is wanted, not {extensions}"]
    wrong += _small(path)
    tag = path.name.split("-")[2]
    wrong += [] if (tag == "1cuda") == cuda else [f"the build tag of a wheel with CUDA is 1cuda, and this has {tag}"]
    for name in extensions:
        wrong += [f"{name} tells of {leak}" for leak in leaks if leak.encode() in files[name]]
        if name.endswith(".so") and files[name].startswith(b"\x7fELF"):
            wrong += _elf(files[name])
    if not any(one.startswith("missing") for one in wrong):
        bill = json.loads(files[f"{info}/sboms/mgran_fast.cdx.json"])
        wrong += sbom(bill, version, files["mgran_fast/mra/regionnet.safetensors"], cuda=cuda)
    return wrong


def sbom(bill: dict[str, Any], version: str, weights: bytes, *, cuda: bool) -> list[str]:
    """What is wrong with the bill of materials of a wheel of this version, in which the weights are these bytes."""
    wrong = []
    if (bill.get("bomFormat"), bill.get("specVersion")) != ("CycloneDX", "1.6"):
        wrong.append("the SBOM is not CycloneDX 1.6")
    wrong += [f"the SBOM has a {name}, which no two builds share" for name in ("serialNumber",) if name in bill]
    about = bill["metadata"]
    wrong += ["the SBOM tells the time"] if "timestamp" in about else []
    package, components = about["component"], bill["components"]
    if (package["name"], package["version"]) != ("mgran_fast", version):
        wrong.append(f"the SBOM is of {package['name']} {package['version']}, not of mgran_fast {version}")
    for one in (package, *components, *about["tools"]["components"]):
        if not re.match(r"\d+(\.\d+)+", one.get("version", "")):
            wrong.append(f"the SBOM has {one['name']} without a version")
        if "purl" in one and not one["purl"].endswith(f"@{one['version']}"):
            wrong.append(f"the SBOM's purl {one['purl']} is of another version than {one['version']}")
    names = {one["bom-ref"] for one in (package, *components)}
    wanted = {"mgran_fast", "pybind11", "regionnet", *(["cudart"] if cuda else [])}
    if names != wanted or len(components) + 1 != len(wanted):
        wrong.append(f"the SBOM has {sorted(names)}, not {sorted(wanted)}")
    tree = {one["ref"]: set(one["dependsOn"]) for one in bill["dependencies"]}
    if tree != {"mgran_fast": names - {"mgran_fast"}}:
        wrong.append(f"the SBOM's dependencies are {tree}")
    digests = [one["content"] for part in components for one in part.get("hashes", [])]
    if digests != [hashlib.sha256(weights).hexdigest()]:
        wrong.append("the SBOM's digest is not that of RegionNet's weights")
    return wrong


def sdist(path: Path, sources: Iterable[str]) -> list[str]:
    """What is wrong with a source distribution; ``sources`` are the checkout's files in the folders that it holds."""
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    top = path.name.removesuffix(".tar.gz")
    wrong = [f"{one.name} is no plain file" for one in members if not (one.isfile() or one.isdir())]
    wrong += [f"{one.name} is of {one.uname or one.uid}" for one in members if one.uname or one.gname or one.uid]
    found = {one.name for one in members if not one.isdir()}
    return wrong + _compared(found, {f"{top}/{name}" for name in (*sources, *SDIST)}) + _small(path)


def difference(one: Path, other: Path) -> list[str]:
    """Where two archives that should be the same, byte by byte, are not."""
    if one.read_bytes() == other.read_bytes():
        return []
    if one.suffix != ".whl":
        return [f"{one} and {other} differ"]
    with zipfile.ZipFile(one) as first, zipfile.ZipFile(other) as second:
        names = {*first.namelist(), *second.namelist()}
        both = names & {*first.namelist()} & {*second.namelist()}
        changed = sorted(names - both) + sorted(name for name in both if first.read(name) != second.read(name))
    return [f"{one} and {other} differ in {', '.join(changed) or 'what the archive tells of its files'}"]


def _compared(found: Collection[str], wanted: Collection[str]) -> list[str]:
    wrong = [f"missing: {name}" for name in sorted({*wanted} - {*found})]
    return wrong + [f"does not belong there: {name}" for name in sorted({*found} - {*wanted})]


def _small(path: Path) -> list[str]:
    size = path.stat().st_size
    return [f"{path.name} has {size:,} bytes, more than {LIMIT:,}"] if size > LIMIT else []


def _elf(content: bytes) -> list[str]:
    """What is wrong with a library of ELF's, where readelf is there to tell."""
    if shutil.which("readelf") is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        library = PurePosixPath(folder, "library.so")
        Path(library).write_bytes(content)
        text = subprocess.run(["readelf", "-dW", library], text=True, capture_output=True, check=True).stdout
    wrong = [f"the extension has a path to libraries: {line.strip()}" for line in text.splitlines() if "PATH" in line]
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", text)
    return wrong + [f"the extension needs {name}" for name in needed if not NEEDED.fullmatch(name)]
