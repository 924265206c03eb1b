"""What one forward pass costs a GPU, on paper: launches, bytes and operations. Nothing here is measured.

The real code runs, on fake tensors: they have shapes, dtypes and a CUDA device, and no memory, so that no GPU is
needed. :class:`Counter` sees every operator that they meet on the way from crops and region map to embeddings.

Assumed:

* A launch reads each of its tensors once from device memory and writes its results there. That counts too much where a
  cache still holds what the last kernel wrote, where a strided convolution skips cells, and where pooling skips the
  cells outside of a region. It counts too little where a kernel reads a tensor again after it has left the cache.
* An operator of torch's is one kernel; a convolution with a bias that is not fused is two.
* In the engine all 1x1 convolutions that can be ``ops.pointwise`` are. Those that its table gives to cuDNN are one
  launch as well, with the same tensors.
* A fused convolution of cuDNN's is one kernel with bias, residual and ReLU, whatever this machine has.

Not counted: the copies into and out of a CUDA graph, what cuDNN adds to a convolution (clearing memory, changing the
layout, sums in two passes), the operations of anything but convolutions, and what comes before: masks, keypoints and
the region map. A profile on an H200 showed 85 events for the engine (8 people, bfloat16, ResNet-50, 256x128; with
about 6 copies and 5 memsets) and 232 for the eager model in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from mgran_fast import ops
from mgran_fast.engine.engine import Engine
from mgran_fast.engine.fused import Fused
from mgran_fast.engine.optimize import branches
from mgran_fast.engine.program import Source, program
from mgran_fast.ma import concatenate
from mgran_fast.model import MGRAN
from mgran_fast.mra.convolution import _CUDNN_CHANNELS, Convolution
from mgran_fast.reference import stem

#: What can be counted. In the shape crop the frames of the regions differ, and so do their launches.
SHAPES = ("full", "single")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# Any index will do: fake tensors never reach the device.
_DEVICE = torch.device("cuda:0")


class Part(NamedTuple):
    """An operator's launches, the bytes that they read and write, and 2 x its multiply-adds."""

    name: str
    launches: int
    bytes: int
    operations: int


class Cost(NamedTuple):
    """Of one forward pass whose trunk computes in ``dtype``, operator after operator."""

    dtype: torch.dtype
    parts: tuple[Part, ...]

    @property
    def launches(self) -> int:
        return sum(part.launches for part in self.parts)

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def operations(self) -> int:
        return sum(part.operations for part in self.parts)


class Gpu(NamedTuple):
    """From its data sheet: bandwidth in bytes a second, dense tensor cores in operations a second, by dtype.

    The rate of float32 is TF32's, which torch allows cuDNN's convolutions unless it is told otherwise.
    """

    name: str
    bandwidth: float
    rates: dict[torch.dtype, float]

    def floor(self, cost: Cost) -> float:
        """Seconds: the larger of operations / rate and bytes / bandwidth."""
        return max(cost.operations / self.rates[cost.dtype], cost.bytes / self.bandwidth)


def _rates(half: float, single: float) -> dict[torch.dtype, float]:
    return {torch.bfloat16: half, torch.float16: half, torch.float32: single}


#: The SXM cards with 80 GB.
GPUS = (Gpu("A100", 2.04e12, _rates(312e12, 156e12)), Gpu("H100", 3.35e12, _rates(989e12, 495e12)))


# --- counting ---------------------------------------------------------------------------------------------------------

# No views, and no kernels either: they only reserve memory or rename it.
_FREE = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh",
         "detach", "_unsafe_view"}  # fmt: skip


