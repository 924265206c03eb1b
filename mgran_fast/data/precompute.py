"""Compute the region maps and keypoints of a data set once: the writer of :mod:`mgran_fast.data.cache`.

Pictures are read by worker processes, estimated in batches by this one, and stored in a file beside the final one
(``query.partial``): one transaction a batch, so a process that is killed loses the batch in flight and nothing else.
The same call goes on from there; when all is done the file gets its final name. Readers never see an unfinished file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mgran_fast import layouts
from mgran_fast.data.cache import ABSENT, EMPTY, PRESENT
from mgran_fast.data.masks import MaskFiles
from mgran_fast.data.packing import (
    checksum,
    pack_keypoints,
    pack_map,
    picture_digest,
    unpack_keypoints,
)
from mgran_fast.data.pictures import read_picture_and_shape
from mgran_fast.data.provenance import Provenance
from mgran_fast.data.store import Row, Store
from mgran_fast.errors import DataError, MGRANError
from mgran_fast.mra.estimate import Estimate, Estimator

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Built:
    """What :func:`build` did.

    Attributes:
        file: the finished file.
        pictures: how many records it holds.
        computed, kept, removed: records made now, taken over, and dropped because their picture is gone.
        without_person: crops with a presence below 0.5 or an empty mask.
        empty_masks: crops without foreground.
        problems: one line for each picture that cannot be used, by name.
        changes: why all was computed anew: what differs from the file that was there.
        seconds: the time it took.
    """

    file: Path
    pictures: int
    computed: int
    kept: int
    removed: int
    without_person: int
    empty_masks: int
    problems: tuple[str, ...]
    changes: tuple[str, ...]
    seconds: float


def build(
    pictures: Iterable[str | os.PathLike[str]],
    estimator: Estimator | MaskFiles,
    made: Provenance,
    file: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str],
    folder: str = ".",
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Built:
    """Compute what is missing from a region cache, and finish it.

    Records whose picture is unchanged are kept: equal size and time of change are trusted, otherwise the content
    decides. Pictures that could not be used before are tried again. A file that was made otherwise (``made`` differs)
    is made anew; until that is finished, the old one stays.

    Args:
        pictures: the files of this part, all below ``root / folder``.
        estimator: is called with uint8 crops [N, H, W, 3] of the size ``made.size``, in inference and eval mode; or
            :class:`MaskFiles`, whose masks and keypoints are taken over.
        made: of :func:`mgran_fast.data.provenance.provenance`.
        file: the cache file, ``regions/<part>.sqlite`` by custom; its folder is made.
        root, folder: the data set's folder, and that of this part in it.
        batch_size: pictures for one call of the estimator, and for one transaction.
        workers: processes that read pictures; 0 reads in this one.
        device: where the estimator is.
        progress: called with (records done, records in all).

    Raises:
        DataError: another process is at it, the file is damaged, the disk is full, or a picture lies elsewhere. What is
            stored stays; the same call goes on.
        MGRANError: a process that reads pictures was killed. The same call goes on.
        ValueError: ``batch_size`` or ``workers`` is out of range.
    """
    start = time.perf_counter()
    if batch_size < 1 or workers < 0:
        raise ValueError(f"batch_size must be 1 or more and workers 0 or more, not {batch_size} and {workers}")
    file, base = Path(file), Path(root) / folder
    wanted = _named(pictures, base)
    meta = {"root": os.path.abspath(root), "folder": folder}
    computed = 0
    with _readers(), Store(file, made, meta) as store, _evaluating(estimator):
        plan = _plan(store.stamps(), wanted)
        store.forget(plan.gone)
        store.restamp(plan.touched)
        done = len(wanted) - len(plan.todo)
        for rows in _rows(plan.todo, estimator, made, batch_size, workers, device):
            store.put(rows)
            computed += len(rows)
            if progress is not None:
                progress(done + computed, len(wanted))
        counts, problems = store.counts(), tuple(f"{wanted[name]}: {error}" for name, error in store.errors())
        if plan.fresh and store.finished:
            store.discard()
        else:
            store.finish()
    return Built(
        file=file,
        pictures=len(wanted),
        computed=computed,
        kept=len(wanted) - computed,
        removed=len(plan.gone),
        without_person=counts["crops without a person"],
        empty_masks=counts["empty masks"],
        problems=problems,
        changes=tuple(store.changes),
        seconds=time.perf_counter() - start,
    )


@contextlib.contextmanager
def _evaluating(estimator: Estimator | MaskFiles) -> Iterator[None]:
    """In eval mode: in training mode a picture's answer would depend on its neighbours in the batch."""
    training = isinstance(estimator, nn.Module) and estimator.training
    if training:
        cast(nn.Module, estimator).eval()
    try:
        yield
    finally:
        if training:
            cast(nn.Module, estimator).train()


