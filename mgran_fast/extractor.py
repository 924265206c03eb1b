"""Embeddings of pictures, in whatever form they come: files, folders, videos, arrays, tensors, boxes of a frame."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from mgran_fast import ops
from mgran_fast.alignment import as_bytes, resize
from mgran_fast.data import find_masks, video
from mgran_fast.data.pictures import read_picture
from mgran_fast.engine.engine import Engine
from mgran_fast.engine.opened import engine_of, open_engine
from mgran_fast.errors import DataError
from mgran_fast.metrics.embedding import read_size
from mgran_fast.model import MGRAN, Encoding
from mgran_fast.mra import Estimator
from mgran_fast.progress import Step, bar
from mgran_fast.search.pictures import Picture, embed_pictures, find_pictures

#: A picture or several: a path, an array uint8 [H, W, 3] or [N, H, W, 3], a tensor, or a sequence of these.
Images: TypeAlias = "str | os.PathLike[str] | npt.NDArray[np.uint8] | torch.Tensor | Sequence[Any]"
#: The people of a video, float [N, 4] each: by the number of the frame, or of (number, frame uint8 [H, W, 3]).
Boxes: TypeAlias = "Mapping[int, Any] | Callable[[int, npt.NDArray[np.uint8]], Any]"

# Crops, uint8 [N, H, W, 3] of the size that is read, with their names.
_Group = tuple[list[str], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Features:
    """N pictures that could be read, in their order.

    Attributes:
        vectors: float32 [N, P * D], unit norm, on the extractor's device.
        visible: bool [N, P], which parts each picture shows.
        names: of each: its path below the folder that was given, its path, or its place in what was given; of a video
            ``path#frame``, and with boxes ``path#frame.box``.
        indices: int64 [N], the place of each among all pictures that were given or found.
        problems: one line for each picture that could not be read.
    """

    vectors: torch.Tensor
    visible: torch.Tensor
    names: tuple[str, ...]
    indices: torch.Tensor
    problems: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.vectors)


class FeatureExtractor:
    """Embeds people with an engine; masks and keypoints are found by the package's RegionNet, or by ``mra``.

        extractor = FeatureExtractor("runs/mine/model.safetensors", precision="bfloat16")
        vectors = extractor(["a.jpg", "b.jpg"])  # float32 [2, P * D]
        vectors = extractor(frame, boxes=boxes)  # people in a frame
        features = extractor.extract("pictures/", progress=True)  # a folder: names and visible parts as well

    It can be built and called like torchreid's class of this name: ``FeatureExtractor(model_name="mgran",
    model_path="model.safetensors", device="cpu")(list_of_pictures)``.

    Args:
        model: an MGRAN, an Engine, or the path of a file with either; ``model_path`` is another name for the latter.
        device: where it runs: by default a GPU where there is one. An Engine stays where it is.
        precision: float32 (the default), bfloat16, or float16 (on a GPU), of the engine that is made of a model; see
            :func:`mgran_fast.optimize`. An engine, one in int8 for example, has its own.
        batch_size: pictures at once.
        workers: processes that read files.
        mra: an estimator of masks and keypoints for a file, where it shall not be the package's.
        image_size: the size that crops are resized to, (height, width); it must be the checkpoint's own.
        model_name, pixel_mean, pixel_std, pixel_norm, verbose: not looked at: the checkpoint knows what it holds.

    Raises:
        CheckpointError: the file cannot be read.
        TypeError, ValueError: arguments are missing, doubled, or do not go together.
    """

    def __init__(
        self,
        model: MGRAN | Engine | str | os.PathLike[str] | None = None,
        *,
        model_path: str | os.PathLike[str] = "",
        device: str | torch.device | None = None,
        precision: torch.dtype | str | None = None,
        batch_size: int = 32,
        workers: int = 0,
        mra: Estimator | None = None,
        image_size: tuple[int, int] | None = None,
        model_name: str = "",
        pixel_mean: Sequence[float] | None = None,
        pixel_std: Sequence[float] | None = None,
        pixel_norm: bool = True,
        verbose: bool = True,
    ) -> None:
        given = model if model is not None else (model_path or None)
        if given is None or (model is not None and model_path):
            raise ValueError("give a model or the path of a checkpoint, and only one of them")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        self.engine = _engine(given, precision, device, mra)
        self.alignment, self.device = self.engine.alignment, self.engine.device
        if image_size is not None and tuple(image_size) != self.alignment.size:
            raise ValueError(f"image_size is {tuple(image_size)}, and the model was made for {self.alignment.size}")
        self.batch_size, self.workers = batch_size, workers
        self._size = read_size(self.alignment)

    @property
    def dim(self) -> int:
        """P * D, the length of an embedding."""
        return self.engine.dim

    def __call__(self, images: Images, *, boxes: Any = None, progress: bool | Step = False) -> torch.Tensor:
        """Embeddings float32 [N, P * D] of all pictures, in their order; see :meth:`extract`.

        Raises DataError where a picture cannot be read: rows must not shift.
        """
        features = self.extract(images, boxes=boxes, progress=progress)
        if features.problems:
            more = len(features.problems) - 1
            raise DataError(features.problems[0] + (f", and {more} more" if more else ""))
        return features.vectors

    @torch.no_grad()
    def extract(self, images: Images, *, boxes: Any = None, progress: bool | Step = False) -> Features:
        """Embed pictures.

        Args:
            images: a picture or several: paths of pictures, folders (all pictures below them) and tables
                (:mod:`mgran_fast.search.pictures`), videos of one person each (their frames), arrays uint8 [H, W, 3]
                (RGB), tensors uint8 [H, W, 3] or float [3, H, W] in [0, 1], each with or without a first dimension of
                N, or a sequence of these; with ``boxes`` a frame, as an array or the path of one, or a video.
            boxes: left, top, right, bottom in pixels of the frame, a picture is cut out for each: float [N, 4] of a
                frame; of a video a mapping from the frame's number, from 0, or a function of it and the frame. A frame
                that a mapping does not name shows nobody.
            progress: True for a bar on a terminal, or a function of (pictures done, pictures in all). Where nobody
                knows how many there are, the second is the first.

        Raises:
            TypeError: something is no picture, or files, videos and arrays come in one call.
            ValueError: an array has another shape.
            DataError: a file or folder is not there, or a video cannot be decoded.
            MGRANError: a video, and PyAV is not installed.
        """
        if isinstance(progress, bool):
            with bar("pictures") if progress else nullcontext() as step:
                return self._extract(images, boxes, step)
        return self._extract(images, boxes, progress)

    def _extract(self, images: Images, boxes: Any, step: Step | None) -> Features:
        items = list(images) if isinstance(images, (list, tuple)) else [images]
        paths = [Path(item) for item in items if isinstance(item, (str, os.PathLike))]
        videos = [path for path in paths if video.is_video(path)]
        if len(paths) not in (0, len(items)) or len(videos) not in (0, len(items)):
            raise TypeError("files, videos and arrays in one call: give them apart")
        if boxes is not None:
            if len(items) != 1:
                raise ValueError(f"boxes are of one frame or one video, not of {len(items)}")
            if videos:
                if not (callable(boxes) or isinstance(boxes, Mapping)):
                    raise TypeError("boxes of a video are a mapping from numbers of frames, or a function")
                return self._embed(self._people(videos[0], boxes), 0, step)
            frame = _array(read_picture(paths[0]) if paths else items[0])
            if frame.ndim != 3:
                raise ValueError(f"a frame with boxes must be uint8 [H, W, 3], not {list(frame.shape)}")
            crops = self._cut(frame, boxes)
            return self._embed([([str(i) for i in range(len(crops))], crops)], len(crops), step)
        if videos:
            total = sum(map(video.count_frames, videos)) if step is not None else 0
            return self._embed((group for path in videos for group in self._shown(path)), total, step)
        if paths:
            return self._files(paths, step)
        groups = list(self._given(items))
        return self._embed(groups, sum(len(names) for names, _ in groups), step)

    def _embed(self, groups: Iterable[_Group], total: int, step: Step | None) -> Features:
        names: list[str] = []
        # An empty batch tells the shapes where there is nobody at all.
        parts = [self.engine.encode(torch.zeros((0, *self._size, 3), dtype=torch.uint8, device=self.device))]
        for some, crops in _batches(groups, self.batch_size):
            parts.append(self.engine.encode(crops))
            names += some
            if step is not None:
                step(len(names), max(total, len(names)))
        return _features(parts, names)

    def _given(self, items: Iterable[Any]) -> Iterator[_Group]:
        for place, item in enumerate(items):
            tensor = _array(item)
            crops = as_bytes(tensor[None] if tensor.ndim == 3 else tensor).to(self.device)
            names = [str(place)] if len(crops) == 1 else [f"{place}.{i}" for i in range(len(crops))]
            yield names, resize(crops, self._size)

    def _shown(self, path: Path) -> Iterator[_Group]:
        for frame in video.frames(path):
            crops = torch.from_numpy(frame.pixels)[None].to(self.device)
            yield [f"{path}#{frame.number}"], resize(crops, self._size)

    def _people(self, path: Path, boxes: Boxes) -> Iterator[_Group]:
        for frame in video.frames(path):
            found = boxes(frame.number, frame.pixels) if callable(boxes) else boxes.get(frame.number, ())
            crops = self._cut(torch.from_numpy(frame.pixels), found)
            yield [f"{path}#{frame.number}.{i}" for i in range(len(crops))], crops

    def _cut(self, frame: torch.Tensor, boxes: Any) -> torch.Tensor:
        given = boxes if isinstance(boxes, torch.Tensor) else torch.from_numpy(np.array(boxes, dtype=np.float32))
        corners = given.detach().to(self.device, torch.float32)
        if not corners.numel():
            corners = corners.reshape(0, 4)
        if corners.ndim != 2 or corners.shape[1] != 4:
            raise ValueError(f"boxes must be float [N, 4], left, top, right, bottom, not {list(corners.shape)}")
        crops: torch.Tensor = ops.crops(frame.to(self.device), corners, self._size)
        return crops

    def _files(self, paths: list[Path], step: Step | None) -> Features:
        pictures: list[Picture] = []
        masks = None
        for path in paths:
            root, found = find_pictures(path, timed=False)
            pictures += [one if path.is_dir() else replace(one, name=str(one.path)) for one in found]
            if path.is_dir() and len(paths) == 1 and not self.alignment.layout.whole:
                masks = find_masks(root, None)
        embedded = embed_pictures(
            self.engine, pictures, masks, batch_size=self.batch_size, workers=self.workers, progress=step
        )
        names = tuple(pictures[i].name for i in embedded.indices.tolist())
        vectors, visible = embedded.vectors.to(self.device), embedded.visible.to(self.device)
        return Features(vectors, visible, names, embedded.indices, tuple(embedded.problems.lines()))


def _engine(
    given: MGRAN | Engine | str | os.PathLike[str],
    precision: torch.dtype | str | None,
    device: str | torch.device | None,
    mra: Estimator | None,
) -> Engine:
    if not isinstance(given, (MGRAN, Engine)):
        return open_engine(given, precision, device, mra=mra)
    if mra is not None:
        raise ValueError("mra is for a file: a model has its own")
    if isinstance(given, MGRAN):
        # The engine copies what it needs; the model's own estimator moves with the model.
        return engine_of(given, precision, device)
    if precision is not None or (device is not None and torch.device(device).type != given.device.type):
        raise ValueError(f"the engine is {given.precision} on {given.device}: leave precision and device out")
    return given


def _batches(groups: Iterable[_Group], size: int) -> Iterator[_Group]:
    """Groups of any size as batches of ``size``, the last one smaller."""
    names: list[str] = []
    waiting: list[torch.Tensor] = []
    for some, crops in groups:
        names += some
        waiting.append(crops)
        while len(names) >= size:
            held = torch.cat(waiting)
            yield names[:size], held[:size]
            names, waiting = names[size:], [held[size:]]
    if names:
        yield names, torch.cat(waiting)


def _features(parts: list[Encoding], names: list[str]) -> Features:
    vectors, visible = torch.cat([one.vector for one in parts]), torch.cat([one.visible for one in parts])
    return Features(vectors, visible, tuple(names), torch.arange(len(names)), ())


def _array(item: Any) -> torch.Tensor:
    """An array or tensor as a tensor. Raises TypeError for anything else."""
    if isinstance(item, torch.Tensor):
        return item
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8:
            raise TypeError(f"an array of a picture must be uint8 [H, W, 3], not {item.dtype} {list(item.shape)}")
        return torch.from_numpy(np.ascontiguousarray(item))
    raise TypeError(f"{type(item).__name__} is no picture: give paths, uint8 arrays [H, W, 3] or tensors")
