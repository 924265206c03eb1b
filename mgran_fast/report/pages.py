"""Pages: one self-contained HTML file each, from the templates beside this module."""

from __future__ import annotations

import os
import uuid
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mgran_fast.errors import DataError
from mgran_fast.report import words

#: At most so many lines of problems and the like are told; the rest is counted.
MOST_LINES = 200
# Control characters are no HTML; file names may hold them all the same.
_UNPRINTABLE = {code: 0xFFFD for code in (*range(9), 11, *range(12, 32), *range(127, 160)) if code != 13}


def fill(template: str, **values: Any) -> str:
    """A page as a string. Everything in ``values`` is escaped."""
    files = resources.files("mgran_fast.report")

    def read(name: str) -> str:
        return files.joinpath(name).read_text("utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["most_lines"] = MOST_LINES
    environment.filters.update(
        percent=words.percent,
        number=words.number,
        distance=words.distance,
        duration=words.duration,
        words=words.words,
    )
    # The style sheet is ours: it is the only text that goes in unescaped.
    page = environment.get_template(template).render(css=Markup(read("report.css")), **values)
    return page.translate(_UNPRINTABLE)


def put(path: str | os.PathLike[str], page: str) -> Path:
    """Write a page, whole or not at all, and return its path. Folders on the way are made. Raises DataError."""
    target = Path(path)
    if target.is_dir():
        raise DataError(f"{target} is a folder: name the file to write, such as {target / 'report.html'}")
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Names of files need not be Unicode; what is not is shown escaped.
            draft.write_text(page, encoding="utf-8", errors="backslashreplace")
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{target} cannot be written ({error.strerror}): choose another path") from error
    return target
