"""How the pictures of a data set are shared out to the files of a region cache."""

from __future__ import annotations

from pathlib import Path

from mgran_fast.data.market import FOLDERS
from mgran_fast.data.records import DataSet
from mgran_fast.errors import DataError

#: A file of its own for each of these folders when all pictures lie in them; a folder of, say, one person has none.
PART_FOLDERS = (*FOLDERS.values(), "gt_bbox", "images", "images_detected", "images_labeled")


def pictures_by_part(dataset: DataSet) -> dict[str, list[Path]]:
    """The pictures of a data set, each once, by the folder below its root that names their file in a region cache.

    Where all pictures lie directly in folders such as ``query``, each is a part. Elsewhere, in folders of people or
    deeper ones, there is one part, "." for all: its records are named by their place below the root.

    Raises:
        DataError: a picture lies outside of the root.
    """
    records = (*dataset.train, *dataset.query, *dataset.gallery, *dataset.multi_query)
    pictures = dict.fromkeys(record.path for record in records)
    parts: dict[str, list[Path]] = {}
    for path in pictures:
        parts.setdefault(_folder(path, dataset.root), []).append(path)
    if parts.keys() <= set(PART_FOLDERS):
        return dict(sorted(parts.items(), key=lambda part: PART_FOLDERS.index(part[0])))
    return {".": sorted(pictures)}


def _folder(path: Path, root: Path) -> str:
    try:
        return path.parent.relative_to(root).as_posix()
    except ValueError:
        raise DataError(f"{path}: not below {root}; give the folder that holds all pictures") from None
