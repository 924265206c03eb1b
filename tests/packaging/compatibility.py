"""One wheel under several versions of torch and NumPy: ``python tests/packaging/compatibility.py [VERSIONS ...]``.

VERSIONS is TORCH:TORCHVISION[:NUMPY]; "2.6.0:0.21.0:1.26.4" for example. The wheel is built once, without CUDA, or
given by --wheel. For each of the versions there is an environment below --scratch (3 to 8 GB while it lasts), into
which the wheel, these versions and what the tests need are installed; then a part of the checkout's tests runs on the
installed package, and the environment is removed. Needs a package registry and some minutes for each.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# The oldest that the package allows, one between, the newest that was seen.
VERSIONS = ("2.6.0:0.21.0:1.26.4", "2.9.1:0.24.1", "2.14.1:0.29.1")
# Of the tests in one environment.
LIMIT_SECONDS = 3600
# What the chosen tests want besides the package.
EXTRAS = "train,datasets,export,video"
NEEDED = ("hypothesis>=6.100", "pytest>=8.2", "pytest-timeout>=2.3", "pytest-xdist>=3.6")
TESTS = (
    "tests/ops",
    "tests/test_model.py",
    "tests/test_extractor.py",
    "tests/engine/test_engine.py",
    "tests/engine/test_program.py",
    "tests/metrics",
    "tests/data",
    "tests/ma",
    "tests/weights",
    "tests/train/test_optim.py",
    "tests/train/test_run.py",
    "tests/cli/test_cli.py",
)
# Warnings are other packages', which depend on their versions: here they are told and no errors.
OPTIONS = ("-q", "-p", "no:cacheprovider", "-m", "not gpu and not real_data", "-o", "filterwarnings=default", "-n", "2")
# Isolated (-I) and away from the checkout, Python finds the installed package alone.
_TESTS = """
import sys
import mgran_fast, pytest
assert mgran_fast.__file__.startswith(sys.prefix), mgran_fast.__file__
sys.exit(pytest.main(sys.argv[1:]))
"""
_NAMES = """
import platform, numpy, torch, torchvision
print(f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, "
      f"NumPy {numpy.__version__}")
"""
# What runs natively: the ops by doctor's word, the engine by running it.
_PROBE = """
import json, warnings
import torch, mgran_fast
from mgran_fast import diagnosis
ops = {op: not diagnosis.why_not_native(op, "cpu") for op, devices in diagnosis.OPS.items() if "cpu" in devices}
torch.manual_seed(0)
model = mgran_fast.MGRAN(trunk="resnet18", size=(64, 32)).eval()
crops = torch.randint(0, 256, (4, 64, 32, 3), dtype=torch.uint8)
precisions = {}
with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    want = model(crops)
    for dtype in (torch.float32, torch.bfloat16, "int8"):
        try:
            more = {"calibration": mgran_fast.calibrate(model, crops)} if dtype == "int8" else {}
            got = mgran_fast.optimize(model, dtype=dtype, **more)(crops)
            precisions[str(dtype)] = f"{torch.nn.functional.cosine_similarity(want, got.float()).min():.4f}"
        except Exception as error:
            precisions[str(dtype)] = f"{type(error).__name__}: {error}"
print(json.dumps({"ops": ops, "precisions": precisions}))
"""


@dataclass(frozen=True)
class Outcome:
    """What came of one environment: versions for people, the tests' last line, whether all passed, seconds, natives."""

    versions: str
    words: str
    passed: bool
    seconds: float
    natives: str


