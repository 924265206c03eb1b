"""What the pages of the documentation hold, and a folder in which their commands can run."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mgran_fast.cli import main
from mgran_fast.data.sets import miniature
from mgran_fast.data.synthetic import write

ROOT = Path(__file__).parents[2]
#: All pages that people read.
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md"))]
#: Fences whose lines people type.
_SHELLS = ("", "sh", "bash", "console")
_FENCE = re.compile(r"\s*```(\S*)")
_TYPED = re.compile(r"(?:[A-Z_]+=\S* )*(?:mgran-fast|make|python|\S+/python|pip|torchrun|srun|pre-commit)(?: .*|$)")

#: What makes a training one of seconds, put at the end of a line's own options: the last one counts.
SMALL = (
    "--size", "32x16", "--trunk", "resnet18", "--epochs", "1", "--people", "3", "--pictures", "2", "--batches", "2",
    "--workers", "0", "--evaluate-every", "0", "--precision", "float32",
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A code block: the language of its fence ("indented" without one), the line it begins in, and its text."""

    page: str
    language: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A line that people type, continuations joined."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def words(self) -> list[str]:
        """Without variables before them, the comment, and the brackets around what may be left out."""
        found = shlex.split(re.sub(r"\[(-[^\]]*)\]", r"\1", self.text), comments=True)
        while re.match(r"[A-Z_]+=", found[0]):
            found.pop(0)
        return found

    @property
    def ours(self) -> list[str] | None:
        """The words after mgran-fast, or after -m mgran_fast; None for other programs."""
        found = self.words
        for start in ("mgran-fast", "mgran_fast"):
            if start in found and found[0] in ("mgran-fast", "srun", "torchrun", "python"):
                return found[found.index(start) + 1 :]
        return None


def blocks(page: str) -> list[Block]:
    """All code blocks of a page, fenced and indented."""
    found: list[Block] = []
    held: list[str] = []
    language, start, before = "", 0, ""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    for number, line in enumerate([*lines, "end"], 1):
        fence = _FENCE.match(line)
        if language == "indented" and line.strip() and not line.startswith("    "):
            found.append(Block(page, language, start, "\n".join(held)))
            language, held = "", []
        if language.startswith("```"):
            if fence:
                found.append(Block(page, language[3:], start, "\n".join(held)))
                language, held = "", []
            else:
                held.append(line)
        elif fence and language != "indented":
            language, start, held = f"```{fence[1]}", number + 1, []
        elif language:
            held.append(line)
        elif line.startswith("    ") and not before.strip():
            language, start, held = "indented", number, [line]
        before = line
    return found


def commands(page: str) -> list[Command]:
    """What people type: the lines of a page's code blocks that begin with a command of ours."""
    found: list[Command] = []
    for block in blocks(page):
        if block.language not in (*_SHELLS, "indented"):
            continue
        joined = re.sub(r"\\\n\s*", lambda match: " ", block.text)
        number = block.line
        for line in joined.splitlines():
            if _TYPED.fullmatch(line.strip()):
                found.append(Command(page, number, line.strip()))
            number += 1
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test of a ``page``, a ``command`` or a ``block`` runs for each."""
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", PAGES)
    if "command" in metafunc.fixturenames:
        metafunc.parametrize("command", [one for page in PAGES for one in commands(page)], ids=str)
    if "block" in metafunc.fixturenames:
        metafunc.parametrize("block", [one for page in PAGES for one in blocks(page)], ids=str)


@pytest.fixture(scope="module", autouse=True)
def no_gpu(without_gpu: None) -> None:
    """Runs on the CPU everywhere."""


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    return SMALL


@pytest.fixture(scope="session")
def snippets() -> Callable[[str], list[Block]]:
    """The Python of a page."""
    return lambda page: [block for block in blocks(page) if block.language == "python"]


@pytest.fixture(scope="session")
def lines() -> Callable[[str], list[Command]]:
    """The commands of a page."""
    return commands


def _run(*arguments: str) -> str:
    """Run the command line in this process, from the entry point on; returns its standard output."""
    root, package = logging.getLogger(), logging.getLogger("mgran_fast")
    handlers, level, own = root.handlers[:], root.level, package.level
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["mgran-fast", *arguments])
        if arguments[0] == "train":
            # Half of the time of so short a run, and tested in tests/train.
            patch.setattr("mgran_fast.train.curves.draw", lambda rows, path: None)
        try:
            main()
        except SystemExit as leave:
            code = leave.code
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            package.setLevel(own)
    assert not code, f"mgran-fast {' '.join(arguments)}: exit code {code}\n{err.getvalue()}"
    return out.getvalue()


@pytest.fixture(scope="session")
def run() -> Callable[..., str]:
    return _run


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the pages' commands name, small: pictures of drawn people, and a trained model."""
    here = tmp_path_factory.mktemp("template")
    size = (32, 16)
    made = write(here / "FOLDER", people=(6, 4), cameras=2, views=2, size=size)
    for other in ("data/mine", "shared/mine", "runs/demo/data"):
        shutil.copytree(made.root, here / other)
    miniature("market1501", here / "data/market1501", size=size)
    miniature("cuhk03", here / "data/cuhk03", size=size)
    rows = ["path,person,camera"]
    for one in sorted((here / "data/mine").rglob("*.jpg")):
        person, camera = one.name.split("_")[0], re.search(r"_c(\d)", one.name)
        assert camera
        to = here / "data/people" / f"p{person}" / one.name
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(one, to)
        rows.append(f"{one.relative_to(here / 'data').as_posix()},{person},{camera[1]}")
    (here / "data/people.csv").write_text("\n".join(rows))
    shutil.copytree(here / "FOLDER/bounding_box_test", here / "pictures")
    for name in ("person.jpg", "a.jpg", "b.jpg"):
        shutil.copy(made.query[0].path, here / name)
    (here / "mine.yaml").write_text("learning_rate: 1.0e-3\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        _run("train", "--data", "FOLDER", "--output", "trained", *SMALL)
        for run in ("mine", "demo"):
            (here / "runs" / run).mkdir(parents=True, exist_ok=True)
            shutil.copy("trained/model.safetensors", here / "runs" / run)
        given = ("--checkpoint", "runs/mine/model.safetensors", "--workers", "0")
        _run("search", "person.jpg", "pictures", "--save", "galleries/street", *given)
    return here


@pytest.fixture
def world(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the template, which the test stands in."""
    here = tmp_path / "world"
    shutil.copytree(template, here)
    monkeypatch.chdir(here)
    return here
