"""Checks of the ops' arguments: a clear exception before any pointer is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def tensor(name: str, value: Any, shape: Sequence[int | None], dtypes: Sequence[torch.dtype]) -> torch.Tensor:
    """``value`` if it is a tensor of this shape (None: any size) and one of these dtypes.

    Raises TypeError for another type or dtype, ValueError for another shape.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, not {type(value).__name__}")
    if value.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be {names}, not {str(value.dtype).removeprefix('torch.')}")
    if value.ndim != len(shape) or any(
        want is not None and got != want for got, want in zip(value.shape, shape, strict=True)
    ):
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(f"{name} must have the shape [{wanted}], not {list(value.shape)}")
    return value


def same_device(**tensors: torch.Tensor) -> None:
    """Raises ValueError unless all tensors live on one device."""
    devices = {name: t.device for name, t in tensors.items()}
    if len(set(devices.values())) > 1:
        raise ValueError("on different devices: " + ", ".join(f"{n} on {d}" for n, d in devices.items()))


def same_people(**tensors: torch.Tensor) -> None:
    """Raises ValueError unless all tensors have the same first size."""
    people = {name: t.shape[0] for name, t in tensors.items()}
    first, *others = people.values()
    # Not by a set: a size that torch.export leaves open has no hash.
    if any(count != first for count in others):
        raise ValueError("different numbers of people: " + ", ".join(f"{n} has {c}" for n, c in people.items()))


def size(value: Sequence[int]) -> tuple[int, int]:
    """(height, width), both positive. Raises ValueError."""
    # A tuple of types: torch 2.6 traces no union of them.
    if len(value) != 2 or not all(isinstance(v, (int, torch.SymInt)) and v > 0 for v in value):
        raise ValueError(f"size must be (height, width), two positive integers, not {value!r}")
    return value[0], value[1]