class Counter(TorchDispatchMode):
    """Within it every operator that would launch a kernel adds to :attr:`parts`."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.parts: list[Part] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        written = size_of(result)
        if not func.is_view and name not in _FREE and written:
            launches, operations, more = 1, 0, 0
            if func.namespace == "mgran_fast":
                launches, operations, more = _ours(name, args, result)
            elif func.overloadpacket in flop_registry:
                operations = flop_registry[func.overloadpacket](*args, **kwargs, out_val=result)
                if name == "convolution" and args[2] is not None:
                    # The bias is added to the finished sums, by a kernel of its own.
                    launches, more = 2, 2 * written
            self.parts.append(Part(name, launches, size_of((args, kwargs)) + written + more, operations))
        return result


def size_of(tree: Any) -> int:
    """Bytes of the tensors in any tuples, lists and dictionaries; what a tensor repeats (stride 0) counts once."""
    return sum(
        leaf.element_size() * math.prod(n for n, step in zip(leaf.shape, leaf.stride(), strict=True) if step or not n)
        for leaf in tree_leaves(tree)
        if isinstance(leaf, torch.Tensor)
    )


def _ours(name: str, args: tuple[Any, ...], result: torch.Tensor) -> tuple[int, int, int]:
    """Of an op of ours: launches on a GPU, operations, and the bytes that come on top of arguments and result.

    Those are what one of its kernels writes for a later one, which reads it, and what two of them read.
    """
    if name == "pointwise":
        return 1, 2 * result.numel() * sum(weight.shape[1] for weight in (args[1], args[5]) if weight is not None), 0
    if name == "inputs":
        # csrc/cuda/inputs.cu: find_empty reads the map first, all of it at most, and keeps an int32 a person.
        crops, region_map = args[:2]
        return 2, 0, size_of(region_map) + 2 * 4 * len(crops)
    if name == "stem":
        # kernels/stem.py: _seen reads the map first and keeps an int32 a person, _pack writes the inputs with a border
        # and rows of an even number of pixels, _convolve the convolution's result, _largest pools it.
        people, height, width = args[1].shape
        images, outs = result.shape[:2]
        packed = (height + 2 * stem.PADDING) * 2 * ((width + stem.WIDE + 1) // 2) * stem.CHANNELS
        made = ((height - 1) // stem.STRIDE + 1) * ((width - 1) // stem.STRIDE + 1) * outs
        between = images * (packed + made) * result.element_size() + 4 * people
        # Of the trunk's convolution; the kernel multiplies a fourth channel and an eighth column as well.
        return 4, 2 * images * made * stem.KERNEL**2 * 3, size_of(args[1]) + 2 * between
    if name == "pooling":
        # kernels/pooling.py: float32 shares of the cells, then the sums; both read the rows' regions.
        rows, _, height, width = args[0].shape
        return 2, 0, size_of(args[2]) + 2 * 4 * rows * height * width
    raise NotImplementedError(f"the cost of mgran_fast.{name} is not known")


# --- the contestants --------------------------------------------------------------------------------------------------


class _Layer(Convolution):
    """A convolution of the GPU's engine, counted as what cuDNN does there."""

    counter: Counter

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if self.activation != "relu" or any(n % _CUDNN_CHANNELS for n in self.weight.shape[:2]):
            return super().forward(x, residual)
        y = nn.functional.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        # In the same launch.
        self.counter.parts.append(Part("convolution", 0, size_of((self.bias, residual)), 0))
        return y


class _OnPaper(Fused):
    """The GPU's executor with fake weights on a GPU that need not be there."""

    def __init__(self, model: MGRAN, dtype: torch.dtype, counter: Counter) -> None:
        self.counter = counter
        # Made for the CPU, which takes every product and asks no driver, and moved.
        cpu = torch.device("cpu")
        super().__init__(program(model.ma.trunk), dtype, cpu, scale=model.scale, mean=model.mean, std=model.std)
        self.device = _DEVICE
        made = (self._stem, self._products)
        self._stem, self._products = tree_map_only(torch.Tensor, lambda tensor: tensor.to(_DEVICE), made)

    def _convolution(self, source: Source, bias: torch.Tensor | None, activation: str) -> Convolution:
        d, c, k, _ = source.weight.shape
        geometry = nn.Conv2d(c, d, k, source.tap.stride, source.tap.padding, bias=False, device="meta")
        layer = _Layer(geometry, source.weight, bias, activation=activation, dtype=self.dtype).to(_DEVICE)
        layer.counter = self.counter
        return layer


