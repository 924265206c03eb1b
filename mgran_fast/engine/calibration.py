"""Which range of values a byte stands for in each layer, found on crops of the user's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

# Values of a layer that are looked at, and clippings that are tried, as shares of the largest value.
_SAMPLE = 1 << 19
_CLIPPINGS = tuple(i / 40 for i in range(8, 41))


@dataclass(frozen=True)
class Calibration:
    """What int8 needs to know of a model's layers, and what it costs.

    Attributes:
        layer_scales: of each layer but the last, the input first: a byte q stands for q * scale.
        people: the number of crops it was found on.
        cosines: for each input of the layout by name: (mean, smallest) cosine between the embeddings of float32 and of
            int8 over those crops that show it; for the whole vector under "all".
    """

    layer_scales: tuple[float, ...]
    people: int
    cosines: dict[str, tuple[float, float]]

    def __str__(self) -> str:
        rows = [f"int8, calibrated on {self.people} crops; cosine to float32, mean (smallest):"]
        rows += [f"  {name}: {mean:.4f} ({least:.4f})" for name, (mean, least) in self.cosines.items()]
        return "\n".join(rows)


class Ranges:
    """Collects values of layers, batch after batch, and says their scales."""

    def __init__(self) -> None:
        self._largest: list[float] = []
        self._samples: list[list[torch.Tensor]] = []

    def add(self, layers: Iterable[torch.Tensor]) -> None:
        """Layers of one batch, [S, C] each, in their order."""
        for i, layer in enumerate(layers):
            if i == len(self._largest):
                self._largest.append(0.0)
                self._samples.append([])
            if layer.numel() == 0:
                continue
            flat = layer.flatten()
            largest = float(flat.amax())
            if not largest < torch.inf:
                raise ValueError(f"layer {i} holds {largest}: the model's weights, or its statistics, are not finite")
            self._largest[i] = max(self._largest[i], largest)
            # Every so manieth value: a stride prime to the number of channels sees all of them.
            stride = flat.numel() // _SAMPLE
            self._samples[i].append(flat[:: stride | 1].float().clone())

    def scales(self) -> tuple[float, ...]:
        """For each layer the scale whose bytes have the least squared error over the values seen.

        The input is bytes as it is, and its scale 1.
        """
        return (1.0, *(self._scale(i) for i in range(1, len(self._largest))))

    def _scale(self, i: int) -> float:
        largest = self._largest[i]
        if largest <= 0.0:
            return 1.0  # a layer of zeros: any scale will do
        values = torch.cat(self._samples[i])
        values = values[values > 0]
        values = values[:: max(1, len(values) // _SAMPLE)]
        best, least = largest / 255, torch.inf
        for clipping in _CLIPPINGS:
            scale = clipping * largest / 255
            error = float(((values / scale).round().clamp(max=255) * scale - values).square().sum())
            if error < least:
                best, least = scale, error
        return best
