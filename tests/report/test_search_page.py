"""The page of a search: every picture, what is known of it, and heads hidden when asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mgran_fast.errors import DataError
from mgran_fast.report import pages, search
from mgran_fast.report.search import FoundList, SearchPage, Shown


def crop(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 32, 3), dtype=np.uint8)


def page() -> SearchPage:
    hits = [
        Shown("street/<b>1.jpg", ["person 7", "camera 2"], crop(1), None, 0.25),
        Shown("gone.jpg", ["camera 3"], distance=0.5),
    ]
    lists = [FoundList(Shown("query & more.jpg", ["camera 1"], crop(0)), hits), FoundList(Shown("other.jpg"), [])]
    problems = [f"{i}.jpg: cannot be read" for i in range(pages.MOST_LINES + 7)]
    return SearchPage(
        "Search for 2 pictures", "street: 2 pictures", "run 0123", lists, "region", "mgran-fast", problems
    )


def test_all_is_told(tmp_path: Path) -> None:
    text = search.write(tmp_path / "new" / "page.html", page()).read_text("utf-8")
    for words in (
        "<title>Search for 2 pictures</title>", "street: 2 pictures", "run 0123", "query &amp; more.jpg",
        "street/&lt;b&gt;1.jpg", "person 7", "camera 2", "0.250", "0.500", "picture not found",
        "The gallery has nothing for this query", "0.jpg: cannot be read", "and 7 more", "<code>mgran-fast</code>",
        "faces are not hidden",
    ):  # fmt: skip
        assert words in text, words
    assert text.count("<img") == 2
    assert "<b>1.jpg" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_heads_are_hidden(tmp_path: Path) -> None:
    plain, hidden = (
        search.write(tmp_path / f"{blur}.html", page(), blur_faces=blur).read_text("utf-8") for blur in (False, True)
    )
    assert "Heads are pixelated" in hidden
    pictures = [[part.partition('"')[0] for part in text.split('src="data:')[1:]] for text in (plain, hidden)]
    assert [len(one) for one in pictures] == [2, 2]
    assert not set(pictures[0]) & set(pictures[1]), "every picture has changed"


def test_a_folder_is_no_place_for_a_page(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder: name the file to write"):
        search.write(tmp_path, page())
