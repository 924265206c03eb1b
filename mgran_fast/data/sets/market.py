"""Market-1501, with and without the 500,000 distractors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mgran_fast.data.market import FOLDERS
from mgran_fast.data.records import DataSet, Record
from mgran_fast.data.sets.boxes import Rules, locate, read_boxes, read_parts
from mgran_fast.data.sets.checks import DISTRACTOR, Counts, Tally, count
from mgran_fast.data.sets.draw import put_boxes
from mgran_fast.data.sets.info import SetInfo
from mgran_fast.data.sets.reading import Reading, Request
from mgran_fast.errors import DataError

#: Hand-drawn boxes of all people, of which those of a query's person and camera are its multiple query.
MULTI_QUERY = "gt_bbox"
#: The folder of the 500,000 distractors.
EXTRA = "images"

_RULES = Rules("0002_c1s1_000451_03.jpg", cameras=6, junk=True)
_EXTRA_RULES = dataclasses.replace(_RULES, digits=None)
_PUBLISHED = {
    "train": Tally(12_936, 751, 6),
    "query": Tally(3_368, 750, 6),
    "gallery": Tally(15_913, 751, 6),  # 750 people, and the distractors as one more
    "junk": Tally(3_819),
    "distractors": Tally(2_793),
}
_LAYOUT = """\
Market-1501-v15.09.15/
  bounding_box_train/   0002_c1s1_000451_03.jpg   person 2, camera 1
  bounding_box_test/    0000_c1s1_000151_01.jpg   the gallery; 0000 is a distractor, -1 is junk
  query/                0001_c1s1_001051_00.jpg
  gt_bbox/              0001_c1s1_001051_00.jpg   for multiple queries; may be missing
