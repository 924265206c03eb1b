"""What a search found, as one page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgran_fast.report import pages, pictures
from mgran_fast.report.parts import Comparison
from mgran_fast.report.pictures import Bytes


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture of the page.

    Attributes:
        name: what it is called.
        told: what is known of it, such as "camera 3".
        crop: uint8 [H, W, 3], RGB; None where it cannot be read.
        region_map: uint8 [H, W], which says where the head is; None where nobody looked.
        distance: from the query; of no meaning for a query.
        parts: how near it is to the query in each part of the layout; None where nobody compared them.
    """

    name: str
    told: Sequence[str] = ()
    crop: Bytes | None = None
    region_map: Bytes | None = None
    distance: float = 0.0
    parts: Comparison | None = None


@dataclass(frozen=True, eq=False)
class FoundList:
    """A query, and what was found for it, nearest first."""

    query: Shown
    hits: Sequence[Shown]


@dataclass(frozen=True, eq=False)
class SearchPage:
    """All that the page tells.

    Attributes:
        title: the heading.
        gallery: what was searched, and by which filters.
        model: what embedded the pictures.
        lists: one for each query.
        layout: the body layout of the region maps.
        command: the command line.
        problems: one line each, such as pictures that could not be read.
    """

    title: str
    gallery: str
    model: str
    lists: Sequence[FoundList]
    layout: str = "region"
    command: str = ""
    problems: Sequence[str] = ()


def write(path: str | os.PathLike[str], page: SearchPage, *, blur_faces: bool = False) -> Path:
    """Write the page to ``path``, whole or not at all, and return its path.

    ``blur_faces`` pixelates the head in every picture, as :func:`mgran_fast.report.write` does. Raises DataError where
    the file cannot be written.
    """

    def view(shown: Shown) -> dict[str, Any]:
        crop = shown.crop
        told = {"name": shown.name, "told": list(shown.told), "distance": shown.distance, "parts": shown.parts}
        if crop is not None and blur_faces:
            crop = pictures.pixelate(crop, pictures.head_box(crop.shape[:2], shown.region_map, None, page.layout))
        return {**told, "picture": None if crop is None else pictures.data_uri(crop, side=192, quality=82)}

    lists = [
        {
            "query": view(one.query),
            "hits": [view(hit) for hit in one.hits],
            "compared": [hit.parts for hit in one.hits if hit.parts is not None],
        }
        for one in page.lists
    ]
    text = pages.fill(
        "search.html.j2",
        title=page.title,
        facts=[("Gallery", page.gallery), ("Model", page.model)],
        shows_people=True,
        blurred=blur_faces,
        lists=lists,
        problems=page.problems,
        command=page.command,
    )
    return pages.put(path, text)
