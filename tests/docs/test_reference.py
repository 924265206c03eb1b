"""The pages of docs/api are what their generator writes from the docstrings and commands as they are now."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import mgran_fast


@pytest.fixture(scope="module")
def reference() -> Iterator[ModuleType]:
    """docs/reference.py, which imports its neighbours."""
    folder = Path(__file__).parents[2] / "docs"
    spec = importlib.util.spec_from_file_location("reference", folder / "reference.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(folder), *sys.path])
        patch.setitem(sys.modules, "reference", module)
        spec.loader.exec_module(module)
        # Written once: each takes seconds.
        written = module.pages()
        patch.setattr(module, "pages", lambda: written)
        yield module


def test_pages_are_as_they_would_be_written(reference: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    code = reference.main(["--check"])
    assert code == 0, capsys.readouterr().err


def test_check_sees_a_changed_and_a_forgotten_page(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "FOLDER", tmp_path / "api")
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    (tmp_path / "api/ops.md").write_text("edited")
    (tmp_path / "api/old.md").write_text("of a module that is gone")
    assert reference.main(["--check"]) == 1
    told = capsys.readouterr().err
    assert "ops.md" in told
    assert "old.md" in told
    assert reference.main([]) == 0
    assert not (tmp_path / "api/old.md").exists()
    assert reference.main(["--typo"]) == 2


def test_all_names_of_the_package_are_told(reference: ModuleType) -> None:
    """What ``from mgran_fast import ...`` offers is on a page: classes and functions by their own headings."""
    text = "".join(reference.pages().values())
    modules = {"layouts", "ops", "reference", "__version__"}
    for name in set(mgran_fast.__all__) - modules:
        assert f"\n### mgran_fast.{name}\n" in text, name


def test_a_docstring_becomes_markdown(reference: ModuleType) -> None:
    told = """Fits :func:`mgran_fast.rank` of ``a * b``, not a * b.

        code(1)

Args:
    one, two: first line
        and second.
    three: < 4.

Returns:
    float32 [N, D].

Raises:
    ValueError: never.
"""
    links = reference.Links(reference.collect())
    made = reference.markdown(told.replace("        code", "    code"), links, "mgran_fast")
    assert made.splitlines() == [
        "Fits [`mgran_fast.rank`](metrics.md#mgran_fastrank) of `a * b`, not a \\* b.",
        "",
        "    code(1)",
        "",
        "**Arguments**",
        "",
        "- `one, two`: first line",
        "  and second.",
        "- `three`: \\< 4.",
        "",
        "**Returns**",
        "",
        "float32 [N, D].",
        "",
        "**Raises**",
        "",
        "- `ValueError`: never.",
    ]
