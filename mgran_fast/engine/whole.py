"""An executor of whole images with a library's convolutions: what the engine's own kernels are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from mgran_fast import ops
from mgran_fast.engine.program import MaxPool, Program, Source
from mgran_fast.mra.convolution import Convolution
from mgran_fast.ops.network import Work


class Whole:
    """Runs a program with the library's convolutions (oneDNN or cuDNN), channels_last, all cells of all images.

    A convolution takes bias, residual and ReLU in (:class:`mgran_fast.mra.convolution.Convolution`).

    Args:
        dtype: float32, bfloat16, or float16 on a GPU.
        scale, mean, std: of :func:`mgran_fast.ops.inputs`.
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
        self.program, self.dtype, self.device = program, dtype, device
        self.normalisation = (scale, mean, std)
        self._layers: dict[int, list[Convolution]] = {}
        # After a step, these layers are read no more.
        self._last: dict[int, int] = {}
        for i, step in enumerate(program.steps):
            if isinstance(step, MaxPool):
                self._last[step.layer] = i
                continue
            first, *shortcut = step.sources
            # The bias comes with the convolution that is last; a shortcut goes before it, as its residual.
            layers = [self._convolution(source, None, "none") for source in shortcut]
            self._layers[i] = [*layers, self._convolution(first, step.bias, "relu")]
            read = [source.layer for source in step.sources]
            self._last.update(dict.fromkeys(read if step.residual is None else [*read, step.residual], i))

    def _convolution(self, source: Source, bias: torch.Tensor | None, activation: str) -> Convolution:
        d, c, k, _ = source.weight.shape
        with torch.device("meta"):
            geometry = nn.Conv2d(c, d, k, source.tap.stride, source.tap.padding, bias=False)
        made = Convolution(geometry, source.weight, bias, activation=activation, dtype=self.dtype)
        return made.to(self.device)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """images [B, 3, H, W], normalised, in ``dtype`` -> features [B, D, h, w]."""
        return self._run({0: images}, 0)

    def _run(self, layers: dict[int, torch.Tensor], first: int) -> torch.Tensor:
        """The features, from the layers that the steps ``first`` and later read."""
        for i in range(first, len(self.program.steps)):
            layers[i + 1] = self._step(i, layers)
            for layer in [layer for layer in layers if self._last.get(layer) == i]:
                del layers[layer]
        return layers[len(self.program.steps)]

    def _step(self, i: int, layers: dict[int, torch.Tensor]) -> torch.Tensor:
        """Layer i + 1."""
        step = self.program.steps[i]
        if isinstance(step, MaxPool):
            return F.max_pool2d(layers[step.layer], step.tap.kernel, step.tap.stride, step.tap.padding)
        residual = None if step.residual is None else layers[step.residual]
        *before, last = self._layers[i]
        for shortcut, source in zip(before, step.sources[1:], strict=True):
            residual = shortcut(layers[source.layer])
        y: torch.Tensor = last(layers[step.sources[0].layer], residual)
        return y

    @contextmanager
    def features(
        self, crops: torch.Tensor, region_map: torch.Tensor, first: int, inputs: int
    ) -> Iterator[torch.Tensor]:
        """Features of the inputs under the regions first, first + 1, ...: as of :class:`Windowed`."""
        regions = first + inputs - 1
        images = ops.inputs(crops, region_map, *self.normalisation, dtype=self.dtype, regions=regions)
        if first:
            images = images[:, first:].contiguous()
        yield self(images.flatten(0, 1).contiguous(memory_format=torch.channels_last))

    def work(self, region_map: torch.Tensor, first: int, inputs: int) -> Work:
        """Multiply-adds for these people: all of them are computed."""
        size = (region_map.shape[1], region_map.shape[2])
        dense = self.program.multiply_adds(size) * len(region_map) * inputs
        return Work(dense, dense)
