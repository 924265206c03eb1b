"""The CPU's executor: our own kernels, over those cells of each image that a region makes its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

import torch

from mgran_fast.ops.network import Conv, Network, Pool, Work


class Windowed:
    """Runs one set of packed steps on inputs of any size: for each size that is met, the layers of an empty image.

    Args:
        steps: of :mod:`mgran_fast.engine.cpu`.
        windows: whether only such cells are computed; False computes whole images, to the same bits where pooled.
    """

    def __init__(self, steps: Sequence[Conv | Pool], *, windows: bool = True) -> None:
        self.steps, self.windows = tuple(steps), windows
        self._networks: dict[tuple[int, int], Network] = {}
        self._lock = Lock()

    def network(self, size: tuple[int, int]) -> Network:
        """The network for inputs of (H, W) pixels, made when it is first asked for."""
        found = self._networks.get(size)
        if found is None:
            with self._lock:
                if size not in self._networks:
                    self._networks[size] = Network(self.steps, size)
                found = self._networks[size]
        return found

    @contextmanager
    def features(
        self, crops: torch.Tensor, region_map: torch.Tensor, first: int, inputs: int
    ) -> Iterator[torch.Tensor]:
        """Features of the inputs under the regions first, first + 1, ...: :meth:`Network.features`."""
        network = self.network((region_map.shape[1], region_map.shape[2]))
        with network.features(crops, region_map, first, inputs, windows=self.windows) as features:
            yield features

    def work(self, region_map: torch.Tensor, first: int, inputs: int) -> Work:
        """Multiply-adds for these people."""
        network = self.network((region_map.shape[1], region_map.shape[2]))
        return network.work(region_map, first, inputs, windows=self.windows)
