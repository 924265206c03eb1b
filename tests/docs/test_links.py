"""Links from page to page, and to the sources, lead somewhere."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")


def prose(path: Path) -> str:
    """A page without its code."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(?<=\n\n)(?: {4}.*\n)+", "", text)
    return re.sub(r"`[^`\n]*`(?!\]\()", "", text)


def anchors(path: Path) -> set[str]:
    """What links to the headings of a page end in."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#+ (.*?)\s*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def test_links(page: str, root: Path) -> None:
    here = root / page
    broken = []
    for target in _LINK.findall(prose(here)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        to = (here.parent / name).resolve() if name else here
        if not to.exists() or (anchor and (to.suffix != ".md" or anchor not in anchors(to))):
            broken.append(target)
    assert not broken


def test_every_page_is_in_the_index(root: Path) -> None:
    """docs/README.md leads to each page, api/README.md to each of the reference."""
    for folder, below in ((root / "docs", "*.md"), (root / "docs/guides", "*.md"), (root / "docs/api", "*.md")):
        index = (root / "docs/api" if folder.name == "api" else root / "docs") / "README.md"
        linked = {
            (index.parent / target.partition("#")[0]).resolve() for target in _LINK.findall(index.read_text("utf-8"))
        }
        missing = sorted(path.name for path in folder.glob(below) if path != index and path.resolve() not in linked)
        assert not missing, folder
