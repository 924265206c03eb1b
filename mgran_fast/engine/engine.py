"""An engine: a trained model, prepared for inference on one device in one precision."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from mgran_fast import ops
from mgran_fast.alignment import Alignment
from mgran_fast.engine import file
from mgran_fast.engine.calibration import Calibration
from mgran_fast.engine.fused import Fused
from mgran_fast.engine.graphs import Graphs
from mgran_fast.engine.windowed import Windowed
from mgran_fast.errors import CheckpointError
from mgran_fast.ma import concatenate
from mgran_fast.ma.cuts import cut
from mgran_fast.model import Encoding
from mgran_fast.mra.estimate import Estimator
from mgran_fast.ops.network import Work

#: Precisions by name, with what activations are kept in.
PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.uint8,
}
#: People that are run together at most, by device. On the CPU more are no faster and take more memory; on a GPU no more
#: have been measured (docs/results.md).
CHUNKS = {"cpu": 4, "cuda": 32}


class Branch(NamedTuple):
    """Inputs of one size: images under the regions first to first + inputs - 1, and what is pooled of each.

    Attributes:
        regions: pooled from the images: one of each image, or several of one.
        cut: whether the region is cut out of the frame.
    """

    size: tuple[int, int]
    first: int
    inputs: int
    regions: tuple[int, ...]
    cut: bool = False


class Engine:
    """A trained model, prepared for inference on one device in one precision; made by :func:`mgran_fast.optimize`.

    Calling it is calling the model in eval mode. Several threads may call it at once. It can be pickled, and written to
    a file with :meth:`save`. It does not follow later changes of the model.
    """

    def __init__(self, alignment: Alignment, config: Mapping[str, Any], precision: str, executor: Windowed | Fused,
                 neck: tuple[torch.Tensor, torch.Tensor], branches: tuple[Branch, ...], device: torch.device,
                 calibration: Calibration | None, *, graphs: bool = True) -> None:  # fmt: skip
        self.alignment, self.config, self.precision = alignment, dict(config), precision
        self.executor, self.neck, self.branches, self.device = executor, neck, branches, device
        #: What int8 was calibrated with, None for floats.
        self.calibration = calibration
        # On the device before a graph is captured: a copy from the host cannot be.
        self._regions = [torch.tensor(branch.regions, device=device) for branch in branches]
        self._run = Graphs(self._embed, device) if graphs and device.type == "cuda" else self._embed
        if isinstance(executor, Windowed):
            # What would otherwise be done at the first call.
            for branch in branches:
                executor.network(branch.size)

    @property
    def dim(self) -> int:
        """P * D, the length of an embedding."""
        return self.neck[0].numel()

    def __repr__(self) -> str:
        return f"Engine({self.config['trunk']}, {self.precision}, {self.device}, shape={self.config['shape']!r})"

    def __call__(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None = None,
        keypoints: torch.Tensor | None = None,
        region_map: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed people: arguments and errors as for :meth:`mgran_fast.MGRAN.forward`; float32 [N, P * D], unit norm."""
        _, _, vector = self._all(crops, masks, keypoints, region_map)
        return vector

    def encode(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None = None,
        keypoints: torch.Tensor | None = None,
        region_map: torch.Tensor | None = None,
    ) -> Encoding:
        """As calling it, with each input's embedding and visibility apart."""
        embeddings, visible, _ = self._all(crops, masks, keypoints, region_map)
        return Encoding(embeddings, visible)

    @torch.no_grad()
    def _all(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None,
        keypoints: torch.Tensor | None,
        region_map: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embeddings [N, P, D], visible [N, P], vectors [N, P * D]."""
        crops, region_map = self.alignment.region_map(crops, masks, keypoints, region_map)
        parts, chunk = [], CHUNKS[self.device.type]
        for i in range(0, len(crops), chunk):
            parts.append(self._run(crops[i : i + chunk], region_map[i : i + chunk]))
        if not parts:
            nobody = self.neck[0].new_zeros((0, *self.neck[0].shape))
            return nobody, nobody.new_zeros(nobody.shape[:2], dtype=torch.bool), nobody.flatten(1)
        embeddings, visible, vectors = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        return embeddings, visible, vectors

    def _embed(self, crops: torch.Tensor, region_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same for one chunk of people, 1 or more; without a look at the numbers, as CUDA graphs want it."""
        crops, region_map = crops.to(self.device), region_map.to(self.device)
        images = self._images(crops, region_map)
        mean, gain = self.neck
        visible = ops.visibility(region_map, self.alignment.layout)
        for branch, _, one_map in images:
            if branch.cut:
                # As in MA: a region may vanish where it is cut out and made smaller.
                visible[:, branch.first] &= (one_map > 0).flatten(1).any(1)
        embeddings = (self._features(images) - mean) * gain * visible[..., None]
        return embeddings, visible, concatenate(embeddings, visible)

    def work(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None = None,
        keypoints: torch.Tensor | None = None,
        region_map: torch.Tensor | None = None,
    ) -> Work:
        """The trunk's multiply-adds for these people: ``computed``, ``dense``, and the share ``skipped``.

        ``dense`` counts whole images of the inputs of this shape.
        """
        crops, region_map = self.alignment.region_map(crops, masks, keypoints, region_map)
        done = [self.executor.work(one_map, branch.first, branch.inputs)
                for branch, _, one_map in self._images(crops, region_map)]  # fmt: skip
        return Work(sum(work.computed for work in done), sum(work.dense for work in done))

    def _images(self, crops: torch.Tensor, region_map: torch.Tensor) -> list[tuple[Branch, torch.Tensor, torch.Tensor]]:
        return [
            (branch, *(cut(crops, region_map, branch.first, branch.size) if branch.cut else (crops, region_map)))
            for branch in self.branches
        ]

    def _features(self, images: list[tuple[Branch, torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """[N, P, D]: pooled features."""
        mode = self.config["pooling"]
        pooled = []
        for (branch, crops, region_map), regions in zip(images, self._regions, strict=True):
            people = len(crops)
            with self.executor.features(crops, region_map, branch.first, branch.inputs) as features:
                if branch.inputs == len(regions):
                    rows = ops.pooling(features, region_map, regions.repeat(people), mode)
                    pooled.append(rows.unflatten(0, (people, len(regions))))
                else:
                    pooled += [
                        ops.pooling(features, region_map, region.repeat(people), mode)[:, None] for region in regions
                    ]
        return torch.cat(pooled, 1).float()

    def state(self) -> dict[str, Any]:
        """Plain values and named tensors that make it again."""
        report = self.calibration
        calibration = None if report is None else {"people": report.people, "cosines": report.cosines}
        executor, tensors = file.pack(self.executor)
        plain = {
            "config": self.config,
            "precision": self.precision,
            "calibration": calibration,
            "branches": [list(branch) for branch in self.branches],
            "executor": executor,
        }
        return {
            "plain": plain,
            "tensors": {**tensors, "neck.mean": self.neck[0].cpu(), "neck.gain": self.neck[1].cpu()},
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], *, mra: Estimator | None = None, device: torch.device | str | None = None
    ) -> Engine:
        """The engine of a :meth:`state`. Raises KeyError, TypeError or ValueError for one that is none."""
        plain, tensors = state["plain"], state["tensors"]
        config = plain["config"]
        alignment = Alignment(
            config["layout"], tuple(config["size"]), config["threshold"], config["keypoint_threshold"], mra=mra
        )
        given = plain["calibration"]
        # Its scales are in the weights.
        calibration = given and Calibration(
            (), (), torch.empty(0), given["people"], {k: (v[0], v[1]) for k, v in given["cosines"].items()}
        )
        found = tuple(
            Branch((size[0], size[1]), first, inputs, tuple(regions), cut)
            for size, first, inputs, regions, cut in plain["branches"]
        )
        executor, place = file.unpack(plain["executor"], tensors, PRECISIONS[plain["precision"]], device)
        neck = (tensors["neck.mean"].to(place), tensors["neck.gain"].to(place))
        return cls(alignment, config, plain["precision"], executor, neck, found, place, calibration)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.state(), self.alignment.mra)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file, atomically, without the estimator of masks; read by :meth:`from_file`."""
        file.save(self, path)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        mra: Estimator | None = None,
        device: torch.device | str | None = None,
    ) -> Engine:
        """Read what :meth:`save` wrote.

        Args:
            mra: the estimator of masks, None for the package's own.
            device: where it shall run: for an engine of a GPU another one, or "cpu"; None for a GPU if it is of one. An
                engine of the CPU stays one.

        Raises:
            CheckpointError: no such file, or no engine, or one of a GPU where there is none.
        """
        try:
            return cls.from_state(file.read(path), mra=mra, device=device)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"{path}: this version cannot build its engine: {error}") from None


def _again(state: Mapping[str, Any], mra: Estimator | None) -> Engine:
    return Engine.from_state(state, mra=mra)


__all__ = ["CHUNKS", "PRECISIONS", "Branch", "Calibration", "Engine"]