def _named(pictures: Iterable[str | os.PathLike[str]], base: Path) -> dict[str, Path]:
    """Name in the cache -> picture, sorted by name."""
    names: dict[str, Path] = {}
    top = os.path.join(os.path.abspath(base), "")
    for picture in pictures:
        full = os.path.abspath(picture)
        if not full.startswith(top):
            raise DataError(f"{os.fspath(picture)}: not below {base}; give the folder that holds all pictures")
        name = full[len(top) :].replace(os.sep, "/")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise DataError(f"{full!r}: the name is not valid UTF-8; rename the file") from None
        names[name] = Path(picture)
    return dict(sorted(names.items()))


@dataclass(frozen=True)
class _Plan:
    """Pictures to compute, records to drop, and records whose picture is the same with another time of change."""

    todo: dict[str, Path]
    gone: list[str]
    touched: list[tuple[str, int]]

    @property
    def fresh(self) -> bool:
        return not (self.todo or self.gone or self.touched)


def _plan(stamps: Mapping[str, tuple[int, int, bytes, bool]], wanted: Mapping[str, Path]) -> _Plan:
    todo, touched = {}, []
    for name, path in wanted.items():
        size, mtime_ns, digest, failed = stamps.get(name, (-1, -1, b"", True))
        if failed:
            todo[name] = path
            continue
        try:
            now = os.stat(path)
            if (now.st_size, now.st_mtime_ns) == (size, mtime_ns):
                continue
            if now.st_size == size and picture_digest(path.read_bytes()) == digest:
                touched.append((name, now.st_mtime_ns))
                continue
        except OSError:
            pass  # becomes an error record
        todo[name] = path
    return _Plan(todo, sorted(stamps.keys() - wanted.keys()), touched)


@dataclass(frozen=True)
class _Read:
    """One picture as a worker hands it on: what to store of the file, and the answer where files give it."""

    name: str
    size: int
    mtime_ns: int
    digest: bytes
    error: str | None = None
    answer: tuple[NDArray[np.uint8], bytes, float] | None = None


class _Pictures(Dataset[tuple[_Read, torch.Tensor | None]]):
    def __init__(self, todo: Mapping[str, Path], files: MaskFiles | None, made: Provenance) -> None:
        self.items, self.files, self.made = list(todo.items()), files, made

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[_Read, torch.Tensor | None]:
        name, path = self.items[index]
        size, mtime_ns, digest = 0, 0, b""
        try:
            # The stamp first: a picture that changes from now on will differ from it.
            stamp = os.stat(path)
            size, mtime_ns = stamp.st_size, stamp.st_mtime_ns
            digest = picture_digest(path.read_bytes())
        except OSError:
            pass  # the reader below tells it in words
        try:
            crop, shape = read_picture_and_shape(path, self.made.size)
            answer = None if self.files is None else _from_files(self.files, path, shape, self.made)
        except DataError as error:
            return _Read(name, size, mtime_ns, digest, _reason(path, str(error))), None
        read = _Read(name, size, mtime_ns, digest, answer=answer)
        return read, torch.from_numpy(crop) if answer is None else None


def _together(
    items: Sequence[tuple[_Read, torch.Tensor | None]],
) -> tuple[list[_Read], list[int], torch.Tensor | None]:
    """Collate: all pictures, the places of those with a crop, and the crops uint8 [N, H, W, 3]."""
    places = [i for i, (_, crop) in enumerate(items) if crop is not None]
    crops = [crop for _, crop in items if crop is not None]
    return [read for read, _ in items], places, torch.stack(crops) if crops else None


