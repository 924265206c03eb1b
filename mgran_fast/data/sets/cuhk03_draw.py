"""Miniatures of CUHK03: its MATLAB files as MATLAB writes them, and its folders."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgran_fast.data.market import FOLDERS
from mgran_fast.data.sets.checks import Counts, Tally
from mgran_fast.data.sets.draw import crop, put_boxes

# People of each pair of cameras, and who is tested on by the new protocol: the first two and the last two.
_PAIRS = (3, 2, 1, 1, 1)
_PEOPLE = [(pair, number) for pair, people in enumerate(_PAIRS, 1) for number in range(1, people + 1)]
_TESTED = (1, 2, 7, 8)
_SPLITS = 20
_VARIANTS = ("detected", "labeled")


def _numbers(person: int, variant: str) -> list[int]:
    """The pictures that there are of a person, among the 10; one person has another of them when labeled."""
    return [1, 2, 6, 7] if person != 4 else [1, 6] if variant == "detected" else [1, 6, 8]


def draw(folder: Path, variant: str, size: tuple[int, int], seed: int) -> Counts:
    """The raw set: ``cuhk-03.mat`` with 8 people, and the new protocol's files for 4 and 4 of them."""
    _draw_raw(folder, size, seed)
    for one in _VARIANTS:
        _draw_config(folder / f"cuhk03_new_protocol_config_{one}.mat", one)
    train = 14 if variant == "detected" else 15
    return Counts({"train": Tally(train, 4, 2), "query": Tally(8, 4, 2), "gallery": Tally(8, 4, 2)}, "drawn")


def draw_classic(folder: Path, variant: str, size: tuple[int, int], seed: int) -> Counts:
    """The raw set; each split tests on 2 of the 8 people."""
    draw(folder, variant, size, seed)
    pictures = sum(len(_numbers(person, variant)) for person in range(1, len(_PEOPLE) + 1))
    return Counts(
        {
            "train": Tally(people=6, cameras=2),
            "query": Tally(people=2, cameras=2),
            "gallery": Tally(people=2, cameras=2),
            "train and test": Tally(pictures, 8, 2),
        },
        "drawn",
    )


def draw_folders(folder: Path, variant: str, size: tuple[int, int], seed: int) -> Counts:
    """The folders of the new protocol, both variants: 3 training people and 2 others."""
    for one in _VARIANTS:
        views = (1, 2) if one == "detected" else (1, 2, 3)
        train = [(f"{p:04d}_c{c}_{3 * c + v}.png", p, c, v) for p in (3, 4, 5) for c in (1, 2) for v in views]
        query = [(f"{p:04d}_c{c}_{3 * c}.png", p, c, 0) for p in (1, 2) for c in (1, 2)]
        gallery = [(f"{p:04d}_c{c}_{3 * c + 1}.png", p, c, 1) for p in (1, 2) for c in (1, 2)]
        for part, names in (("train", train), ("query", query), ("gallery", gallery)):
            put_boxes(folder / one / FOLDERS[part], names, size, seed)
    pictures = 12 if variant == "detected" else 18
    return Counts({"train": Tally(pictures, 3, 2), "query": Tally(4, 2, 2), "gallery": Tally(4, 2, 2)}, "drawn")


def _draw_raw(folder: Path, size: tuple[int, int], seed: int) -> None:
    from mgran_fast.data.sets.cuhk03_mat import imported

    h5py = imported("h5py")
    path = folder / "cuhk03_release" / "cuhk-03.mat"
    path.parent.mkdir(parents=True)
    # MATLAB puts a header of its own before the HDF5 file.
    with h5py.File(path, "w", userblock_size=512) as file:
        store = _Store(file, h5py)
        for variant in _VARIANTS:
            pairs = []
            for pair, people in enumerate(_PAIRS, 1):
                cells = [_person(store, pair, number, variant, size, seed) for number in range(1, people + 1)]
                pairs.append(store.cell(cells))
            store.named(variant, [[pair] for pair in pairs])
        sets = [np.array([_PEOPLE[split % 8], _PEOPLE[(split + 3) % 8]], np.float64) for split in range(_SPLITS)]
        store.named("testsets", [[store.array(one, "double")] for one in sets])
    with open(path, "r+b") as header:
        header.write(b"MATLAB 7.3 MAT-file, drawn".ljust(116) + bytes(8) + b"\0\2IM")


def _person(store: _Store, pair: int, number: int, variant: str, size: tuple[int, int], seed: int) -> list[Any]:
    """The ten cells of a person, some of them empty. A detector's box is a little off."""
    person = _PEOPLE.index((pair, number)) + 1
    there = _numbers(person, variant)
    return [
        store.array(crop(person, 1 + (i > 5), i + (10 if variant == "detected" else 0), size, seed), "uint8")
        if i in there
        else store.empty()
        for i in range(1, 11)
    ]


class _Store:
    """Writes arrays as MATLAB does: transposed, in a group of their own, cells as references to them."""

    def __init__(self, file: Any, h5py: Any) -> None:
        self.file, self.group, self.names = file, file.create_group("#refs#"), count()
        self.kind = h5py.ref_dtype

    def array(self, values: NDArray[Any], kind: str) -> Any:
        return self._put(np.ascontiguousarray(values.T), kind).ref

    def empty(self) -> Any:
        made = self._put(np.zeros(2, np.uint64), "double")
        made.attrs["MATLAB_empty"] = np.uint8(1)
        return made.ref

    def cell(self, rows: list[list[Any]]) -> Any:
        return self._put(self._references(rows), "cell").ref

    def named(self, name: str, rows: list[list[Any]]) -> None:
        self.file.create_dataset(name, data=self._references(rows)).attrs["MATLAB_class"] = np.bytes_("cell")

    def _references(self, rows: list[list[Any]]) -> NDArray[Any]:
        table = np.empty((len(rows[0]), len(rows)), self.kind)
        for i, row in enumerate(rows):
            table[:, i] = row
        return table

    def _put(self, values: NDArray[Any], kind: str) -> Any:
        made = self.group.create_dataset(f"a{next(self.names)}", data=values)
        made.attrs["MATLAB_class"] = np.bytes_(kind)
        return made


def _draw_config(path: Path, variant: str) -> None:
    from mgran_fast.data.sets.cuhk03_mat import imported

    names, labels, cameras = [], [], []
    parts: dict[str, list[int]] = {"train": [], "query": [], "gallery": []}
    for person, (pair, number) in enumerate(_PEOPLE, 1):
        for i in _numbers(person, variant):
            view = 1 if i <= 5 else 2
            names.append(f"{pair}_{number:03d}_{view}_{i:02d}.png")
            labels.append(person)
            cameras.append(view)
            part = "train" if person not in _TESTED else "query" if i in (1, 6) else "gallery"
            parts[part].append(len(names))
    filelist = np.empty((len(names), 1), object)
    filelist[:, 0] = names
    imported("scipy.io").savemat(
        path,
        {
            "filelist": filelist,
            "labels": np.array(labels, np.uint16)[:, None],
            "camId": np.array(cameras, np.uint8)[:, None],
            **{f"{part}_idx": np.array(places, np.uint16)[:, None] for part, places in parts.items()},
        },
    )
