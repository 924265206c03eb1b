"""``network``: a whole trunk over aligned inputs, computed where they are wanted, in one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from mgran_fast.ops import backend, checks
from mgran_fast.ops.conv import PackedConv, Tap
from mgran_fast.reference import network as reference

# As in csrc/abi.h and csrc/conv.h.
_DTYPES = {torch.float32: 0, torch.bfloat16: 2, torch.uint8: 3}


@dataclass(frozen=True)
class Conv:
    """A step: the layers that a packed convolution reads, and what is added.

    Attributes:
        residual: a layer, or None.
        residual_scale: float32 [D], what it is multiplied by, padded by ``packed``; None for 1.
        dtype: of the layer that the step makes: the sources', or float32.
    """

    packed: PackedConv
    layers: tuple[int, ...]
    residual: int | None = None
    residual_scale: torch.Tensor | None = None
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Pool:
    """A step: the maximum over the cells of a kernel."""

    layer: int
    tap: Tap


class Work(NamedTuple):
    """Multiply-adds of a batch: those that are computed, and those of whole images."""

    computed: int
    dense: int

    @property
    def skipped(self) -> float:
        """The share of the dense multiply-adds that is not computed."""
        return 1 - self.computed / self.dense if self.dense else 0.0


class Network:
    """A trunk for inputs of one size, on the CPU.

    Layer 0 is the input, [H, W, 4]: red, green and blue as bytes 0 to 255, and 255 for every pixel of the region
    (which carries the mean that a normalisation subtracts); 0 outside. Step i makes layer i + 1, every layer but the
    input follows a ReLU, and the last one is float32. Of each layer and image only some cells are computed: those that
    the image's region and another one can influence, and that its pooled cells depend on. What the region cannot
    influence is as for an empty image, computed once here; what no other region can influence is as for the whole
    person, if that is among the inputs.

    A cell is the same wherever it is computed, so the features that are pooled equal those of whole images to the bit.

    Args:
        steps: the convolutions, all in one precision, and max pooling.
        size: (H, W) of the inputs.
    """

    def __init__(self, steps: Sequence[Conv | Pool], size: tuple[int, int]) -> None:
        self.steps, self.size = tuple(steps), size
        first = next(step for step in self.steps if isinstance(step, Conv))
        #: (h, w, channels) of every layer, and their dtypes.
        self.layers: list[tuple[int, int, int]] = [(*size, 4)]
        self.dtypes: list[torch.dtype] = [first.packed.dtype]
        for step in self.steps:
            if isinstance(step, Conv):
                h, w, _ = self.layers[step.layers[0]]
                self.layers.append((*step.packed.taps[0].grid((h, w)), step.packed.channels))
                self.dtypes.append(step.dtype)
            else:
                h, w, channels = self.layers[step.layer]
                self.layers.append((*step.tap.grid((h, w)), channels))
                self.dtypes.append(self.dtypes[step.layer])
            if min(self.layers[-1]) < 1:
                raise ValueError(f"inputs of {size[0]} x {size[1]} pixels are too small for this trunk")
        if self.dtypes[-1] != torch.float32:
            raise ValueError(f"the last layer must be float32, not {self.dtypes[-1]}")
        self._rooms: list[torch.Tensor] = []
        self._backgrounds: list[torch.Tensor] = []
        module = backend.native("network", "cpu")
        self._native: Any = None if module is None else self._build(module)

    def _build(self, module: Any) -> Any:
        made = module.Network(self._layer(0))
        for i, step in enumerate(self.steps):
            if isinstance(step, Pool):
                made.pool(self._layer(i + 1), (step.layer, _geometry(step.tap)))
                continue
            packed = step.packed
            sources = [(layer, _geometry(tap)) for layer, tap in zip(step.layers, packed.taps, strict=True)]
            residual = -1 if step.residual is None else step.residual
            scale = 0 if packed.scale is None else packed.scale.data_ptr()
            factor = 0 if step.residual_scale is None else step.residual_scale.data_ptr()
            addresses = (packed.packed.data_ptr(), scale, packed.bias.data_ptr(), factor)
            made.convolution(self._layer(i + 1), (sources, residual, *addresses))
        # What every layer is for an empty image.
        nothing = torch.zeros((1, *self.size, 3), dtype=torch.uint8)
        layers = list(
            self._run_native(module, made, nothing, nothing[..., 0].contiguous(), 1, 1, whole=True, keep=True)
        )
        self._backgrounds = [layer.view(shape).clone() for layer, shape in zip(layers, self.layers[:-1], strict=True)]
        for i, ground in enumerate(self._backgrounds):
            if i:
                made.background(i, ground.data_ptr())
        return made

    def _layer(self, i: int) -> tuple[tuple[int, int, int], int, int]:
        return self.layers[i], _DTYPES[self.dtypes[i]], 0

    def work(self, region_map: torch.Tensor, first: int = 0, inputs: int = 4, *, windows: bool = True) -> Work:
        """How much is computed for these people: arguments as for :meth:`features`."""
        self._check(region_map)
        cells = [h * w for h, w, _ in self.layers]
        dense = sum(
            cells[i + 1] * step.packed.channels * tap.kernel**2 * channels
            for i, step in enumerate(self.steps)
            if isinstance(step, Conv)
            for tap, channels in zip(step.packed.taps, step.packed.inside, strict=True)
        ) * (len(region_map) * inputs)
        if self._native is None or not windows:
            return Work(dense, dense)
        module = backend.extension()
        plan = self._plan(module, self._native, region_map.contiguous(), first, inputs, whole=False, keep=False)
        return Work(plan.multiply_adds, dense)

    @contextmanager
    def features(
        self, crops: torch.Tensor, region_map: torch.Tensor, first: int = 0, inputs: int = 4, *, windows: bool = True
    ) -> Iterator[torch.Tensor]:
        """The last layer, float32 [N * inputs, D, h, w], channels_last; its memory is lent until the context ends.

        Only the cells that pooling counts mean anything (all of them without ``windows``). Several threads may be in
        here at once.

        Args:
            crops: uint8 [N, H, W, 3] of ``size``. region_map: uint8 [N, H, W].
            first, inputs: the inputs of each person are under the regions first to first + inputs - 1, 0 being the
                whole person, or the whole crop of a person whose map is empty.
            windows: False computes whole images.

        Raises:
            TypeError, ValueError: a wrong dtype, shape or device.
        """
        self._check(region_map)
        checks.tensor("crops", crops, (len(region_map), *self.size, 3), (torch.uint8,))
        if crops.device.type != "cpu" or region_map.device.type != "cpu":
            raise ValueError("crops and region_map must be on the CPU")
        if first < 0 or inputs < 1:
            raise ValueError(f"regions {first} to {first + inputs - 1} are none")
        crops, region_map = crops.contiguous(), region_map.contiguous()
        h, w, channels = self.layers[-1]
        images = len(crops) * inputs
        if self._native is None:
            *_, last = self._run_reference(reference.packed_inputs(crops, region_map, first, inputs, self.dtypes[0]))
            yield last.permute(0, 3, 1, 2)
            return
        module = backend.extension()
        plan = self._plan(module, self._native, region_map, first, inputs, whole=not windows, keep=False)
        end = plan.bytes + images * h * w * channels * 4
        room = self._take(end)
        try:
            out = room[plan.bytes : end].view(torch.float32).view(images, h, w, channels)
            self._execute(plan, self._native, crops, region_map, room, out)
            yield out.permute(0, 3, 1, 2)
        finally:
            self._rooms.append(room)

    def computed(
        self, crops: torch.Tensor, region_map: torch.Tensor, first: int = 0, inputs: int = 4
    ) -> Iterator[torch.Tensor]:
        """The computed cells [S, C] of layer after layer, the last one aside: what a calibration looks at."""
        if self._native is None:
            layers = self._run_reference(reference.packed_inputs(crops, region_map, first, inputs, self.dtypes[0]))
            yield from (layer.flatten(0, 2) for layer in list(layers)[:-1])
            return
        module = backend.extension()
        crops, region_map = crops.contiguous(), region_map.contiguous()
        yield from self._run_native(module, self._native, crops, region_map, first, inputs, whole=False, keep=True)

    def background(self) -> Iterator[torch.Tensor]:
        """The cells [h * w, C] of layer after layer for an empty image, the last one aside."""
        if self._native is not None:
            yield from (ground.flatten(0, 1) for ground in self._backgrounds)
            return
        layers = list(self._run_reference(torch.zeros((1, *self.size, 4), dtype=self.dtypes[0])))
        yield from (layer.flatten(0, 2) for layer in layers[:-1])

    def _check(self, region_map: torch.Tensor) -> None:
        checks.tensor("region_map", region_map, (None, *self.size), (torch.uint8,))

    def _plan(
        self, module: Any, native: Any, region_map: torch.Tensor, first: int, inputs: int, *, whole: bool, keep: bool
    ) -> Any:
        return module.Plan(
            native, map=region_map.data_ptr(), people=len(region_map), size=self.size, first=first, inputs=inputs,
            whole=whole, keep=keep, threads=torch.get_num_threads(),
        )  # fmt: skip

    @staticmethod
    def _execute(
        plan: Any, native: Any, crops: torch.Tensor, region_map: torch.Tensor, room: torch.Tensor, out: torch.Tensor
    ) -> None:
        plan.run(
            native, crops=crops.data_ptr(), map=region_map.data_ptr(), workspace=room.data_ptr(),
            bytes=room.numel(), out=out.data_ptr(), threads=torch.get_num_threads(),
        )  # fmt: skip

    def _run_native(
        self, module: Any, native: Any, crops: torch.Tensor, region_map: torch.Tensor, first: int, inputs: int,
        *, whole: bool, keep: bool,
    ) -> Iterator[torch.Tensor]:  # fmt: skip
        plan = self._plan(module, native, region_map, first, inputs, whole=whole, keep=keep)
        h, w, channels = self.layers[-1]
        room = torch.empty(plan.bytes, dtype=torch.uint8)
        self._execute(plan, native, crops, region_map, room, torch.empty(len(crops) * inputs, h, w, channels))
        for i, start in enumerate(plan.offsets[:-1]):
            cells = plan.counts[i]
            channels, dtype = self.layers[i][2], self.dtypes[i]
            yield room[start : start + cells * channels * dtype.itemsize].view(dtype).view(cells, channels)

    def _run_reference(self, x: torch.Tensor) -> Iterator[torch.Tensor]:
        layers = [x]
        yield x
        for step, (h, w, _), dtype in zip(self.steps, self.layers[1:], self.dtypes[1:], strict=True):
            if isinstance(step, Pool):
                y = reference.largest(layers[step.layer], *_geometry(step.tap))
            else:
                packed = step.packed
                taps = zip(step.layers, packed.weights, packed.taps, strict=True)
                y = reference.convolution(
                    [(layers[i], weight, tap.stride, tap.padding) for i, weight, tap in taps],
                    packed.bias[: packed.channels],
                    scale=None if packed.scale is None else packed.scale[: packed.channels],
                    residual=None if step.residual is None else layers[step.residual],
                    residual_scale=None if step.residual_scale is None else step.residual_scale[: packed.channels],
                    dtype=dtype,
                    grid=(h, w),
                )
            layers.append(y)
            yield y

    def _take(self, size: int) -> torch.Tensor:
        """Memory of at least ``size`` bytes: new memory costs a page fault every 4 KB, so it is kept."""
        try:
            room = self._rooms.pop()
        except IndexError:
            room = torch.empty(0, dtype=torch.uint8)
        return room if room.numel() >= size else torch.empty(size, dtype=torch.uint8)


def _geometry(tap: Tap) -> tuple[int, int, int]:
    return tap.kernel, tap.stride, tap.padding
