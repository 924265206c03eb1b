"""Pretrained weights for the trunk."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from mgran_fast.errors import CheckpointError
from mgran_fast.model import MGRAN


def load_trunk(model: MGRAN, path: Path) -> None:
    """Load torchvision's ResNet weights of the trunk from a .pth or .safetensors file. Raises CheckpointError."""
    state = read_state(path)
    try:
        model.ma.trunk.load_torchvision(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The state dict in a .pth or .safetensors file.

    Only tensors are read (``weights_only``): the file cannot run code. Raises CheckpointError.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; --weights wants torchvision's .pth or a .safetensors file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # bytes that are no weights fail in many ways
        # torch's own words advise to switch the safety off, so they stay in the cause.
        raise CheckpointError(
            f"{path}: not readable as weights; pass torchvision's .pth or a .safetensors file, undamaged"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state dict")
    return state
