"""Which range of values a byte stands for in each channel of each layer, found on crops of the user's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from mgran_fast.engine.program import Convolution, Program

# Values of a layer that are looked at, and clippings that are tried, as shares of the largest value.
_SAMPLE = 1 << 18
_CLIPPINGS = tuple(i / 40 for i in range(16, 41))
# How far channels get ranges of their own: 0 is one range for a layer, 1 makes every channel fill its bytes. Wide
# channels cost precision in the activations, narrow ones in the weights that read them; half of the way is the usual
# balance (Xiao et al. 2023, SmoothQuant).
_BALANCE = 0.5
# The smallest range of a channel, as a share of its layer's: a channel that was 0 on every crop may wake up.
_SMALLEST = 1e-3


@dataclass(frozen=True, eq=False)
class Calibration:
    """What int8 needs to know of a model's layers, and what it costs. Made by :func:`mgran_fast.calibrate`.

    Attributes:
        scales: of each layer but the last, the input first, float32 [C]: in channel c a byte q stands for q * scale[c].
        means: of the same layers, float32 [C]: the mean of each channel in float32.
        shift: float32 [P, D], by how much int8 moves the pooled features of each input on the average; taken off them.
        people: the number of crops it was found on.
        cosines: for each input of the layout by name: (mean, smallest) cosine between the embeddings of float32 and of
            int8 over those crops that show it; for the whole vector under "all".
    """

    scales: tuple[torch.Tensor, ...]
    means: tuple[torch.Tensor, ...]
    shift: torch.Tensor
    people: int
    cosines: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        rows = [f"int8, calibrated on {self.people} crops; cosine to float32, mean (smallest):"]
        rows += [f"  {name}: {mean:.4f} ({least:.4f})" for name, (mean, least) in self.cosines.items()]
        return "\n".join(rows)


class Ranges:
    """Collects values of layers, batch after batch."""

    def __init__(self) -> None:
        self._largest: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []
        self._cells: list[int] = []
        self._samples: list[list[torch.Tensor]] = []

    def add(self, layers: Iterable[torch.Tensor]) -> None:
        """Layers of one batch, [S, C] each, in their order."""
        for i, layer in enumerate(layers):
            channels = layer.shape[1]
            if i == len(self._largest):
                self._largest.append(torch.zeros(channels))
                self._sums.append(torch.zeros(channels, dtype=torch.float64))
                self._cells.append(0)
                self._samples.append([])
            if len(layer) == 0:
                continue
            values = layer.float()
            largest = values.amax(0)
            if not bool(largest.isfinite().all()):
                raise ValueError(f"layer {i} is not finite: look at the model's weights and statistics")
            self._largest[i] = torch.maximum(self._largest[i], largest)
            self._sums[i] += values.sum(0, dtype=torch.float64)
            self._cells[i] += len(layer)
            # Every so manieth cell, with all of its channels.
            self._samples[i].append(values[:: 1 + values.numel() // (_SAMPLE // 8)].clone())

    def means(self) -> tuple[torch.Tensor, ...]:
        """Of each layer the channels' means."""
        pairs = zip(self._sums, self._cells, strict=True)
        return tuple((total / max(1, cells)).float() for total, cells in pairs)

    def scales(self, program: Program) -> tuple[torch.Tensor, ...]:
        """Of each layer its channels' scales: the clipping of least squared error, shared out among the channels.

        The input is bytes as it is, with scale 1. What pooling makes has the scales of what it reads.
        """
        made = [torch.ones_like(self._largest[0])]
        for i, step in enumerate(program.steps[:-1], 1):
            made.append(self._scale(i) if isinstance(step, Convolution) else made[step.layer])
        return tuple(made)

    def _scale(self, i: int) -> torch.Tensor:
        largest = self._largest[i]
        most = float(largest.amax())
        if most <= 0.0:
            return torch.ones_like(largest)  # a layer of zeros: any scale will do
        ranges = (largest.clamp(min=_SMALLEST * most) / most).pow(_BALANCE) * most
        values = torch.cat(self._samples[i])
        values = values[:: 1 + values.numel() // _SAMPLE] / ranges
        best, least = 1.0, torch.inf
        for clipping in _CLIPPINGS:
            step = clipping / 255
            error = float((((values / step).round().clamp(max=255) * step - values) * ranges).square().sum())
            if error < least:
                best, least = clipping, error
        return ranges * (best / 255)
