"""Synthetic pedestrians: a data set drawn on the spot, with exact masks and keypoints, no download needed.

People have clothes, hair and things of their own that stay the same in every camera; cameras have a place, a light
and a sensor of their own that stay the same for every person. Matching by background or by average colour fails,
matching by what somebody wears works, which is what a ReID model is to learn.

:func:`render` draws one view; :func:`write` writes a Market-1501 style folder::

    root/bounding_box_train/0001_c1_00.jpg
         query/, bounding_box_test/
         masks/<folder>/<stem>.png     grey, value / 255 is the probability that the pixel shows the person
         keypoints.json                {"<folder>/<name>.jpg": {"presence": 1.0, "keypoints": [[x, y, score] * 17]}}
         synthetic.json                what was asked for; written last, so a folder without it is not finished
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mgran_fast.data.pedestrian.scene import compose
from mgran_fast.data.records import DataSet, Record
from mgran_fast.errors import DataError

#: Counts up whenever the same arguments draw something else.
VERSION = 1
TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
_DONE, _PARTIAL, _KEYPOINTS = "synthetic.json", "synthetic.partial.json", "keypoints.json"
_QUALITY = 92
# What a killed process may leave of a file that it was about to write.
_DRAFT = re.compile(r".+\.\d+\.tmp")


@dataclass(frozen=True)
class View:
    """One crop of one person, and what is true about it.

    Attributes:
        crop: uint8 [H, W, 3], RGB.
        mask: float32 [H, W] in [0, 1]: the share of each pixel's light that comes from the visible person, clothes
            and belongings (a backpack, a bag) included. Antialiased at the outline, and softened by the camera's
            lens exactly as the crop is; exactly 0 where nothing of the person is seen.
        keypoints: float32 [17, 3], COCO order: x, y in pixels (the centre of the pixel in column j is at j + 0.5) and
            a score: 0.7 to 1 where visible, 0.05 to 0.3 where something or the body itself hides it, 0 outside of
            the crop. The place is the true one in every case.
        person: the number of the identity.
        camera: the number of the camera.
    """

    crop: NDArray[np.uint8]
    mask: NDArray[np.float32]
    keypoints: NDArray[np.float32]
    person: int
    camera: int


def render(person: int, camera: int, view: int, *, size: tuple[int, int] = (256, 128), seed: int = 0) -> View:
    """Draw one view. The same arguments give the same bytes.

    Args:
        person, camera, view: 0 or more. Any number is a person, camera or view of its own.
        size: height and width of the crop in pixels, 1 or more each. The same view at another size is the same
            scene, up to noise.
        seed: 0 or more; another seed is another world, with other people and cameras.

    Raises:
        TypeError, ValueError: an argument is not a whole number, or too small.
    """
    for name, value in (("person", person), ("camera", camera), ("view", view), ("seed", seed)):
        _whole(name, value, 0)
    height, width = _pair("size", size, 1)
    scene = compose(int(person), int(camera), int(view), size=(height, width), seed=int(seed))
    return View(scene.crop, scene.mask, scene.keypoints, int(person), int(camera))


def write(
    root: str | os.PathLike[str],
    *,
    people: tuple[int, int] = (64, 40),
    cameras: int = 3,
    views: int = 4,
    size: tuple[int, int] = (256, 128),
    seed: int = 0,
    workers: int = 0,
) -> DataSet:
    """Write a data set, or take up the same one written before.

    Training people are numbered from 1, test people go on from there; cameras are numbered from 1. The first view of
    every test person in every camera is a query, the others are the gallery. An interrupted call leaves a folder
    without ``synthetic.json``; the same call finishes it and clears away what was half written.

    Args:
        root: the folder; made when missing.
        people: how many people to train on and to test on.
        cameras: how many cameras see each of them, 1 or more.
        views: how many crops each camera takes of each person, 1 or more; 2 or more when there are test people.
        size: height and width of the crops in pixels.
        seed: the world, see :func:`render`.
        workers: processes to draw with; 0 draws in this one. More need an importable main module.

    Returns:
        The data set, named "synthetic".

    Raises:
        DataError: ``root`` holds something else, or lacks files of the set that it claims to hold.
        TypeError, ValueError: a bad argument.
    """
    train, test = _pair("people", people, 0)
    if train + test == 0:
        raise ValueError("people must name at least one person to train or to test on, not (0, 0)")
    _whole("cameras", cameras, 1)
    _whole("views", views, 2 if test else 1)
    _whole("seed", seed, 0)
    _whole("workers", workers, 0)
    height, width = _pair("size", size, 1)
    folder = Path(root)
    arguments: dict[str, Any] = {
        "generator": __name__,
        "version": VERSION,
        "people": [train, test],
        "cameras": int(cameras),
        "views": int(views),
        "size": [height, width],
        "seed": int(seed),
        "quality": _QUALITY,
    }
    jobs = list(_jobs(train, test, int(cameras), int(views)))
    if not _is_written(folder, arguments, jobs):
        _write_all(folder, arguments, jobs, (height, width), int(seed), int(workers))
    records: dict[str, list[Record]] = {TRAIN: [], QUERY: [], GALLERY: []}
    for job in jobs:
        records[job.folder].append(Record(folder / job.folder / f"{job.stem}.jpg", job.person, job.camera))
    return DataSet(
        name="synthetic",
        root=folder,
        train=tuple(sorted(records[TRAIN])),
        query=tuple(sorted(records[QUERY])),
        gallery=tuple(sorted(records[GALLERY])),
    )


@dataclass(frozen=True)
class _Job:
    person: int
    camera: int
    view: int
    folder: str

    @property
    def stem(self) -> str:
        return f"{self.person:04d}_c{self.camera}_{self.view:02d}"


def _jobs(train: int, test: int, cameras: int, views: int) -> Iterator[_Job]:
    for person in range(1, train + test + 1):
        for camera in range(1, cameras + 1):
            for view in range(views):
                folder = TRAIN if person <= train else QUERY if view == 0 else GALLERY
                yield _Job(person, camera, view, folder)


def _is_written(folder: Path, arguments: dict[str, Any], jobs: Iterable[_Job]) -> bool:
    """Whether the folder holds the set already; False when it may be written. Raises DataError for anything else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; name a folder for the synthetic data set")
    names = set(os.listdir(folder))
    if _DONE in names:
        if _read(folder / _DONE) != arguments:
            raise DataError(f"{folder} holds a synthetic data set made with other arguments; name another folder")
        for name in (TRAIN, QUERY, GALLERY):
            there = _listed(folder / name)
            masks = _listed(folder / "masks" / name)
            for job in jobs:
                if job.folder == name and (f"{job.stem}.jpg" not in there or f"{job.stem}.png" not in masks):
                    raise DataError(f"{folder / name} lacks {job.stem}, its picture or its mask; delete {folder}")
        if _KEYPOINTS not in names:
            raise DataError(f"{folder} lacks {_KEYPOINTS}; delete the folder and write it again")
        return True
    if _PARTIAL in names:
        if _read(folder / _PARTIAL) != arguments:
            raise DataError(f"{folder} holds an unfinished synthetic data set with other arguments; delete it")
        return False
    # Killed before the marker had its name.
    names = {name for name in names if not (name.startswith(_PARTIAL) and _DRAFT.fullmatch(name))}
    if names:
        raise DataError(f"{folder} holds something else ({min(names)}); name an empty or a new folder")
    return False


