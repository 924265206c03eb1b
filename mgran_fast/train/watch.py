"""Losses that are no numbers: seen at the step where they begin, told with the pictures of that step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

#: Steps between two looks on a GPU. A look waits for it; on a CPU there is nothing to wait for.
EVERY = 20


class DivergedError(FloatingPointError):
    """The loss is no number any more.

    Attributes:
        pictures: those of the step, all ranks together.
    """

    def __init__(self, message: str, pictures: Sequence[Path]) -> None:
        super().__init__(message)
        self.pictures = tuple(pictures)


class Step(NamedTuple):
    """What is kept of a step until it has been looked at.

    Attributes:
        number: of the optimizer's step, from 0.
        losses: scalars by name.
        indices: the places of its pictures in the training set.
        rate: the learning rate.
        scale: of the loss in float16; None otherwise.
    """

    number: int
    losses: Mapping[str, torch.Tensor]
    indices: torch.Tensor
    rate: float
    scale: torch.Tensor | None = None


class Watch:
    """Looks at the losses of every step, on a GPU at 20 steps together, so that no step waits for it.

    Args:
        pictures: the training set's, by place; empty where they are not known.
        every: steps between two looks; None for what the device wants.
    """

    def __init__(self, pictures: Sequence[Path] = (), every: int | None = None) -> None:
        self.pictures, self.every = pictures, every
        self._steps: list[Step] = []

    def add(self, step: Step) -> None:
        """Take up a step. Raises DivergedError."""
        self._steps.append(step)
        if len(self._steps) >= (self.every or (1 if step.indices.device.type == "cpu" else EVERY)):
            self.check()

    def check(self) -> None:
        """Look at what was taken up. Raises DivergedError for the first step with a loss that is no number."""
        steps, self._steps = self._steps, []
        if not steps:
            return
        values = torch.stack([torch.stack([v.detach().float() for v in s.losses.values()]) for s in steps]).cpu()
        for step, row in zip(steps, values.tolist(), strict=True):
            told = [f"{name} {value:.4g}" for name, value in zip(step.losses, row, strict=True)]
            if not all(value - value == 0 for value in row):
                raise self._error(step, ", ".join(told))

    def _error(self, step: Step, losses: str) -> DivergedError:
        places = step.indices.unique().tolist()
        files = [self.pictures[place] for place in places if place < len(self.pictures)]
        scale = "" if step.scale is None else f", scale {float(step.scale):g}"
        shown = ", ".join(path.name for path in files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        return DivergedError(
            f"the loss is no number at step {step.number} ({losses}; learning rate {step.rate:.3g}{scale}"
            + (f"; pictures {shown}" if files else "")
            + "): lower the learning rate, or set clip",
            files,
        )


def scale_of(trainer: Any) -> torch.Tensor | None:
    """The scale of the loss that Lightning's precision plugin uses now, on the device; None without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    scale = getattr(scaler, "_scale", None)
    return scale.clone() if isinstance(scale, torch.Tensor) else None