def _rows(
    todo: Mapping[str, Path],
    estimator: Estimator | MaskFiles,
    made: Provenance,
    batch_size: int,
    workers: int,
    device: str | torch.device,
) -> Iterable[list[Row]]:
    if not todo:
        return
    files = estimator if isinstance(estimator, MaskFiles) else None
    loader: DataLoader[Any] = DataLoader(
        _Pictures(todo, files, made),
        batch_size,
        num_workers=min(workers, -(-len(todo) // batch_size)),
        collate_fn=_together,
    )
    for reads, places, crops in loader:
        answers: list[Any] = [read.answer for read in reads]
        if crops is not None and not isinstance(estimator, MaskFiles):
            for place, answer in zip(places, _estimate(estimator, crops.to(device), made), strict=True):
                answers[place] = answer
        yield [_row(read, answer) for read, answer in zip(reads, answers, strict=True)]


@contextlib.contextmanager
def _readers() -> Iterator[None]:
    """Tells in words that a worker died. torch raises that in a signal handler: anywhere, not just in the loader."""
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise MGRANError(
            "a process that reads pictures was killed, for want of memory as a rule; run the command again with fewer "
            "--workers: it goes on where it stopped"
        ) from error


def _row(read: _Read, answer: tuple[NDArray[np.uint8], bytes, float] | str | None) -> Row:
    stamp = (read.name, read.size, read.mtime_ns, read.digest)
    if answer is None or isinstance(answer, str):
        return (*stamp, None, 0, None, None, None, answer or read.error)
    region_map, keypoints, presence = answer
    packed = pack_map(region_map)
    flags = (0 if region_map.any() else EMPTY) | (ABSENT if presence < PRESENT else 0)
    crc = checksum(read.name, read.digest, flags, presence, keypoints, packed)
    return (*stamp, presence, flags, keypoints, packed, crc, None)


@torch.inference_mode()
def _estimate(
    estimator: Estimator, crops: torch.Tensor, made: Provenance
) -> list[tuple[NDArray[np.uint8], bytes, float] | str]:
    """The answer for each crop, or what is wrong with it."""
    estimate = estimator(crops)
    if len(estimate.mask) != len(crops) or len(estimate.presence) != len(crops):
        raise ValueError(f"{type(estimator).__name__} answered {len(estimate.mask)} masks for {len(crops)} crops")
    keypoints = estimate.keypoints.float().cpu().numpy()
    presence = estimate.presence.float().cpu().numpy()
    sound = finite(estimate)
    packed = [pack_keypoints(one, made.size) for one in keypoints]
    maps = _maps(estimate.mask, packed, made)
    return [(maps[i], packed[i], float(presence[i].clip(0, 1))) if sound[i] else NOT_FINITE for i in range(len(crops))]


NOT_FINITE = "the estimator's answer is not finite; look at the picture and at the estimator's weights"


def finite(estimate: Estimate) -> list[bool]:
    """Of each crop, whether its mask, keypoints and presence are finite numbers."""
    parts = (estimate.mask, estimate.keypoints, estimate.presence[:, None])
    return [bool(sound) for sound in torch.stack([part.flatten(1).isfinite().all(1) for part in parts]).all(0)]


def _maps(mask: torch.Tensor, packed: list[bytes], made: Provenance) -> NDArray[np.uint8]:
    """Region maps of the keypoints as they are stored, so that a reader who makes them again gets the same ones."""
    # Imported here: reading data must not need the compiled ops.
    from mgran_fast import ops

    keypoints = torch.from_numpy(np.stack([unpack_keypoints(one, made.size) for one in packed]))
    maps: NDArray[np.uint8] = (
        ops.regions(
            mask if mask.dtype == torch.uint8 else mask.float(),
            keypoints.to(mask.device),
            size=made.size,
            layout=made.layout,
            threshold=made.threshold,
            keypoint_threshold=made.keypoint_threshold,
        )
        .cpu()
        .numpy()
    )
    return maps


def _from_files(
    files: MaskFiles, path: Path, shape: tuple[int, int], made: Provenance
) -> tuple[NDArray[np.uint8], bytes, float]:
    """The answer that files give; a picture they do not know has an empty mask, as it has without a cache."""
    source = files.find(path, shape)
    height, width = made.size
    if source is None:
        return np.zeros(made.size, np.uint8), _nothing(made.size), 0.0
    scaled = source.keypoints * np.array([width / shape[1], height / shape[0], 1], np.float32)
    packed = pack_keypoints(scaled, made.size)
    return _maps(torch.from_numpy(source.mask)[None], [packed], made)[0], packed, source.presence


@functools.cache
def _nothing(size: tuple[int, int]) -> bytes:
    return pack_keypoints(np.zeros((len(layouts.KEYPOINTS), 3), np.float32), size)


def _reason(path: Path, message: str) -> str:
    """A reader names the file first; where it lies may change, so that is not stored."""
    return message.removeprefix(f"{os.fspath(path)}: ")
