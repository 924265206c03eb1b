"""Writes docs/api/: the public names from their docstrings, and the command line from its own help.

    python docs/reference.py            # writes the pages anew
    python docs/reference.py --check    # exits with 1 where a page differs from what would be written

Signatures are the text of the sources, so that every Python gives the same pages.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).resolve().parent))

import reference_cli  # noqa: E402
from reference_markdown import Links, anchor, inline, markdown  # noqa: E402

import mgran_fast  # noqa: E402

FOLDER = ROOT / "docs" / "api"
WIDTH = 120
NOTE = "Written by `python docs/reference.py` from the docstrings. Do not edit this page."
#: Page -> its title, and the modules whose public names it tells; "module:Name Name" are these alone.
PAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "models": (
        "Models, estimators, layouts",
        (
            "mgran_fast.model",
            "mgran_fast.ma:MAOutput",
            "mgran_fast.mra",
            "mgran_fast.mra.regionnet",
            "mgran_fast.mra.maskrcnn:MaskRCNN find_checkpoints",
            "mgran_fast.layouts",
        ),
    ),
    "inference": (
        "Inference: extractor, engine, export",
        (
            "mgran_fast.extractor",
            "mgran_fast.engine.optimize:optimize calibrate",
            "mgran_fast.engine.calibration:Calibration",
            "mgran_fast.engine.engine:Engine",
            "mgran_fast.engine.export:export",
            "mgran_fast.diagnosis",
            "mgran_fast.errors",
        ),
    ),
    "ops": ("Ops", ("mgran_fast.ops",)),
    "metrics": (
        "Metrics and evaluation",
        (
            "mgran_fast.metrics",
            "mgran_fast.metrics.evaluation:Evaluation evaluate",
            "mgran_fast.metrics.protocols:Rule",
            "mgran_fast.metrics.statistics",
            "mgran_fast.metrics.verification",
            "mgran_fast.metrics.cameras",
            "mgran_fast.metrics.agreement:Agreement agreement measure",
        ),
    ),
    "search": ("Search", ("mgran_fast.search", "mgran_fast.search.pictures:Picture find_pictures embed_pictures")),
    "extraction": ("Extraction of many pictures", ("mgran_fast.extraction",)),
    "integrations": (
        "Inside other libraries",
        tuple(f"mgran_fast.integrations.{name}" for name in ("boxmot", "supervision", "torchreid", "fastreid")),
    ),
    "data": ("Data", ("mgran_fast.data", "mgran_fast.data.sets", "mgran_fast.data.synthetic:write render")),
    "training": (
        "Training and reports",
        (
            "mgran_fast.train.config",
            "mgran_fast.train.machines:Machines",
            "mgran_fast.train.run:build train TrainResult",
            "mgran_fast.report",
        ),
    ),
}


@dataclass(frozen=True)
class Name:
    """A public name: where people import it from, and the object."""

    module: str
    name: str
    value: Any

    @property
    def full(self) -> str:
        """As people import it."""
        short = self.name in mgran_fast.__all__ and getattr(mgran_fast, self.name) is self.value
        return f"{'mgran_fast' if short else self.module}.{self.name}"

    @cached_property
    def source(self) -> str:
        return textwrap.dedent(inspect.getsource(self.value))

    @cached_property
    def node(self) -> ast.ClassDef | ast.FunctionDef:
        found = ast.parse(self.source).body[0]
        assert isinstance(found, ast.ClassDef | ast.FunctionDef), self.full
        return found


#: Page -> modules, each with its names that are told there.
Told: TypeAlias = "dict[str, list[tuple[str, list[Name]]]]"


def names_of(entry: str) -> list[Name]:
    """The names of an entry of PAGES: those that are asked for, ``__all__``, or what the module defines itself."""
    home, _, wanted = entry.partition(":")
    module = importlib.import_module(home)
    chosen = wanted.split() or getattr(module, "__all__", None) or [n for n in vars(module) if _own(module, n)]
    values = [Name(home, name, getattr(module, name)) for name in chosen]
    return [one for one in values if inspect.isclass(one.value) or inspect.isfunction(one.value)]


def _own(module: ModuleType, name: str) -> bool:
    return not name.startswith("_") and getattr(getattr(module, name), "__module__", None) == module.__name__


def signature(prefix: str, node: ast.FunctionDef, source: str, *, skip_first: bool = False) -> str:
    """``def name(...) -> ...: ...`` as the sources have it, in one line or in one for each argument."""

    def text(part: ast.AST | None) -> str:
        segment = "" if part is None else ast.get_source_segment(source, part)
        return re.sub(r"\s+", " ", segment or "")

    def one(argument: ast.arg, default: ast.expr | None, stars: str = "") -> str:
        told = f"{stars}{argument.arg}" + (f": {text(argument.annotation)}" if argument.annotation else "")
        if default is None:
            return told
        return f"{told} = {text(default)}" if argument.annotation else f"{told}={text(default)}"

    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + list(given.defaults)
    parts = [one(argument, default) for argument, default in zip(positional, defaults, strict=True)]
    if given.vararg:
        parts.append(one(given.vararg, None, "*"))
    elif given.kwonlyargs:
        parts.append("*")
    parts += [one(argument, default) for argument, default in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    if given.kwarg:
        parts.append(one(given.kwarg, None, "**"))
    if skip_first:
        parts = parts[1:]
    returned = f" -> {text(node.returns)}" if node.returns else ""
    line = f"{prefix}({', '.join(parts)}){returned}: ..."
    if len(line) <= WIDTH:
        return line
    indent = prefix[: len(prefix) - len(prefix.lstrip())]
    body = "".join(f"{indent}    {part},\n" for part in parts)
    return f"{prefix}(\n{body}{indent}){returned}: ..."


def shape(one: Name) -> str:
    """The signature of a function; of a class its constructor, or its fields."""
    node = one.node
    if isinstance(node, ast.FunctionDef):
        return signature(f"def {one.name}", node, one.source)
    bases = ", ".join(ast.get_source_segment(one.source, base) or "" for base in node.bases)
    head = f"class {one.name}({bases}):" if bases else f"class {one.name}:"
    start = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
    if start is not None:
        return f"{head}\n" + signature("    def __init__", start, one.source)
    fields = [
        part
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and not part.target.id.startswith("_")
    ]
    lines = ["    " + re.sub(r"\s+", " ", ast.get_source_segment(one.source, field) or "") for field in fields]
    return head + ("\n" + "\n".join(lines) if lines else " ...")


def members(one: Name) -> Iterator[tuple[str, str, ast.FunctionDef]]:
    """(name, signature, node) of each public method and property of a class that has a docstring."""
    assert isinstance(one.node, ast.ClassDef)
    for part in one.node.body:
        if not isinstance(part, ast.FunctionDef) or ast.get_docstring(part) is None:
            continue
        marks = {mark.id if isinstance(mark, ast.Name) else getattr(mark, "attr", "") for mark in part.decorator_list}
        if "setter" in marks or (part.name.startswith("_") and part.name != "__call__"):
            continue
        if marks & {"property", "cached_property"}:
            returned = ast.get_source_segment(one.source, part.returns) if part.returns else "Any"
            yield part.name, f"{part.name}: {returned}", part
        else:
            bound = "staticmethod" not in marks
            yield part.name, signature(f"def {part.name}", part, one.source, skip_first=bound), part


def entry(one: Name, links: Links) -> list[str]:
    """A name's part of its page."""
    home = Path(inspect.getsourcefile(inspect.unwrap(one.value)) or "").resolve().relative_to(ROOT).as_posix()
    out = [f"### {one.full}", "", "```python", shape(one), "```", ""]
    text = ast.get_docstring(one.node)
    # A docstring names its neighbours as the module that it stands in knows them.
    module = one.value.__module__
    out += [markdown(text, links, module), ""] if text else []
    if isinstance(one.node, ast.ClassDef):
        for name, told, node in members(one):
            out += [f"#### {one.name}.{name}", "", "```python", told, "```", ""]
            out += [markdown(ast.get_docstring(node) or "", links, module), ""]
    return [*out, f"Source: [{home}](../../{home})", ""]


