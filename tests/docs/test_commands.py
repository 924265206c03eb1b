"""Every command of the documentation is read by the program that it names; test_pages.py runs those of some pages."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer

from mgran_fast.cli import app

#: Lines that are neither of ours nor of make, python or pip.
OTHERS = {"pre-commit install": "another program's, named in pyproject.toml"}

# Of pip wheel.
_WHEEL = {"--find-links", "--no-deps", "--no-index", "--wheel-dir"}
# Of pytest: options with a value, and without.
_TAKES, _FLAGS = {"-k", "-m", "-n"}, {"-q", "-s", "-x"}


@functools.cache
def hollow() -> Any:
    """The command line, whose commands do nothing."""
    top: Any = typer.main.get_command(app)
    commands = [top]
    while commands:
        command = commands.pop()
        command.callback = lambda *_, **__: None
        commands += getattr(command, "commands", {}).values()
    return top


def parse(arguments: list[str]) -> None:
    """Read the words as the command line does: options exist, what is required is there, values have their types."""
    hollow().main(arguments, prog_name="mgran-fast", standalone_mode=False)


def check_python(found: list[str], root: Path) -> None:
    """The script or module and the options that it is given are there; of pytest its files, too."""
    if found[:2] == ["-m", "pytest"]:
        rest, values = found[2:], {after for word, after in pairwise(found) if word in _TAKES or word.startswith("--")}
        for word in rest:
            assert word.startswith("-") or word in values or (root / word.partition("::")[0]).exists(), word
        plugin = root / "mgran_fast" / "bench" / "plugin.py"
        told = "".join(path.read_text("utf-8") for path in (*root.glob("*/conftest.py"), plugin))
        known = {*_TAKES, *_FLAGS, *re.findall(r'"(--[a-z-]+)"', told)}
    else:
        # kernels/ is installed as mgran_fast.kernels.
        place = found[1].replace("mgran_fast.kernels", "kernels").replace(".", "/") + ".py" if found[0] == "-m" else ""
        rest, script = (found[2:], root / place) if place else (found[1:], root / found[0])
        assert script.is_file(), script
        known = set(re.findall(r"--[a-z][a-z-]*", script.read_text("utf-8")))
    for word in rest:
        assert not re.match(r"--?[a-z]", word) or word in known, word


def test_command(command: Any, root: Path) -> None:
    """The programs, options, targets, extras and files that a line names exist."""
    arguments, found = command.ours, command.words
    if " ".join(found) in OTHERS:
        return
    if arguments is not None:
        end = arguments.index(">") if ">" in arguments else len(arguments)
        parse(arguments[:end])
    elif found[0] == "make":
        there = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text("utf-8"), re.MULTILINE))
        targets = [word for word in found[1:] if "=" not in word]
        assert targets
        assert set(targets) <= there
    elif found[:2] == ["pip", "wheel"]:
        assert {word for word in found if word.startswith("--")} <= _WHEEL
    elif found[0] == "pip":
        assert found[1] == "install"
        settings = (root / "pyproject.toml").read_text("utf-8").partition("[project.optional-dependencies]")[2]
        there = set(re.findall(r"^(\w+) = \[", settings.partition("\n[")[0], re.MULTILINE))
        for word in found[2:]:
            known = re.fullmatch(r"(?:\.|mgran_fast)(?:\[(.+)\])?", word)
            assert known, word
            assert set((known[1] or "").split(",")) <= {"", *there}, word
    else:
        assert found[0].rpartition("/")[2] == "python", command.text
        check_python(found[1:], root)


def test_no_line_is_missed(page: str, root: Path, lines: Callable[[str], list[Any]]) -> None:
    """Of what looks like a line to type at the margin of a code block, each is among the commands."""
    seen = {one.text.split(" \\")[0] for one in lines(page)}
    text = re.sub(
        r"^```(?:python|text|markdown|dockerfile)\n.*?^```$", "", (root / page).read_text("utf-8"), flags=re.M | re.S
    )
    looks = [line.strip() for line in re.findall(r"^ {4,}(?:mgran-fast|make|pip|python) .*$", text, re.MULTILINE)]
    missed = [line for line in looks if not any(one.startswith(line.rstrip(" \\")) for one in seen)]
    assert not missed


@pytest.mark.parametrize(
    "line",
    ["train --epoch 3", "train --epochs three", "evaluate", "search person.jpg", "datasets check market1501", "trein"],
)
def test_wrong_lines_are_seen(line: str) -> None:
    """An option, a command or a type that is not there, and an argument that is missing."""
    with pytest.raises(Exception, match=r"No such|valid|Missing"):
        parse(line.split())
