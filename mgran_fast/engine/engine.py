"""``optimize``: a trained model -> an engine that gives the same embeddings, faster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from mgran_fast import ops
from mgran_fast.alignment import Alignment
from mgran_fast.engine import cpu, file
from mgran_fast.engine.calibration import Calibration, Ranges
from mgran_fast.engine.program import Convolution, Program, program
from mgran_fast.engine.whole import Whole
from mgran_fast.engine.windowed import Windowed
from mgran_fast.errors import CheckpointError
from mgran_fast.ma.cuts import cut
from mgran_fast.model import MGRAN, Encoding
from mgran_fast.mra.estimate import Estimator
from mgran_fast.ops.network import Network, Work

#: Precisions by name, with what activations are kept in.
PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.uint8,
}
#: People that are run together at most: more are no faster (docs/results.md), and take more memory.
CHUNK = 4


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
    """A trained model, prepared for inference on one device in one precision; made by :func:`optimize`.

    Calling it is calling the model in eval mode. Several threads may call it at once. It can be pickled, and written to
    a file with :meth:`save`. It does not follow later changes of the model.
    """

    def __init__(self, alignment: Alignment, config: Mapping[str, Any], precision: str, executor: Any,
                 neck: tuple[torch.Tensor, torch.Tensor], branches: tuple[Branch, ...], device: torch.device,
                 calibration: Calibration | None) -> None:  # fmt: skip
        self.alignment, self.config, self.precision = alignment, dict(config), precision
        self.executor, self.neck, self.branches, self.device = executor, neck, branches, device
        #: What int8 was calibrated with, None for floats.
        self.calibration = calibration

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
        return self.encode(crops, masks, keypoints, region_map).vector

    @torch.no_grad()
    def encode(
        self,
        crops: torch.Tensor,
        masks: torch.Tensor | None = None,
        keypoints: torch.Tensor | None = None,
        region_map: torch.Tensor | None = None,
    ) -> Encoding:
        """As calling it, with each input's embedding and visibility apart."""
        crops, region_map = self.alignment.region_map(crops, masks, keypoints, region_map)
        crops, region_map = crops.to(self.device), region_map.to(self.device)
        mean, gain = self.neck
        visible = ops.visibility(region_map, self.alignment.layout)
        parts = []
        for i in range(0, len(crops), CHUNK):
            images = self._images(crops[i : i + CHUNK], region_map[i : i + CHUNK])
            parts.append(self._features(images))
            for branch, _, one_map in images:
                if branch.cut:
                    # As in MA: a region may vanish where it is cut out and made smaller.
                    visible[i : i + CHUNK, branch.first] &= (one_map > 0).flatten(1).any(1)
        features = torch.cat(parts) if parts else mean.new_zeros((0, *mean.shape))
        return Encoding((features - mean) * gain * visible[..., None], visible)

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
        for branch, crops, region_map in images:
            people = len(crops)
            with self.executor.features(crops, region_map, branch.first, branch.inputs) as features:
                regions = torch.tensor(branch.regions, device=self.device)
                if branch.inputs == len(regions):
                    rows = ops.pooling(features, region_map, regions.repeat(people), mode)
                    pooled.append(rows.unflatten(0, (people, len(regions))))
                else:
                    pooled += [
                        ops.pooling(features, region_map, region.repeat(people), mode)[:, None] for region in regions
                    ]
        return torch.cat(pooled, 1).float()

    def state(self) -> dict[str, Any]:
        """Plain values and named tensors that make it again. Raises NotImplementedError for an engine of a GPU."""
        if not isinstance(self.executor, Windowed):
            raise NotImplementedError("an engine of a GPU is made anew from its model")
        steps, tensors = file.pack(self.executor.steps)
        report = self.calibration
        calibration = None if report is None else {"people": report.people, "cosines": report.cosines}
        plain = {
            "config": self.config,
            "precision": self.precision,
            "calibration": calibration,
            "branches": [list(branch) for branch in self.branches],
            "steps": steps,
            "windows": self.executor.windows,
        }
        return {"plain": plain, "tensors": {**tensors, "neck.mean": self.neck[0], "neck.gain": self.neck[1]}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], *, mra: Estimator | None = None) -> Engine:
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
        executor = Windowed(file.unpack(plain["steps"], tensors), windows=plain["windows"])
        neck = (tensors["neck.mean"], tensors["neck.gain"])
        engine = cls(alignment, config, plain["precision"], executor, neck, found, torch.device("cpu"), calibration)
        _prepare(engine)
        return engine

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.state(), self.alignment.mra)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file, atomically, without the estimator of masks; read by :meth:`from_file`."""
        file.save(self, path)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, mra: Estimator | None = None) -> Engine:
        """Read what :meth:`save` wrote.

        Args:
            mra: the estimator of masks, None for the package's own.

        Raises:
            CheckpointError: no such file, or no engine.
        """
        try:
            return cls.from_state(file.read(path), mra=mra)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"{path}: this version cannot build its engine: {error}") from None


def _again(state: Mapping[str, Any], mra: Estimator | None) -> Engine:
    return Engine.from_state(state, mra=mra)


def optimize(
    model: MGRAN,
    dtype: torch.dtype | str = torch.bfloat16,
    device: torch.device | str | None = None,
    *,
    calibration: Calibration | None = None,
    windows: bool = True,
) -> Engine:
    """Turn a trained model into an engine; the model is not changed, and nothing is compiled.

    Batch norm and the normalisation of pixels are folded into the convolutions, residual sums and ReLU are done where a
    convolution's sums still are in registers, and on the CPU only those windows are computed that a region can
    influence and that are pooled.

    Args:
        dtype: float32, bfloat16, float16 (on a GPU) or "int8" (on the CPU).
        device: the model's by default.
        calibration: for int8, of :func:`calibrate`.
        windows: False computes whole images: the same embeddings, slower.

    Raises:
        TypeError: the model is no MGRAN. ValueError: a precision that there is not for this device, int8 without a
        calibration, weights that are not finite.
    """
    if not isinstance(model, MGRAN):
        raise TypeError(f"optimize wants an MGRAN, not {type(model).__name__}")
    precision = _precision(dtype)
    device = next(model.parameters()).device if device is None else torch.device(device)
    if (calibration is None) == (precision == "int8"):
        raise ValueError(
            "int8 needs a calibration: mgran_fast.calibrate(model, crops) makes one"
            if calibration is None
            else f"a calibration is for int8, not for {precision}"
        )
    if precision == "float16" and device.type == "cpu":
        raise ValueError("float16 is for GPUs: no CPU multiplies it; use bfloat16")
    if precision == "int8" and device.type != "cpu":
        raise ValueError(f"int8 is for the CPU, not for {device.type}; use float16 or bfloat16")
    steps = program(model.ma.trunk)
    _check_finite(steps)
    normalisation: dict[str, Any] = {"scale": model.scale, "mean": model.mean, "std": model.std}
    executor: Any
    if calibration is not None:
        executor = Windowed(
            cpu.byte_steps(steps, calibration.scales, calibration.means, **normalisation), windows=windows
        )
    elif device.type == "cpu":
        executor = Windowed(cpu.float_steps(steps, PRECISIONS[precision], **normalisation), windows=windows)
    else:
        executor = Whole(steps, PRECISIONS[precision], device, **normalisation)
    neck = model.ma.neck
    gain = torch.rsqrt(neck.running_var + neck.eps) * neck.weight.detach()
    shift = neck.running_mean.detach().clone().cpu() + (0.0 if calibration is None else calibration.shift)
    moved = (shift.to(device), gain.to(device))
    engine = Engine(model.alignment, model.config, precision, executor, moved, branches(model), device, calibration)
    _prepare(engine)
    return engine


@torch.no_grad()
def calibrate(
    model: MGRAN,
    crops: torch.Tensor,
    masks: torch.Tensor | None = None,
    keypoints: torch.Tensor | None = None,
    region_map: torch.Tensor | None = None,
) -> Calibration:
    """Find the ranges of a model's layers for int8 on some crops (a hundred are plenty), and what int8 costs on them.

    Args: as for calling the model. The more they are like the crops to come, the better.

    Raises:
        ValueError: no crops, or what the model raises for them.
    """
    exact = optimize(model, torch.float32, "cpu")
    crops, region_map = model.alignment.region_map(crops, masks, keypoints, region_map)
    if len(crops) == 0:
        raise ValueError("a calibration needs crops, and there are none")
    crops, region_map = crops.cpu(), region_map.cpu()
    ranges = Ranges()
    for i in range(0, len(crops), 2):
        for branch, images, one_map in exact._images(crops[i : i + 2], region_map[i : i + 2]):
            network: Network = exact.executor.network(branch.size)
            ranges.add(network.computed(images, one_map, branch.first, branch.inputs))
    for branch in exact.branches:
        ranges.add(exact.executor.network(branch.size).background())
    nothing = torch.zeros_like(exact.neck[0])
    draft = Calibration(ranges.scales(program(model.ma.trunk)), ranges.means(), nothing, len(crops), {})
    want = exact.encode(crops, region_map=region_map)
    got = optimize(model, "int8", "cpu", calibration=draft).encode(crops, region_map=region_map)
    moved = got.embeddings - want.embeddings
    # What is told of each half of the crops, it is told with the shift that the other half gives.
    halves = torch.arange(len(crops)) % 2 == 0
    embeddings = got.embeddings.clone()
    for half in (halves, ~halves) if len(crops) > 1 else ():
        embeddings[half] -= _average(moved[~half], want.visible[~half])
    embeddings *= want.visible[..., None]
    # In embeddings, where the gain is on top of it.
    gain = exact.neck[1]
    shift = torch.where(gain != 0, _average(moved, want.visible) / gain, 0.0)
    cosines = {}
    for i, name in enumerate(model.layout.inputs):
        seen = want.visible[:, i]
        if bool(seen.any()):
            cosine = torch.cosine_similarity(want.embeddings[seen, i], embeddings[seen, i])
            cosines[name] = (float(cosine.mean()), float(cosine.min()))
    cosine = torch.cosine_similarity(want.vector, Encoding(embeddings, want.visible).vector)
    cosines["all"] = (float(cosine.mean()), float(cosine.min()))
    return Calibration(draft.scales, draft.means, shift, len(crops), cosines)


def _average(rows: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """[N, P, D], bool [N, P] -> [P, D]: over those who show the input; 0 where nobody does."""
    return (rows * visible[..., None]).sum(0) / visible.sum(0).clamp(min=1)[:, None]


def branches(model: MGRAN) -> tuple[Branch, ...]:
    """The images that a model's shape makes of a person."""
    regions = tuple(range(len(model.layout.inputs)))
    if model.shape == "full":
        return (Branch(model.size, 0, len(regions), regions),)
    if model.shape == "single":
        return (Branch(model.size, 0, 1, regions),)
    sizes = model.region_sizes
    whole = Branch(model.size, 0, 1, (0,))
    return (whole, *(Branch(size, i, 1, (i,), cut=True) for i, size in enumerate(sizes, 1)))


def _prepare(engine: Engine) -> None:
    """What would otherwise be done at the first call."""
    if isinstance(engine.executor, Windowed):
        for branch in engine.branches:
            engine.executor.network(branch.size)


def _precision(dtype: torch.dtype | str) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in PRECISIONS:
        raise ValueError(f"dtype must be one of {', '.join(PRECISIONS)}, not {dtype!r}")
    return name


def _check_finite(steps: Program) -> None:
    for i, step in enumerate(steps.steps):
        if not isinstance(step, Convolution):
            continue
        if not all(
            bool(tensor.isfinite().all()) for tensor in (step.bias, *(source.weight for source in step.sources))
        ):
            raise ValueError(f"step {i} of the trunk has weights or statistics that are not finite")


__all__ = ["CHUNK", "PRECISIONS", "Branch", "Calibration", "Engine", "branches", "calibrate", "optimize"]
