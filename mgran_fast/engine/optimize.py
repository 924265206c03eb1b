"""``optimize``: a trained model -> an engine that gives the same embeddings, faster; ``calibrate`` for int8."""

from __future__ import annotations

from typing import Any

import torch

from mgran_fast.engine import cpu
from mgran_fast.engine.calibration import Calibration, Ranges
from mgran_fast.engine.engine import PRECISIONS, Branch, Engine
from mgran_fast.engine.fused import Fused
from mgran_fast.engine.program import Convolution, Program, program
from mgran_fast.engine.windowed import Windowed
from mgran_fast.model import MGRAN, Encoding
from mgran_fast.ops.network import Network


def optimize(
    model: MGRAN,
    dtype: torch.dtype | str = torch.bfloat16,
    device: torch.device | str | None = None,
    *,
    calibration: Calibration | None = None,
    windows: bool = True,
    graphs: bool = True,
) -> Engine:
    """Turn a trained model into an engine; the model is not changed, and nothing is compiled.

    Batch norm and the normalisation of pixels are folded into the convolutions, residual sums and ReLU are done where a
    convolution's sums still are in registers. On the CPU only those cells are computed that differ from what an empty
    image or the whole person gives, and that what is pooled depends on; on a GPU one CUDA graph holds all that follows
    the region map.

    Args:
        dtype: float32, bfloat16, float16 (on a GPU) or "int8" (on the CPU).
        device: the model's by default.
        calibration: for int8, of :func:`calibrate`.
        windows: on the CPU; False computes whole images: the same embeddings, slower.
        graphs: on a GPU; False launches kernel after kernel: the same embeddings, slower.

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
    executor: Windowed | Fused
    if calibration is not None:
        executor = Windowed(
            cpu.byte_steps(steps, calibration.scales, calibration.means, **normalisation), windows=windows
        )
    elif device.type == "cpu":
        executor = Windowed(cpu.float_steps(steps, PRECISIONS[precision], **normalisation), windows=windows)
    else:
        executor = Fused(steps, PRECISIONS[precision], device, **normalisation)
    mean, gain = model.ma.neck.folded()
    shift = mean.cpu() + (0.0 if calibration is None else calibration.shift)
    moved = (shift.to(device), gain.to(device))
    return Engine(
        model.alignment, model.config, precision, executor, moved, branches(model), device, calibration, graphs=graphs
    )


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
    windowed = exact.executor
    assert isinstance(windowed, Windowed)
    crops, region_map = model.alignment.region_map(crops, masks, keypoints, region_map)
    if len(crops) == 0:
        raise ValueError("a calibration needs crops, and there are none")
    crops, region_map = crops.cpu(), region_map.cpu()
    ranges = Ranges()
    for i in range(0, len(crops), 2):
        for branch, images, one_map in exact._images(crops[i : i + 2], region_map[i : i + 2]):
            network: Network = windowed.network(branch.size)
            ranges.add(network.computed(images, one_map, branch.first, branch.inputs))
    for branch in exact.branches:
        ranges.add(windowed.network(branch.size).background())
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


__all__ = ["Calibration", "branches", "calibrate", "optimize"]