def build_wheel(python: str, folder: Path) -> Path:
    """The wheel of this checkout for an interpreter, without CUDA, by build tools from the registry."""
    command = [python, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += [f"--config-settings=build-dir={folder / 'build'}", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, env={**os.environ, "MGRAN_CUDA": "OFF"}, check=True)
    (wheel,) = folder.glob("mgran_fast-*.whl")
    return wheel


def install(python: str, wheel: Path, versions: str, folder: Path) -> Path:
    """Makes an environment with exactly these versions; returns its interpreter."""
    torch, torchvision, *numpy = versions.split(":")
    subprocess.run([python, "-m", "venv", str(folder)], check=True)
    own = folder / "bin" / "python"
    pip = [str(own), "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, "--upgrade", "pip"], check=True)
    wanted = [f"{wheel}[{EXTRAS}]", f"torch=={torch}", f"torchvision=={torchvision}", *(f"numpy=={n}" for n in numpy)]
    if numpy and numpy[0].startswith("1."):
        wanted.append("pyarrow<24")  # newer ones refuse NumPy 1 when they are imported, and no package says so
    subprocess.run([*pip, *wanted, *NEEDED], check=True)
    return own


def check(own: Path, tests: list[str], scratch: Path) -> tuple[str, bool, str]:
    """Runs the tests and the probe on the installed package: the last line, whether all passed, what is native."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MGRAN_DATA")}
    environment |= {"MGRAN_EXPECT_NATIVE": "1", "OMP_NUM_THREADS": "1"}
    paths = [str(ROOT / test) for test in tests]
    command = [str(own), "-I", "-c", _TESTS, "-c", str(ROOT / "pyproject.toml"), f"--rootdir={ROOT}", *OPTIONS, *paths]
    done = subprocess.run(
        command, cwd=scratch, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS
    )
    for line in re.findall(r"^(?:FAILED|ERROR) .*$", done.stdout, re.MULTILINE):
        say(line)
    last = (done.stdout.strip().splitlines() or [done.stderr[-500:]])[-1].strip("= ")
    (scratch / f"{own.parents[1].name}.log").write_text(done.stdout + done.stderr)
    probe = subprocess.run(
        [str(own), "-I", "-c", _PROBE], cwd=scratch, env=environment, capture_output=True, text=True, check=False
    )
    if probe.returncode != 0:
        return last, False, f"the probe failed: {probe.stderr.strip().splitlines()[-1]}"
    answer = json.loads(probe.stdout.splitlines()[-1])
    lacking = sorted(op for op, there in answer["ops"].items() if not there)
    natives = f"{len(answer['ops']) - len(lacking)} of {len(answer['ops'])} ops native"
    natives += f" (not {', '.join(lacking)})" if lacking else ""
    precisions = ", ".join(f"{name.removeprefix('torch.')} {words}" for name, words in answer["precisions"].items())
    return last, done.returncode == 0, f"{natives}; cosine of the engine {precisions}"


def try_versions(python: str, wheel: Path, versions: str, tests: list[str], scratch: Path) -> Outcome:
    """Installs, checks, removes."""
    start = time.monotonic()
    folder = scratch / versions.replace(":", "-")
    try:
        own = install(python, wheel, versions, folder)
        named = subprocess.run(
            [str(own), "-I", "-c", _NAMES], capture_output=True, text=True, check=True
        ).stdout.strip()
        words, passed, natives = check(own, tests, scratch)
        return Outcome(named, words, passed, time.monotonic() - start, natives)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="TORCH:TORCHVISION[:NUMPY]")
    parser.add_argument("--wheel", type=Path, help="the one to install; else it is built")
    parser.add_argument("--python", default=sys.executable, help="the interpreter, e.g. python3.12; default: this one")
    parser.add_argument("--scratch", type=Path, help="where environments are made and logs stay")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files or folders, from the checkout's root")
    words = parser.parse_args()
    scratch = Path(words.scratch or tempfile.mkdtemp(prefix="compatibility-")).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    wheel = (words.wheel or build_wheel(words.python, scratch)).resolve()
    outcomes = []
    for versions in words.versions:
        try:
            outcomes.append(try_versions(words.python, wheel, versions, list(words.tests), scratch))
        except subprocess.SubprocessError as error:
            outcomes.append(Outcome(versions, str(error), False, 0.0, ""))
        one = outcomes[-1]
        say(f"| {one.versions} | {one.words} | {one.seconds:.0f} s | {one.natives} |")
    return 0 if all(one.passed for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
