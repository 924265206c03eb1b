"""MA: the engine against general engines in the same precision, from crops and region maps to embeddings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from mgran_fast import ops
from mgran_fast.bench import peers
from mgran_fast.bench.case import OURS, Case, Prepared, Setting, Sizes, best_precision, same_direction

FOUR, EAGER, COMPILED = "four eager float32 calls", "eager", "torch.compile"
ONNX, OPENVINO, OPENVINO_INT8 = "ONNX Runtime", "OpenVINO", "OpenVINO, int8"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: What OpenVINO calls them.
HINTS = {"float32": "f32", "bfloat16": "bf16"}
#: Why torch takes no part in bfloat16 on a processor without instructions for it.
EMULATED = "this processor has no instructions for bfloat16: torch takes many times as long as in float32"
#: What int8 and 16 bits may turn a vector by.
COSINE = {"float32": 0.9999, "bfloat16": 0.99, "float16": 0.99, "int8": 0.9}


def cases(sizes: Sizes, *, quick: bool, device: str) -> list[Case]:
    """Each precision, and one person alone."""
    found = []
    emulated = best_precision(device) == "float32"
    for precision in ("float32", "bfloat16", "float16" if device == "cuda" else "int8"):
        without = dict.fromkeys((EAGER, COMPILED), EMULATED) if precision == "bfloat16" and emulated else {}
        for people in sorted({1, sizes.people}):
            if people == 1 and (precision != "bfloat16" or quick):
                continue
            found.append(
                Case("MA", "embedding", contestants(precision, quick=quick), engines(people, precision),
                     {"people": people, "precision": precision}, rounds=(1, 2, 5) if quick else (1, 5, 9),
                     without=without)
            )  # fmt: skip
    return found


def contestants(precision: str, *, quick: bool) -> tuple[str, ...]:
    """Who computes in this precision; a first look goes without those that take long to be made."""
    if precision == "int8":
        return (OURS, FOUR) if quick else (OURS, FOUR, ONNX, OPENVINO_INT8)
    if quick:
        return (OURS, FOUR, EAGER)
    general = (OPENVINO,) if precision == "bfloat16" else (ONNX, OPENVINO) if precision == "float32" else ()
    return (OURS, FOUR, EAGER, COMPILED, *general)


def engines(people: int, precision: str) -> Callable[[Setting, Sequence[str]], Prepared]:
    """Peers get our own front and end around the network."""

    def make(setting: Setting, names: Sequence[str]) -> Prepared:
        model, threads = setting.model, torch.get_num_threads()
        crops, region_map = setting.aligned(people)
        engine = setting.engine(precision)
        around = functools.partial(peers.around, model, crops=crops, region_map=region_map)
        ways: dict[str, Callable[[], torch.Tensor]] = {OURS: lambda: engine(crops, region_map=region_map)}
        if FOUR in names:
            ways[FOUR] = peers.four_calls(model, crops, region_map)
        dtype = DTYPES.get(precision, torch.float32)
        if EAGER in names:
            ways[EAGER] = around(peers.eager(model, dtype), dtype)
        if COMPILED in names:
            ways[COMPILED] = around(peers.compiled(model, dtype), dtype)
        images = functools.partial(images_of, setting)
        onnx = functools.partial(peers.export, model, images(people), setting.folder)
        f32 = torch.float32
        if ONNX in names:
            path = onnx() if precision == "float32" else peers.quantized(onnx(), _samples(setting, people))
            ways[ONNX] = around(peers.onnx_runtime(path, threads), f32)
        if OPENVINO in names:
            ways[OPENVINO] = around(peers.openvino(onnx(), threads, HINTS[precision]), f32)
        if OPENVINO_INT8 in names:
            # What is not quantised in bfloat16: the faster of its two settings.
            ways[OPENVINO_INT8] = around(peers.openvino(onnx(), threads, "bf16", _samples(setting, people)), f32)
        work = engine.work(crops, region_map=region_map)
        return Prepared(ways, same_direction(COSINE[precision]), people, 2.0 * work.computed,
                        _bytes(setting, people, precision))  # fmt: skip

    return make


def images_of(setting: Setting, people: int, first: int = 0) -> torch.Tensor:
    """What the network sees of some people, float32 [(1 + R) N, 3, H, W]."""
    crops, region_map = (one[first:] for one in setting.aligned(first + people))
    model = setting.model
    pixels = (model.scale, model.mean, model.std)
    return ops.inputs(crops, region_map, *pixels, regions=model.layout.regions).flatten(0, 1).contiguous()


def _samples(setting: Setting, people: int) -> list[np.ndarray[Any, Any]]:
    """What quantisers calibrate on."""
    return [images_of(setting, people, first).numpy() for first in range(0, max(8, people), people)]


def _bytes(setting: Setting, people: int, precision: str) -> float:
    """Crops, weights and embeddings, each once: the least that there is to move, were all caches large enough."""
    size = {"float32": 4, "int8": 1}.get(precision, 2)
    weights = sum(parameter.numel() for parameter in setting.model.ma.trunk.parameters())
    height, width = setting.model.size
    return size * weights + people * (4 * height * width + 4 * setting.model.dim)