def _listed(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); delete the folder and write it again") from error


def _put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    draft.write_bytes(content)
    os.replace(draft, path)


def _write_all(
    folder: Path, arguments: dict[str, Any], jobs: list[_Job], size: tuple[int, int], seed: int, workers: int
) -> None:
    text = (json.dumps(arguments, indent=2) + "\n").encode()
    # The marker first: a folder that holds anything else without it is not ours.
    folder.mkdir(parents=True, exist_ok=True)
    _put(folder / _PARTIAL, text)
    places = [folder / below / name for below in ("", "masks") for name in (TRAIN, QUERY, GALLERY)]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
    for place in (folder, *places):
        for name in filter(_DRAFT.fullmatch, os.listdir(place)):
            (place / name).unlink()
    parts = [jobs[start : start + 64] for start in range(0, len(jobs), 64)]
    found: dict[str, Any] = {}
    if workers:
        # A fresh interpreter each: a fork of a process with threads may hang.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            for part in pool.map(_write_part, *zip(*((folder, p, size, seed) for p in parts), strict=True)):
                found.update(part)
    else:
        for part_jobs in parts:
            found.update(_write_part(folder, part_jobs, size, seed))
    _put(folder / _KEYPOINTS, json.dumps(found).encode())
    _put(folder / _DONE, text)
    (folder / _PARTIAL).unlink(missing_ok=True)


def _write_part(folder: Path, jobs: list[_Job], size: tuple[int, int], seed: int) -> dict[str, Any]:
    """Write some pictures and masks; their entries of the keypoint file."""
    entries: dict[str, Any] = {}
    for job in jobs:
        view = render(job.person, job.camera, job.view, size=size, seed=seed)
        _put(folder / job.folder / f"{job.stem}.jpg", _encode(view.crop, "JPEG", quality=_QUALITY))
        mask = (view.mask * np.float32(255) + np.float32(0.5)).astype(np.uint8)
        _put(folder / "masks" / job.folder / f"{job.stem}.png", _encode(mask, "PNG"))
        keypoints = [[round(float(x), 3), round(float(y), 3), round(float(s), 3)] for x, y, s in view.keypoints]
        entries[f"{job.folder}/{job.stem}.jpg"] = {"presence": 1.0, "keypoints": keypoints}
    return entries


def _encode(pixels: NDArray[np.uint8], kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _whole(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value}")
    return int(value)


def _pair(name: str, value: object, least: int) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be two whole numbers, not {value!r}")
    return _whole(f"{name}[0]", value[0], least), _whole(f"{name}[1]", value[1], least)
