"""The GPU's executor: whole images, the first stage and the 1x1 convolutions by our kernels, the rest by cuDNN."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from mgran_fast import ops
from mgran_fast.engine.cpu import normalising
from mgran_fast.engine.program import Convolution, MaxPool, Program
from mgran_fast.engine.whole import Whole
from mgran_fast.ops import backend
from mgran_fast.ops.conv import Tap
from mgran_fast.ops.pointwise import KERNEL_DTYPES
from mgran_fast.reference import stem as reference

# What Triton knows of a size is whether 16 divides it: then channels are loaded 16 bytes at a time.
_CHANNELS = 16
_STEM, _POOL = Tap(reference.KERNEL, reference.STRIDE, reference.PADDING), Tap(3, 2, 1)


class Product(NamedTuple):
    """A step that is a matrix product, or two with the same sums: weights [D, C], bias float32 [D]."""

    weight: torch.Tensor
    bias: torch.Tensor
    shortcut_weight: torch.Tensor | None
    stride: int


class Fused(Whole):
    """Runs a program in float16 or bfloat16 with as few launches as there are convolutions.

    * Aligned inputs, first convolution and max pooling are ``ops.stem``: four launches, no library's convolution of
      three channels, and no normalised input in memory.
    * 1x1 convolutions are ``ops.pointwise`` where the table of tiles says that it was faster than cuDNN; a block's
      shortcut then comes with its last convolution, as a second product.
    * All others are cuDNN's convolutions with bias and ReLU.

    In float32, and where Triton or a GPU of compute capability 8.0 is missing, it is a :class:`Whole`.
    """

    def __init__(
        self,
        program: Program,
        dtype: torch.dtype,
        device: torch.device,
        *,
        scale: float,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__(program, dtype, device, scale=scale, mean=mean, std=std)
        self._stem: tuple[torch.Tensor, torch.Tensor] | None = None
        self._products: dict[int, Product] = {}
        self._faster = _judge(device)
        if dtype not in KERNEL_DTYPES or self._faster is None:
            return
        first, second = program.steps[:2]
        if isinstance(first, Convolution) and first.sources[0].tap == _STEM and second == MaxPool(1, _POOL):
            weight = normalising(first.sources[0].weight.double(), scale, mean, std)
            self._stem = (reference.pack(weight).to(device, dtype), first.bias.to(device))
            del self._layers[0]
        for i, step in enumerate(program.steps):
            if not isinstance(step, Convolution) or not _is_product(step):
                continue
            rest = step.sources[1:]
            flat = [source.weight.flatten(1).to(device, dtype) for source in step.sources]
            self._products[i] = Product(
                flat[0], step.bias.to(device), flat[1] if rest else None, rest[0].tap.stride if rest else 1
            )

    def _step(self, i: int, layers: dict[int, torch.Tensor]) -> torch.Tensor:
        step, product = self.program.steps[i], self._products.get(i)
        if product is None or not isinstance(step, Convolution):
            return super()._step(i, layers)
        main, *rest = step.sources
        x = layers[main.layer]
        residual = None if step.residual is None else layers[step.residual]
        assert self._faster is not None
        shortcut = layers[rest[0].layer] if rest else None
        second = 0 if shortcut is None else shortcut.shape[1]
        if not self._faster(x, len(product.weight), residual is not None, second):
            return super()._step(i, layers)
        return ops.pointwise(
            x, product.weight, product.bias, residual, shortcut, product.shortcut_weight, stride=product.stride
        )

    @contextmanager
    def features(
        self, crops: torch.Tensor, region_map: torch.Tensor, first: int, inputs: int
    ) -> Iterator[torch.Tensor]:
        """Features of the inputs under the regions first, first + 1, ...: as of :class:`Windowed`."""
        if self._stem is None:
            with super().features(crops, region_map, first, inputs) as features:
                yield features
        else:
            yield self._run({2: ops.stem(crops, region_map, *self._stem, first=first, inputs=inputs)}, 2)


def _is_product(step: Convolution) -> bool:
    main, *rest = step.sources
    pointed = all(source.tap.kernel == 1 and source.tap.padding == 0 for source in step.sources)
    wide = all(size % _CHANNELS == 0 for source in step.sources for size in source.weight.shape[:2])
    return pointed and wide and main.tap.stride == 1 and (not rest or step.residual is None)


Judge = Callable[[torch.Tensor, int, bool, int], bool]


def _judge(device: torch.device) -> Judge | None:
    """What tells of (x, outs, residual, shortcut) whether our product is faster than cuDNN's; None: it never runs."""
    if device.type != "cuda":
        # The reference, for tests: it answers for every product.
        return lambda x, outs, residual, shortcut: True
    module = None if backend.requested() == "reference" else backend.native("pointwise", device.type)
    if module is None or backend.native("stem", device.type) is None or not module.runs_on(device):
        return None
    judge: Judge = module.faster
    return judge
