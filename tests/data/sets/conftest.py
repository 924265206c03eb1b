"""Miniatures to read and to break."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgran_fast.data import DataSet
from mgran_fast.data.sets import Counts, miniature, open_set
from mgran_fast.errors import MGRANError


class Miniature:
    """A drawn data set: its folder, its numbers, and its reader, which takes it by those numbers."""

    def __init__(self, name: str, root: Path, variant: str | None = None) -> None:
        self.name, self.root, self.variant = name, root, variant
        self.counts: Counts = miniature(name, root, variant=variant, size=(16, 8))

    def read(self, root: Path | None = None, **changes: Any) -> DataSet:
        options = {"variant": self.variant, "counts": self.counts, **changes}
        return open_set(self.name, self.root if root is None else root, **options)

    def refused(
        self, *words: str, root: Path | None = None, error: type[Exception] = MGRANError, **changes: Any
    ) -> str:
        """The one line that tells why the set is not taken; it holds ``words``."""
        with pytest.raises(error) as caught:
            self.read(root, **changes)
        line = str(caught.value)
        assert "\n" not in line
        for word in words:
            assert word in line, line
        return line


@pytest.fixture
def draw(tmp_path: Path) -> Callable[..., Miniature]:
    """Draws a miniature of the set of that name into a folder of that name."""
    return lambda name, variant=None: Miniature(name, tmp_path / name, variant)
