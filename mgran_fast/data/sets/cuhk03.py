"""CUHK03 in all its forms.

    cuhk03          cuhk-03.mat, the new protocol: 767 people to train on, 700 to test, Market-1501 rule
    cuhk03-classic  cuhk-03.mat, the classic protocol: 20 splits into 1,367 and 100 people, single-gallery-shot
    cuhk03-np       the folders of the new protocol, in the Market-1501 layout

Each with boxes of a detector ("detected") and boxes drawn by hand ("labeled"). These are different data sets; the
name of what was read always says which. The pictures of ``cuhk-03.mat`` are written once into ``images_detected`` and
``images_labeled`` beside it; nothing but names is stored, so the folder may move.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from mgran_fast.data.market import FOLDERS
from mgran_fast.data.records import SINGLE_GALLERY_SHOT, DataSet, Record
from mgran_fast.data.sets import cuhk03_draw as drawing
from mgran_fast.data.sets import cuhk03_mat as mat
from mgran_fast.data.sets.boxes import Rules, read_parts
from mgran_fast.data.sets.checks import Counts, Tally, check_overlap, count, tally
from mgran_fast.data.sets.info import SetInfo
from mgran_fast.data.sets.reading import Progress, Reading, Request, below, pictures_in
from mgran_fast.data.words import first, plural
from mgran_fast.errors import DataError

#: The two kinds of boxes.
VARIANTS = ("detected", "labeled")
#: Where the raw file is, below the data set's folder; the folder of the archive may be left out.
MAT = ("cuhk03_release/cuhk-03.mat", "cuhk-03.mat")
#: The file of the new protocol, and the test sets of the classic one once the pictures are out.
CONFIG, TEST_SETS = "cuhk03_new_protocol_config_{}.mat", "cuhk03_testsets.json"
#: The folder that the pictures are written to.
IMAGES = "images_{}"

_BOXES = {"detected": "variant detected: boxes of a detector", "labeled": "variant labeled: boxes drawn by hand"}
_MARKS = (*MAT, *(CONFIG.format(variant) for variant in VARIANTS), TEST_SETS)
_RULES = Rules("0001_c1_1.png", cameras=2)
_PICTURES = {"detected": 14_097, "labeled": 14_096}
_NEW = {
    variant: Counts({"train": Tally(train, 767, 2), "query": Tally(1_400, 700, 2), "gallery": Tally(gallery, 700, 2)})
    for variant, train, gallery in (("detected", 7_365, 5_332), ("labeled", 7_368, 5_328))
}
_CLASSIC = {
    variant: Counts(
        {
            "train": Tally(people=1_367, cameras=2),
            "query": Tally(people=100, cameras=2),
            "gallery": Tally(people=100, cameras=2),
            "train and test": Tally(pictures, 1_467, 2),
        }
    )
    for variant, pictures in _PICTURES.items()
}


def recognise_raw(root: Path) -> bool:
    """Whether a folder looks like the raw set."""
    return any((root / mark).is_file() for mark in _MARKS)


def recognise_folders(root: Path) -> bool:
    """Whether a folder looks like the folders of the new protocol: both variants, and nothing of another name."""
    return all((root / variant / FOLDERS["query"]).is_dir() for variant in VARIANTS)


def read(root: Path, request: Request) -> Reading:
    """Read the raw set by the new protocol, taking the pictures out of ``cuhk-03.mat`` first where they are not."""
    home = below(root, _MARKS, MAT[0])
    config_file = _config_file(home, request.variant)
    config = mat.read_config(config_file)
    folder = _pictures(home, request.variant, request.progress)
    there = set(pictures_in(folder))
    places = (*config.train, *config.query, *config.gallery)
    missing = [config.names[place] for place in places if config.names[place] not in there]
    if missing:
        raise DataError(
            f"{folder / missing[0]}: {config_file.name} names it, and it is not there, one of {len(missing)} such; "
            f"delete {folder} and it is made again"
        )

    def records(places: list[int]) -> tuple[Record, ...]:
        return tuple(sorted(_record(folder / config.names[place], config.people[place]) for place in places))

    train, query, gallery = map(records, (config.train, config.query, config.gallery))
    check_overlap(config_file, train, (*query, *gallery))
    dataset = DataSet(
        name=f"CUHK03 {request.variant}, new protocol",
        root=home,
        train=train,
        query=query,
        gallery=gallery,
        notes=(_BOXES[request.variant],),
        variant=request.variant,
    )
    return Reading(dataset, count(dataset), _NEW[request.variant])


def read_classic(root: Path, request: Request) -> Reading:
    """Read one of the 20 splits of the classic protocol, numbered from 1. All pictures of the test people are queries,
    and all of them are the gallery; people are numbered from 1 in the order of the file."""
    home = below(root, _MARKS, MAT[0])
    split = request.split or 1
    folder = _pictures(home, request.variant, request.progress)
    sets_file, sets = _test_sets(home)
    if split > len(sets):
        raise DataError(f"{sets_file}: no split {split}, there are {len(sets)}; copy the published file again")
    names = pictures_in(folder)
    people = {name: found[0] for name in names if (found := mat.person_of(name)) is not None}
    wrong = [name for name in names if name not in people]
    if wrong:
        raise DataError(
            f"{folder / wrong[0]}: {len(wrong)} {plural(len(wrong), 'name')} unlike 1_001_1_01.png ({first(wrong)}); "
            f"delete {folder} and it is made again"
        )
    asked = sets[split - 1]
    told = {person: f"{person.pair}_{person.number:03d}" for person in asked}
    if len(told) != len(asked):
        twice = first(told[person] for person in told if asked.count(person) > 1)
        raise DataError(f"{sets_file}: split {split} has a person twice ({twice}); copy the published file again")
    numbers = {person: number for number, person in enumerate(sorted(set(people.values())), 1)}
    unknown = [told[person] for person in told if person not in numbers]
    if unknown:
        raise DataError(
            f"{sets_file}: split {split} has people of whom there is no picture in {folder} ({first(unknown)}); "
            f"delete {folder} and it is made again"
        )
    records = [(_record(folder / name, numbers[people[name]]), people[name] in told) for name in names]
    train = tuple(record for record, tested in records if not tested)
    test = tuple(record for record, tested in records if tested)
    dataset = DataSet(
        name=f"CUHK03 {request.variant}, classic split {split} of {len(sets)}",
        root=home,
        train=train,
        query=test,
        gallery=test,
        notes=(_BOXES[request.variant], "classic protocol: single-gallery-shot, the mean of all splits counts"),
        protocol=SINGLE_GALLERY_SHOT,
        variant=request.variant,
    )
    everything = {"train and test": tally((*train, *test))}
    return Reading(dataset, count(dataset, **everything), _CLASSIC[request.variant])


def read_folders(root: Path, request: Request) -> Reading:
    """Read the folders of the new protocol: ``detected`` and ``labeled``, or one of them."""
    home = below(root, (*VARIANTS, *FOLDERS.values()), "detected/ or labeled/")
    other = next(variant for variant in VARIANTS if variant != request.variant)
    if not any((home / part).is_dir() for part in FOLDERS.values()):
        home = home / request.variant
        if not home.is_dir():
            raise DataError(f"{home}: no such folder; there is {other} beside it: --variant {other}")
    elif home.absolute().name == other:
        raise DataError(f"{home}: holds the {other} pictures; give the other folder, or --variant {other}")
    parts, _ = read_parts(home, _RULES, request.need)
    dataset = DataSet(
        name=f"CUHK03-NP {request.variant}",
        root=home,
        train=parts["train"],
        query=parts["query"],
        gallery=parts["gallery"],
        notes=(_BOXES[request.variant],),
        variant=request.variant,
    )
    return Reading(dataset, count(dataset), _NEW[request.variant])


def choose_folder(root: Path) -> str:
    """The variant that a folder of the new protocol holds: by its name, or by what lies in it; "detected" of both."""
    there = [variant for variant in VARIANTS if (root / variant).is_dir()]
    return root.absolute().name if root.absolute().name in VARIANTS else (there or list(VARIANTS))[0]


def extract_all(
    root: Path, output: Path, variants: Sequence[str] = VARIANTS, progress: Progress | None = None
) -> dict[str, int]:
    """Take pictures out of ``cuhk-03.mat`` into another folder, which is the data set from then on.

    Args:
        root: the folder with ``cuhk-03.mat``.
        output: the new folder; it gets the pictures, the test sets, and copies of the new protocol's files. A call that
            was interrupted is finished by the next one.
        variants: which pictures.
        progress: called with (pictures done, pictures in all) of each variant.

    Returns:
        The number of pictures of each variant.

    Raises DataError when the file cannot be read or the folder cannot be written, and MGRANError without h5py.
    """
    home = below(root, MAT, MAT[0])
    file = _mat_file(home)
    found = {variant: mat.extract(file, variant, output / IMAGES.format(variant), progress) for variant in variants}
    try:
        mat.put_test_sets(output / TEST_SETS, mat.test_sets(file))
        for variant in variants:
            config = _config_file(home, variant)
            if config.is_file() and not (output / config.name).exists():
                shutil.copyfile(config, output / config.name)
    except OSError as error:
        raise DataError(f"{output}: cannot be written ({error.strerror}); make room there, and run it again") from error
    return found


def _record(path: Path, person: int) -> Record:
    found = mat.person_of(path.name)
    assert found is not None
    return Record(path, person, found[1])


def _mat_file(home: Path) -> Path:
    return next((home / name for name in MAT if (home / name).is_file()), home / MAT[0])


def _config_file(home: Path, variant: str) -> Path:
    """The file of the new protocol: in the data set's folder, in its archive's, or beside that one."""
    name = CONFIG.format(variant)
    places = (home, home / Path(MAT[0]).parent, home.absolute().parent)
    return next((place / name for place in places if (place / name).is_file()), home / name)


def _pictures(home: Path, variant: str, progress: Progress | None) -> Path:
    """The folder of a variant's pictures, complete."""
    folder, file = home / IMAGES.format(variant), _mat_file(home)
    # Without the file, what others have taken out of it will do: the numbers are checked anyway.
    if not mat.extracted(folder) and (file.is_file() or not folder.is_dir()):
        mat.extract(file, variant, folder, progress)
    return folder


