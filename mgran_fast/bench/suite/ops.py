"""The ops, each beside the plain ways to do the same, and a compiler's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from mgran_fast import ops
from mgran_fast.bench.case import OURS, Case, Prepared, Setting, Sizes, close, no_grad
from mgran_fast.reference import align as align_reference
from mgran_fast.reference import inputs as inputs_reference
from mgran_fast.reference import pooling as pooling_reference
from mgran_fast.reference import regions as regions_reference

PLAIN, COMPILED = "plain torch", "torch.compile"
#: Channels and grid that a ResNet-50 pools, and what it normalises in its first stage.
FEATURES, EARLY = (2048, (16, 8)), (256, (64, 32))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def cases(sizes: Sizes, *, quick: bool, device: str) -> list[Case]:
    """One race for each op that a model calls."""
    at = {"people": sizes.crops}
    compiled = () if quick else (COMPILED,)
    found = [
        Case("ops", "crops", (OURS, "OpenCV", PLAIN), cut_out(sizes.crops), {**at, "kind": "boxes of a frame"}),
        Case("ops", "regions", (OURS, PLAIN), _regions, at),
        Case("ops", "inputs", (OURS, PLAIN, *compiled), _inputs, at),
        Case("ops", "align", (OURS, "regions, then inputs", PLAIN), _align, at),
    ]
    for precision in DTYPES:
        for name in ("pooling", "pooling and gradient"):
            make = _pooling(precision, gradient=name != "pooling")
            found.append(Case("ops", name, (OURS, PLAIN, "plain torch, product"), make, {**at, "precision": precision}))
        make = _batchnorm(precision)
        found.append(Case("ops", "batch norm, ReLU and gradient", (OURS, "eager", *compiled), make,
                          {"images": _rows(sizes), "precision": precision}))  # fmt: skip
    if device == "cuda":
        found += [Case("ops", "1x1 convolution, bias and ReLU", (OURS, "eager", *compiled), _pointwise,
                       {"images": _rows(sizes), "precision": "bfloat16"})]  # fmt: skip
    return found


def _rows(sizes: Sizes) -> int:
    return max(1, sizes.crops // 2)


def cut_out(people: int) -> Callable[[Setting, Sequence[str]], Prepared]:
    """People of a frame of noise; boxes lie wholly inside of it, at whole pixels."""

    def make(setting: Setting, names: Sequence[str]) -> Prepared:
        size, frame_size = setting.model.size, setting.sizes.frame
        frame, boxes = frame_and_boxes(people, frame_size, setting.device)
        whole = boxes.int().tolist()

        def plain() -> torch.Tensor:
            planes = frame.permute(2, 0, 1)[None].float()
            cut = [planes[:, :, top:bottom, left:right] for left, top, right, bottom in whole]
            resized = [functional.interpolate(one, size, mode="bilinear") for one in cut]
            return torch.cat(resized).round().to(torch.uint8).permute(0, 2, 3, 1)

        ways: dict[str, Callable[[], object]] = {OURS: lambda: ops.crops(frame, boxes, size), PLAIN: plain}
        if "OpenCV" in names:
            ways["OpenCV"] = by_opencv(frame.numpy(), whole, size)
        written = people * size[0] * size[1] * 3
        read = sum(3 * (right - left) * (bottom - top) for left, top, right, bottom in whole)
        # Three linear interpolations a byte, each a difference, a product and a sum.
        return Prepared(ways, close(1), people, 9 * written, written + read)

    return make


def frame_and_boxes(people: int, frame: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A frame uint8 [H, W, 3] of noise, and boxes float32 [N, 4] whose height is 14 to 39 % of it, half as wide."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (*frame, 3), dtype=torch.uint8, generator=generator)
    height = (frame[0] * (0.14 + 0.25 * torch.rand(people, generator=generator))).int()
    extent = torch.stack([height // 2, height], 1)
    room = torch.tensor([frame[1], frame[0]]) - extent
    corner = (torch.rand(people, 2, generator=generator) * room).int()
    return pixels.to(device), torch.cat([corner, corner + extent], 1).float().to(device)


def by_opencv(frame: Any, boxes: list[list[int]], size: tuple[int, int]) -> Callable[[], torch.Tensor]:
    """Box after box by cv2.resize: a frame uint8 [H, W, 3] of NumPy, boxes of whole pixels (x1, y1, x2, y2)."""
    cv2 = importlib.import_module("cv2")
    threads = torch.get_num_threads()

    def run() -> torch.Tensor:
        cv2.setNumThreads(threads)
        out = torch.empty(len(boxes), *size, 3, dtype=torch.uint8)
        for target, (left, top, right, bottom) in zip(out.numpy(), boxes, strict=True):
            cv2.resize(frame[top:bottom, left:right], size[::-1], dst=target, interpolation=cv2.INTER_LINEAR)
        return out

    return run


def _regions(setting: Setting, names: Sequence[str]) -> Prepared:
    people, size, layout = setting.sizes.crops, setting.model.size, setting.model.layout
    _, masks, keypoints = setting.people(people)
    ways = {
        OURS: lambda: ops.regions(masks, keypoints, size, layout),
        PLAIN: lambda: regions_reference.regions(masks, keypoints, size, layout),
    }
    return Prepared(ways, close(0), people, None, 5 * people * size[0] * size[1])


def _inputs(setting: Setting, names: Sequence[str]) -> Prepared:
    people, model = setting.sizes.crops, setting.model
    crops, region_map = setting.aligned(people)
    regions = model.layout.regions
    given = (crops, region_map, model.scale, model.mean, model.std, torch.float32)
    written = ops.inputs(*given, regions=regions)
    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: ops.inputs(*given, regions=regions),
        PLAIN: lambda: inputs_reference.inputs(*given, regions),
    }
    if COMPILED in names:
        torch.compiler.reset()
        compiled = torch.compile(inputs_reference.inputs, dynamic=False)
        ways[COMPILED] = lambda: compiled(*given, regions)
    moved = crops.numel() + region_map.numel() + 4 * written.numel()
    return Prepared(ways, close(1e-5), people, 2 * written.numel(), moved)


def _align(setting: Setting, names: Sequence[str]) -> Prepared:
    people, model = setting.sizes.crops, setting.model
    crops, masks, keypoints = setting.people(people)
    pixels = (model.scale, model.mean, model.std)

    def apart() -> tuple[torch.Tensor, torch.Tensor]:
        region_map = ops.regions(masks, keypoints, model.size, model.layout)
        return ops.inputs(crops, region_map, *pixels, regions=model.layout.regions), region_map

    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: ops.align(crops, masks, keypoints, model.layout, 0.5, *pixels),
        "regions, then inputs": apart,
        PLAIN: lambda: align_reference.align(
            crops, masks, keypoints, model.layout.name, 0.5, 0.3, *pixels, torch.float32
        ),
    }
    # Of each pixel the crop's three bytes, the mask, the map, and three floats of each input.
    moved = people * model.size[0] * model.size[1] * (3 + 4 + 1 + 12 * (1 + model.layout.regions))
    return Prepared(ways, close(1e-5), people, None, moved)


def _pooling(precision: str, *, gradient: bool) -> Callable[[Setting, Sequence[str]], Prepared]:
    def make(setting: Setting, names: Sequence[str]) -> Prepared:
        people, (channels, grid) = setting.sizes.crops, FEATURES
        inputs = 1 + setting.model.layout.regions
        _, region_map = setting.aligned(people)
        region = torch.arange(inputs, device=setting.device).repeat(people)
        features = _drawn((people * inputs, channels, *grid), precision, setting.device)
        grad = torch.ones(people * inputs, channels, device=setting.device, dtype=features.dtype)
        ways: dict[str, Callable[[], torch.Tensor]] = {
            OURS: lambda: ops.pooling(features, region_map, region, "mean"),
            PLAIN: lambda: pooling_reference.pooling(features, region_map, region, "mean", 3.0),
            "plain torch, product": lambda: _product(features, region_map, region),
        }
        size = features.element_size() * features.numel()
        if not gradient:
            quiet = {name: no_grad(way) for name, way in ways.items()}
            return Prepared(quiet, close(0.02), people, 2 * features.numel(), size)
        features.requires_grad_()
        both = {name: _both(way, [features], grad) for name, way in ways.items()}
        return Prepared(both, close(0.02), people, 4 * features.numel(), 2 * size)

    return make


def _product(features: torch.Tensor, region_map: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """One batched matrix product over the cells, channels innermost."""
    weights = pooling_reference.shares(region_map, region, *features.shape[2:]).flatten(1)
    weights = (weights / weights.sum(1, keepdim=True).clamp(min=1e-12)).to(features.dtype)
    return torch.bmm(weights[:, None], features.flatten(2).transpose(1, 2))[:, 0]


def _batchnorm(precision: str) -> Callable[[Setting, Sequence[str]], Prepared]:
    def make(setting: Setting, names: Sequence[str]) -> Prepared:
        rows, (channels, grid) = _rows(setting.sizes), EARLY
        x, other, grad = (_drawn((rows, channels, *grid), precision, setting.device) for _ in range(3))
        x.requires_grad_()
        other.requires_grad_()
        weight, bias = (fill(channels, device=setting.device, requires_grad=True) for fill in (torch.ones, torch.zeros))
        mean, var = torch.zeros(channels, device=setting.device), torch.ones(channels, device=setting.device)

        def eager() -> torch.Tensor:
            return functional.relu(functional.batch_norm(x, None, None, weight, bias, training=True) + other)

        ways = {
            OURS: lambda: ops.batchnorm(x, weight, bias, mean, var, other, training=True, relu=True),
            "eager": eager,
        }
        if COMPILED in names:
            torch.compiler.reset()
            ways[COMPILED] = torch.compile(eager)
        both = {name: _both(way, [x, other], grad) for name, way in ways.items()}
        moved = x.element_size() * x.numel()
        # Forward: x twice, residual, result. Backward: gradient and x twice, what passed, two gradients.
        return Prepared(both, close(0.15 if precision == "bfloat16" else 1e-3), rows, 20 * x.numel(), 10 * moved)

    return make


def _pointwise(setting: Setting, names: Sequence[str]) -> Prepared:
    rows, (channels, grid) = _rows(setting.sizes), EARLY
    x = _drawn((rows, channels, *grid), "bfloat16", setting.device)
    weight = _drawn((channels // 4, channels, 1, 1), "bfloat16", setting.device) / channels**0.5
    bias = torch.zeros(channels // 4, device=setting.device)

    def eager() -> torch.Tensor:
        return functional.relu(functional.conv2d(x, weight, bias.to(x.dtype)))

    ways = {OURS: no_grad(lambda: ops.pointwise(x, weight[:, :, 0, 0], bias, relu=True)), "eager": no_grad(eager)}
    if COMPILED in names:
        torch.compiler.reset()
        ways[COMPILED] = no_grad(torch.compile(eager))
    written = x.numel() // 4
    return Prepared(ways, close(0.1), rows, 2 * x.numel() * channels // 4, 2 * (x.numel() + written))


def _both(way: Callable[[], torch.Tensor], wanted: list[torch.Tensor], grad: torch.Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(way(), wanted, grad)


def _drawn(shape: tuple[int, ...], precision: str, device: torch.device) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return made.to(device, DTYPES[precision]).contiguous(memory_format=torch.channels_last)
