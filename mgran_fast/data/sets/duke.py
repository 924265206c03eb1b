"""DukeMTMC-reID and Occluded-Duke.

DukeMTMC-reID was withdrawn by its authors in 2019, for the privacy of the people in it; nobody may hand it on. These
readers are for those who hold it already. Occluded-Duke is other lists of the same pictures.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mgran_fast.data.market import FOLDERS
from mgran_fast.data.records import DataSet
from mgran_fast.data.sets.boxes import Rules, locate, read_parts
from mgran_fast.data.sets.checks import Counts, Tally, count
from mgran_fast.data.sets.draw import put_boxes
from mgran_fast.data.sets.info import SetInfo
from mgran_fast.data.sets.reading import Reading, Request

#: What people must know before they use either.
WITHDRAWN = "withdrawn by its authors; the reader is for those who hold it, and comes with no way to get it"

_RULES = Rules("0005_c2_f0046985.jpg", cameras=8)
_LAYOUT = """\
{folder}/
  bounding_box_train/   0001_c2_f0046182.jpg   person 1, camera 2
  bounding_box_test/    0002_c1_f0044158.jpg   the gallery
  query/                0005_c2_f0046985.jpg
"""
_DUKE = Counts({"train": Tally(16_522, 702, 8), "query": Tally(2_228, 702, 8), "gallery": Tally(17_661, 1_110, 8)})
_OCCLUDED = Counts({"train": Tally(15_618, 702, 8), "query": Tally(2_210, 519, 8), "gallery": Tally(17_661, 1_110, 8)})


def read(root: Path, request: Request, *, title: str = "DukeMTMC-reID", published: Counts = _DUKE) -> Reading:
    """Read DukeMTMC-reID or Occluded-Duke. There is no junk; the gallery holds people that nobody asks for."""
    folder = locate(root)
    parts, _ = read_parts(folder, _RULES, request.need)
    dataset = DataSet(title, folder, parts["train"], parts["query"], parts["gallery"], (f"{title}: {WITHDRAWN}",))
    return Reading(dataset, count(dataset), published)


def draw(folder: Path, variant: str, size: tuple[int, int], seed: int) -> Counts:
    """A miniature: 3 training people, 3 others as queries and gallery, 1 more in the gallery alone."""

    def names(people: tuple[int, ...], views: tuple[int, ...]) -> list[tuple[str, int, int, int]]:
        return [(f"{p:04d}_c{c}_f{p:05d}{c}{v}.jpg", p, c, v) for p in people for c in (1, 2) for v in views]

    put_boxes(folder / FOLDERS["train"], names((1, 7, 9), (0, 1)), size, seed)
    put_boxes(folder / FOLDERS["query"], names((2, 5, 8), (0,)), size, seed)
    put_boxes(folder / FOLDERS["gallery"], names((2, 5, 8, 11), (1, 2)), size, seed)
    return Counts({"train": Tally(12, 3, 2), "query": Tally(6, 3, 2), "gallery": Tally(16, 4, 2)}, "drawn")


DUKE = SetInfo(
    name="dukemtmc-reid",
    title="DukeMTMC-reID",
    layout=_LAYOUT.format(folder="DukeMTMC-reID"),
    where="give the folder that you hold",
    read=read,
    draw=draw,
    published={"": _DUKE},
    warning=WITHDRAWN,
)
OCCLUDED_DUKE = SetInfo(
    name="occluded-duke",
    title="Occluded-Duke",
    layout=_LAYOUT.format(folder="Occluded_Duke"),
    where="its authors publish lists and a script that copy it out of DukeMTMC-reID's archive; give the folder it made",
    read=partial(read, title="Occluded-Duke", published=_OCCLUDED),
    draw=draw,
    published={"": _OCCLUDED},
    warning=f"its pictures are DukeMTMC-reID's: {WITHDRAWN}",
)
