"""Engines in files: packed weights and plain numbers in safetensors; nothing is unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mgran_fast.engine import cpu
from mgran_fast.engine.fused import Fused
from mgran_fast.engine.program import Convolution, MaxPool, Program, Source
from mgran_fast.engine.windowed import Windowed
from mgran_fast.errors import CheckpointError
from mgran_fast.ops.conv import PackedConv, Tap
from mgran_fast.ops.network import Conv, Pool
from mgran_fast.weights import files

if TYPE_CHECKING:
    from mgran_fast.engine.engine import Engine

_KIND = "mgran_fast.Engine/"
FORMAT = f"{_KIND}2"
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.uint8)}


def is_engine(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it holds an engine, of whatever version; False for what is no file of the kind."""
    try:
        with safe_open(path, framework="pt") as opened:
            return str((opened.metadata() or {}).get("format", "")).startswith(_KIND)
    except (SafetensorError, OSError):
        return False


def pack(executor: Windowed | Fused) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """An executor as plain values and named tensors."""
    if isinstance(executor, Windowed):
        steps, tensors = _pack_windowed(executor.steps)
        return {"kind": "windowed", "steps": steps, "windows": executor.windows}, tensors
    steps, tensors = _pack_program(executor.program, executor.dtype)
    scale, mean, std = executor.normalisation
    return {"kind": "fused", "steps": steps, "normalisation": [scale, list(mean), list(std)]}, tensors


def unpack(
    plain: dict[str, Any], tensors: dict[str, torch.Tensor], dtype: torch.dtype, device: torch.device | str | None
) -> tuple[Windowed | Fused, torch.device]:
    """What :func:`pack` took apart, and where it runs.

    Raises KeyError, ValueError or TypeError where something is missing or wrong.
    """
    place = None if device is None else torch.device(device)
    if plain["kind"] == "windowed":
        if place is not None and place.type != "cpu":
            raise ValueError(f"the engine is one of the CPU; optimize the model for {place.type}")
        return Windowed(_unpack_windowed(plain["steps"], tensors), windows=plain["windows"]), torch.device("cpu")
    if plain["kind"] != "fused":
        raise ValueError(f"there is no executor {plain['kind']!r}")
    place = torch.device("cuda") if place is None else place
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("the engine is one of a GPU, and there is none here")
    if place.type == "cpu" and dtype == torch.float16:
        raise ValueError("float16 is for GPUs: no CPU multiplies it; use bfloat16")
    scale, mean, std = plain["normalisation"]
    steps = _unpack_program(plain["steps"], tensors)
    if place.type == "cpu":
        return Windowed(cpu.float_steps(steps, dtype, scale=scale, mean=mean, std=std)), place
    return Fused(steps, dtype, place, scale=scale, mean=mean, std=std), place


def _pack_program(program: Program, dtype: torch.dtype) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    plain: list[dict[str, Any]] = []
    tensors = {}
    for i, step in enumerate(program.steps):
        if isinstance(step, MaxPool):
            plain.append({"pool": [step.layer, *_plain(step.tap)]})
            continue
        plain.append(
            {
                "taps": [_plain(source.tap) for source in step.sources],
                "layers": [source.layer for source in step.sources],
                "residual": step.residual,
            }
        )
        for j, source in enumerate(step.sources):
            # The first weights stay float32: a normalisation goes into them.
            tensors[f"steps.{i}.weight.{j}"] = source.weight.to(torch.float32 if i == 0 else dtype).contiguous()
        tensors[f"steps.{i}.bias"] = step.bias.clone()
    return plain, tensors


def _unpack_program(plain: list[dict[str, Any]], tensors: dict[str, torch.Tensor]) -> Program:
    steps: list[Convolution | MaxPool] = []
    for i, step in enumerate(plain):
        if "pool" in step:
            layer, *tap = step["pool"]
            steps.append(MaxPool(_layer(layer, i), Tap(*tap)))
            continue
        sources = tuple(
            Source(_layer(layer, i), Tap(*tap), tensors[f"steps.{i}.weight.{j}"].float())
            for j, (layer, tap) in enumerate(zip(step["layers"], step["taps"], strict=True))
        )
        residual = None if step["residual"] is None else _layer(step["residual"], i)
        steps.append(Convolution(sources, tensors[f"steps.{i}.bias"].float(), residual))
    return Program(tuple(steps))


def _pack_windowed(steps: tuple[Conv | Pool, ...]) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    plain: list[dict[str, Any]] = []
    tensors = {}
    for i, step in enumerate(steps):
        if isinstance(step, Pool):
            plain.append({"pool": [step.layer, *_plain(step.tap)]})
            continue
        packed = step.packed
        plain.append(
            {
                "taps": [_plain(tap) for tap in packed.taps],
                "layers": list(step.layers),
                "residual": step.residual,
                "dtype": str(step.dtype).removeprefix("torch."),
                "relu": packed.relu,
            }
        )
        # Unpacked: the order in which the kernels read is free to change.
        for j, weight in enumerate(packed.weights):
            tensors[f"steps.{i}.weight.{j}"] = weight.contiguous()
        tensors[f"steps.{i}.bias"] = packed.bias[: packed.channels].clone()
        if packed.scale is not None:
            tensors[f"steps.{i}.scale"] = packed.scale[: packed.channels].clone()
        if step.residual_scale is not None:
            tensors[f"steps.{i}.residual_scale"] = step.residual_scale[: packed.channels].clone()
    return plain, tensors


def _unpack_windowed(plain: list[dict[str, Any]], tensors: dict[str, torch.Tensor]) -> tuple[Conv | Pool, ...]:
    steps: list[Conv | Pool] = []
    for i, step in enumerate(plain):
        if "pool" in step:
            layer, *tap = step["pool"]
            steps.append(Pool(_layer(layer, i), Tap(*tap)))
            continue
        taps = [Tap(*tap) for tap in step["taps"]]
        weights = [tensors[f"steps.{i}.weight.{j}"] for j in range(len(taps))]
        packed = PackedConv(
            weights, taps, tensors[f"steps.{i}.bias"], scale=tensors.get(f"steps.{i}.scale"), relu=step["relu"]
        )
        layers = tuple(_layer(layer, i) for layer in step["layers"])
        residual = None if step["residual"] is None else _layer(step["residual"], i)
        factor = tensors.get(f"steps.{i}.residual_scale")
        factor = None if factor is None else packed.padded(factor)
        steps.append(Conv(packed, layers, residual, factor, _DTYPES[step["dtype"]]))
    return tuple(steps)


def save(engine: Engine, path: str | os.PathLike[str]) -> None:
    """Write an engine; a reader never sees a half-written file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = engine.state()
    tensors = {key: tensor.contiguous() for key, tensor in state["tensors"].items()}
    with files.replaced(path) as partial:
        save_file(tensors, partial, metadata={"format": FORMAT, "engine": json.dumps(state["plain"])})


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state of an engine in a file. Raises CheckpointError when there is none that we can read."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such engine; Engine.save writes one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path}: no engine: its format is {metadata.get('format')!r}, not {FORMAT!r}")
    try:
        return {"plain": json.loads(metadata["engine"]), "tensors": tensors}
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its description is damaged ({error!r}); take another copy") from None


def _plain(tap: Tap) -> list[int]:
    return [tap.kernel, tap.stride, tap.padding]


def _layer(layer: int, step: int) -> int:
    if not 0 <= layer <= step:
        raise ValueError(f"step {step} reads layer {layer}, which is not made before it")
    return layer
