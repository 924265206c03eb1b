"""Random draws that stay the same: only ``Generator.random`` of PCG64 is used, on a stream named by integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

# One number a purpose, so that no two purposes ever read the same stream.
PERSON, CAMERA, VIEW, PASSER_BY = 1, 2, 3, 4


class Dice:
    """Draws of the stream that ``keys`` (integers, 0 or more) name."""

    def __init__(self, *keys: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(keys)))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return float(self._generator.random()) < probability

    def sign(self) -> float:
        """-1 or 1."""
        return 1.0 if self.chance(0.5) else -1.0

    def integer(self, below: int) -> int:
        """A whole number in [0, below)."""
        return min(int(float(self._generator.random()) * below), below - 1)

    def choice(self, values: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of ``values``; with ``weights`` (any positive scale) not all alike."""
        if weights is None:
            return values[self.integer(len(values))]
        point = self.uniform(0.0, sum(weights))
        for value, weight in zip(values, weights, strict=True):
            point -= weight
            if point < 0:
                return value
        return values[-1]

    def grain(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Noise of mean 0 and deviation 1: the sum of two uniform draws (a triangular distribution)."""
        first = self._generator.random(shape, dtype=np.float32)
        second = self._generator.random(shape, dtype=np.float32)
        # The difference of two uniform draws has variance 1/6.
        noise: NDArray[np.float32] = (first - second) * np.float32(6.0**0.5)
        return noise
