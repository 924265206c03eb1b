"""Pretrained weights for the trunk."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mgran_fast.errors import CheckpointError
from mgran_fast.model import MGRAN


def load_trunk(model: MGRAN, path: Path) -> None:
    """Load torchvision's ResNet weights of the model's trunk from a .pth or .safetensors file.

    Only tensors are read (``weights_only``): the file cannot run code. Raises CheckpointError.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; --weights wants torchvision's .pth or a .safetensors file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not readable as weights ({reason})") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}, not a state dict")
    try:
        model.ma.trunk.load_torchvision(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
