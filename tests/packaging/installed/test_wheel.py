"""What the wheel brought: its files, its bill of materials, its command, and one OpenMP runtime."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import mgran_fast
from mgran_fast import _C, diagnosis
from mgran_fast.ops import backend

HOME = Path(mgran_fast.__file__).resolve().parent
SITE = HOME.parent


def ran(*command: str) -> str:
    """The output of a process that stands outside of any checkout. No path of the caller's leads it to other files."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COLUMNS"))}
    done = subprocess.run(command, cwd=SITE.parent, env=environment, text=True, capture_output=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def bill() -> dict[str, Any]:
    """The SBOM's components by name."""
    (path,) = [one for one in metadata.files("mgran_fast") or () if one.match("*.dist-info/sboms/*.cdx.json")]
    found = json.loads(path.read_text("utf-8"))
    assert found["metadata"]["component"]["version"] == mgran_fast.__version__
    return {one["name"]: one for one in found["components"]}


def test_it_is_the_installed_one() -> None:
    assert Path(sysconfig.get_path("platlib")).resolve() == SITE
    loaded = {
        name: Path(module.__file__).resolve()
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == "mgran_fast" and getattr(module, "__file__", None)
    }
    assert len(loaded) > 20
    assert not [name for name, path in loaded.items() if not path.is_relative_to(HOME)]
    assert _C.version == mgran_fast.__version__ == metadata.version("mgran_fast")


def test_files_are_those_of_the_record() -> None:
    """Nothing is missing, changed or added."""
    wanted = {}
    for one in metadata.files("mgran_fast") or ():
        path = Path(str(one.locate())).resolve()
        if path.suffix != ".pyc":
            wanted[path] = one.hash
    for path, digest in wanted.items():
        if digest is not None:
            found = base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
            assert (digest.mode, digest.value) == ("sha256", found), path
    there = {path for path in HOME.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert there == {path for path in wanted if path.is_relative_to(HOME)}


@pytest.mark.parametrize(
    "name",
    [
        "py.typed",
        "report/base.html.j2",
        "report/report.css",
        "report/run.html.j2",
        "report/search.html.j2",
        "kernels/pooling.json",
        "kernels/pointwise.json",
        "mra/regionnet.safetensors",
        "reproduce/configs/market1501.yaml",
    ],
)
def test_data_is_there(name: str) -> None:
    assert (HOME / name).stat().st_size > 0 or name == "py.typed"


def test_bill_of_materials_tells_the_truth() -> None:
    components = bill()
    weights = components.pop("mgran_fast/mra/regionnet.safetensors")
    digest = hashlib.sha256((HOME / "mra" / "regionnet.safetensors").read_bytes()).hexdigest()
    assert weights["hashes"] == [{"alg": "SHA-256", "content": digest}]
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", components.pop("pybind11")["version"])
    runtime = components.pop("CUDA Runtime", None)
    assert (runtime is None) == (_C.cuda is None)
    # nvcc and the runtime are of one toolkit.
    assert runtime is None or _C.cuda.startswith(f"{runtime['version'].split('.')[0]}.")
    assert not components


def test_every_op_is_native() -> None:
    for op, devices in diagnosis.OPS.items():
        for device in devices:
            missing = diagnosis.why_not_native(op, device)
            if device == "cpu" or op not in backend.TRITON:
                assert bool(missing) == (device == "cuda" and _C.cuda is None), missing
            else:
                assert not missing or "Triton" in missing


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_openmp_runtime() -> None:
    """What the kernels' threads come from is what torch's come from, also when the extension was imported first."""
    code = """if True:
        import {first}
        import torch, mgran_fast
        torch.set_num_threads(4)
        mgran_fast.ops.regions(torch.ones(8, 64, 32), torch.zeros(8, 17, 3), (256, 128))
        print(*{{line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.rsplit("/", 1)[-1]}})
        print(*{{line.split()[-1] for line in open("/proc/self/maps") if "mgran_fast" in line}})
    """
    for first in ("torch", "mgran_fast"):
        runtimes, ours = ran(sys.executable, "-I", "-c", code.format(first=first)).splitlines()
        assert len(runtimes.split()) == 1, runtimes
        assert Path(runtimes).parent.name == "lib", f"not torch's: {runtimes}"
        assert Path(runtimes).parent.parent.name == "torch", f"not torch's: {runtimes}"
        assert Path(ours) == Path(_C.__file__)


def test_command() -> None:
    command = str(Path(sysconfig.get_path("scripts"), "mgran-fast"))
    assert "doctor" in ran(command, "--help")
    found = json.loads(ran(command, "doctor", "--json"))
    assert found["extension"]["version"] == mgran_fast.__version__
    assert {of["cpu"].split(":")[0] for of in found["ops"].values() if "cpu" in of} == {"native"}