def costs(
    people: int = 8,
    size: tuple[int, int] = (256, 128),
    trunk: str = "resnet50",
    *,
    last_stride: int = 1,
    shape: str = "full",
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Cost]:
    """One pass from crops and region map to embeddings, of ``people`` at once, in three ways.

    * "four eager float32 calls": each input of a person in a call of the trunk, as published; the whole person and
      three whole frames of regions, whatever the shape.
    * "eager, one batch": the model, its trunk in ``dtype``.
    * "engine": of :func:`mgran_fast.optimize` on a GPU, in ``dtype``. It runs at most 32 people at once, and as many
      as the next power of two.

    Args:
        size: (H, W) of a crop in pixels.
        trunk, last_stride: of :class:`mgran_fast.MGRAN`.
        shape: one of :data:`SHAPES`.
        dtype: one of :data:`DTYPES`.

    Raises:
        ValueError: a shape, dtype, trunk or number that cannot be counted.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, not {shape!r}")
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype}")
    if people < 1 or min(size) < 1:
        raise ValueError(f"there must be people and pixels to count: {people} people, {size[0]} x {size[1]}")
    # On the meta device, where nothing is initialised. The second one's trunk computes in ``dtype``.
    with torch.device("meta"):
        model, other = (MGRAN(trunk=trunk, last_stride=last_stride, shape=shape, size=size).eval() for _ in range(2))
    ma, neck = model.ma, model.ma.neck
    four, batch, fused = Counter(), Counter(), Counter()
    with torch.no_grad(), FakeTensorMode():
        _pretend(model, torch.float32)
        _pretend(other, torch.float32)
        _pretend(other.ma.trunk, dtype)
        crops = torch.empty((people, *size, 3), dtype=torch.uint8, device=_DEVICE)
        region_map = torch.empty((people, *size), dtype=torch.uint8, device=_DEVICE)
        normalisation = (model.scale, model.mean, model.std)
        with four:
            images = ops.inputs(crops, region_map, *normalisation, regions=model.layout.regions)
            calls = (
                ops.pooling(ma.trunk(images[:, i].contiguous()), region_map, region.repeat(people))
                for i, region in enumerate(ma.region)
            )
            features, visible = torch.stack(list(calls), 1), ops.visibility(region_map, model.layout)
            concatenate(neck(features, visible), visible)
        with batch:
            # As MGRAN.inputs, which makes float32 alone.
            regions = model.layout.regions if shape == "full" else 0
            output = other.ma(ops.inputs(crops, region_map, *normalisation, dtype, regions=regions), region_map)
            concatenate(output.embeddings, output.visible)
        engine = Engine(
            model.alignment, model.config, str(dtype).removeprefix("torch."), _OnPaper(model, dtype, fused),
            (neck.running_mean, neck.weight), branches(model), _DEVICE, None, graphs=False,
        )  # fmt: skip
        with fused:
            engine._embed(crops, region_map)
    return {
        "four eager float32 calls": Cost(torch.float32, tuple(four.parts)),
        "eager, one batch": Cost(dtype, tuple(batch.parts)),
        "engine": Cost(dtype, tuple(fused.parts)),
    }


def _pretend(module: nn.Module, dtype: torch.dtype) -> None:
    """Give a module on the meta device fake tensors on a GPU; Module.to refuses to."""
    for part in module.modules():
        kept: Iterable[dict[str, Any]] = (part._parameters, part._buffers)
        for own in kept:
            for name, value in own.items():
                if value is not None:
                    of = dtype if value.is_floating_point() else value.dtype
                    own[name] = torch.empty_strided(value.shape, value.stride(), dtype=of, device=_DEVICE)
