"""Docstrings as Markdown, and where the names that they mention are told."""

from __future__ import annotations

import importlib
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

_SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises):(.*)")
_HEADS = {"Args": "Arguments"}
_ITEM = re.compile(r"([*\w.]+(?:, [*\w.]+)*):\s+(.*)")
_CODE = re.compile(r":\w+:`~?[^`]+`|``.+?``|`[^`]+`")


class Told(Protocol):
    """A public name: what it is called in a heading, and the object."""

    @property
    def full(self) -> str: ...

    @property
    def value(self) -> Any: ...


class Links:
    """Where on which page a name is told."""

    def __init__(self, told: Mapping[str, Iterable[tuple[str, Iterable[Told]]]]) -> None:
        self.places: dict[Any, tuple[str, str]] = {}
        for page, homes in told.items():
            seen: Counter[str] = Counter()
            for home, names in homes:
                seen[anchor(home)] += 1
                for one in names:
                    mark = anchor(one.full)
                    # A page's second heading of a spelling, such as that of roc after Roc, gets a number.
                    again = f"-{seen[mark]}" if seen[mark] else ""
                    seen[mark] += 1
                    self.places[one.value] = (f"{page}.md", mark + again)

    def of(self, text: str, module: str) -> str | None:
        """The link of ``mgran_fast.x.Name`` or of a name of ``module``, if it is told anywhere."""
        for candidate in (text, f"{module}.{text}"):
            home, _, name = candidate.rpartition(".")
            try:
                value = getattr(importlib.import_module(home), name) if home else None
                if value in self.places:
                    return "#".join(self.places[value])
            except (ImportError, AttributeError, TypeError):
                continue
        return None


def anchor(heading: str) -> str:
    """What a heading's link ends in."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def inline(text: str, links: Links, module: str) -> str:
    """Markdown of one paragraph of a docstring."""

    def code(found: str) -> str:
        if not found.startswith(":"):
            return f"`{found.strip('`')}`"
        full = found.split("`")[1]
        target = full.lstrip("~")
        link = links.of(target, module)
        shown = f"`{target.rpartition('.')[2] if full.startswith('~') else target}`"
        return f"[{shown}]({link})" if link else shown

    pieces, last = [], 0
    for match in _CODE.finditer(text):
        pieces += [re.sub(r"([*<])", r"\\\1", text[last : match.start()]), code(match.group())]
        last = match.end()
    return "".join([*pieces, re.sub(r"([*<])", r"\\\1", text[last:])])


def markdown(docstring: str, links: Links, module: str) -> str:
    """A docstring as Markdown: paragraphs, indented code, sections as lists."""
    lines = docstring.strip().splitlines()
    out: list[str] = []
    i = 0
    while i < len(lines):
        section = _SECTION.fullmatch(lines[i])
        if section and not section[2].strip():
            end = i + 1
            while end < len(lines) and (not lines[end].strip() or lines[end].startswith(" ")):
                end += 1
            body = textwrap.dedent("\n".join(lines[i + 1 : end])).strip().splitlines()
            out += [f"**{_HEADS.get(section[1], section[1])}**", "", *_section(section[1], body, links, module), ""]
            i = end
        elif lines[i].startswith("    "):
            out.append(lines[i])
            i += 1
        else:
            out.append(inline(lines[i], links, module))
            i += 1
    return "\n".join(out).strip()


def _section(kind: str, body: list[str], links: Links, module: str) -> list[str]:
    if kind in ("Returns", "Yields"):
        return [inline(line.strip(), links, module) for line in body]
    made = []
    for line in body:
        item = _ITEM.fullmatch(line)
        if item:
            made.append(f"- `{item[1]}`: {inline(item[2], links, module)}")
        else:
            made.append(f"{'  ' if made and line.strip() else ''}{inline(line.strip(), links, module)}")
    return made