def collect() -> Told:
    """What each page tells; a name that several modules export is told once, by the first."""
    seen: set[Any] = set()
    found: Told = {}
    for page, (_, homes) in PAGES.items():
        found[page] = []
        for home in homes:
            names = [one for one in names_of(home) if one.value not in seen]
            seen.update(one.value for one in names)
            found[page].append((home.partition(":")[0], names))
    return found


def pages() -> dict[str, str]:
    """All pages of docs/api/, by the names of their files."""
    told = collect()
    links = Links(told)
    made: dict[str, str] = {}
    index = ["# API reference", "", NOTE, ""]
    for page, homes in told.items():
        title = PAGES[page][0]
        out = [f"# {title}", "", NOTE, ""]
        index += [f"## [{title}]({page}.md)", ""]
        for home, names in homes:
            about = (importlib.import_module(home).__doc__ or "").strip().split("\n\n")[0]
            out += [f"## {home}", "", inline(re.sub(r"\s+", " ", about), links, home), ""]
            places = [f"[{one.name}]({'#'.join(links.places[one.value])})" for one in names]
            index.append(f"- `{home}`: {', '.join(places)}")
            for one in names:
                out += entry(one, links)
        made[f"{page}.md"] = "\n".join(out).rstrip() + "\n"
        index.append("")
    index += ["## [The command line](cli.md)", ""]
    index += [f"- [mgran-fast {name}](cli.md#mgran-fast-{anchor(name)})" for name in reference_cli.names()]
    made["README.md"] = "\n".join(index).rstrip() + "\n"
    made["cli.md"] = reference_cli.page()
    return made


def main(arguments: list[str]) -> int:
    """Write the pages, or with --check compare them. Returns the exit code."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: python docs/reference.py [--check]\n")
        return 2
    wanted = pages()
    there = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.md")}
    stale = sorted({name for name in {*wanted, *there} if wanted.get(name) != there.get(name)})
    if arguments:
        for name in stale:
            sys.stderr.write(f"docs/api/{name} is not what would be written: python docs/reference.py\n")
        return int(bool(stale))
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        if name in wanted:
            (FOLDER / name).write_text(wanted[name], "utf-8")
        else:
            (FOLDER / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
