"""``make package``: wheels and source distribution, built, looked into, installed and tested. Raises SystemExit.

    python build.py [--output build/check]

The wheel without CUDA is built twice: from the checkout, with what the editable install has compiled already, and from
the source distribution, in another folder, from nothing and without a network. Both must be the same file. Where nvcc
is, a wheel with CUDA is built too. Each is installed into an empty virtual environment, with the packages that it
depends on lent by the environment that runs this, and tested there by a copy of ``installed/``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import contents

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = "tests/packaging/installed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "check", help="a folder that is made anew")
    output: Path = parser.parse_args().output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="mgran-package-") as elsewhere:
        check(output, Path(elsewhere))


def check(output: Path, elsewhere: Path) -> None:
    with told("source distribution"):
        made = source_distribution(ROOT, output)
        expect(contents.sdist(made, listed("csrc", "kernels", "mgran_fast", INSTALLED)))
        with tarfile.open(made) as archive:
            archive.extractall(elsewhere, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        (unpacked,) = elsewhere.iterdir()
        expect(contents.difference(made, source_distribution(unpacked, elsewhere / "again")))
    sources = listed("kernels", "mgran_fast")
    leaks = [str(ROOT), str(elsewhere)]
    wheels = []
    if shutil.which("nvcc"):
        with told("wheel with CUDA"):
            wheels.append(wheel(ROOT, output / "cuda", "ON"))
            expect(contents.wheel(wheels[0], sources, cuda=True, leaks=leaks))
    elif os.environ.get("MGRAN_EXPECT_NVCC"):
        raise SystemExit("make package: there is no nvcc on the PATH")
    with told("wheel without CUDA"):
        plain = wheel(ROOT, output / "plain", "OFF")
        expect(contents.wheel(plain, sources, cuda=False, leaks=leaks))
        wheels.append(plain)
    with told("the same from the source distribution, without a network"):
        expect(contents.difference(plain, wheel(unpacked, elsewhere / "again", "OFF", offline=True)))
    for one in wheels:
        with told(f"installed and tested: {one.name}, {one.stat().st_size / 1e6:.2f} MB"):
            test(one, elsewhere / one.parent.name)


def listed(*folders: str) -> list[str]:
    """The checkout's files in these folders: what git knows or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", *folders]
    out = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in out.split("\0") if name and (ROOT / name).exists()]


def source_distribution(source: Path, output: Path) -> Path:
    """Builds it as any frontend would, from a checkout or from what one holds."""
    hook = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    run([sys.executable, "-c", hook, str(output)], source)
    return only(output, "*.tar.gz")


def wheel(source: Path, output: Path, cuda: str, *, offline: bool = False) -> Path:
    """Builds a wheel with MGRAN_CUDA=``cuda``, and warnings as errors."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(output)]
    if offline:
        command = [*without_network(), *command, "--no-index"]
    run([*command, "."], source, {"MGRAN_CUDA": cuda, "MGRAN_WERROR": "ON"})
    return only(output, "*.whl")


def without_network() -> list[str]:
    """What to put before a command so that it has no network at all, where the system lets us."""
    command = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
        return command
    return []


def test(path: Path, folder: Path) -> None:
    """Installs a wheel into an empty virtual environment, and runs the tests of installed wheels on it."""
    run([sys.executable, "-m", "venv", str(folder / "env")], folder.parent)
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run([str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(path)], folder)
    # Dependencies and pytest are lent by a line of a .pth file: a folder of modules, whose own .pth files, such as the
    # checkout's editable install, nobody reads then.
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", query], check=True, capture_output=True, text=True).stdout.strip()
    Path(site, "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    shutil.copytree(ROOT / INSTALLED, folder / "installed", ignore=shutil.ignore_patterns("__pycache__"))
    run([str(python), "-m", "pytest", "-q", "installed"], folder)


def run(command: list[str], folder: Path, more: Mapping[str, str] | None = None) -> None:
    """Runs a command quietly, and ends with what it said where it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MGRAN_"))}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment, **(more or {})},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nmake package: this failed in {folder}: {' '.join(command)}")


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def expect(wrong: list[str]) -> None:
    if wrong:
        raise SystemExit("\n".join(["make package:", *wrong]))


@contextmanager
def told(what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    sys.stdout.write(f"{time.monotonic() - start:5.1f} s  {what}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
