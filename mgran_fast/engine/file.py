"""Engines in files: packed weights and plain numbers in safetensors; nothing is unpickled."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mgran_fast.errors import CheckpointError
from mgran_fast.ops.conv import PackedConv, Tap
from mgran_fast.ops.network import Conv, Pool

if TYPE_CHECKING:
    from mgran_fast.engine.engine import Engine

FORMAT = "mgran_fast.Engine/1"
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.bfloat16, torch.uint8)}


def pack(steps: tuple[Conv | Pool, ...]) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """Steps as plain values and named tensors."""
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


def unpack(plain: list[dict[str, Any]], tensors: dict[str, torch.Tensor]) -> tuple[Conv | Pool, ...]:
    """What :func:`pack` took apart. Raises KeyError, ValueError or TypeError where something is missing or wrong."""
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
    """Write an engine of the CPU; a reader never sees a half-written file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = engine.state()
    tensors = {key: tensor.contiguous() for key, tensor in state["tensors"].items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata={"format": FORMAT, "engine": json.dumps(state["plain"])})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


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
