"""The package from outside: a light import, whole names, one version, and imports that point one way."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import torch

import mgran_fast
from mgran_fast import diagnosis

ROOT = Path(mgran_fast.__file__).parent


def run(code: str) -> str:
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


# --- import ---------------------------------------------------------------------------------------------------


def test_import_is_light() -> None:
    heavy = "('torch', 'torchvision', 'numpy', 'PIL', 'safetensors', 'triton', 'typer', 'mgran_fast._C')"
    code = f"import sys, mgran_fast; dir(mgran_fast); print([name for name in {heavy} if name in sys.modules])"
    assert run(code) == "[]"
    # Errors, version and layouts need nothing either: a command line can complain at once.
    names = "DataError, layouts, __version__"
    code = f"import sys; from mgran_fast import {names}; print([name for name in {heavy} if name in sys.modules])"
    assert run(code) == "[]"


def test_every_public_name_resolves() -> None:
    assert len(set(mgran_fast.__all__)) == len(mgran_fast.__all__)
    for name in mgran_fast.__all__:
        value = getattr(mgran_fast, name)
        assert value is not None
        # Looked up once, kept from then on.
        assert vars(mgran_fast)[name] is value
    assert set(mgran_fast.__all__) <= set(dir(mgran_fast))
    assert mgran_fast.MGRAN.__name__ == "MGRAN"
    assert issubclass(mgran_fast.CheckpointError, mgran_fast.MGRANError)
    assert issubclass(mgran_fast.DataError, mgran_fast.MGRANError)


def test_names_for_type_checkers_are_the_public_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    names = {alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == set(mgran_fast.__all__) - {"__version__"}


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'mgran_fast' has no attribute 'MGRAM'"):
        mgran_fast.MGRAM  # noqa: B018
    with pytest.raises(ImportError, match="MGRAM"):
        exec("from mgran_fast import MGRAM", {})


# --- version and diagnosis --------------------------------------------------------------------------------------


def test_one_version_everywhere() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+([.+-]?\w+)*", mgran_fast.__version__)
    project = ROOT.parent / "pyproject.toml"
    if project.is_file():
        found = re.search(r'(?m)^version = "(.+)"$', project.read_text(encoding="utf-8"))
        assert found is not None
        assert found[1] == mgran_fast.__version__
    try:
        installed = metadata.version("mgran_fast")
    except metadata.PackageNotFoundError:
        pytest.skip("mgran_fast is not installed")
    assert installed == mgran_fast.__version__


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MGRAN_BACKEND", raising=False)
    answer = mgran_fast.doctor()
    keys = {"python", "platform", "packages", "extras", "extension", "cuda", "devices", "backend", "ops", "advice"}
    assert answer.keys() == keys
    assert answer["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert answer["backend"] == "auto"
    assert answer["packages"]["torch"] == metadata.version("torch")
    assert answer["devices"][0].startswith("cpu (")
    ops = {"crops", "regions", "inputs", "align", "pooling", "batchnorm"}
    ops |= {"conv", "network", "ranking", "shots", "rerank", "search"}
    assert answer["ops"].keys() == ops | ({"pointwise", "stem"} if torch.cuda.is_available() else set())
    for choices in answer["ops"].values():
        assert all(choice.startswith(("native: ", "reference: ")) for choice in choices.values())
    assert all("cpu" in answer["ops"][op] for op in ops)
    built = "problem" not in answer["extension"]
    assert answer["ops"]["regions"]["cpu"].startswith("native: C++") == built
    assert built or any("build the extension" in line for line in answer["advice"])


def test_doctor_names_a_forced_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MGRAN_BACKEND", "reference")
    answer = mgran_fast.doctor()
    assert answer["backend"] == "reference"
    said = {choice for choices in answer["ops"].values() for choice in choices.values()}
    assert said == {"reference: MGRAN_BACKEND=reference"}


@pytest.mark.parametrize(
    ("capability", "built", "served"),
    [
        ((9, 0), "75-real,80-real,90-real,100-real,120", True),
        ((8, 6), "80-real,90", True),
        ((8, 6), "75-real,90", False),
        ((12, 0), "75-real,90", True),
        ((12, 1), "75-real,90-real", False),
        ((7, 0), "75-real,90", False),
        ((9, 0), None, False),
    ],
)
def test_doctor_looks_whether_a_gpu_is_served(
    capability: tuple[int, int], built: str | None, served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    told = diagnosis._unserved(built, 0)
    assert (told == "") == served
    assert served or f"MGRAN_CUDA_ARCHITECTURES={capability[0]}{capability[1]}" in told


# --- imports point one way ----------------------------------------------------------------------------------------

# Each unit, and what of the package it may import beside itself. A unit is a folder or a module of its own.
PLAIN = {"errors", "layouts", "progress", "ranks", "mra.estimate"}
OPS = PLAIN | {"reference", "kernels", "ops"}
MODEL = OPS | {"mra", "ma", "alignment", "model"}
MIDDLE = MODEL | {"weights", "data", "metrics", "search", "train", "engine", "extractor", "extraction"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "aspect": set(),
    "layouts": set(),
    "progress": set(),
    "ranks": set(),
    "mra.estimate": set(),
    "reference": PLAIN,
    "kernels": PLAIN | {"reference"},
    "ops": OPS,
    "mra": OPS,
    "ma": OPS,
    "alignment": OPS | {"mra", "aspect"},
    "model": MODEL,
    "weights": MODEL,
    "engine": MODEL | {"weights"},
    "data": OPS | {"aspect"},
    "metrics": MODEL | {"data"},
    "search": MODEL | {"weights", "data", "metrics"},
    "train": MIDDLE,
    "extractor": MODEL | {"weights", "data", "metrics", "search", "engine"},
    "extraction": MODEL | {"weights", "data", "metrics", "search", "engine"},
    "bench": MIDDLE | {"report", ""},
    "diagnosis": OPS,
    "reproduce": MIDDLE | {"diagnosis", ""},
    # The top may use everything below; only a command line knows about other commands.
    "report": MIDDLE | {"diagnosis", ""},
    "integrations": MIDDLE | {"diagnosis", ""},
    "cli": MIDDLE | {"bench", "diagnosis", "reproduce", "report", "integrations", ""},
    "__main__": {"cli"},
    # The package itself only names what it loads on demand.
    "": {*MIDDLE, "diagnosis"},
}
# Upward on purpose, inside a function and so never at import: model.save(), MGRAN.from_file(), model.push_to_hub().
ON_DEMAND = {("model", "weights"), ("model", "integrations")}


def unit(module: str) -> str:
    """``mgran_fast.ma.trunk`` -> ``ma``."""
    parts = module.split(".")[1:]
    if parts[:2] == ["mra", "estimate"]:
        return "mra.estimate"
    return parts[0] if parts else ""


def module_of(path: Path) -> str:
    parts = ("mgran_fast", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module of the package that a file imports, and whether at import of the file itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    # What only type checkers see is no import.
    for guard in ast.walk(tree):
        if isinstance(guard, ast.If) and isinstance(guard.test, ast.Name) and guard.test.id == "TYPE_CHECKING":
            inside |= {id(node) for statement in guard.body for node in ast.walk(statement)}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide what they import"
            module = node.module or ""
            names = [
                name if is_module(name := f"{module}.{alias.name}") else module
                for alias in node.names
                if module.split(".")[0] == "mgran_fast"
            ]
        for name in names:
            if name.split(".")[0] == "mgran_fast":
                yield name, id(node) not in inside


FILES = sorted(path for path in ROOT.rglob("*.py") if "__pycache__" not in path.parts)


def test_there_is_something_to_check() -> None:
    units = {unit(module_of(path)) for path in FILES}
    assert {"ops", "ma", "mra", "reference", "model", "data", "metrics", "cli", "weights", ""} <= units
    # A new folder must be given its place above.
    assert units <= ALLOWED.keys(), f"unknown to the table of layers: {sorted(units - ALLOWED.keys())}"
    edges = {(unit(module_of(path)), unit(name)) for path in FILES for name, _ in imported(path)}
    assert {("model", "ma"), ("ma", "ops"), ("ops", "reference"), ("model", "weights"), ("cli", "model")} <= edges


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    here = unit(module_of(path))
    for name, at_once in imported(path):
        there = unit(name)
        if there == here or there in ALLOWED[here]:
            continue
        assert (here, there) in ON_DEMAND, f"{module_of(path)} imports {name}, which is above it"
        assert not at_once, f"{module_of(path)} imports {name} at once; that is only for inside a function"