"""


def read(root: Path, request: Request) -> Reading:
    """Read Market-1501. Junk (person -1) is left out, distractors (person 0) stay in the gallery."""
    return _read(root, request, extra=False)


def read_500k(root: Path, request: Request) -> Reading:
    """Read Market-1501 with the 500,000 distractors in ``images`` beside the other folders, or beside their folder."""
    return _read(root, request, extra=True)


def _read(root: Path, request: Request, *, extra: bool) -> Reading:
    folder = locate(root)
    parts, junk = read_parts(folder, _RULES, request.need)
    notes = [f"{FOLDERS['gallery']}: {junk} junk pictures (person -1) left out"] if junk else []
    counts = {
        "junk": Tally(junk),
        "distractors": Tally(sum(record.person == DISTRACTOR for record in parts["gallery"])),
    }
    published = dict(_PUBLISHED)
    if extra:
        found, left = read_boxes(_extra(folder), _EXTRA_RULES)
        person = next((record for record in found if record.person != DISTRACTOR), None)
        if person is not None:
            raise DataError(f"{person.path}: not a distractor (person 0 or -1); put the published files back")
        counts["500k"] = Tally(len(found) + left)
        published.update({"500k": Tally(500_000), "gallery": Tally(people=751)})
        parts["gallery"] = tuple(sorted((*parts["gallery"], *found)))
    if not parts["gallery"]:
        counts = {name: number for name, number in counts.items() if name == "500k"}
    multiple = _multiple(folder, parts["query"])
    if multiple:
        pairs = len({(record.person, record.camera) for record in multiple})
        notes.append(f"{MULTI_QUERY}: {len(multiple)} pictures for multiple queries of {pairs} people and cameras")
    elif parts["query"]:
        notes.append(f"no folder {MULTI_QUERY}: no multiple queries")
    dataset = DataSet(
        name="Market-1501+500k" if extra else "Market-1501",
        root=folder,
        train=parts["train"],
        query=parts["query"],
        gallery=parts["gallery"],
        notes=tuple(notes),
        multi_query=multiple,
    )
    return Reading(dataset, count(dataset, **counts), Counts(published))


def _extra(folder: Path) -> Path:
    if (folder / EXTRA).is_dir():
        return folder / EXTRA
    raise DataError(
        f"{folder}: no folder {EXTRA} with the 500,000 distractors; put it there, or read the dataset market1501"
    )


def _multiple(folder: Path, query: tuple[Record, ...]) -> tuple[Record, ...]:
    if not (folder / MULTI_QUERY).is_dir():
        return ()
    asked = {(record.person, record.camera) for record in query}
    records, _ = read_boxes(folder / MULTI_QUERY, _RULES)
    return tuple(record for record in records if (record.person, record.camera) in asked)


def draw(folder: Path, variant: str, size: tuple[int, int], seed: int) -> Counts:
    """A miniature: 3 training people, 3 others as queries and gallery, 2 distractors, 2 junk pictures, ``gt_bbox``."""
    train = [(f"{p:04d}_c{c}s1_{c:03d}{v:03d}_01.jpg", p, c, v) for p in (2, 7, 10) for c in (1, 2) for v in (0, 1)]
    query = [(f"{p:04d}_c{c}s1_{c:03d}900_00.jpg", p, c, 0) for p in (1, 3, 4) for c in (1, 2)]
    gallery = [(f"{p:04d}_c{c}s1_{c:03d}{v:03d}_02.jpg", p, c, v) for p in (1, 3, 4) for c in (1, 2) for v in (1, 2)]
    gallery += [(f"0000_c{c}s1_{c:03d}500_03.jpg", 50 + c, c, 0) for c in (1, 2)]
    gallery += [(f"-1_c{c}s1_{c:03d}600_04.jpg", 60 + c, c, 0) for c in (1, 2)]
    put_boxes(folder / FOLDERS["train"], train, size, seed)
    put_boxes(folder / FOLDERS["query"], query, size, seed)
    put_boxes(folder / FOLDERS["gallery"], gallery, size, seed)
    # Of everybody, those of the training people too, as the published folder has them.
    boxes = [(f"{p:04d}_c{c}s1_{c:03d}9{v:02d}_00.jpg", p, c, v) for p in (1, 2, 3, 4) for c in (1, 2) for v in (0, 1)]
    put_boxes(folder / MULTI_QUERY, boxes, size, seed)
    for part in FOLDERS.values():
        (folder / part / "Thumbs.db").touch()
    return Counts(
        {
            "train": Tally(12, 3, 2),
            "query": Tally(6, 3, 2),
            "gallery": Tally(14, 4, 2),
            "junk": Tally(2),
            "distractors": Tally(2),
        },
        "drawn",
    )


def draw_500k(folder: Path, variant: str, size: tuple[int, int], seed: int) -> Counts:
    """The miniature of Market-1501, and 4 further distractors in ``images``."""
    counts = draw(folder, variant, size, seed)
    put_boxes(folder / EXTRA, [(f"0000_c{c}s1_{c:03d}700_01.jpg", 70 + c, c, 0) for c in (1, 2, 3, 4)], size, seed)
    return Counts({**counts.parts, "gallery": Tally(18, 4, 4), "500k": Tally(4)}, counts.source)


MARKET1501 = SetInfo(
    name="market1501",
    title="Market-1501",
    layout=_LAYOUT,
    where="ask its authors, or whoever gave you the archive; unpack it anywhere and give the folder",
    read=read,
    draw=draw,
    published={"": Counts(_PUBLISHED)},
)
MARKET1501_500K = SetInfo(
    name="market1501-500k",
    title="Market-1501+500k",
    layout=_LAYOUT + "  images/               0000_c1s1_000151_01.jpg   the 500,000 distractors\n",
    where="the archive of the distractors comes apart from Market-1501; unpack it beside bounding_box_train",
    read=read_500k,
    draw=draw_500k,
    published={"": Counts({**_PUBLISHED, "gallery": Tally(people=751), "500k": Tally(500_000)})},
)
