"""The page docs/api/cli.md: each command with its help, arguments, options and defaults, from the command objects."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from mgran_fast.cli import app

#: Defaults that depend on the machine.
_MACHINE = {"workers": "2, or 1 on one core"}
_KINDS = {str: "TEXT", int: "INTEGER", float: "FLOAT", Path: "PATH"}


def names() -> list[str]:
    """Of all commands, as they are typed after mgran-fast."""
    return [name for name, _ in _commands()]


def page() -> str:
    """The page, as Markdown."""
    out = [
        "# The command line",
        "",
        "Written by `python docs/reference.py` from the commands. Do not edit this page. `mgran-fast COMMAND --help`"
        " tells the same.",
        "",
        "Exit codes: 0 done, 1 an error that people make, told in one line, 2 wrong usage, 130 interrupted, 143 ended"
        " by SIGTERM.",
        "",
    ]
    for name, command in _commands():
        out += _entry(name, command)
    return "\n".join(out).rstrip() + "\n"


def _commands() -> Iterator[tuple[str, Any]]:
    """(name, command), in the order of the alphabet; a group goes before its own."""
    top: Any = typer.main.get_command(app)
    for name, command in sorted(top.commands.items()):
        yield name, command
        for below, one in sorted(getattr(command, "commands", {}).items()):
            yield f"{name} {below}", one


def _entry(name: str, command: Any) -> list[str]:
    hints = typing.get_type_hints(command.callback)
    shown = [one for one in command.params if not getattr(one, "hidden", False) and one.name != "help"]
    arguments = [one for one in shown if one.param_type_name == "argument"]
    options = [one for one in shown if one.param_type_name != "argument"]
    words = [f"mgran-fast {name}", "[OPTIONS]", *(one.metavar or one.name.upper() for one in arguments)]
    text, examples = _help(command.help or "")
    out = [f"## mgran-fast {name}", "", "```text", " ".join(words), "```", "", text, ""]
    if arguments:
        out += ["| argument | |", "|---|---|"]
        out += [f"| `{one.metavar or one.name.upper()}` | {_cell(one.help or '')} |" for one in arguments]
        out.append("")
    if options:
        out += ["| option | default | |", "|---|---|---|"]
        out += [f"| {_option(one, hints)} | {_default(one)} | {_cell(one.help or '')} |" for one in options]
        out.append("")
    return out + (["Example:", "", *(f"    {line}" for line in examples), ""] if examples else [])


def _help(text: str) -> tuple[str, list[str]]:
    """What a command says of itself, and its examples."""
    told, _, examples = text.partition("Example:")
    lines = [line.strip() for line in examples.splitlines()]
    return _escaped(told.strip()), [line for line in lines if line]


def _option(one: Any, hints: dict[str, Any]) -> str:
    told = ", ".join(f"`{text}`" for text in (*one.opts, *one.secondary_opts))
    if getattr(one, "is_flag", False):
        return told
    return f"{told} `{one.metavar or _kind(hints[one.name])}`"


def _kind(hint: Any) -> str:
    """TEXT, INTEGER, FLOAT or PATH, of ``int``, ``Path | None``, ``list[str] | None``."""
    while hint not in _KINDS:
        hint = next(one for one in typing.get_args(hint) if one is not type(None))
    return _KINDS[hint]


def _default(one: Any) -> str:
    if one.name in _MACHINE and one.default is not None:
        return _MACHINE[one.name]
    if one.required:
        return "required"
    # A flag that is off, and an option without a default, need no words.
    if not isinstance(one.default, bool | int | float | str | Path) or one.default is False or one.default == "":
        return ""
    return "on" if one.default is True else f"`{one.default}`"


def _cell(text: str) -> str:
    return _escaped(re.sub(r"\s+", " ", text)).replace("|", "\\|")


def _escaped(text: str) -> str:
    return re.sub(r"([*<])", r"\\\1", text)
