"""The checks of ``make package``: each sees what it is for, on small archives with one thing wrong."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location("packaging_contents", Path(__file__).with_name("contents.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
contents = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(contents)

WEIGHTS = b"weights"
SOURCES = ("mgran_fast/__init__.py", "mgran_fast/mra/regionnet.safetensors", "kernels/pooling.json")
INFO = "mgran_fast-1.2.dist-info"
BILL: dict[str, Any] = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.6",
    "version": 1,
    "metadata": {
        "tools": {"components": [{"type": "application", "name": "GNU", "version": "12.2.0"}]},
        "component": {
            "bom-ref": "mgran_fast",
            "name": "mgran_fast",
            "version": "1.2",
            "purl": "pkg:pypi/mgran-fast@1.2",
        },
    },
    "components": [
        {"bom-ref": "pybind11", "name": "pybind11", "version": "3.1.0", "purl": "pkg:pypi/pybind11@3.1.0"},
        {
            "bom-ref": "regionnet",
            "name": "weights",
            "version": "1.2",
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(WEIGHTS).hexdigest()}],
        },
    ],
    "dependencies": [{"ref": "mgran_fast", "dependsOn": ["pybind11", "regionnet"]}],
}


def files() -> dict[str, bytes]:
    return {
        "mgran_fast/__init__.py": b"",
        "mgran_fast/mra/regionnet.safetensors": WEIGHTS,
        "mgran_fast/kernels/pooling.json": b"{}",
        "mgran_fast/_C.cpython-311-x86_64-linux-gnu.so": b"code",
        **{f"{INFO}/{name}": b"" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")},
        f"{INFO}/sboms/mgran_fast.cdx.json": json.dumps(BILL).encode(),
    }


def wrong(folder: Path, given: dict[str, bytes], tag: str = "") -> list[str]:
    path = folder / f"mgran_fast-1.2-{tag}cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in given.items():
            archive.writestr(name, content)
    found: list[str] = contents.wheel(path, SOURCES, cuda=False, leaks=["/home/me/src"])
    return found


def test_a_good_wheel(tmp_path: Path) -> None:
    assert wrong(tmp_path, files()) == []


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("mgran_fast/__init__.py", None, "missing: mgran_fast/__init__.py"),
        ("mgran_fast/kernels/pooling.json", None, "missing"),
        (f"{INFO}/sboms/mgran_fast.cdx.json", None, "missing"),
        ("mgran_fast/libgomp.so.1", b"", "does not belong there"),
        ("tests/secret.py", b"", "does not belong there"),
        ("mgran_fast/_C.cpython-311-x86_64-linux-gnu.so", None, "one extension module is wanted"),
        ("mgran_fast/_C.cpython-311-x86_64-linux-gnu.so", b"in /home/me/src/a.cpp", "tells of /home/me/src"),
        ("mgran_fast/mra/regionnet.safetensors", b"other", "digest"),
        ("mgran_fast/__init__.py", b"\0" * 10_000_000, "10,"),
    ],
)
def test_a_bad_wheel(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    given = files()
    if content is None:
        del given[name]
    else:
        given[name] = content
    (found,) = wrong(tmp_path, given)
    assert words in found


def test_a_wheel_of_the_other_kind(tmp_path: Path) -> None:
    (found,) = wrong(tmp_path, files(), "1cuda-")
    assert "build tag" in found


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    bill = copy.deepcopy(BILL)
    change(bill)
    return bill


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda bill: bill.update(specVersion="1.2"), "CycloneDX 1.6"),
        (lambda bill: bill.update(serialNumber="urn:uuid:1"), "serialNumber"),
        (lambda bill: bill["metadata"].update(timestamp="2026-01-01T00:00:00Z"), "time"),
        (lambda bill: bill["metadata"]["tools"]["components"][0].update(version=""), "GNU without a version"),
        (lambda bill: bill["components"][0].update(version="3.0"), "another version"),
        (lambda bill: bill["components"].pop(0), "not ['mgran_fast', 'pybind11', 'regionnet']"),
        (lambda bill: bill["components"].append(bill["components"][0]), "not ['mgran_fast'"),
        (lambda bill: bill["dependencies"][0]["dependsOn"].pop(), "dependencies"),
    ],
)
def test_a_bad_bill(change: Callable[[dict[str, Any]], object], words: str) -> None:
    assert contents.sbom(BILL, "1.2", WEIGHTS, cuda=False) == []
    found = contents.sbom(changed(change), "1.2", WEIGHTS, cuda=False)
    assert any(words in one for one in found), found


def test_bills_of_other_wheels() -> None:
    assert "not of mgran_fast 1.3" in contents.sbom(BILL, "1.3", WEIGHTS, cuda=False)[0]
    assert "cudart" in contents.sbom(BILL, "1.2", WEIGHTS, cuda=True)[0]


def test_source_distribution(tmp_path: Path) -> None:
    def made(more: str = "", left_out: str = "", owner: str = "") -> list[str]:
        path = tmp_path / "mgran_fast-1.2.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for name in (*SOURCES, *contents.SDIST, *([more] if more else [])):
                if name != left_out:
                    one = tarfile.TarInfo(f"mgran_fast-1.2/{name}")
                    one.uname = owner
                    archive.addfile(one, io.BytesIO())
        found: list[str] = contents.sdist(path, SOURCES)
        return found

    assert made() == []
    assert made(more="data/person.jpg") == ["does not belong there: mgran_fast-1.2/data/person.jpg"]
    assert made(left_out="LICENSE") == ["missing: mgran_fast-1.2/LICENSE"]
    assert "is of me" in made(owner="me")[0]


def test_difference(tmp_path: Path) -> None:
    one, other = tmp_path / "one.whl", tmp_path / "other.whl"
    for path, when in ((one, 1990), (other, 1991)):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo("a", (when, 1, 1, 0, 0, 0)), b"same")
    assert contents.difference(one, one) == []
    assert "what the archive tells" in contents.difference(one, other)[0]
    with zipfile.ZipFile(other, "a") as archive:
        archive.writestr("b", b"more")
    assert contents.difference(one, other)[0].endswith("differ in b")
    (tmp_path / "a.tar.gz").write_bytes(b"")
    assert contents.difference(tmp_path / "a.tar.gz", one) != []


def test_libraries_that_a_wheel_may_need() -> None:
    for name in ("libstdc++.so.6", "libgomp.so.1", "libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"):
        assert contents.NEEDED.fullmatch(name), name
    for name in ("libcuda.so.1", "libcudart.so.13", "libtorch.so", "libgomp-a34b3233.so.1.0.0", "libomp.so.5"):
        assert not contents.NEEDED.fullmatch(name), name
