"""``export``: a trained model as a file for other runtimes: ONNX, or a program of torch.export."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from mgran_fast.engine.engine import Branch
from mgran_fast.engine.optimize import branches
from mgran_fast.engine.program import Convolution, MaxPool, Program, program
from mgran_fast.errors import MGRANError
from mgran_fast.ma import concatenate
from mgran_fast.ma.cuts import cut
from mgran_fast.model import MGRAN
from mgran_fast.reference.inputs import everyone, inputs
from mgran_fast.reference.pooling import GEM_SMALLEST

FORMATS = ("onnx", "torch")
#: How far a written file's embeddings, which have unit norm, may be from the model's.
TOLERANCE = 1e-3
_OPSET = 18
_POWER = 3.0  # of gem, as ops.pooling has it


class Portable(nn.Module):
    """A model in eval mode, from crops and region maps to embeddings, in operations that every runtime knows.

    Batch norm is folded into the convolutions, nothing calls this library's kernels. Weights are copies.

    Args:
        model: any layout, shape and pooling.
    """

    def __init__(self, model: MGRAN) -> None:
        super().__init__()
        self.layout, self.pooling = model.layout, model.ma.pooling
        self.normalisation = (model.scale, model.mean, model.std)
        self.branches = branches(model)
        self.program: Program = program(model.ma.trunk)
        for i, step in enumerate(self.program.steps):
            if isinstance(step, Convolution):
                self.register_buffer(f"bias{i}", step.bias)
                for j, source in enumerate(step.sources):
                    self.register_buffer(f"weight{i}_{j}", source.weight)
        mean, gain = model.ma.neck.folded()
        self.register_buffer("gain", gain.cpu())
        self.register_buffer("shift", mean.cpu())
        for k, branch in enumerate(self.branches):
            h, w, _ = self.program.layers(branch.size)[-1]
            self.register_buffer(f"rows{k}", averaging(branch.size[0], h))
            self.register_buffer(f"columns{k}", averaging(branch.size[1], w))

    def forward(self, crops: torch.Tensor, region_map: torch.Tensor) -> torch.Tensor:
        """crops uint8 [N, H, W, 3] and region map uint8 [N, H, W] of the model's size -> float32 [N, P * D]."""
        regions = range(1, self.layout.regions + 1)
        seen = [(region_map == region).flatten(1).any(1) for region in regions]
        visible = torch.stack([torch.ones_like(region_map[:, 0, 0], dtype=torch.bool), *seen], 1)
        pooled, columns = [], list(visible.unbind(1))
        for k, branch in enumerate(self.branches):
            pictures, where = crops, region_map
            if branch.cut:
                pictures, where = cut(crops, region_map, branch.first, branch.size)
                columns[branch.first] = columns[branch.first] & (where > 0).flatten(1).any(1)
            pooled.append(self._pooled(k, branch, pictures, where))
        visible = torch.stack(columns, 1)
        embeddings = (torch.cat(pooled, 1) - self.get_buffer("shift")) * self.get_buffer("gain") * visible[..., None]
        return concatenate(embeddings, visible)

    def _pooled(self, k: int, branch: Branch, crops: torch.Tensor, region_map: torch.Tensor) -> torch.Tensor:
        """[N, p, D]: of one branch, pooled under each of its p regions."""
        last = branch.first + branch.inputs
        images = inputs(crops, region_map, *self.normalisation, torch.float32, last - 1)[:, branch.first : last]
        maps = self._trunk(images.flatten(0, 1)).unflatten(0, (-1, branch.inputs))
        pooled = []
        for i, region in enumerate(branch.regions):
            inside = everyone(region_map) if region == 0 else region_map == region
            # The share of a cell's pixels: a mean over a rectangle is one over its rows, of one over its columns.
            weights = self.get_buffer(f"rows{k}") @ inside.float() @ self.get_buffer(f"columns{k}").T
            pooled.append(self._pool(maps[:, i if branch.inputs == len(branch.regions) else 0], weights[:, None]))
        return torch.stack(pooled, 1)

    def _pool(self, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """mgran_fast/reference/pooling.py for x [N, D, h, w] and weights [N, 1, h, w]."""
        total = weights.sum((2, 3))
        if self.pooling == "max":
            # Features follow a ReLU.
            return torch.where(weights > 0, x, 0.0).amax((2, 3))
        x = x.clamp(min=GEM_SMALLEST).pow(_POWER) if self.pooling == "gem" else x
        mean = (x * weights).sum((2, 3)) / torch.where(total > 0, total, 1.0)
        return torch.where(total > 0, mean, 1.0).pow(1 / _POWER) * (total > 0) if self.pooling == "gem" else mean

    def _trunk(self, images: torch.Tensor) -> torch.Tensor:
        layers = [images]
        for i, step in enumerate(self.program.steps):
            if isinstance(step, MaxPool):
                layers.append(F.max_pool2d(layers[step.layer], step.tap.kernel, step.tap.stride, step.tap.padding))
                continue
            y = None if step.residual is None else layers[step.residual]
            for j, source in enumerate(step.sources):
                bias = self.get_buffer(f"bias{i}") if j == 0 else None
                weight, tap = self.get_buffer(f"weight{i}_{j}"), source.tap
                z = F.conv2d(layers[source.layer], weight, bias, tap.stride, tap.padding)
                y = z if y is None else z + y
            assert y is not None
            layers.append(y.relu())
        return layers[-1]


def averaging(pixels: int, cells: int) -> torch.Tensor:
    """float32 [cells, pixels]: cell i averages the pixels floor(i n / c) to ceil((i + 1) n / c), exclusive."""
    made = torch.zeros(cells, pixels)
    for i in range(cells):
        first, end = i * pixels // cells, -(-(i + 1) * pixels // cells)
        made[i, first:end] = 1 / (end - first)
    return made


def export(
    model: MGRAN, path: str | os.PathLike[str], format: str = "onnx", *, kernels: bool = False
) -> float:  # the argument's name is the command line's, and the field's
    """Write a model, from crops and region maps to embeddings, for any number of people; the file is checked.

    The file takes ``crops`` uint8 [N, H, W, 3] and ``region_map`` uint8 [N, H, W], both of the model's size, and
    gives ``embeddings`` float32 [N, P * D]: what the model answers in eval mode. The model is not changed.

    Args:
        path: written atomically.
        format: "onnx" (opset 18; wants the packages onnx and onnxscript) or "torch", for ``torch.export.load``.
        kernels: in the format torch: whether the program calls this library's kernels, and so wants mgran_fast imported
            where it is loaded; without them it is plain torch.

    Returns:
        The largest difference of an embedding's number between the file and the model: of the format onnx by
        onnxruntime where that is installed, NaN otherwise.

    Raises:
        ValueError: a format that there is not, or ``kernels`` in ONNX.
        MGRANError: a package is missing, or the file answers otherwise than the model.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {format!r}")
    if kernels and format == "onnx":
        raise ValueError("ONNX has no kernels of ours: kernels=True is for the format torch")
    missing = [name for name in ("onnx", "onnxscript") if format == "onnx" and not importlib.util.find_spec(name)]
    if missing:
        raise MGRANError(f"ONNX wants packages that are not installed ({', '.join(missing)}): "
                         "pip install 'mgran_fast[export]'")  # fmt: skip
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    example, other = _people(model, 2), _people(model, 3)
    training = model.training
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial{'.onnx' if format == 'onnx' else '.pt2'}")
    try:
        model.eval()
        device = next(model.parameters()).device
        with torch.no_grad():
            want = model(other[0].to(device), region_map=other[1].to(device)).cpu()
            if format == "onnx":
                _write_onnx(Portable(model).eval(), example, partial)
                got = _run_onnx(partial, other)
            else:
                wrapped = _WithKernels(model) if kernels else Portable(model)
                place = device if kernels else torch.device("cpu")
                given = tuple(part.to(place) for part in example)
                with _quiet():
                    # Not strict, the default of newer versions: torch 2.6 would split the kernels' graph in two.
                    program = torch.export.export(wrapped.eval(), given, dynamic_shapes=_any_people(), strict=False)
                    torch.export.save(program, partial)
                got = torch.export.load(partial).module()(*(part.to(place) for part in other)).cpu()
        error = float("nan") if got is None else float((got - want).abs().max())
        if not (got is None or error <= TOLERANCE):
            raise MGRANError(f"{path}: not written: its embeddings are {error:.2g} from the model's")
        os.replace(partial, path)
    finally:
        model.train(training)
        partial.unlink(missing_ok=True)
    return error


class _WithKernels(nn.Module):
    """The model itself, called by crops and region map alone."""

    def __init__(self, model: MGRAN) -> None:
        super().__init__()
        self.model = model

    def forward(self, crops: torch.Tensor, region_map: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.model(crops, region_map=region_map)
        return embeddings


def _people(model: MGRAN, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures of noise and bands of all regions; the last person has an empty map."""
    h, w = model.size
    generator = torch.Generator().manual_seed(count)
    crops = torch.randint(0, 256, (count, h, w, 3), dtype=torch.uint8, generator=generator)
    bands = (torch.arange(h) * (model.layout.regions + 1) // h).to(torch.uint8)
    region_map = bands[None, :, None].repeat(count, 1, w)
    region_map[:, :, : w // 4] = 0
    region_map[-1] = 0
    return crops, region_map


def _any_people() -> dict[str, dict[int, torch.export.Dim]]:
    """Which size both exporters leave open."""
    # torch 2.6 refuses a size without an end: it keeps the largest number for itself.
    people = torch.export.Dim("people", min=1, max=2**31 - 1)
    return {"crops": {0: people}, "region_map": {0: people}}


def _write_onnx(portable: Portable, example: tuple[torch.Tensor, torch.Tensor], path: Path) -> None:
    with _quiet():
        torch.onnx.export(
            portable,
            example,
            path,
            input_names=["crops", "region_map"],
            output_names=["embeddings"],
            dynamic_shapes=_any_people(),
            dynamo=True,
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of their own dependencies' deprecations, and of weights that are nowhere but on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _run_onnx(path: Path, people: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor | None:
    if not importlib.util.find_spec("onnxruntime"):
        return None
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    crops, region_map = people
    (answer,) = session.run(None, {"crops": crops.numpy(), "region_map": region_map.numpy()})
    return torch.from_numpy(answer)
