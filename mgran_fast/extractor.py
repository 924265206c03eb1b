"""Embeddings of pictures, in whatever form they come: files, folders, arrays, tensors, boxes of a frame."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from mgran_fast import ops
from mgran_fast.alignment import as_bytes, resize
from mgran_fast.data import find_masks
from mgran_fast.engine.optimize import optimize
from mgran_fast.errors import DataError
from mgran_fast.metrics.embedding import Progress, estimated_size
from mgran_fast.model import MGRAN, Encoding
from mgran_fast.mra import Estimator
from mgran_fast.search.pictures import Picture, embed_pictures, find_pictures

#: A picture or several: a path, an array uint8 [H, W, 3] or [N, H, W, 3], a tensor, or a sequence of these.
Images: TypeAlias = "str | os.PathLike[str] | npt.NDArray[np.uint8] | torch.Tensor | Sequence[Any]"


@dataclass(frozen=True, eq=False)
class Features:
    """N pictures that could be read, in their order.

    Attributes:
        vectors: float32 [N, P * D], unit norm, on the extractor's device.
        visible: bool [N, P], which parts each picture shows.
        names: of each: its path below the folder that was given, its path, or its place in what was given.
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
    """Embeds people; masks and keypoints are found by the package's RegionNet, or by ``mra``.

        extractor = FeatureExtractor("runs/mine/model.safetensors", precision="bfloat16")
        vectors = extractor(["a.jpg", "b.jpg"])  # float32 [2, P * D]
        vectors = extractor(frame, boxes=boxes)  # people in a frame
        features = extractor.extract("pictures/")  # a folder: names and visible parts as well

    It can be built and called like torchreid's class of this name: ``FeatureExtractor(model_name="mgran",
    model_path="model.safetensors", device="cpu")(list_of_pictures)``.

    Args:
        model: an MGRAN, or the path of a checkpoint; ``model_path`` is another name for the latter.
        device: where it runs: by default a GPU where there is one.
        precision: float32, bfloat16, or float16 (on a GPU), of the engine that embeds; see
            :func:`mgran_fast.optimize`.
        batch_size: pictures at once.
        workers: processes that read files.
        mra: an estimator of masks and keypoints for a checkpoint, where it shall not be the package's.
        model_name: not looked at: the checkpoint knows what it holds.
        image_size: the size that crops are resized to, (height, width); it must be the checkpoint's own.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        TypeError, ValueError: arguments are missing, doubled, or do not go together.
    """

    def __init__(
        self,
        model: MGRAN | str | os.PathLike[str] | None = None,
        *,
        model_path: str | os.PathLike[str] = "",
        device: str | torch.device | None = None,
        precision: torch.dtype | str = "float32",
        batch_size: int = 32,
        workers: int = 0,
        mra: Estimator | None = None,
        model_name: str = "",
        image_size: tuple[int, int] | None = None,
    ) -> None:
        given = model if model is not None else (model_path or None)
        if given is None or (model is not None and model_path):
            raise ValueError("give a model or the path of a checkpoint, and only one of them")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if isinstance(given, MGRAN) and mra is not None:
            raise ValueError("mra is for a checkpoint: a model has its own")
        network = given if isinstance(given, MGRAN) else MGRAN.from_file(given, mra=mra)
        if image_size is not None and tuple(image_size) != network.size:
            raise ValueError(f"image_size is {tuple(image_size)}, and the model was made for {network.size}")
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
        self.device = torch.device(where)
        # An engine copies what it needs; the model reads pictures and says where people are.
        self.model = network.to(self.device).eval()
        self.engine = optimize(self.model, precision)
        self.batch_size, self.workers = batch_size, workers
        self._size = estimated_size(self.model)

    @property
    def dim(self) -> int:
        """P * D, the length of an embedding."""
        return self.model.dim

    def __call__(self, images: Images, *, boxes: Any = None, progress: Progress | None = None) -> torch.Tensor:
        """Embeddings float32 [N, P * D] of all pictures, in their order; see :meth:`extract`.

        Raises DataError where a picture cannot be read: rows must not shift.
        """
        features = self.extract(images, boxes=boxes, progress=progress)
        if features.problems:
            more = len(features.problems) - 1
            raise DataError(features.problems[0] + (f", and {more} more" if more else ""))
        return features.vectors

    @torch.no_grad()
    def extract(self, images: Images, *, boxes: Any = None, progress: Progress | None = None) -> Features:
        """Embed pictures.

        Args:
            images: a picture or several: paths of pictures, folders (all pictures below them) and tables
                (:mod:`mgran_fast.search.pictures`), arrays uint8 [H, W, 3] (RGB), tensors uint8 [H, W, 3] or float
                [3, H, W] in [0, 1], each with or without a first dimension of N, or a sequence of these; with ``boxes``
                a frame, uint8 [H, W, 3] (RGB).
            boxes: float [N, 4], left, top, right, bottom in pixels of the frame: a picture is cut out for each.
            progress: called with (pictures done, pictures in all).

        Raises:
            TypeError: something is no picture.
            ValueError: an array has another shape.
            DataError: a file or folder is not there.
        """
        if boxes is not None:
            frame = _array(images)
            if frame.ndim != 3:
                raise ValueError(f"a frame with boxes must be uint8 [H, W, 3], not {list(frame.shape)}")
            corners = torch.as_tensor(np.asarray(boxes, dtype=np.float32)).reshape(-1, 4)
            crops = ops.crops(frame.to(self.device), corners.to(self.device), self._size)
            return self._arrays([(str(i), crop[None]) for i, crop in enumerate(crops)], progress)
        items = list(_flat(images))
        if items and all(isinstance(item, (str, os.PathLike)) for item in items):
            return self._files([Path(item) for item in items], progress)
        named = []
        for place, item in enumerate(items):
            if isinstance(item, (str, os.PathLike)):
                raise TypeError("paths and arrays in one call: give them apart")
            crops = as_bytes(_batch(item)).to(self.device)
            names = [str(place)] if len(crops) == 1 else [f"{place}.{i}" for i in range(len(crops))]
            named += [(name, crops[i : i + 1]) for i, name in enumerate(names)]
        return self._arrays(named, progress)

    def _arrays(self, named: list[tuple[str, torch.Tensor]], progress: Progress | None) -> Features:
        parts: list[Encoding] = []
        for start in range(0, len(named), self.batch_size):
            some = [resize(crop, self._size) for _, crop in named[start : start + self.batch_size]]
            parts.append(self.engine.encode(torch.cat(some)))
            if progress is not None:
                progress(start + len(some), len(named))
        names = tuple(name for name, _ in named)
        indices = torch.arange(len(named))
        if not parts:
            nobody = self.engine.encode(torch.zeros((0, *self._size, 3), dtype=torch.uint8, device=self.device))
            return Features(nobody.vector, nobody.visible, names, indices, ())
        vectors, visible = torch.cat([one.vector for one in parts]), torch.cat([one.visible for one in parts])
        return Features(vectors, visible, names, indices, ())

    def _files(self, paths: list[Path], progress: Progress | None) -> Features:
        pictures: list[Picture] = []
        masks = None
        for path in paths:
            root, found = find_pictures(path)
            pictures += [one if path.is_dir() else replace(one, name=str(one.path)) for one in found]
            if path.is_dir() and len(paths) == 1 and not self.model.layout.whole:
                masks = find_masks(root, None)
        embedded = embed_pictures(
            self.model, pictures, masks, batch_size=self.batch_size, workers=self.workers, progress=progress,
            encode=self.engine.encode,
        )  # fmt: skip
        names = tuple(pictures[i].name for i in embedded.indices.tolist())
        vectors, visible = embedded.vectors.to(self.device), embedded.visible.to(self.device)
        return Features(vectors, visible, names, embedded.indices, tuple(embedded.problems.lines()))


def _flat(images: Images) -> Iterator[Any]:
    if isinstance(images, (list, tuple)):
        yield from images
    else:
        yield images


def _array(item: Any) -> torch.Tensor:
    """An array or tensor as a tensor. Raises TypeError for anything else."""
    if isinstance(item, torch.Tensor):
        return item
    if isinstance(item, np.ndarray):
        if item.dtype != np.uint8:
            raise TypeError(f"an array of a picture must be uint8 [H, W, 3], not {item.dtype} {list(item.shape)}")
        return torch.from_numpy(np.ascontiguousarray(item))
    raise TypeError(f"{type(item).__name__} is no picture: give paths, uint8 arrays [H, W, 3] or tensors")


def _batch(item: Any) -> torch.Tensor:
    """One picture or several as a batch of them."""
    tensor = _array(item)
    return tensor[None] if tensor.ndim == 3 else tensor