def _test_sets(home: Path) -> tuple[Path, list[list[mat.Person]]]:
    kept = home / TEST_SETS
    return (kept, mat.read_test_sets(kept)) if kept.is_file() else (_mat_file(home), mat.test_sets(_mat_file(home)))


_LAYOUT = """\
cuhk03/
  cuhk03_release/cuhk-03.mat
  cuhk03_new_protocol_config_detected.mat   of the new protocol, which comes apart
  cuhk03_new_protocol_config_labeled.mat
  images_detected/  1_001_1_01.png          written when first read: pair, person, camera, picture
  images_labeled/
"""
_WHERE = "its authors give it away for research; pictures are written beside cuhk-03.mat, or elsewhere by mgran-fast \
datasets extract"

CUHK03 = SetInfo(
    name="cuhk03",
    title="CUHK03, new protocol",
    layout=_LAYOUT,
    where=_WHERE,
    read=read,
    draw=drawing.draw,
    variants=VARIANTS,
    published=_NEW,
    packages=("h5py", "scipy"),
)
CUHK03_CLASSIC = SetInfo(
    name="cuhk03-classic",
    title="CUHK03, classic protocol",
    layout=_LAYOUT,
    where=_WHERE,
    read=read_classic,
    draw=drawing.draw_classic,
    protocol=SINGLE_GALLERY_SHOT,
    variants=VARIANTS,
    splits=(1, 20),
    published=_CLASSIC,
    packages=("h5py",),
)
CUHK03_NP = SetInfo(
    name="cuhk03-np",
    title="CUHK03-NP",
    layout="""\
cuhk03-np/
  detected/ and labeled/, each with
    bounding_box_train/   0003_c1_21.png   person 3, camera 1
    bounding_box_test/    0001_c2_6.png    the gallery
    query/                0001_c1_1.png
""",
    where="the authors of the new protocol give it away for research; give the folder around detected/ and labeled/",
    read=read_folders,
    draw=drawing.draw_folders,
    variants=VARIANTS,
    published=_NEW,
    choose=choose_folder,
)
